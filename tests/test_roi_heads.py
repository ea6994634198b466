from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from gluon_resnest.models.detection.conventions import DETECTRON2, GLUONCV
from gluon_resnest.models.detection.losses import Loss, box_losses, mask_loss, rpn_losses, smooth_l1
from gluon_resnest.models.detection.roi_heads import (
    BoxHead, BoxPredictor, BoxStage, MaskHead, keep_rows)
from gluon_resnest.models.detection.roi_pooling import RoIPooling
from gluon_resnest.models.norm import norm_layer

STRIDES = (4, 8, 16, 32)
CONVENTIONS = [DETECTRON2, replace(DETECTRON2, aligned=False, sampling_ratio=2), GLUONCV]


def slow_roi_align(maps, image, roi, size, conventions, strides=STRIDES):
    """Chooses the level and pools one RoI from numpy maps; Detectron2's ROIAlign in words."""
    extra = 1 if conventions.legacy_pixels else 0
    side = np.sqrt((roi[2] - roi[0] + extra) * (roi[3] - roi[1] + extra))
    wanted = 16 * 2 ** np.floor(np.log2(side / 224 + 1e-8))
    level = strides.index(np.clip(wanted, strides[0], strides[-1]))
    values = maps[level][image]
    channels, height, width = values.shape
    offset = 0.5 if conventions.aligned else 0.0
    x1, y1, x2, y2 = (value / strides[level] - offset for value in roi)
    w, h = x2 - x1, y2 - y1
    if not conventions.aligned:
        w, h = max(w, 1), max(h, 1)
    ny, nx = (conventions.sampling_ratio or int(np.ceil(extent / size)) for extent in (h, w))

    def at(y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return np.zeros(channels)
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        y0, x0 = int(y), int(x)
        y_, x_, fy, fx = min(y0 + 1, height - 1), min(x0 + 1, width - 1), y - y0, x - x0
        return ((1 - fy) * ((1 - fx) * values[:, y0, x0] + fx * values[:, y0, x_])
                + fy * ((1 - fx) * values[:, y_, x0] + fx * values[:, y_, x_]))

    out = np.zeros((channels, size, size))
    for row, column in np.ndindex(size, size):
        out[:, row, column] = np.mean([at(y1 + (row + (i + 0.5) / ny) * h / size,
                                          x1 + (column + (j + 0.5) / nx) * w / size)
                                       for i in range(ny) for j in range(nx)], axis=0)
    return out


def maps_and_rois(strides=STRIDES):
    maps = [nd.random.normal(shape=(2, 3, 2 + 64 // s, 3 + 64 // s)) for s in strides]
    rois = np.array([[[3, 4, 40, 30], [0, 0, 112, 112], [5, 5, 5, 9], [-4, 2, 9, 8.5]],
                     [[0, 0, 224, 224], [0, 0, 60, 450], [0, 0, 111.9, 112], [1, 1, 3, 300]]],
                    np.float32)
    return maps, rois


@pytest.mark.parametrize("strides", [STRIDES, (2, 4, 8, 16)], ids=str)
@pytest.mark.parametrize("conventions", CONVENTIONS, ids=["detectron2", "unaligned", "gluoncv"])
def test_pooling_equals_the_slow_twin(conventions, strides, hybridize):
    maps, rois = maps_and_rois(strides)
    pooling = RoIPooling(3, strides, conventions)
    if hybridize:
        pooling.hybridize()
    for _ in range(3):      # again: outputs that are not written to hold what memory held before
        nd.full((8, 3, 3, 3), 7.0).wait_to_read()
        found = pooling(nd.array(rois), *maps).asnumpy().reshape((2, 4, 3, 3, 3))
        for image, number in np.ndindex(2, 4):
            roi = rois[image, number]
            expected = np.zeros((3, 3, 3))
            if roi[2] > roi[0]:
                expected = slow_roi_align([m.asnumpy() for m in maps], image, roi, 3, conventions,
                                          strides)
            np.testing.assert_allclose(found[image, number], expected, atol=1e-4)


def test_the_gradient_of_pooling_is_that_of_the_slow_twin():
    maps, rois = maps_and_rois()
    pooling = RoIPooling(3, STRIDES, DETECTRON2)
    for feature_map in maps:
        feature_map.attach_grad()
    head = nd.random.normal(shape=(8, 3, 3, 3))
    with autograd.record():
        loss = (pooling(nd.array(rois), *maps) * head).sum()
    loss.backward()
    for level in range(4):      # pooling is linear in the maps: one step of any length is exact
        direction = np.random.randn(*maps[level].shape)
        zeros = [np.zeros(m.shape) for m in maps]
        zeros[level] = direction
        expected = sum((slow_roi_align(zeros, i, rois[i, r], 3, DETECTRON2)
                        * head.asnumpy()[4 * i + r]).sum()
                       for i, r in np.ndindex(2, 4) if rois[i, r, 2] > rois[i, r, 0])
        found = (maps[level].grad.asnumpy() * direction).sum()
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_nan_rois_are_pooled_as_zeros():
    maps, _ = maps_and_rois()
    rois = nd.array([[[np.nan, 0, 5, 5]], [[0, 0, 5, np.nan]]])
    assert not RoIPooling(3, STRIDES, DETECTRON2)(rois, *maps).asnumpy().any()


@pytest.mark.parametrize("convs, fcs, norm", [(0, 2, None), (4, 1, "batch")])
def test_box_head_is_the_chain_of_its_layers(convs, fcs, norm, hybridize):
    head = BoxHead(3, size=2, convs=convs, conv_channels=4, fcs=fcs, fc_channels=5,
                   norm=norm and norm_layer(norm))
    head.initialize()
    x = nd.random.normal(shape=(6, 3, 2, 2))
    y = x
    for layer in (*head.convs, *head.fcs):
        y = nd.relu(layer(y))
    if hybridize:
        head.hybridize()
    np.testing.assert_allclose(head(x).asnumpy(), y.asnumpy(), atol=1e-6)
    assert y.shape == (6, head.channels) and len(head.convs) == convs and len(head.fcs) == fcs


@pytest.mark.parametrize("agnostic", [False, True])
def test_predictor_shapes(agnostic):
    predictor = BoxPredictor(5, 3, agnostic=agnostic)
    predictor.initialize()
    logits, deltas = predictor(nd.zeros((2, 5)))
    assert logits.shape == (2, 4) and deltas.shape == (2, 1 if agnostic else 3, 4)


def test_the_gradient_into_the_pyramid_is_scaled_and_the_value_is_not():
    class Twice(nn.HybridBlock):
        def hybrid_forward(self, F, x):
            return 2 * x

    x = nd.random.normal(shape=(3, 2)) * 1000
    x.attach_grad()
    stage = BoxStage(Twice(), Twice(), threshold=0.5, weights=(1,) * 4, gradient=1 / 3)
    with autograd.record():
        y = stage(x)
    y.backward()
    np.testing.assert_array_equal(y.asnumpy(), 4 * x.asnumpy())
    np.testing.assert_allclose(x.grad.asnumpy(), 4 / 3, rtol=1e-6)


@pytest.mark.parametrize("norm, extra", [(None, False), ("batch", False), ("batch", True)])
def test_mask_head_doubles_the_side(norm, extra, hybridize):
    head = MaskHead(3, 2, convs=2, channels=4, norm=norm and norm_layer(norm), extra_norm=extra)
    head.initialize()
    if hybridize:
        head.hybridize()
    assert head(nd.zeros((5, 3, 7, 7))).shape == (5, 2, 14, 14)
    names = set(head._collect_params_with_prefix())
    assert ("convs.0.conv.bias" in names) == (norm is None or extra)
    assert ("norm.gamma" in names) == extra and "deconv.bias" in names


def test_rows_of_classes_are_kept():
    old, new = (nn.Dense(2 * k + 1, in_units=3, bias_initializer=mx.init.Normal()) for k in (2, 3))
    for layer in (old, new):
        layer.initialize()
    fresh = new.weight.data().asnumpy()
    keep_rows(old, new, [1, None, 0], rows=2, tail=1)
    known, found = old.weight.data().asnumpy(), new.weight.data().asnumpy()
    np.testing.assert_array_equal(found, np.concatenate([known[2:4], fresh[2:4], known[:2],
                                                         known[4:]]))
    assert new.bias.data()[6] == old.bias.data()[4]


def test_smooth_l1_hand_numbers():
    x = nd.array([-3, -0.5, 0, 0.5, 2])
    np.testing.assert_allclose(smooth_l1(x, 0).asnumpy(), [3, 0.5, 0, 0.5, 2])
    np.testing.assert_allclose(smooth_l1(x, 1).asnumpy(), [2.5, 0.125, 0, 0.125, 1.5])
    np.testing.assert_allclose(smooth_l1(x, 0.25).asnumpy(), [2.875, 0.375, 0, 0.375, 1.875],
                               rtol=1e-6)


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def test_rpn_losses_equal_the_slow_twin():
    logits, labels = np.array([2.0, -1, 0.5, 3]), np.array([1, 0, -1, 1])
    deltas, targets = np.random.randn(4, 4), np.random.randn(4, 4)
    found = rpn_losses(*map(nd.array, (logits, deltas, labels, targets)), beta=0)
    expected = -(log_sigmoid(2.0) + log_sigmoid(1.0) + log_sigmoid(3.0))
    assert found[0].asscalar() == pytest.approx(expected, rel=1e-5)
    assert found[1].asscalar() == pytest.approx(np.abs(deltas - targets)[[0, 3]].sum(), rel=1e-5)


@pytest.mark.parametrize("agnostic", [False, True])
def test_box_losses_equal_the_slow_twin_with_their_gradients(agnostic):
    classes = np.array([0, 2, 3, -1])       # an object, another, background, ignored
    logits = nd.random.normal(shape=(4, 4))
    deltas = nd.random.normal(shape=(4, 1 if agnostic else 3, 4))
    targets = np.random.randn(4, 4).astype(np.float32)
    for array in (logits, deltas):
        array.attach_grad()
    with autograd.record():
        entropy, regression = box_losses(logits, deltas, nd.array(classes), nd.array(targets),
                                         beta=0)
        (entropy + regression).backward()
    chances = np.exp(logits.asnumpy())
    chances /= chances.sum(axis=1, keepdims=True)
    assert entropy.asscalar() == pytest.approx(
        -np.log([chances[0, 0], chances[1, 2], chances[2, 3]]).sum(), rel=1e-4)
    np.testing.assert_allclose(logits.grad.asnumpy()[:3], (chances - np.eye(4)[[0, 2, 3, 0]])[:3],
                               atol=1e-5)
    assert not logits.grad.asnumpy()[3].any()
    own = [(0, 0), (1, 0 if agnostic else 2)]
    differences = [deltas.asnumpy()[row] - targets[row[0]] for row in own]
    assert regression.asscalar() == pytest.approx(np.abs(differences).sum(), rel=1e-5)
    gradient = deltas.grad.asnumpy()
    for row, difference in zip(own, differences):
        np.testing.assert_array_equal(gradient[row], np.sign(difference))
        gradient[row] = 0
    assert not gradient.any()


def test_mask_loss_looks_at_the_own_class_of_valid_rows():
    logits = nd.random.normal(shape=(3, 2, 4, 4))
    targets = (np.random.uniform(size=(3, 4, 4)) > 0.5).astype(np.float32)
    found = mask_loss(logits, nd.array([1, 0, 0]), nd.array(targets), nd.array([1, 1, 0]))
    own = logits.asnumpy()[[0, 1], [1, 0]]
    expected = -np.where(targets[:2] > 0, log_sigmoid(own), log_sigmoid(-own)).sum()
    assert found.asscalar() == pytest.approx(expected, rel=1e-5)


def test_a_mean_may_be_over_what_all_workers_counted():
    loss = Loss(nd.array([6.0]), 3)
    assert (loss.mean().asscalar(), loss.mean(12).asscalar()) == (2, 0.5)
    assert Loss(nd.array([0.0]), 0).mean().asscalar() == 0
