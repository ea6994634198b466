"""From outputs to detections of the file, several views of an image, COCO's AP and recall."""
import copy

import numpy as np
import pytest
from mxnet import nd

from gluon_resnest.data.instances import ground_truth
from gluon_resnest.data.lvis import exhaustive
from gluon_resnest.data.shapes import ShapeInstances
from gluon_resnest.errors import UserError
from gluon_resnest.models.detection.boxes import iou
from gluon_resnest.models.detection.inference import (
    Found, View, detect_views, in_originals, mirrored, suppress)
from gluon_resnest.tasks.detection_evaluation import (
    ProposalRecall, best_pairs, check_results, coco_ap, coco_results)
from gluon_resnest.tasks.lvis_evaluation import lvis_ap


def slow_suppress(boxes, classes, scores, threshold):
    kept = []
    for row in sorted(range(len(scores)), key=lambda row: -scores[row]):
        if all(classes[row] != classes[other] or
               iou(boxes[row:row + 1], boxes[other:other + 1])[0, 0] <= threshold
               for other in kept):
            kept.append(row)
    return kept


def test_suppression_is_the_plain_python_one():
    rng = np.random.default_rng(0)
    for count in (0, 1, 60):
        corners = np.sort(rng.uniform(0, 60, (count, 2, 2)), axis=1)
        boxes = corners.reshape(-1, 4).astype(np.float32)
        classes, scores = rng.integers(0, 3, count), rng.permutation(count) / 60
        for threshold in (0.1, 0.5):
            assert suppress(boxes, classes, scores, threshold).tolist() == slow_suppress(
                boxes, classes, scores, threshold)


def test_boxes_are_scaled_to_the_file_clipped_and_empty_ones_left_out():
    outputs = [np.array([[[1], [0], [-1]]]), np.array([[[0.9], [0.8], [-1]]]),
               np.array([[[10, 20, 30, 200], [90, 5, 95, 9], [-1, -1, -1, -1]]])]
    found, = in_originals(outputs, [(100, 50)], [(200, 80)])       # heights twice, widths 1.6
    np.testing.assert_allclose(found.boxes, [[16, 40, 48, 200]], rtol=1e-6)
    assert found.classes.tolist() == [1] and found.masks is None


class Net:
    """Stands for a detector: knows one object of an image 40 pixels wide, by view."""

    nms, rows = 0.5, 100
    mask_heads = [None]

    def __init__(self, boxes, masks):
        self._boxes, self._masks, self.asked = list(boxes), list(masks), []

    def __call__(self, images, sizes):
        box, score = self._boxes.pop(0)
        return [nd.array([[[0]]]), nd.array([[[score]]]), nd.array([[box]]), nd.zeros((1, 1, 2, 2))]

    def masks_at(self, images, ids, boxes):
        self.asked.append(boxes.asnumpy()[0])
        return nd.array(self._masks.pop(0))[None]


def test_views_meet_in_one_nms_and_their_masks_are_averaged():
    """The same object, in the image at its size, at twice its size and in the mirror."""
    image = np.zeros((3, 32, 64), np.float32)
    views = [View(image, (20, 40), False), View(image, (40, 80), False),
             View(image, (20, 40), True)]
    mask = np.array([[[1.0, 0.0], [0.5, 0.0]]])
    net = Net([((4, 2, 14, 12), 0.7), ((8, 4, 28, 24), 0.9), ((26, 2, 36, 12), 0.8)],
              [mask, np.zeros((1, 2, 2)), mask[:, :, ::-1]])
    found = detect_views(net, views, (20, 40))
    np.testing.assert_allclose(found.boxes, [[4, 2, 14, 12]], rtol=1e-6)
    assert found.scores.tolist() == [np.float32(0.9)]
    np.testing.assert_allclose(found.masks, mask * 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate(net.asked), [
        [4, 2, 14, 12], [8, 4, 28, 24], [26, 2, 36, 12]], rtol=1e-6)


def test_views_meet_in_the_nms_that_was_set_last():
    views = [View(np.zeros((3, 32, 64), np.float32), (20, 40), False)] * 3
    net = Net([((4, 2, 14, 12), score) for score in (0.7, 0.9, 0.8)], [np.zeros((2, 2, 2))] * 3)
    net.nms, net.rows = 1.0, 2
    found = detect_views(net, views, (20, 40))
    np.testing.assert_array_equal(found.scores, np.array([0.9, 0.8], np.float32))


def test_mirroring_twice_changes_nothing():
    boxes = np.array([[1, 2, 5, 9]], np.float32)
    assert mirrored(boxes, 20).tolist() == [[15, 2, 19, 9]]
    assert mirrored(mirrored(boxes, 20), 20).tolist() == boxes.tolist()


# ---- COCO ---------------------------------------------------------------------------------------

SOURCE = ShapeInstances(3, (64, 80), 3)


def true_results(source=SOURCE):
    """Returns the results of a detector that finds every object: boxes, and masks of full boxes."""
    boxes, masks = [], []
    for index in range(len(source)):
        objects = source.objects(index)
        rows = np.flatnonzero(~objects.crowd)
        found = Found(objects.boxes[rows], objects.classes[rows],
                      np.ones(len(rows), np.float32), np.ones((len(rows), 28, 28), np.float32))
        own = coco_results(found, source.image_id(index), source.size(index), source.category_ids)
        boxes, masks = boxes + own[0], masks + own[1]
    return boxes, masks


def test_true_boxes_have_an_ap_of_one_hundred():
    boxes, masks = true_results()
    metrics, classes = coco_ap(ground_truth(SOURCE), boxes, "bbox")
    assert metrics["ap"] == metrics["ar100"] == pytest.approx(100)
    assert all(value == pytest.approx(100) for value in classes.values())
    metrics, _ = coco_ap(ground_truth(SOURCE), masks, "segm")
    assert 0 < metrics["mask_ap"] < 100 and "ap" not in metrics     # shapes do not fill boxes
    assert all("bbox" not in each for each in masks)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_numbers_and_optional_fields_of_annotations_do_not_matter(kind):
    """The judge takes the number 0 for no annotation; area and iscrowd have values of COCO's."""
    truth, found = ground_truth(SOURCE), dict(zip(("bbox", "segm"), true_results()))[kind]
    truth["annotations"] = [{**row, "area": row["bbox"][2] * row["bbox"][3]}
                            for row in truth["annotations"] if not row["iscrowd"]]
    bare = {**truth, "annotations": [
        {**{name: row[name] for name in ("image_id", "category_id", "bbox", "segmentation")},
         "id": number} for number, row in enumerate(truth["annotations"])]}
    before = copy.deepcopy(bare)
    assert coco_ap(bare, found, kind) == coco_ap(truth, found, kind)
    assert bare == before


def test_nothing_found_is_zero_and_odd_boxes_count_for_nothing():
    truth = ground_truth(SOURCE)
    assert coco_ap(truth, [], "bbox")[0]["ap"] == 0
    boxes, _ = true_results()
    unknown = [{**each, "category_id": 99} for each in boxes]
    odd = [{**boxes[0], "bbox": bbox, "score": 0.1}
           for bbox in ([-50.0, -50, 20, 20], [5.0, 5, 0, 0], [200.0, 200, 9, 9])]
    assert coco_ap(truth, boxes + unknown + odd, "bbox")[0]["ap"] == pytest.approx(100)
    assert coco_ap(truth, unknown, "bbox")[0]["ap"] == 0


def test_images_without_objects_and_with_crowds_alone_are_judged():
    truth = ground_truth(SOURCE)
    first, second, third = (image["id"] for image in truth["images"])
    truth["annotations"] = [{**row, "iscrowd": int(row["image_id"] == second)}
                            for row in truth["annotations"] if row["image_id"] != first]
    boxes, _ = true_results()
    metrics, _ = coco_ap(truth, [row for row in boxes if row["image_id"] != first], "bbox")
    assert metrics["ap"] == pytest.approx(100)          # what lies on crowds is not counted
    truth["annotations"] = [row for row in truth["annotations"] if row["iscrowd"]]
    with pytest.raises(UserError, match="no object that counts"):
        coco_ap(truth, boxes, "bbox")


def test_files_of_results_are_looked_at():
    boxes, masks = true_results()
    truth = ground_truth(SOURCE)
    assert check_results(boxes, "x", truth) == ["bbox"]
    assert check_results(masks, "x", truth) == ["segm"]
    assert check_results([{**boxes[0], **masks[0]}], "x", truth) == ["bbox", "segm"]
    assert check_results([], "x", truth) == ["bbox"]
    for wrong in ({}, [1], [{"image_id": 1, "bbox": [0, 0, 1, 1]}], boxes[:1] + masks[:1]):
        with pytest.raises(UserError, match="no list of results"):
            check_results(wrong, "x.json", truth)
    with pytest.raises(UserError, match="speak of image 77"):
        coco_ap(truth, [{**boxes[0], "image_id": 77}], "bbox")


def test_each_proposal_finds_one_object_and_the_best_pair_comes_first():
    overlaps = np.array([[0.9, 0.8], [0.7, 0.1]])
    np.testing.assert_allclose(best_pairs(overlaps), [0.9, 0.1])
    recall = ProposalRecall()
    objects = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    recall.update(np.array([[0, 0, 10, 10], [0, 0, 10, 8]], np.float32), objects)
    recall.update(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))
    assert recall.ratios(recall.counts()) == {"proposals_ar100": 50, "proposals_ar1000": 50}


@pytest.mark.parametrize("judge", [coco_ap, lvis_ap])
def test_a_broken_mask_of_the_truth_is_named_when_masks_are_judged(judge):
    source = ShapeInstances(1, (64, 80), 2)
    truth = exhaustive(ground_truth(source))
    truth["annotations"][0]["segmentation"] = [[0, 0, 1e9, 0, 9, 9]]
    with pytest.raises(UserError, match="annotation 1 of image 1 has a broken mask: a polygon"):
        judge(truth, [], "segm")
    assert judge(truth, [], "bbox")[0]["ap"] == 0


@pytest.mark.parametrize("judge", [coco_ap, lvis_ap])
def test_a_polygon_of_two_points_is_no_mask_and_changes_none(judge):
    truth = exhaustive(ground_truth(ShapeInstances(1, (64, 80), 2)))
    perfect = [{**each, "score": 1} for each in truth["annotations"]]
    right, _ = judge(truth, perfect, "segm")
    square, line = [10, 10, 30, 10, 30, 30, 10, 30], [1, 1, 60, 60]
    outcomes = []
    for polygons in ([square], [line, square], [square, line]):
        truth["annotations"][0]["segmentation"] = polygons
        outcomes.append(judge(truth, perfect, "segm"))
    assert outcomes[0] == outcomes[1] == outcomes[2] and right["mask_ap"] == pytest.approx(100)
    for segmentation in ([line], [], None):
        truth["annotations"][0]["segmentation"] = segmentation
        with pytest.raises(UserError, match="annotation 1 of image 1 has no mask"):
            judge(truth, [], "segm")
