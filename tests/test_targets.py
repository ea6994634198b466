from dataclasses import replace

import numpy as np
import pytest

from gluon_resnest.errors import UserError
from gluon_resnest.models.detection import boxes as box
from gluon_resnest.models.detection.conventions import DETECTRON2
from gluon_resnest.models.detection.matching import IGNORED, NEGATIVE, POSITIVE, match
from gluon_resnest.models.detection.sampling import fill, subsample
from gluon_resnest.models.detection.targets import (
    Objects, anchor_targets, mask_rois, relabelled, roi_targets)
from gluon_resnest.models.detection.training import mask_targets

SMALL = replace(DETECTRON2, rpn_samples=8, roi_samples=8)
NOBODY = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
SQUARE = np.array([[10, 10, 30, 30]], np.float32)
ANCHORS = np.array([[10, 10, 30, 30], [10, 10, 30, 26], [10, 10, 30, 20], [60, 60, 80, 80],
                    [0, 0, 5, 5]], np.float32)      # IoU with the square: 1, .8, .5, 0, 0


def rng():
    return np.random.default_rng(3)


def slow_match(overlaps, low, high, low_quality):
    best, labels = [], []
    for row in overlaps:
        best.append(int(np.argmax(row)))
        labels.append(POSITIVE if max(row) >= high else NEGATIVE if max(row) < low else IGNORED)
    if low_quality is not None:
        for column in overlaps.T:
            for i, value in enumerate(column):
                if value == max(column) and value > 0 and value >= low_quality:
                    labels[i] = POSITIVE
    return best, labels


@pytest.mark.parametrize("low_quality", [None, 0.0, 0.3])
def test_match_equals_the_slow_twin(low_quality):
    overlaps = np.random.uniform(0, 0.9, size=(30, 4)).round(1)
    overlaps[:, 3] = 0
    best, labels = match(overlaps, 0.3, 0.7, low_quality=low_quality)
    slow_best, slow_labels = slow_match(overlaps, 0.3, 0.7, low_quality)
    np.testing.assert_array_equal(best, slow_best)
    np.testing.assert_array_equal(labels, slow_labels)


def test_match_hand_numbers():
    overlaps = box.iou(ANCHORS, SQUARE)
    assert list(match(overlaps, 0.3, 0.9)[1]) == [1, IGNORED, IGNORED, 0, 0]
    assert list(match(overlaps[1:], 0.3, 0.9, low_quality=0)[1]) == [1, IGNORED, 0, 0]


def test_without_objects_all_is_background():
    best, labels = match(np.zeros((5, 0)), 0.3, 0.7, low_quality=0.0)
    assert list(labels) == [NEGATIVE] * 5 and list(best) == [0] * 5


def test_subsample_keeps_the_quota_and_negatives_fill_up():
    labels = np.array([1] * 10 + [0] * 20 + [-1] * 5)
    positives, negatives = subsample(labels, 12, 0.25, rng())
    assert len(positives) == 3 and len(negatives) == 9
    assert (labels[positives] == 1).all() and (labels[negatives] == 0).all()
    assert len(set(positives)) == 3 and len(set(negatives)) == 9
    positives, negatives = subsample(np.array([1, 0, 0, -1]), 12, 0.5, rng())
    assert len(positives) == 1 and len(negatives) == 2


def test_what_is_drawn_depends_on_the_generator_only():
    labels = np.array([1] * 50 + [0] * 50)
    again = [np.concatenate(subsample(labels, 20, 0.5, rng())) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    other = np.concatenate(subsample(labels, 20, 0.5, np.random.default_rng(4)))
    assert (other != again[0]).any()


def test_each_box_is_drawn_equally_often():
    labels = np.array([0] * 10)
    generator = rng()
    counts = np.zeros(10)
    for _ in range(2000):
        counts[subsample(labels, 5, 0.5, generator)[1]] += 1
    assert np.abs(counts - 1000).max() < 120       # five standard deviations


def test_fill_repeats_in_order():
    index, first = fill([7, 9], 5)
    assert list(index) == [7, 9, 7, 9, 7] and list(first) == [True, True, False, False, False]


def test_anchor_targets_hold_what_decodes_to_the_object():
    found = anchor_targets(ANCHORS, Objects(SQUARE, np.array([2])), SMALL, rng())
    assert sorted(found.index[found.labels == POSITIVE]) == [0, 1]
    assert sorted(found.index[found.labels == NEGATIVE]) == [3, 4]      # 2 is between .3 and .7
    assert (found.labels[4:] == IGNORED).all()
    chosen = found.labels == POSITIVE
    np.testing.assert_allclose(
        found.deltas[chosen],
        box.encode(ANCHORS[found.index[chosen]], np.repeat(SQUARE, 2, 0), (1,) * 4))


def test_anchors_of_an_image_without_objects_are_background():
    found = anchor_targets(ANCHORS, NOBODY, SMALL, rng())
    assert sorted(found.index[found.labels == NEGATIVE]) == [0, 1, 2, 3, 4]
    assert (found.labels != POSITIVE).all() and found.index.shape == (8,)


def test_anchors_that_are_all_between_the_thresholds_are_ignored():
    found = anchor_targets(ANCHORS[2:3], Objects(SQUARE, np.array([0])),
                           replace(SMALL, rpn_low_quality=0.9), rng())
    assert (found.labels == IGNORED).all() and found.labels.shape == (8,)


def test_objects_join_the_proposals():
    found = roi_targets(ANCHORS[2:], Objects(SQUARE, np.array([2])), 3, 0.6, SMALL, rng())
    objects = found.classes == 2
    np.testing.assert_array_equal(found.rois[objects], SQUARE)
    np.testing.assert_array_equal(found.boxes[objects], SQUARE)
    assert (found.classes == 3).sum() == 3 and (found.classes == -1).sum() == 4


def test_at_most_a_quarter_of_the_rois_are_objects():
    found = roi_targets(np.repeat(SQUARE, 30, 0), Objects(SQUARE, np.array([0])), 3, 0.5, SMALL,
                        rng())
    assert (found.classes == 0).sum() == 2


@pytest.mark.parametrize("proposals", [ANCHORS, np.zeros((0, 4), np.float32)])
def test_rois_of_an_image_without_objects(proposals):
    found = roi_targets(proposals, NOBODY, 3, 0.5, SMALL, rng())
    assert found.rois.shape == (8, 4) and (box.area(found.rois) > 0).all()
    assert (found.classes == 3).sum() == len(proposals)
    assert not mask_rois(found, 3, 2)[1].any()


def test_crowds_and_empty_boxes_take_no_part():
    both = Objects(np.concatenate([SQUARE, SQUARE + 40, SQUARE[:, [0, 1, 0, 1]]]),
                   np.array([1, 2, 0]), masks=np.zeros((3, 4, 4), np.uint8),
                   crowd=np.array([False, True, False])).learnable()
    np.testing.assert_array_equal(both.boxes, SQUARE)
    assert list(both.classes) == [1] and both.masks.shape == (1, 4, 4)


def test_later_stages_match_anew_and_keep_repeats_ignored():
    rois = np.concatenate([ANCHORS[:3], ANCHORS[:1], [[4, 4, 4, 4]]]).astype(np.float32)
    found = relabelled(rois, np.array([False, False, False, True, False]),
                       Objects(SQUARE, np.array([1])), 3, 0.7)
    assert list(found.classes) == [1, 1, 3, -1, -1]


def slow_mask_targets(mask, roi, side):
    """ROIAlign as in Detectron2: adaptive sampling, aligned, then at least one half."""
    x1, y1, x2, y2 = (float(value) - 0.5 for value in roi)
    steps = [max(int(np.ceil((x2 - x1) / side)), 1), max(int(np.ceil((y2 - y1) / side)), 1)]
    height, width = mask.shape

    def at(y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return 0.0
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        y0, x0 = int(y), int(x)
        y1_, x1_ = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
        fy, fx = y - y0, x - x0
        return ((1 - fy) * ((1 - fx) * mask[y0, x0] + fx * mask[y0, x1_])
                + fy * ((1 - fx) * mask[y1_, x0] + fx * mask[y1_, x1_]))

    out = np.zeros((side, side))
    for row, column in np.ndindex(side, side):
        out[row, column] = np.mean([
            at(y1 + (row + (i + 0.5) / steps[1]) * (y2 - y1) / side,
               x1 + (column + (j + 0.5) / steps[0]) * (x2 - x1) / side)
            for i in range(steps[1]) for j in range(steps[0])])
    return out


def test_mask_targets_equal_the_slow_twin():
    masks = (np.random.uniform(size=(2, 20, 24)) > 0.5).astype(np.uint8)
    rois = np.array([[1.3, 2, 20.2, 17.1], [-3, -2, 9, 8], [0, 0, 24, 20], [5, 5, 5, 5]],
                    np.float32)
    matched, valid = np.array([1, 0, 0, 1]), np.array([True, True, False, True])
    found = mask_targets(masks, matched, rois, valid, 6)
    for i in range(2):
        exact = slow_mask_targets(masks[matched[i]], rois[i], 6)
        clear = np.abs(exact - 0.5) > 1e-4
        np.testing.assert_array_equal(found[i][clear], (exact >= 0.5)[clear])
    assert not found[2:].any()


def test_masks_may_be_made_when_asked_for():
    """Anything that is indexed like the array gives the same targets, whatever surrounds a RoI."""
    class Lazy(list):
        pass

    masks = (np.random.uniform(size=(3, 60, 80)) > 0.5).astype(np.uint8)
    corners = np.random.uniform(0, 40, size=(12, 2))
    rois = np.concatenate([corners, corners + np.random.uniform(0.5, 39, size=(12, 2))],
                          axis=1).astype(np.float32)
    matched, valid = np.arange(12) % 3, np.ones(12, bool)
    found = mask_targets(Lazy(masks), matched, rois, valid, 7)
    np.testing.assert_array_equal(found, mask_targets(masks, matched, rois, valid, 7))
    wide = np.pad(masks, ((0, 0), (0, 300), (0, 300)))
    np.testing.assert_array_equal(found, mask_targets(wide, matched, rois, valid, 7))
    for i in range(0, 12, 4):
        exact = slow_mask_targets(masks[matched[i]], rois[i], 7)
        clear = np.abs(exact - 0.5) > 1e-4
        np.testing.assert_array_equal(found[i][clear], (exact >= 0.5)[clear])


def test_a_mask_cut_out_at_its_own_box_is_full_but_for_its_corners():
    mask = np.zeros((1, 20, 20), np.uint8)
    mask[0, 4:12, 6:18] = 1
    found = mask_targets(mask, np.array([0]), np.array([[6, 4, 18, 12]], np.float32),
                         np.array([True]), 28)
    assert found.sum() == 28 ** 2 - 4        # (1/2 + 1/14)^2 < 1/2, bilinear there


def test_objects_that_do_not_fit_together_are_refused():
    with pytest.raises(UserError, match=r"boxes \(G, 4\) and classes"):
        Objects(SQUARE, np.array([1, 2]))
    with pytest.raises(UserError, match="masks of all 1 objects, got 2"):
        Objects(SQUARE, np.array([1]), masks=np.zeros((2, 4, 4)))
