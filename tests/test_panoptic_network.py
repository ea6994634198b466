"""The semantic head, the panoptic network and what is made of its outputs."""
from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd

from gluon_resnest import get_model, list_models
from gluon_resnest.engine.comm import Comm
from gluon_resnest.errors import UserError
from gluon_resnest.models.detection.conventions import DETECTRON2
from gluon_resnest.models.detection.inference import View
from gluon_resnest.models.detection.panoptic import NAMES, detector_name, panoptic
from gluon_resnest.models.detection.panoptic_inference import classes, enlarged, look, look_views
from gluon_resnest.models.detection.semantic_head import (
    VOID, SemanticHead, semantic_loss, upsampled)
from gluon_resnest.models.detection.targets import Objects
from gluon_resnest.models.norm import norm_layer
from gluon_resnest.models.resnest import initialize

SMALL = replace(DETECTRON2, pre_nms_train=30, pre_nms_test=20, post_nms_train=40,
                post_nms_test=20, cascade_post_nms_train=40, roi_samples=8, rpn_samples=16,
                detections=7)
SIZE, SIZES = (75, 101), np.array([[75, 101], [60, 90]])


def small(name="panoptic_fpn_resnest_tiny_coco", **options):
    net = panoptic(name, get_model, **{**dict(
        classes=("ant", "bee"), stuff=("sky", "sea", "mud"), conventions=SMALL, channels=8,
        fc_channels=16, semantic_channels=6, box_head="2fc"), **options})
    initialize(net)
    return net


def images(count=2, size=SIZE):
    return nd.random.normal(shape=(count, 3) + size)


def batch():
    """Returns what `losses` takes besides the images."""
    cut = np.zeros((1,) + SIZE, np.uint8)
    cut[0, 5:40, 5:40] = 1
    objects = [Objects(np.array([[5, 5, 40, 40]], np.float32), np.array([1]), cut)] * 2
    labels = np.random.randint(0, 4, (2,) + SIZE).astype(np.uint8)
    labels[1, 60:] = VOID
    return SIZES, objects, [np.random.default_rng(number) for number in range(2)], labels


# ---- the head -----------------------------------------------------------------------------------

def bilinear(values, factor):
    """Enlarges (..., H, W) between the centres of pixels, clamped at the border."""
    def matrix(length):
        places = np.clip((np.arange(length * factor) + 0.5) / factor - 0.5, 0, length - 1)
        return np.maximum(0, 1 - abs(places[:, None] - np.arange(length)))
    return matrix(values.shape[-2]) @ values @ matrix(values.shape[-1]).T


@pytest.mark.parametrize("factor", [2, 4])
def test_upsampling_is_bilinear_between_the_centres_of_pixels(factor):
    x = np.random.normal(size=(2, 3, 5, 4))
    np.testing.assert_allclose(upsampled(nd, nd.array(x), factor).asnumpy(), bilinear(x, factor),
                               atol=1e-5)


@pytest.mark.parametrize("sizes", [((16, 24), (8, 12), (4, 6), (2, 3)),
                                   ((13, 17), (7, 9), (4, 5), (2, 3))], ids=["even", "odd"])
def test_the_head_is_a_sum_over_levels_of_convolutions_and_upsampling(hybridize, sizes):
    head = SemanticHead(5, 4, channels=3, norm=None)
    head.initialize(mx.init.Normal(0.3))
    if hybridize:
        head.hybridize()
    maps = [nd.random.normal(shape=(2, 5) + size) for size in sizes]
    total, (height, width) = 0, sizes[0]
    for level, x in enumerate(maps):
        for conv in head.levels[level]:
            x = nd.relu(nd.Convolution(x, conv.conv.weight.data(), conv.conv.bias.data(),
                                       kernel=(3, 3), pad=(1, 1), num_filter=3))
            x = nd.array(bilinear(x.asnumpy(), 2)) if level else x
        total = total + x.asnumpy()[:, :, :height, :width]
    weight, bias = head.logits.weight.data().asnumpy(), head.logits.bias.data().asnumpy()
    expected = np.einsum("nchw,kc->nkhw", total, weight[:, :, 0, 0]) + bias[:, None, None]
    np.testing.assert_allclose(head(*maps).asnumpy(), expected, atol=2e-4)
    assert [len(convs) for convs in head.levels] == [1, 1, 2, 3]


def some_labels():
    """(2, 10, 12) for logits of 3 x 3: two rows of what they reach are beyond the image."""
    labels = np.random.RandomState(0).randint(0, 4, (2, 10, 12)).astype(np.uint8)
    labels[0, :7, 2:5] = VOID
    return labels


def cross_entropy(logits, labels):
    """Sum over the labelled pixels, from logits of the image's size; numpy, float64."""
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    own = np.take_along_axis(chances, np.where(labels == VOID, 0, labels)[:, None], axis=1)[:, 0]
    return -np.log(own[labels != VOID]).sum()


def test_the_loss_is_the_mean_cross_entropy_of_labelled_pixels():
    logits, labels = nd.random.normal(shape=(2, 4, 3, 3)), some_labels()
    enlarged = bilinear(logits.asnumpy().astype(float), 4)[:, :, :10]
    loss = semantic_loss(logits, labels, 4)
    assert loss.count == (labels != VOID).sum()
    assert loss.mean().asscalar() == pytest.approx(
        cross_entropy(enlarged, labels) / loss.count, rel=1e-5)


@pytest.mark.parametrize("void_from, learning", [(12, [True] * 3), (5, [True, True, False]),
                                                 (0, [False] * 3)])
def test_void_pixels_get_no_gradient_and_nothing_but_void_no_nan(void_from, learning):
    """Pixels up to the fifth column depend on the first two columns of the logits."""
    logits, labels = nd.random.normal(shape=(2, 4, 3, 3)), some_labels()
    labels[:, :, void_from:] = VOID
    logits.attach_grad()
    with autograd.record():
        loss = semantic_loss(logits, labels, 4).mean()
    loss.backward()
    gradient = logits.grad.asnumpy()
    assert np.isfinite(gradient).all() and np.isfinite(loss.asscalar())
    assert (abs(gradient).sum(axis=(0, 1, 2)) > 0).tolist() == learning


# ---- the network --------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["panoptic_fpn_resnest_tiny_coco",
                                  "panoptic_cascade_fpn_resnest_tiny_coco",
                                  "panoptic_fpn_cifar_resnest14_coco"])
def test_every_part_learns_and_the_semantic_loss_has_its_weight(name):
    net = small(name, semantic_weight=0.25)
    net.hybridize()
    x, given = images(), batch()
    with autograd.record():
        losses = net.losses(x, *given)
        total = sum(loss.mean() for loss in losses.values())
    total.backward()
    assert losses["semantic"].count == (given[-1] != VOID).sum()
    assert ("class_2" in losses) is ("cascade" in name) and "mask" in losses
    for name, param in net._collect_params_with_prefix().items():
        if param.grad_req != "null" and name.startswith("semantic"):
            assert abs(param.grad().asnumpy()).max() > 0, name
    with autograd.train_mode():
        logits = net.pixels(x)
    whole = cross_entropy(logits.asnumpy().astype(float), given[-1])
    assert losses["semantic"].total.asscalar() == pytest.approx(
        0.25 * whole, rel=0.02)      # its own statistics of the batch


def test_the_other_losses_are_those_of_the_detector_alone():
    net, x = small(), images()
    with autograd.record():
        sizes, objects, rngs, labels = batch()
        ours = net.losses(x, sizes, objects, rngs, labels)
        sizes, objects, rngs, _ = batch()
        alone = net.detector.losses(x, sizes, objects, rngs)
    assert set(ours) == {*alone, "semantic"}
    for name, loss in alone.items():
        assert ours[name].total.asscalar() == pytest.approx(loss.total.asscalar(), rel=1e-4)


def test_it_says_what_the_detector_says_and_the_classes_of_all_pixels(hybridize):
    net, x = small(), images()
    expected = [part.asnumpy() for part in net.detector(x)]
    pixels = net.pixels(x).asnumpy()
    if hybridize:
        net.hybridize()
    *objects, logits = net(x)
    assert logits.shape == (2, 4) + SIZE
    for ours, theirs in zip(objects, expected):
        np.testing.assert_allclose(ours.asnumpy(), theirs, atol=1e-3)
    np.testing.assert_allclose(logits.asnumpy(), pixels, atol=1e-3)


@pytest.mark.parametrize("backbone, stride", [("resnest_tiny", 4), ("cifar_resnest14", 2)])
def test_the_logits_lie_over_the_image_whatever_the_backbones_first_stride(backbone, stride):
    net = small(f"panoptic_fpn_{backbone}_coco")
    x = images(1, (51, 66))
    logits = net.semantic(*net.features(x)[:4]).asnumpy()
    np.testing.assert_allclose(net.pixels(x).asnumpy(), bilinear(logits, stride)[:, :, :51, :66],
                               atol=1e-3)


def test_an_exported_network_takes_any_size_and_batch(tmp_path):
    net = small()
    net.hybridize()
    net(images())
    net.export(str(tmp_path / "net"))
    block = mx.gluon.SymbolBlock.imports(
        str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params"))
    for shape in ((1, (64, 96)), (3, (51, 66))):
        x = images(*shape)
        for ours, theirs in zip(block(x), net(x)):
            np.testing.assert_allclose(ours.asnumpy(), theirs.asnumpy(), atol=1e-3)


def test_a_hybridized_network_hears_of_other_things_and_nms():
    net, x = small(), images(1)
    net.hybridize()
    assert net(x)[0].shape == (1, 7, 1)
    net.set_nms(nms_thresh=1.0, post_nms=9, score_thresh=0.0)
    assert net(x)[0].shape == (1, 9, 1)
    net.reset_class(["cow"], reuse_weights={"cow": "ant"})
    assert net(x)[0].asnumpy().max() == 0 and net.detector.classes == ("cow",)


def test_norms_of_the_heads_are_those_of_the_semantic_head():
    for norms, kind in (("sync", "SyncBatchNorm"), ("batch", "BatchNorm"), ("frozen", "NoneType")):
        net = panoptic("panoptic_fpn_resnest_tiny_coco", get_model, classes=2, stuff=3, norms=norms,
                       norm_kwargs={"workers": Comm()} if norms == "sync" else None)
        assert type(net.semantic.levels[2][1].norm).__name__ == kind


def test_names_of_parameters_are_a_file_format():
    named = small(norms=norm_layer("batch"))._collect_params_with_prefix()
    for name in ("detector.features.backbone.conv1.0.weight", "detector.rpn.conv.weight",
                 "detector.mask_heads.0.logits.weight", "semantic.levels.0.0.conv.weight",
                 "semantic.levels.3.2.norm.gamma", "semantic.logits.bias"):
        assert name in named
    assert all(name.startswith(("detector.", "semantic.")) for name in named)


# ---- names --------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, expected", [
    ("panoptic_fpn_resnest50_coco", "mask_rcnn_fpn_resnest50_coco"),
    ("panoptic_cascade_fpn_resnest200_dcn_coco", "cascade_mask_rcnn_fpn_resnest200_dcn_coco"),
    ("mask_rcnn_fpn_resnest50_coco", None), ("panoptic_fpn_resnest50", None)])
def test_a_name_spells_a_detector(name, expected):
    assert detector_name(name) == expected


def test_the_zoo_knows_panoptic_networks():
    assert list_models("panoptic*") == list(NAMES)
    assert {f"panoptic_fpn_resnest{depth}_coco" for depth in (50, 101, 200)} < set(NAMES)
    net = get_model("Panoptic_FPN_resnest50_coco")
    assert len(net.detector.classes) == 80 and len(net.stuff) == 53
    assert net.semantic.logits.weight.shape == (54, 128, 1, 1)
    net = get_model("panoptic_cascade_fpn_resnest50_coco", classes=(("cat", "dog"), 3))
    assert net.detector.classes == ("cat", "dog") and net.stuff[2] == "stuff 2"
    assert len(net.detector.stages) == 3
    net = get_model("panoptic_fpn_resnest_tiny_coco", classes=(np.int64(3), np.int64(2)))
    assert net.detector.classes[2] == "class 2" and net.stuff == ("stuff 0", "stuff 1")


@pytest.mark.parametrize("options, sentence", [
    (dict(classes=80), "things and stuff, got classes=80"),
    (dict(classes=(2, 0)), "number of kinds of stuff"),
    (dict(classes=("person", "dog")), "number of kinds of stuff .* got 'dog'"),
    (dict(classes=("person", 3)), "classes must be a whole number from 1 .* got 'person'"),
    (dict(classes=(0, 5)), "classes must be a whole number from 1 .* got 0"),
    (dict(classes=(-3, 5)), "classes must be a whole number from 1 .* got -3"),
    (dict(output_stride=8), "is a panoptic network, which has no output_stride")])
def test_arguments_that_do_not_fit_are_sentences(options, sentence):
    with pytest.raises(UserError, match=sentence):
        get_model("panoptic_fpn_resnest50_coco", **options)


def test_other_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="panoptic_fpn_resnest50_coco"):
        panoptic("panoptic_fpn_resnest50_cocoa", get_model)


# ---- in pixels of the file ----------------------------------------------------------------------

def test_logits_lose_their_padding_and_get_the_size_of_the_file():
    logits = np.random.normal(size=(3, 8, 9)).astype(np.float32)
    logits[:, 5:], logits[:, :, 6:] = 1e9, 1e9
    big = enlarged(nd.array(logits), (5, 6), (10, 12))
    np.testing.assert_allclose(big.asnumpy(), bilinear(logits[:, :5, :6], 2), atol=1e-5)
    np.testing.assert_array_equal(classes(big), big.asnumpy().argmax(axis=0))


def test_one_view_is_no_augmentation_and_mirrors_are_turned_back():
    net = small()
    image = np.random.normal(size=(3, 64, 96)).astype(np.float32)
    original = (50, 75)
    seen, = look(net, image[None], [(64, 96)], [original])
    plain = look_views(net, [View(image, (64, 96), False)], original)
    np.testing.assert_array_equal(plain.labels, seen.labels)
    np.testing.assert_allclose(plain.found.scores, seen.found.scores, atol=1e-5)
    mirror = image[:, :, ::-1]
    mirrored = look_views(net, [View(mirror, (64, 96), True)], original)
    seen, = look(net, mirror[None], [(64, 96)], [original])
    np.testing.assert_array_equal(mirrored.labels, seen.labels[:, ::-1])
    assert len(np.unique(seen.labels)) > 1
