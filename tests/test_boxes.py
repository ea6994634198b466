import numpy as np
import pytest
from mxnet import nd

from gluon_resnest.models.detection import boxes as box
from gluon_resnest.models.detection.conventions import DETECTRON2, MMDETECTION

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def random_boxes(count, span=50):
    low = np.random.uniform(0, span, size=(count, 2))
    return np.concatenate([low, low + np.random.uniform(1, span, size=(count, 2))],
                          axis=1).astype(np.float32)


def decode(anchors, deltas, weights=WEIGHTS, conventions=DETECTRON2):
    return box.decode(nd, nd.array(anchors), nd.array(deltas), weights, conventions).asnumpy()


@pytest.mark.parametrize("weights", [WEIGHTS, (1.0,) * 4, DETECTRON2.cascade_weights[2]])
def test_decode_inverts_encode(weights):
    anchors, targets = random_boxes(20), random_boxes(20)
    deltas = box.encode(anchors, targets, weights)
    np.testing.assert_allclose(decode(anchors, deltas, weights), targets, rtol=1e-4, atol=1e-3)


def test_encode_hand_number():
    deltas = box.encode(np.array([[0, 0, 10, 20]]), np.array([[5, 10, 25, 20]]), (1, 1, 1, 1))
    np.testing.assert_allclose(deltas, [[1.0, 0.25, np.log(2), np.log(0.5)]], rtol=1e-6)


def test_the_scale_is_clamped_above_and_in_mmdetection_below_too():
    unit, far = [[0, 0, 1, 1]], [[0, 0, 99, -99]]
    wide = decode(unit, far, (1,) * 4)[0]
    assert wide[2] - wide[0] == pytest.approx(62.5, rel=1e-4)
    assert wide[3] - wide[1] == pytest.approx(0, abs=1e-6)
    both = decode(unit, far, (1,) * 4, MMDETECTION)[0]
    assert both[3] - both[1] == pytest.approx(1 / 62.5, rel=1e-3)


def test_decode_broadcasts_over_classes():
    anchors, deltas = random_boxes(3), np.random.randn(3, 2, 4).astype(np.float32)
    found = decode(anchors[:, None], deltas)
    for number in range(2):
        np.testing.assert_allclose(found[:, number], decode(anchors, deltas[:, number]), rtol=1e-5)


def slow_iou(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [max(c[2] - c[0], 0) * max(c[3] - c[1], 0) for c in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def test_iou_equals_the_slow_twin_and_is_symmetric():
    ours, theirs = random_boxes(7), np.concatenate([random_boxes(4), [[3, 3, 3, 9]]])
    found = box.iou(ours, theirs)
    np.testing.assert_allclose(found, [[slow_iou(a, b) for b in theirs] for a in ours], atol=1e-6)
    np.testing.assert_array_equal(found, box.iou(theirs, ours).T)
    np.testing.assert_allclose(np.diag(box.iou(ours, ours)), 1)


def test_iou_of_empty_boxes_and_of_none():
    assert box.iou([[1, 1, 1, 1]], [[1, 1, 1, 1]]) == 0
    assert box.iou(np.zeros((0, 4)), random_boxes(3)).shape == (0, 3)


def test_area_of_a_reversed_box_is_zero():
    np.testing.assert_array_equal(box.area(np.array([[0, 0, 2, 3], [5, 5, 4, 9]])), [6, 0])


def test_clip_takes_each_image_its_size():
    boxes = np.array([[-5.0, 2, 30, 40]] * 2)[:, None]
    found = box.clip(nd, nd.array(boxes), nd.array([[20, 25], [50, 10]])).asnumpy()
    np.testing.assert_array_equal(found[:, 0], [[0, 2, 25, 20], [0, 2, 10, 40]])
    one_size = box.clip(nd, nd.array(boxes), nd.array([[20, 25]])).asnumpy()
    np.testing.assert_array_equal(one_size[1, 0], [0, 2, 25, 20])


def test_rows_are_taken_of_each_image():
    values = np.random.randn(2, 5, 3).astype(np.float32)
    index = np.array([[4, 0], [1, 1]])
    found = box.take_rows(nd, nd.array(values), nd.array(index)).asnumpy()
    np.testing.assert_array_equal(found, np.stack([values[i][index[i]] for i in range(2)]))
