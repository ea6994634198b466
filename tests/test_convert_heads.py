"""Conversion of detectors and pose networks with their heads.

`checkpoint` below spells the names of the other systems a second time, in loops instead of rules.
"""
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from test_deform import slow_dcn

from gluon_resnest.errors import UserError
from gluon_resnest.interop import checkpoints, convert
from gluon_resnest.interop.weights import load_backbone, load_parameters, save_parameters
from gluon_resnest.models.detection.anchors import base_anchors
from gluon_resnest.models.detection.build import NORMS, detector
from gluon_resnest.models.detection.conventions import DETECTRON2, MMDETECTION
from gluon_resnest.zoo import get_model, pose_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import convert_weights  # noqa: E402

TINY = "resnest_tiny"
CLASSES, CHANNELS, UNITS = 3, 16, 24        # 4 and 12 rows in the predictors
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean",
        "running_var": "running_var"}


class Listing:
    """Collects (their name, our name, shape)."""

    def __init__(self):
        self.rows = []

    def layer(self, theirs, ours, shape, bias=True):
        self.rows.append((theirs + ".weight", ours + ".weight", shape))
        if bias:
            self.rows.append((theirs + ".bias", ours + ".bias", shape[:1]))

    def norm(self, theirs, ours, channels):
        self.rows += [(f"{theirs}.{a}", f"{ours}.{b}", (channels,)) for a, b in NORM.items()]


def list_backbone(out, layout, dcn=False):
    """Lists the tiny network: stem 8, one bottleneck of width 8, 16, 32, 64 in each stage."""
    d2, before = layout == "detectron2", "features.backbone."
    stem = [("conv1_1", "0", "1", 3, 8), ("conv1_2", "3", "4", 8, 8), ("conv1_3", "6", "7", 8, 16)]
    root = "backbone.bottom_up." if d2 else "backbone."
    for name, conv, norm, inputs, channels in stem:
        out.layer(f"{root}stem.{name}" if d2 else f"{root}stem.{conv}", f"{before}conv1.{conv}",
                  (channels, inputs, 3, 3), bias=False)
        out.norm(f"{root}stem.{name}.norm" if d2 else f"{root}stem.{norm}",
                 f"{before}bn1" if norm == "7" else f"{before}conv1.{norm}", channels)
    inputs = 16
    for stage, width in ((1, 8), (2, 16), (3, 32), (4, 64)):
        theirs = f"{root}res{stage + 1}.0." if d2 else f"{root}layer{stage}.0."
        ours, hidden = f"{before}layer{stage}.0.", 32
        for number, shape in ((1, (width, inputs, 1, 1)), (3, (4 * width, width, 1, 1))):
            out.layer(f"{theirs}conv{number}", f"{ours}conv{number}", shape, bias=False)
            out.norm(f"{theirs}conv{number}.norm" if d2 else f"{theirs}bn{number}",
                     f"{ours}bn{number}", shape[0])
        out.layer(f"{theirs}conv2.conv", f"{ours}conv2.conv", (2 * width, width // 2, 3, 3), False)
        if dcn and stage > 1:
            out.layer(f"{theirs}conv2_offset", f"{ours}conv2.conv.offset",
                      (54, width // 2, 3, 3))
        out.norm(f"{theirs}conv2.bn0", f"{ours}conv2.bn", 2 * width)
        out.layer(f"{theirs}conv2.fc1", f"{ours}conv2.fc1", (hidden, width, 1, 1))
        out.norm(f"{theirs}conv2.bn1", f"{ours}conv2.bn1", hidden)
        out.layer(f"{theirs}conv2.fc2", f"{ours}conv2.fc2", (2 * width, hidden, 1, 1))
        out.layer(f"{theirs}shortcut" if d2 else f"{theirs}downsample.1", f"{ours}downsample.1",
                  (4 * width, inputs, 1, 1), bias=False)
        out.norm(f"{theirs}shortcut.norm" if d2 else f"{theirs}downsample.2",
                 f"{ours}downsample.2", 4 * width)
        inputs = 4 * width


def list_conv(out, layout, theirs, ours, shape, normed):
    """Lists a convolution with its norm, which is within the convolution or beside it."""
    d2 = layout == "detectron2"
    out.layer(theirs if d2 else theirs + ".conv", ours + ".conv", shape, bias=not normed)
    if normed:
        out.norm(theirs + (".norm" if d2 else ".bn"), ours + ".norm", shape[0])


def listed(layout, family, box_head="4conv1fc", norms="batch", dcn=False):
    """Returns the (their name, our name, shape) of every tensor of a detector."""
    d2, out = layout == "detectron2", Listing()
    cascade, normed = family.startswith("cascade"), norms == "batch"
    list_backbone(out, layout, dcn)
    for level, inputs in enumerate((32, 64, 128, 256)):
        for ours, theirs, shape in (
                ("laterals", f"backbone.fpn_lateral{level + 2}" if d2
                 else f"neck.lateral_convs.{level}", (CHANNELS, inputs, 1, 1)),
                ("outputs", f"backbone.fpn_output{level + 2}" if d2
                 else f"neck.fpn_convs.{level}", (CHANNELS, CHANNELS, 3, 3))):
            list_conv(out, layout, theirs, f"features.fpn.{ours}.{level}", shape, d2 and normed)
    rpn = ("proposal_generator.rpn_head.conv", "proposal_generator.rpn_head.objectness_logits",
           "proposal_generator.rpn_head.anchor_deltas") if d2 else (
               "rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg")
    for theirs, ours, shape in zip(rpn, ("conv", "logits", "deltas"), (
            (CHANNELS, CHANNELS, 3, 3), (3, CHANNELS, 1, 1), (12, CHANNELS, 1, 1))):
        out.layer(theirs, f"rpn.{ours}", shape)
    for stage in range(3 if cascade else 1):
        number = f".{stage}" if cascade else ""
        head = f"roi_heads.box_head{number}" if d2 else f"roi_head.bbox_head{number}"
        predictor = f"roi_heads.box_predictor{number}" if d2 else head
        ours = f"stages.{stage}"
        for conv in range(4 if box_head == "4conv1fc" else 0):
            theirs = f"{head}.conv{conv + 1}" if d2 else f"{head}.shared_convs.{conv}"
            list_conv(out, layout, theirs, f"{ours}.head.convs.{conv}",
                      (CHANNELS, CHANNELS, 3, 3), normed)
        for dense in range(1 if box_head == "4conv1fc" else 2):
            out.layer(f"{head}.fc{dense + 1}" if d2 else f"{head}.shared_fcs.{dense}",
                      f"{ours}.head.fcs.{dense}", (UNITS, UNITS if dense else CHANNELS * 49))
        out.layer(f"{predictor}.cls_score" if d2 else f"{predictor}.fc_cls",
                  f"{ours}.predictor.logits", (CLASSES + 1, UNITS))
        out.layer(f"{predictor}.bbox_pred" if d2 else f"{predictor}.fc_reg",
                  f"{ours}.predictor.deltas", (4 if cascade else 4 * CLASSES, UNITS))
    for mask in range((1 if d2 or not cascade else 3) if "mask" in family else 0):
        number = f".{mask}" if cascade and not d2 else ""
        head = "roi_heads.mask_head" if d2 else f"roi_head.mask_head{number}"
        for conv in range(4):
            list_conv(out, layout, f"{head}.mask_fcn{conv + 1}" if d2 else f"{head}.convs.{conv}",
                      f"mask_heads.{mask}.convs.{conv}", (CHANNELS, CHANNELS, 3, 3), normed)
        out.layer(f"{head}.deconv" if d2 else f"{head}.upsample", f"mask_heads.{mask}.deconv",
                  (CHANNELS, CHANNELS, 2, 2))
        out.layer(f"{head}.predictor" if d2 else f"{head}.conv_logits", f"mask_heads.{mask}.logits",
                  (CLASSES, CHANNELS, 1, 1))
    return out.rows


def checkpoint(layout, family="mask_rcnn", **options):
    """Returns a checkpoint of random numbers, and {our name: array} of what it means."""
    rows = listed(layout, family, **options)
    theirs = {name: np.random.randn(*shape).astype(np.float32) for name, _, shape in rows}
    return theirs, {ours: theirs[name] for name, ours, _ in rows}


def equal(found, expected):
    """Says whether two {name: array} hold the same bits."""
    return {name: value.tobytes() for name, value in found.items()} == {
        name: value.tobytes() for name, value in expected.items()}


SYSTEMS = {"detectron2": "detectron2", "mmdet": "mmdetection"}
FORMS = [(layout, family, head, norms, dcn)
         for layout, family, head, norms in itertools.product(
             SYSTEMS, ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"),
             ("2fc", "4conv1fc"), ("batch", "frozen"))
         for dcn in ((False, True) if layout == "detectron2" else (False,))]


@pytest.mark.parametrize("layout, family, head, norms, dcn", FORMS)
def test_every_detector_converts_and_converts_back_bit_identical(layout, family, head, norms, dcn):
    theirs, ours = checkpoint(layout, family, box_head=head, norms=norms, dcn=dcn)
    done = convert.to_gluon(theirs, model=TINY)
    assert equal(done.tensors, ours)
    assert done.model == f"{family}_fpn_resnest_tiny{'_dcn' if dcn else ''}_coco"
    assert done.conventions == SYSTEMS[layout] and not done.dropped
    assert equal(convert.from_gluon(done.tensors, layout, done.conventions), theirs)
    marked = convert.from_gluon(done.tensors, "gluon", done.conventions)
    again = convert.to_gluon(marked, model=TINY)
    assert equal(again.tensors, ours) and again.conventions == done.conventions


@pytest.mark.parametrize("layout, family, head, norms, dcn", [
    ("detectron2", "cascade_mask_rcnn", "4conv1fc", "batch", True),
    ("detectron2", "faster_rcnn", "2fc", "frozen", False),
    ("mmdet", "cascade_mask_rcnn", "4conv1fc", "frozen", False),
    ("mmdet", "mask_rcnn", "2fc", "batch", False)])
def test_the_line_to_build_makes_the_network_that_the_file_fits(tmp_path, layout, family, head,
                                                                norms, dcn):
    theirs, _ = checkpoint(layout, family, box_head=head, norms=norms, dcn=dcn)
    source, target = str(tmp_path / "theirs.pth"), str(tmp_path / "ours.params")
    checkpoints.write_weights(source, {f"module.{name}": value for name, value in theirs.items()},
                              "torch", {})
    convert_weights.main([source, target, "--model", TINY])
    done = convert.to_gluon(checkpoints.read_weights(target).tensors, model=TINY)
    net = eval(done.call, {"detector": detector, "get_model": get_model})
    load_parameters(net, target)
    ours = {name: param.data().asnumpy() for name, param
            in net._collect_params_with_prefix().items()}
    assert equal(convert.from_gluon(ours, layout, done.conventions), theirs)


@pytest.mark.parametrize("backbone", ["resnest50", "resnest101"])
def test_the_backbone_of_a_detector_is_recognised(backbone):
    net = detector(f"cascade_rcnn_fpn_{backbone}_dcn_coco", get_model)
    tensors = {name: np.broadcast_to(np.float32(0), param.shape)
               for name, param in net._collect_params_with_prefix().items()}
    done = convert.to_gluon(convert.from_gluon(tensors, "detectron2", "detectron2"))
    assert done.call == (f"detector('cascade_rcnn_fpn_{backbone}_dcn_coco', get_model, classes=80, "
                         "conventions='detectron2', norms='batch', box_head='4conv1fc')")


def test_unusual_sizes_are_read_off():
    net = detector("mask_rcnn_fpn_resnest_tiny_coco", get_model, classes=5, mask_convs=8,
                   norms=replace(NORMS["batch"], fpn=None), channels=8, fc_channels=32)
    tensors = {name: np.zeros(param.shape, np.float32)
               for name, param in net._collect_params_with_prefix().items()}
    done = convert.to_gluon(convert.from_gluon(tensors, "detectron2", "detectron2"), model=TINY)
    assert done.call.endswith("norms=Norms(backbone='batch', fpn=None, heads='batch'), "
                              "box_head='4conv1fc', mask_convs=8, channels=8, fc_channels=32)")


# --- both sides must agree --------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "roi_heads.box_predictor.bbox_pred.bias", "backbone.fpn_output3.weight",
    "proposal_generator.rpn_head.anchor_deltas.weight"])
def test_a_missing_tensor_of_a_head_is_named(name):
    theirs, _ = checkpoint("detectron2")
    del theirs[name]
    with pytest.raises(UserError, match=f"does not fit mask_rcnn_fpn_resnest_tiny_coco; 1 missing: "
                       f"{name};.*--backbone"):
        convert.to_gluon(theirs, model=TINY)


@pytest.mark.parametrize("layout, name", [
    ("detectron2", "roi_heads.box_head.fc3.weight"), ("detectron2", "roi_heads.keypoint.weight"),
    ("mmdet", "roi_head.bbox_head.cls_fcs.0.weight"), ("mmdet", "neck.fpn_convs.4.conv.weight")])
def test_an_unknown_tensor_of_a_head_is_named(layout, name):
    theirs, _ = checkpoint(layout)
    theirs[name] = np.zeros((2, 2), np.float32)
    with pytest.raises(UserError, match=f"1 unexpected: {name}"):
        convert.to_gluon(theirs, model=TINY)


def test_a_mis_shaped_tensor_of_a_head_is_named():
    theirs, _ = checkpoint("mmdet")
    theirs["roi_head.bbox_head.fc_reg.weight"] = np.zeros((4, UNITS), np.float32)
    with pytest.raises(UserError, match=r"1 mis-shaped: roi_head.bbox_head.fc_reg.weight "
                       r"\(expected \(12, 24\), found \(4, 24\)\)"):
        convert.to_gluon(theirs, model=TINY)


def test_a_head_without_what_tells_its_size_is_refused():
    theirs, _ = checkpoint("mmdet")
    del theirs["roi_head.bbox_head.fc_cls.weight"]
    with pytest.raises(UserError, match="fc_cls.weight is absent or no weight.*mmdetection detector"
                       "; --backbone"):
        convert.to_gluon(theirs, model=TINY)


@pytest.mark.parametrize("name, shape, sentence", [
    ("proposal_generator.rpn_head.conv.weight", (0, 16, 3, 3), "conv.weight is absent or no"),
    ("roi_heads.box_predictor.cls_score.weight", (0, 24), "cls_score.weight is absent or no"),
    ("roi_heads.box_predictor.cls_score.weight", (1, 24), "1 row, expected the background and"),
    ("roi_heads.box_head.fc1.weight", (), "fc1.weight is absent or no")])
def test_sizes_of_no_network_are_refused(name, shape, sentence):
    theirs, _ = checkpoint("detectron2")
    theirs[name] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=sentence):
        convert.to_gluon(theirs, model=TINY)


def test_what_has_no_use_is_dropped_with_a_reason():
    theirs, _ = checkpoint("detectron2")
    theirs["pixel_mean"] = np.float32(DETECTRON2.mean).reshape(3, 1, 1)
    theirs["pixel_std"] = np.float32(DETECTRON2.std).reshape(3, 1, 1)
    theirs["backbone.bottom_up.stem.conv1_1.norm.num_batches_tracked"] = np.ones(1, np.int64)
    assert convert.to_gluon(theirs, model=TINY).dropped == {
        "backbone.bottom_up.stem.conv1_1.norm.num_batches_tracked":
            "counters of PyTorch's batch norms",
        "pixel_mean": "said by the conventions", "pixel_std": "said by the conventions"}


def test_other_pixels_than_those_of_the_conventions_are_refused():
    theirs, _ = checkpoint("detectron2")
    theirs["pixel_mean"] = np.float32(DETECTRON2.mean[::-1]).reshape(3, 1, 1)
    with pytest.raises(UserError, match=r"pixel_mean \(103.939, 116.779, 123.68\), the conventions "
                       "'detectron2' say"):
        convert.to_gluon(theirs, model=TINY)
    changed = replace(DETECTRON2, mean=DETECTRON2.mean[::-1])
    assert convert.to_gluon(theirs, model=TINY, conventions=changed).conventions == "detectron2"


def test_only_the_backbone_is_taken_if_asked_for(tmp_path):
    for layout in SYSTEMS:
        theirs, ours = checkpoint(layout, dcn=layout == "detectron2")
        done = convert.to_gluon(theirs, model=TINY, backbone=True)
        before = "features.backbone."
        assert equal(done.tensors, {name[len(before):]: value for name, value in ours.items()
                                    if name.startswith(before)})
        assert set(done.dropped.values()) == {"heads that are not converted"}
        marked = convert.from_gluon(ours, "gluon", SYSTEMS[layout])
        assert equal(convert.to_gluon(marked, model=TINY, backbone=True).tensors, done.tensors)


@pytest.mark.parametrize("wrong, sentence", [
    (lambda d: convert.to_gluon(d[0], model="faster_rcnn_fpn_resnest_tiny_coco"),
     "the file holds a mask_rcnn_fpn_resnest_tiny_coco, not a faster_rcnn_fpn_resnest_tiny_coco"),
    (lambda d: convert.to_gluon(d[0], model=TINY, conventions="mmdetection"),
     "a file of detectron2 has the conventions 'detectron2', not 'mmdetection'"),
    (lambda d: convert.to_gluon(d[1], model=TINY), "does not say which conventions"),
    (lambda d: convert.from_gluon(d[1], "mmdet", "detectron2"),
     "has the conventions 'detectron2', the layout mmdet means 'mmdetection'"),
    (lambda d: convert.from_gluon(d[1], "torch", "detectron2"),
     "holds a detector, for which the layout torch has no names; choose one of detectron2, mmdet"),
    (lambda d: convert.from_gluon(d[1], "gluoncv", "gluoncv"),
     "GluonCV has no such networks.*mask_heads.0.convs.0.conv.weight")])
def test_what_cannot_be_converted_is_one_sentence(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        wrong(checkpoint("detectron2"))


# --- a file belongs to its conventions --------------------------------------------------------


def test_a_converted_file_loads_into_its_own_conventions_only(tmp_path):
    """A cascade without masks and norms has the same names and shapes in two systems."""
    theirs, ours = checkpoint("mmdet", "cascade_rcnn", norms="frozen")
    file = str(tmp_path / "ours.params")
    checkpoints.write_weights(file, convert.from_gluon(ours, "gluon", "mmdetection"), "params", {})
    options = dict(classes=CLASSES, norms="frozen", channels=CHANNELS, fc_channels=UNITS)
    name = "cascade_rcnn_fpn_resnest_tiny_coco"
    right = detector(name, get_model, conventions="mmdetection", **options)
    load_parameters(right, file)
    wrong = detector(name, get_model, conventions="detectron2", **options)
    with pytest.raises(UserError, match="holds a detector of the conventions 'mmdetection', the "
                       "net has 'detectron2'.*build it with conventions='mmdetection'"):
        load_parameters(wrong, file)
    save_parameters(right, tmp_path / "saved.params")
    with pytest.raises(UserError, match="holds a detector of the conventions 'mmdetection'"):
        load_parameters(wrong, tmp_path / "saved.params")
    load_parameters(right, tmp_path / "saved.params")
    right.save_parameters(str(tmp_path / "gluon.params"))       # says nothing: only names count
    load_parameters(wrong, str(tmp_path / "gluon.params"))
    with pytest.raises(UserError, match="missing"):             # no classifier's file
        load_backbone(right.features.backbone, file)


# --- what the numbers mean --------------------------------------------------------------------


def test_offsets_of_detectron2_move_the_samples_they_moved_there():
    """The slow twin reads detectron2's tensors: thirds of the channels, the last are the masks."""
    theirs, _ = checkpoint("detectron2", "faster_rcnn", dcn=True)
    done = convert.to_gluon(theirs, model=TINY)
    net = eval(done.call, {"detector": detector, "get_model": get_model})
    net.initialize()
    layer = net.features.backbone.layer2[0].conv2.conv
    for name, param in layer._collect_params_with_prefix().items():
        param.set_data(mx.nd.array(done.tensors[f"features.backbone.layer2.0.conv2.conv.{name}"]))
    x = np.random.randn(1, 16, 5, 4).astype(np.float32)
    weight = theirs["backbone.bottom_up.res3.0.conv2_offset.weight"]
    bias = theirs["backbone.bottom_up.res3.0.conv2_offset.bias"]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    said = np.zeros((1, 54, 5, 4))
    for channel, row, column in np.ndindex(54, 5, 4):
        inputs = slice(0, 8) if channel < 27 else slice(8, 16)      # two deformable groups
        window = padded[0, inputs, row:row + 3, column:column + 3]
        said[0, channel, row, column] = (window * weight[channel]).sum() + bias[channel]
    first, second, third = np.split(said, 3, axis=1)
    expected = slow_dcn(x, np.concatenate([first, second], axis=1), 1 / (1 + np.exp(-third)),
                        theirs["backbone.bottom_up.res3.0.conv2.conv.weight"], 1, 1, 2, 2)
    np.testing.assert_allclose(layer(mx.nd.array(x)).asnumpy(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout, logits, deltas", [
    ("detectron2", "proposal_generator.rpn_head.objectness_logits",
     "proposal_generator.rpn_head.anchor_deltas"),
    ("mmdet", "rpn_head.rpn_cls", "rpn_head.rpn_reg")])
def test_channel_a_of_the_rpn_scores_the_anchor_of_shape_a(layout, logits, deltas):
    theirs, _ = checkpoint(layout, "faster_rcnn")
    for name, length in ((logits, 3), (deltas, 12)):
        theirs[f"{name}.weight"][:] = 0
        theirs[f"{name}.bias"] = np.arange(length, dtype=np.float32)
    done = convert.to_gluon(theirs, model=TINY)
    net = eval(done.call, {"detector": detector, "get_model": get_model})
    net.initialize()
    for name, param in net._collect_params_with_prefix().items():
        param.set_data(mx.nd.array(done.tensors[name]))
    maps = [mx.nd.ones((1, CHANNELS, 2, 3))] * 5
    scores, moves, anchors = net.rpn(*maps)
    x1, y1, x2, y2 = anchors[0].asnumpy()[0].T
    shapes = np.log2((y2 - y1) / (x2 - x1)).round()     # ratios 1/2, 1, 2: shape 0, 1, 2
    np.testing.assert_array_equal(scores[0].asnumpy()[0], shapes + 1)
    np.testing.assert_array_equal(moves[0].asnumpy()[0],
                                  4 * (shapes + 1)[:, None] + np.arange(4))


@pytest.mark.parametrize("settings", [DETECTRON2, MMDETECTION])
def test_anchors_are_those_of_both_systems(settings):
    """detectron2 divides an area, mmdetection scales both sides of 8 strides by roots."""
    for stride, size in zip((4, 8, 16, 32, 64), settings.anchor_sizes):
        found = base_anchors(stride, size, settings)
        for anchor, ratio in zip(found, (0.5, 1.0, 2.0)):
            width = (size ** 2 / ratio) ** 0.5
            assert np.allclose(anchor, np.array([-width, -width * ratio, width, width * ratio]) / 2)
            width, height = 8 * stride / ratio ** 0.5, 8 * stride * ratio ** 0.5
            assert np.allclose(anchor, np.array([-width, -height, width, height]) / 2)


# --- GluonCV's published detectors ------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    """Returns GluonCV's detector on ResNeSt-50 with random parameters and statistics."""
    model_zoo = pytest.importorskip("gluoncv.model_zoo", reason="needs gluoncv")
    net = model_zoo.get_model("faster_rcnn_fpn_syncbn_resnest50_coco", pretrained_base=False,
                              num_devices=1)
    net.initialize()
    # Two passes fix the deferred shapes; the whole network would take long.
    maps = net.features(mx.nd.zeros((1, 3, 64, 64)))
    net.rpn.rpn_head(maps[0])
    features = net.box_features(mx.nd.zeros((1, 256, 7, 7)))
    net.class_predictor(features)
    net.box_predictor(features)
    random = np.random.RandomState(0)
    for name, param in net.collect_params().items():
        if name.endswith(("gamma", "var")):
            param.set_data(mx.nd.array(random.uniform(0.5, 1.5, param.shape)))
        elif "anchor" not in name:
            deviation = 0.1 if len(param.shape) == 1 else (2 / np.prod(param.shape[1:])) ** 0.5
            param.set_data(mx.nd.array(random.normal(0, deviation, param.shape)))
    return net


def close(found, expected):
    """Agreement within 3e-4 of the largest: an epsilon of 1e-5 in the pyramid makes 1.3e-3."""
    return (found - expected).abs().max() <= 3e-4 * expected.abs().max()


def test_gluoncvs_detector_computes_the_same_after_conversion(theirs, tmp_path):
    source, target = str(tmp_path / "theirs.params"), str(tmp_path / "ours.params")
    theirs.save_parameters(source)
    convert_weights.main([source, target])
    file = checkpoints.read_weights(source)
    done = convert.to_gluon(file.tensors)
    assert done.call == ("detector('faster_rcnn_fpn_resnest50_coco', get_model, classes=80, "
                         "conventions='gluoncv', norms='batch', box_head='4conv1fc')")
    assert set(done.dropped) == {f"rpn.anchor_generator.{level}.anchors" for level in range(5)}
    net = eval(done.call, {"detector": detector, "get_model": get_model})
    load_parameters(net, target)
    image = mx.nd.array(np.random.RandomState(1).rand(1, 3, 64, 96))
    maps, found = theirs.features(image), net.features(image)
    for ours, other in zip(found, maps):
        assert close(ours, other)
    pooled = mx.nd.array(np.random.RandomState(2).rand(2, 256, 7, 7))
    features = theirs.box_features(pooled)
    logits, deltas = net.stages[0](pooled)
    expected = theirs.class_predictor(features)
    assert close(logits[:, :80], expected[:, 1:]) and close(logits[:, 80], expected[:, 0])
    assert close(deltas.reshape((2, -1)), theirs.box_predictor(features))
    scores, moves, anchors = net.rpn(*maps)
    for level, feature_map in enumerate(maps):
        hidden = theirs.rpn.rpn_head.conv1(feature_map)
        for ours, layer in ((scores, theirs.rpn.rpn_head.score), (moves, theirs.rpn.rpn_head.loc)):
            assert close(ours[level].reshape((-1,)),
                         layer(hidden).transpose((0, 2, 3, 1)).reshape((-1,)))
        assert close(anchors[level], theirs.rpn.anchor_generator[level](feature_map))
    back = convert.from_gluon(done.tensors, "gluoncv", "gluoncv")
    # The pyramid's norms have scales that its network ignores (fix_gamma): they come back as 1.
    assert equal(back, {
        name: np.ones_like(value) if name.startswith("features.P") and name.endswith("gamma")
        else value for name, value in file.tensors.items() if name not in done.dropped})


def test_gluoncvs_detector_with_other_anchors_is_refused(theirs, tmp_path):
    source = str(tmp_path / "theirs.params")
    theirs.save_parameters(source)
    tensors = checkpoints.read_weights(source).tensors
    tensors["rpn.anchor_generator.2.anchors"] = tensors["rpn.anchor_generator.2.anchors"] * 2
    with pytest.raises(UserError, match="anchors of level p4 differ from those of the conventions"):
        convert.to_gluon(tensors)


# --- pose -------------------------------------------------------------------------------------


def listed_pose(head):
    """Returns the (their name, our name, shape) of every tensor of mmpose's SimplePose."""
    out = Listing()
    for number, (inputs, channels) in enumerate(((3, 8), (8, 8), (8, 16))):
        out.layer(f"backbone.stem.{number}.conv", f"backbone.conv1.{3 * number}",
                  (channels, inputs, 3, 3), bias=False)
        out.norm(f"backbone.stem.{number}.bn",
                 "backbone.bn1" if number == 2 else f"backbone.conv1.{3 * number + 1}", channels)
    inputs = 16
    for stage, width in ((1, 8), (2, 16), (3, 32), (4, 64)):
        name, shortcut = f"backbone.layer{stage}.0.", 0 if stage == 1 else 1
        for number, shape in ((1, (width, inputs, 1, 1)), (3, (4 * width, width, 1, 1))):
            out.layer(f"{name}conv{number}", f"{name}conv{number}", shape, bias=False)
            out.norm(f"{name}bn{number}", f"{name}bn{number}", shape[0])
        out.layer(f"{name}conv2.conv", f"{name}conv2.conv", (2 * width, width // 2, 3, 3), False)
        out.norm(f"{name}conv2.bn0", f"{name}conv2.bn", 2 * width)
        out.layer(f"{name}conv2.fc1", f"{name}conv2.fc1", (32, width, 1, 1))
        out.norm(f"{name}conv2.bn1", f"{name}conv2.bn1", 32)
        out.layer(f"{name}conv2.fc2", f"{name}conv2.fc2", (2 * width, 32, 1, 1))
        out.layer(f"{name}downsample.{shortcut}", f"{name}downsample.1",
                  (4 * width, inputs, 1, 1), bias=False)
        out.norm(f"{name}downsample.{shortcut + 1}", f"{name}downsample.2", 4 * width)
        inputs = 4 * width
    for number in range(3):
        out.layer(f"{head}.deconv_layers.{3 * number}", f"deconv_layers.{3 * number}",
                  (inputs, 256, 4, 4), bias=False)
        out.norm(f"{head}.deconv_layers.{3 * number + 1}", f"deconv_layers.{3 * number + 1}", 256)
        inputs = 256
    out.layer(f"{head}.final_layer", "final_layer", (5, 256, 1, 1))
    return out.rows


@pytest.mark.parametrize("head", ["head", "keypoint_head"])
def test_pose_networks_of_mmpose_convert_whole(tmp_path, head, capsys):
    rows = listed_pose(head)
    theirs = {name: np.random.randn(*shape).astype(np.float32) for name, _, shape in rows}
    source, target = str(tmp_path / "theirs.pth"), str(tmp_path / "ours.params")
    checkpoints.write_weights(source, theirs, "torch", {})
    convert_weights.main([source, target, "--model", TINY])
    assert "network   simple_pose_resnest_tiny\nbuild     pose_model('resnest_tiny', 5)\n" in (
        capsys.readouterr().out)
    net = pose_model(TINY, 5)
    load_parameters(net, target)
    for name, ours, _ in rows:
        np.testing.assert_array_equal(net._collect_params_with_prefix()[ours].data().asnumpy(),
                                      theirs[name], err_msg=name)
    convert_weights.main([target, source, "--model", TINY, "--to", "mmpose"])
    assert equal(checkpoints.read_weights(source).tensors, {
        name.replace("keypoint_head", "head"): value for name, value in theirs.items()})
    del theirs[f"{head}.deconv_layers.4.running_var"]
    with pytest.raises(UserError, match=f"1 missing: {head}.deconv_layers.4.running_var"):
        convert.to_gluon(theirs, model=TINY)


def test_heads_of_mmsegmentation_are_dropped_with_the_reason():
    theirs, _ = checkpoint("mmdet", "faster_rcnn")
    theirs = {name: value for name, value in theirs.items() if name.startswith("backbone.")}
    theirs["decode_head.bottleneck.conv.weight"] = np.zeros((2, 2, 3, 3), np.float32)
    done = convert.to_gluon(theirs, model=TINY)
    assert "other corners than ours" in done.dropped["decode_head.bottleneck.conv.weight"]
    assert done.model == TINY
