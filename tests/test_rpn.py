from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd

from gluon_resnest.models.detection import boxes as box
from gluon_resnest.models.detection.conventions import DETECTRON2, GLUONCV, MMDETECTION
from gluon_resnest.models.detection.rpn import NO_BOX, Proposals, RPNHead, best_rows

STRIDES = (4, 8, 16, 32, 64)
SIZES = [(6, 8), (3, 4), (2, 2), (1, 1), (1, 1)]


def head(conventions=DETECTRON2):
    rpn = RPNHead(5, STRIDES, conventions)
    rpn.initialize()
    rpn.collect_params(".*weight").initialize(mx.init.Normal(0.3), force_reinit=True)
    return rpn, [nd.random.normal(shape=(2, 5) + size) for size in SIZES]


def slow_nms(boxes, scores, threshold):
    """Returns indices of what is kept, best first."""
    order, kept = list(np.argsort(-scores, kind="stable")), []
    while order:
        best = order.pop(0)
        kept.append(best)
        order = [i for i in order if box.iou(boxes[best:best + 1], boxes[i:i + 1])[0, 0]
                 <= threshold]
    return kept


def slow_proposals(image, size, logits, deltas, anchors, conventions, pre_nms, post_nms):
    found, levels = [], range(len(logits))
    for group in [[level] for level in levels] if conventions.rpn_each_level else [levels]:
        scores = np.concatenate([logits[level][image].asnumpy() for level in group])
        order = np.argsort(-scores)[:pre_nms]
        decoded = np.concatenate([
            box.decode(nd, anchors[level][0], deltas[level][image], conventions.rpn_weights,
                       conventions).asnumpy() for level in group])[order]
        decoded = np.clip(decoded, 0, [size[1], size[0]] * 2)
        there = (decoded[:, 2] > decoded[:, 0]) & (decoded[:, 3] > decoded[:, 1])
        decoded, scores = decoded[there], scores[order][there]
        found += [(scores[i], *decoded[i]) for i in slow_nms(decoded, scores, conventions.rpn_nms)]
    return np.array(sorted(found, reverse=True)[:post_nms])


@pytest.mark.parametrize("conventions", [DETECTRON2, MMDETECTION, GLUONCV], ids=lambda c: c.name)
@pytest.mark.parametrize("post_nms", [12, 60])
def test_proposals_equal_the_slow_twin(conventions, post_nms, hybridize):
    rpn, maps = head(conventions)
    pre_nms = 20 if conventions.rpn_each_level else 70
    proposals = Proposals(conventions, pre_nms=pre_nms, post_nms=post_nms)
    if hybridize:
        rpn.hybridize()
        proposals.hybridize()
    said = rpn(*maps)
    sizes = np.array([[24, 32], [20, 15]])
    boxes, scores = (array.asnumpy() for array in proposals(nd.array(sizes), *said))
    assert boxes.shape == (2, post_nms, 4)
    for image in range(2):
        expected = slow_proposals(image, sizes[image], *said, conventions, pre_nms, post_nms)
        there = scores[image] > NO_BOX / 2
        assert there.sum() == len(expected)
        np.testing.assert_allclose(scores[image][there], expected[:, 0], atol=1e-4)
        np.testing.assert_allclose(boxes[image][there], expected[:, 1:], atol=1e-3)
        assert not boxes[image][~there].any()


def test_no_more_rows_than_all_levels_can_give():
    rpn, maps = head()
    boxes, _ = Proposals(DETECTRON2, pre_nms=3, post_nms=1000)(nd.array([[24, 32]]), *rpn(*maps))
    assert boxes.shape == (2, 15, 4)


@pytest.mark.parametrize("each_level, best", [(True, [3, 2, 1]), (False, [3, 1])])
def test_boxes_of_two_levels_compete_only_where_levels_are_thinned_together(each_level, best):
    conventions = replace(DETECTRON2, rpn_each_level=each_level)
    anchors = [nd.array([[[0, 0, 10, 10], [12, 12, 15, 15]]]), nd.array([[[0, 0, 10, 9]]])]
    _, scores = Proposals(conventions, pre_nms=3, post_nms=3)(
        nd.array([[20, 20]]), [nd.array([[2.0, 1.0]]), nd.array([[3.0]])],
        [nd.zeros((1, 2, 4)), nd.zeros((1, 1, 4))], anchors)
    assert [score for score in scores.asnumpy()[0] if score > NO_BOX / 2] == best


def test_logits_deltas_and_anchors_have_one_order():
    rpn, maps = head()
    logits, deltas, anchors = rpn(*maps)
    hidden = nd.relu(rpn.conv(maps[0]))
    row, column, shape = 4, 7, 2
    number = (row * 8 + column) * 3 + shape
    assert logits[0][1, number].asscalar() == pytest.approx(
        rpn.logits(hidden)[1, shape, row, column].asscalar())
    np.testing.assert_allclose(
        deltas[0][1, number].asnumpy(),
        rpn.deltas(hidden)[1, 4 * shape:4 * shape + 4, row, column].asnumpy())
    centre = anchors[0][0, number].asnumpy()
    np.testing.assert_allclose((centre[:2] + centre[2:]) / 2, [column * 4, row * 4], atol=1e-5)


def test_a_logit_of_minus_one_is_no_dropped_box():
    logits = [nd.array([[-1.0, -1.5, -3.0]])]
    deltas = [nd.zeros((1, 3, 4))]
    anchors = [nd.array([[[0, 0, 4, 4], [10, 10, 14, 14], [0, 0, 4, 4.1]]])]
    boxes, scores = Proposals(DETECTRON2, pre_nms=3, post_nms=3)(
        nd.array([[20, 20]]), logits, deltas, anchors)
    np.testing.assert_allclose(scores.asnumpy(), [[-1, -1.5, NO_BOX]])


def test_a_diverged_network_proposes_nothing():
    anchors = [nd.array([[[0, 0, 4, 4]]])]
    boxes, scores = Proposals(DETECTRON2, pre_nms=2, post_nms=2)(
        nd.array([[20, 20]]), [nd.array([[1.0]])], [nd.full((1, 1, 4), np.nan)], anchors)
    assert not boxes.asnumpy().any() and (scores.asnumpy() <= NO_BOX / 2).all()


def test_best_rows_of_few_are_filled_up():
    rows = nd.random.normal(shape=(2, 4, 3))
    found = best_rows(nd, rows, 6).asnumpy()
    for image in range(2):
        values = rows[image].asnumpy()
        np.testing.assert_array_equal(found[image, :4], values[np.argsort(-values[:, 2])])
    assert (found[:, 4:, 2] == NO_BOX).all()


def test_nms_thresholds_are_the_conventions():
    kept = []
    for threshold in (0.4, 0.6):
        anchors = [nd.array([[[0, 0, 10, 10], [0, 0, 10, 5]]])]    # IoU 0.5
        _, scores = Proposals(replace(DETECTRON2, rpn_nms=threshold), pre_nms=2, post_nms=2)(
            nd.array([[20, 20]]), [nd.array([[2.0, 1.0]])], [nd.zeros((1, 2, 4))], anchors)
        kept.append((scores.asnumpy() > NO_BOX / 2).sum())
    assert kept == [1, 2]
