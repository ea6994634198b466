from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd

from gluon_resnest import get_model, list_models
from gluon_resnest.errors import UserError
from gluon_resnest.models.deform import DeformableConv2D, set_deformable_form
from gluon_resnest.models.detection import boxes as box
from gluon_resnest.models.detection.build import (
    COCO_CLASSES, FAMILIES, NAMES, Norms, detector, parse, rcnn)
from gluon_resnest.models.detection.conventions import DETECTRON2, MMDETECTION, conventions
from gluon_resnest.models.detection.targets import Objects
from gluon_resnest.models.resnest import initialize

SMALL = dict(pre_nms_train=30, pre_nms_test=20, post_nms_train=40, post_nms_test=20,
             cascade_post_nms_train=40, roi_samples=8, rpn_samples=16, detections=7)
SIZE = (75, 101)
SIZES = np.array([[75, 101], [60, 90]])


def small(family="mask_rcnn", convention="detectron2", changes=None, **options):
    convention = replace(conventions(convention), **{**SMALL, **(changes or {})})
    backbone = get_model("resnest_tiny", features_only=True, dropblock=0.0)
    net = rcnn(family, backbone, conventions=convention, channels=8, fc_channels=16,
               **{"classes": ("ant", "bee", "cow"), **options})
    initialize(net)
    return net


def images(count=2, size=SIZE):
    return nd.random.normal(shape=(count, 3) + size)


def objects(masks=True):
    cut = np.zeros((2,) + SIZE, np.uint8)
    cut[0, 5:40, 5:40] = cut[1, 20:70, 30:90] = 1
    return [Objects(np.array([[5, 5, 40, 40], [30, 20, 90, 70]], np.float32), np.array([0, 2]),
                    cut if masks else None),
            Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64),
                    np.zeros((0,) + SIZE, np.uint8) if masks else None)]


def rngs():
    return [np.random.default_rng(number) for number in range(2)]


def values(losses):
    return {name: (loss.total.asscalar(), loss.count) for name, loss in losses.items()}


NAMES_OF_LOSSES = {
    "faster_rcnn": {"rpn_class", "rpn_box", "class", "box"},
    "mask_rcnn": {"rpn_class", "rpn_box", "class", "box", "mask"},
    "cascade_rcnn": {"rpn_class", "rpn_box", "class", "box", "class_1", "box_1", "class_2",
                     "box_2"},
    "cascade_mask_rcnn": {"rpn_class", "rpn_box", "class", "box", "class_1", "box_1", "class_2",
                          "box_2", "mask"}}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("convention", ["detectron2", "mmdetection", "gluoncv"])
def test_every_parameter_that_learns_gets_a_gradient(family, convention):
    net = small(family, convention)
    net.hybridize()
    with autograd.record():
        losses = net.losses(images(), SIZES, objects(), rngs())
        total = sum(loss.mean() for loss in losses.values())
    total.backward()
    expected = NAMES_OF_LOSSES[family] | (
        {"mask_1", "mask_2"} if (family, convention) == ("cascade_mask_rcnn", "mmdetection")
        else set())
    assert set(losses) == expected
    assert np.isfinite(total.asscalar())
    silent = [name for name, param in net._collect_params_with_prefix().items()
              if param.grad_req != "null" and not np.isfinite(param.grad().asnumpy()).all()]
    assert not silent
    for part in ("features.backbone.layer2", "features.fpn.laterals.0", "rpn.conv",
                 "stages.0.head.fcs.0", "stages.0.predictor.deltas"):
        params = {name: param for name, param in net._collect_params_with_prefix().items()
                  if name.startswith(part) and name.endswith("weight")}
        assert params and all(param.grad().asnumpy().any() for param in params.values()), part


def test_losses_are_a_function_of_the_generators(hybridize):
    net, x = small(), images()
    if hybridize:
        net.hybridize()
    found = []
    for _ in range(2):
        with autograd.record():
            found.append(values(net.losses(x, SIZES, objects(), rngs())))
    assert found[0] == found[1]


def test_counts_are_the_normalisers():
    with autograd.record():
        found = values(small().losses(images(), SIZES, objects(), rngs()))
    assert found["rpn_class"][1] == found["rpn_box"][1] == 32       # the quota, N * 16
    assert found["class"][1] == found["box"][1] == 16
    assert found["mask"][1] % 28 ** 2 == 0 and 0 < found["mask"][1] <= 2 * 28 ** 2
    with autograd.record():
        found = values(small(changes=dict(rpn_normalizer="sampled", rpn_samples=100000)).losses(
            images(), SIZES, objects(), rngs()))
    assert found["rpn_class"][1] < 200000


@pytest.mark.parametrize("family", ["mask_rcnn", "cascade_mask_rcnn"])
def test_a_batch_without_objects_has_losses_of_background_only(family):
    net = small(family)
    with autograd.record():
        losses = net.losses(images(), SIZES, [objects()[1]] * 2, rngs())
        sum(loss.mean() for loss in losses.values()).backward()
    found = values(losses)
    assert all(total == 0 for name, (total, _) in found.items() if "box" in name)
    assert found["mask"] == (0, 0) and found["class"][0] > 0


def test_crowds_change_nothing():
    net, x = small("faster_rcnn"), images()
    plain = objects(masks=False)
    crowded = [Objects(np.concatenate([each.boxes, [[0, 0, 60, 60]]]).astype(np.float32),
                       np.append(each.classes, 1), crowd=np.arange(len(each.boxes) + 1)
                       == len(each.boxes)) for each in plain]
    with autograd.record():
        expected, found = (values(net.losses(x, SIZES, each, rngs())) for each in (plain, crowded))
    assert found == expected


def test_a_cascade_of_one_stage_is_faster_rcnn():
    one = dict(cascade_iou=(0.5,), cascade_weights=(DETECTRON2.box_weights,), stage_losses=(1.0,),
               cascade_post_nms_train=SMALL["post_nms_train"])
    cascade = small("cascade_rcnn", changes=one, classes=("ant",))
    faster = small("faster_rcnn", classes=("ant",))     # one class: agnostic or not is the same
    mine, theirs = (net._collect_params_with_prefix() for net in (cascade, faster))
    assert set(mine) == set(theirs)
    for name, param in mine.items():
        param.set_data(theirs[name].data())
    x = images()
    only = [Objects(each.boxes, each.classes * 0) for each in objects(masks=False)]
    with autograd.record():
        losses = [values(net.losses(x, SIZES, only, rngs())) for net in (cascade, faster)]
    assert losses[0] == losses[1]
    for ours, expected in zip(cascade(x), faster(x)):
        np.testing.assert_array_equal(ours.asnumpy(), expected.asnumpy())


def slow_detections(probabilities, boxes, threshold, nms, count):
    """Detections of one image: NMS in each class, plain Python. boxes (P, B, 4), B is 1 or K."""
    found = []
    for number in range(probabilities.shape[1]):
        own = boxes[:, number if boxes.shape[1] > 1 else 0]
        order = [i for i in np.argsort(-probabilities[:, number])
                 if probabilities[i, number] > threshold]
        while order:
            best = order.pop(0)
            found.append((probabilities[best, number], number, *own[best]))
            order = [i for i in order if box.iou(own[best:best + 1], own[i:i + 1])[0, 0] <= nms]
    return np.array(sorted(found, reverse=True)[:count]).reshape(-1, 6)


@pytest.mark.parametrize("family", ["faster_rcnn", "cascade_rcnn"])
@pytest.mark.parametrize("convention", ["detectron2", "mmdetection"])
def test_detections_equal_the_slow_twin(family, convention):
    net = small(family, convention)
    net.collect_params(".*dense.*").initialize(mx.init.Normal(0.5), force_reinit=True)
    x = images()
    sizes = nd.array(SIZES)
    maps = net.features(x)
    rois, scores = net.test_proposals(sizes, *net.rpn(*maps))
    there = scores.asnumpy() > -1e8
    logits, probabilities = [], []
    for number, stage in enumerate(net.stages):
        said, deltas = stage(net.box_pooling(rois, *maps[:4]))
        logits.append(said.asnumpy().reshape(2, -1, 4))
        probabilities.append(nd.softmax(said).asnumpy().reshape(2, -1, 4))
        boxes = []
        for image in range(2):
            decoded = box.decode(nd, rois[image].expand_dims(1),
                                 deltas.reshape((2, -1, deltas.shape[1], 4))[image],
                                 stage.weights, net.conventions).asnumpy()
            height, width = SIZES[image]
            boxes.append(np.clip(decoded, 0, [width, height, width, height]))
        rois = nd.array(np.stack(boxes)[:, :, 0])
    mean = np.mean(probabilities, axis=0)
    if convention == "mmdetection":
        mean = nd.softmax(nd.array(np.mean(logits, axis=0)), axis=2).asnumpy()
    ids, scores, bboxes = (array.asnumpy() for array in net(x, sizes))
    for image in range(2):
        expected = slow_detections((mean * there[..., None])[image][:, :3], boxes[image], 0.05,
                                   0.5, 7)
        real = ids[image, :, 0] >= 0
        assert real.sum() == len(expected)
        np.testing.assert_allclose(scores[image][real][:, 0], expected[:, 0], atol=1e-5)
        np.testing.assert_array_equal(ids[image][real][:, 0], expected[:, 1])
        np.testing.assert_allclose(bboxes[image][real], expected[:, 2:], atol=1e-3)


@pytest.mark.parametrize("family", ["faster_rcnn", "cascade_mask_rcnn"])
def test_shapes_and_fillings(family, hybridize):
    net = small(family, changes=dict(score_threshold=0.0))
    if hybridize:
        net.hybridize(static_alloc=True)
    for count, size in ((2, SIZE), (1, (64, 64)), (3, (40, 90))):
        outputs = net(images(count, size))
        assert [out.shape for out in outputs] == [(count, 7, 1), (count, 7, 1), (count, 7, 4)] + (
            [(count, 7, 28, 28)] if "mask" in family else [])
        limit = outputs[2].asnumpy().max(axis=(0, 1))
        assert (limit[[0, 2]] <= size[1]).all() and (limit[[1, 3]] <= size[0]).all()
    nothing = small(family, changes=dict(score_threshold=0.999))(images())
    assert all((out.asnumpy() == -1).all() for out in nothing[:3])
    assert all(not out.asnumpy().any() for out in nothing[3:])


def test_an_image_is_detected_alike_in_every_batch():
    net, x = small(), images(3)
    net.hybridize()
    together = net(x)
    for number in range(3):
        for all_of_them, alone in zip(together, net(x[number:number + 1])):
            np.testing.assert_allclose(all_of_them[number].asnumpy(), alone[0].asnumpy(),
                                       atol=1e-3)


def test_boxes_are_clipped_to_the_images_in_a_padded_batch(hybridize):
    net, x = small(), images()
    if hybridize:
        net.hybridize()
    net(x)
    bboxes = net(x, nd.array([[75, 101], [30, 50]]))[2].asnumpy()
    assert bboxes[1, :, [0, 2]].max() <= 50 and bboxes[1, :, [1, 3]].max() <= 30
    assert bboxes[0, :, 2].max() > 50


@pytest.mark.parametrize("family", ["faster_rcnn", "cascade_mask_rcnn"])
def test_the_exported_graph_takes_any_size_and_batch(family, tmp_path):
    net = small(family)
    net.hybridize()
    with autograd.record():     # training before must not leak into the file
        net.losses(images(), SIZES, objects(), rngs())
    net.export(str(tmp_path / "net"))
    again = mx.gluon.SymbolBlock.imports(str(tmp_path / "net-symbol.json"), ["data"],
                                         str(tmp_path / "net-0000.params"))
    for count, size in ((1, (64, 64)), (3, SIZE), (2, (90, 40))):
        x = images(count, size)
        for ours, theirs in zip(net(x), again(x)):
            np.testing.assert_array_equal(ours.asnumpy(), theirs.asnumpy())


def test_set_nms_changes_a_hybridized_net():
    net, x = small("faster_rcnn"), images()
    net.hybridize()
    assert net(x)[0].shape == (2, 7, 1)
    net.set_nms(nms_thresh=1.0, post_nms=20, score_thresh=0.0)
    assert net(x)[0].shape == (2, 20, 1) and (net(x)[0].asnumpy() >= 0).all()
    with pytest.raises(UserError, match=r"an IoU in \(0, 1\]"):
        net.set_nms(nms_thresh=0)


@pytest.mark.parametrize("family", ["mask_rcnn", "cascade_mask_rcnn"])
def test_reset_class_keeps_what_is_reused(family):
    net, x = small(family), images()
    before = {name: param.data().asnumpy() for name, param
              in net._collect_params_with_prefix().items()}
    net.reset_class(["cow", "dog", "bee", "calf"], reuse_weights={"cow": "cow", "calf": "cow"})
    after = net._collect_params_with_prefix()
    assert net.classes == ("cow", "dog", "bee", "calf") and set(after) == set(before)
    for name in ("stages.0.predictor.logits.weight", "mask_heads.0.logits.weight"):
        old, new = before[name], after[name].data().asnumpy()
        np.testing.assert_array_equal(new[0], old[2])
        np.testing.assert_array_equal(new[3], old[2])
        assert (new[2] != old[1]).any()
    np.testing.assert_array_equal(after["stages.0.predictor.logits.bias"].data().asnumpy()[4],
                                  before["stages.0.predictor.logits.bias"][3])
    deltas = after["stages.0.predictor.deltas.weight"].data().asnumpy()
    if family == "mask_rcnn":
        np.testing.assert_array_equal(deltas[:4], before["stages.0.predictor.deltas.weight"][8:])
    else:
        np.testing.assert_array_equal(deltas, before["stages.0.predictor.deltas.weight"])
    assert net(x)[0].asnumpy().max() <= 3
    with pytest.raises(UserError, match="class to reuse must be one of"):
        net.reset_class(["ant"], reuse_weights=["ant"])
    with pytest.raises(UserError, match="classes must be a whole number .* got 'person'"):
        net.reset_class("person")


def test_frozen_stages_keep_statistics_and_weights():
    net = small("faster_rcnn")
    params = net.features.backbone._collect_params_with_prefix()
    frozen = {name for name, param in params.items()
              if name.partition(".")[0] in ("conv1", "bn1", "layer1")}
    assert all(params[name].grad_req == "null" for name in frozen)
    assert params["layer2.0.conv1.weight"].grad_req == "write"
    before = {name: params[name].data().asnumpy() for name in params}
    with autograd.record():
        losses = net.losses(images(), SIZES, objects(), rngs())
        sum(loss.mean() for loss in losses.values()).backward()
    changed = {name for name in params
               if (params[name].data().asnumpy() != before[name]).any()}
    assert changed and not changed & frozen
    assert all("running" in name for name in changed)


def test_more_stages_than_there_are_are_refused():
    with pytest.raises(UserError, match="0 to 5 frozen stages .*, got 6"):
        small("faster_rcnn", frozen_stages=6)


def count(net):
    return sum(int(np.prod(param.shape)) for name, param in net.collect_params().items()
               if "running" not in name)


@pytest.mark.parametrize("options, expected", [({}, 44993056), ({"box_head": "2fc"}, 43681312)])
def test_parameters_of_faster_rcnn_on_resnest50(options, expected):
    assert count(detector("faster_rcnn_fpn_resnest50_coco", get_model, **options)) == expected


def test_names_build_what_they_say():
    assert {f"{family}_fpn_resnest50_coco" for family in FAMILIES} <= set(NAMES)
    assert set(NAMES) <= set(list_models())
    net = get_model("cascade_mask_rcnn_fpn_resnest14_coco", norm_layer="frozen")
    assert net.classes == COCO_CLASSES and len(COCO_CLASSES) == 80
    assert len(net.stages) == 3 and len(net.mask_heads) == 1
    assert not any("fpn" in name and "norm" in name for name in net._collect_params_with_prefix())
    assert get_model("faster_rcnn_fpn_resnest14_coco", classes=2).classes == ("class 0", "class 1")
    assert parse("faster_rcnn_fpn_resnet50_coco").backbone == "resnet50_msra"
    assert parse("faster_rcnn_fpn_resnest50_dcn_coco").deformable
    assert parse("faster_rcnn_resnet50_v1b_coco") is None


def test_conventions_shape_the_network():
    ours = small("cascade_mask_rcnn", "mmdetection")
    names = ours._collect_params_with_prefix()
    assert len(ours.mask_heads) == 3 and "features.fpn.laterals.0.conv.bias" in names
    theirs = small("mask_rcnn", "gluoncv")
    names = theirs._collect_params_with_prefix()
    assert "features.fpn.p6.conv.weight" in names and "mask_heads.0.norm.gamma" in names
    assert theirs.features.fpn.laterals[0].norm._kwargs["eps"] == 1e-3
    assert MMDETECTION.stage_losses[2] == ours.stages[2].loss == 0.25


def test_deformable_stages_are_inside_split_attention():
    net = get_model("resnest_tiny", deform_stages=(3, 5), classes=4, dropblock=0.0)
    initialize(net)
    found = []
    net.apply(lambda block: found.append(block) if isinstance(block, DeformableConv2D) else None)
    assert found == [net.layer2[0].conv2.conv, net.layer4[0].conv2.conv]
    assert found[0].offset.weight.shape[0] == 54
    x = nd.random.normal(shape=(2, 3, 64, 64))
    fused = net(x).asnumpy()
    set_deformable_form(net, "composed")
    np.testing.assert_allclose(net(x).asnumpy(), fused, atol=1e-4)
    with autograd.record():
        loss = net(x).square().sum()
    loss.backward()
    assert found[0].offset.weight.grad().asnumpy().any()


def test_what_infers_is_fused_also_where_training_is_composed(tmp_path):
    net = get_model("resnest_tiny", deform_stages=(4,), classes=4, dropblock=0.0)
    initialize(net)
    set_deformable_form(net, "composed")
    net.hybridize()
    x = nd.random.normal(shape=(1, 3, 64, 64))
    with autograd.record():
        net(x).sum().backward()     # the fused form has no gradient on a CPU
    net(x)
    net.export(str(tmp_path / "net"))
    graph = (tmp_path / "net-symbol.json").read_text()
    assert "_contrib_ModulatedDeformableConvolution" in graph
    assert "_contrib_DeformableConvolution" not in graph


@pytest.mark.parametrize("make, message", [
    (lambda: small("retina"), "detector family must be one of faster_rcnn"),
    (lambda: small(box_head="3fc"), "box head must be one of 2fc, 4conv1fc"),
    (lambda: small(norms="group"), "norm of a detector must be one of batch, sync, frozen"),
    (lambda: small(norms=Norms("batch", "sync", "batch")), "needs the workers"),
    (lambda: detector("faster_rcnn_fpn", get_model), "expected a detector's name"),
    (lambda: detector("faster_rcnn_fpn_resnest_tiny_coco", get_model, classes=()), "classes must"),
    (lambda: get_model("resnet50", deform_stages=(3,)), "for the ResNeSt family"),
    (lambda: get_model("resnest_tiny", deform_stages=(1,)), "among 2, 3, 4, 5"),
    (lambda: get_model("mask_rcnn_fpn_resnest14_coco", dilated=True), "which has no dilated")])
def test_what_cannot_be_built_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
