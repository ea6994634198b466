"""Conversion of detectors with their heads."""
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from detector_checkpoints import CHANNELS, CLASSES, TINY, UNITS, checkpoint, equal
from test_deform import slow_dcn

from gluon_resnest.errors import UserError
from gluon_resnest.interop import checkpoints, convert
from gluon_resnest.interop.weights import load_backbone, load_parameters, save_parameters
from gluon_resnest.models.detection.anchors import base_anchors
from gluon_resnest.models.detection.build import NORMS, detector
from gluon_resnest.models.detection.conventions import DETECTRON2, MMDETECTION
from gluon_resnest.zoo import get_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import convert_weights  # noqa: E402

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


@pytest.mark.parametrize("parts", [dict(fpn=None), dict(masks=None), dict(heads=None),
                                   dict(heads=None, masks="batch")], ids=str)
def test_unusual_norms_and_sizes_are_read_off(parts):
    net = detector("mask_rcnn_fpn_resnest_tiny_coco", get_model, classes=5, mask_convs=8,
                   norms=replace(NORMS["batch"], **parts), channels=8, fc_channels=32)
    tensors = {name: np.zeros(param.shape, np.float32)
               for name, param in net._collect_params_with_prefix().items()}
    done = convert.to_gluon(convert.from_gluon(tensors, "detectron2", "detectron2"), model=TINY)
    assert done.call.endswith(f"norms={replace(NORMS['batch'], **parts)!r}, "
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


def test_anchors_in_files_of_old_detectron2_are_checked_and_dropped():
    theirs, ours = checkpoint("detectron2")
    cells = "proposal_generator.anchor_generator.cell_anchors."
    for level, size in enumerate(DETECTRON2.anchor_sizes):
        theirs[f"{cells}{level}"] = base_anchors(4 << level, size, DETECTRON2).reshape(-1, 4)
    done = convert.to_gluon(theirs, model=TINY)
    assert equal(done.tensors, ours) and len(done.dropped) == len(DETECTRON2.anchor_sizes)
    theirs[f"{cells}2"] = 2 * theirs[f"{cells}2"]
    with pytest.raises(UserError, match="anchors of level p4 differ from those"):
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
