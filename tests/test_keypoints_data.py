"""Persons of COCO: what is read, what is left out, and how a person is cut out of an image."""
import copy
import json
import pickle

import cv2
import numpy as np
import pytest

from gluon_resnest.data.keypoints import (
    JOINTS, PARTNERS, SKELETON, PersonDataset, SyntheticPersons, clip, read_annotations,
    read_detections)
from gluon_resnest.data.pose_transforms import PersonCrop, crop_matrix, inverse, mirror, move
from gluon_resnest.data.sampling import random_for
from gluon_resnest.data.text_files import read_json
from gluon_resnest.errors import UserError

WIDTH, HEIGHT = 80, 60


def person(number, box, labelled=17, **more):
    """Returns an annotation whose first `labelled` joints are at (5 j, 3 j)."""
    joints = [[5 * j, 3 * j, 2] if j < labelled else [0, 0, 0] for j in range(17)]
    return {"id": number, "image_id": 7, "category_id": 1, "iscrowd": 0, "bbox": box,
            "area": 500, "num_keypoints": labelled,
            "keypoints": sum(joints, []), **more}


def content(*persons):
    return {"images": [{"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
            "categories": [{"id": 1, "name": "person"}], "annotations": list(persons)}


@pytest.fixture
def write(tmp_path):
    """Writes a json file beside the image a.png; returns its path."""
    image = np.random.randint(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)

    def write(value, name="annotations.json"):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path
    return write


def test_one_person_is_enough(write):
    file = write(content(person(1, [10, 5, 30, 40])))
    persons = read_annotations(file, file.parent)
    assert len(persons) == 1 and persons.boxes.tolist() == [[10, 5, 30, 40]]
    assert persons.joints.shape == (1, 17, 3) and persons.joints[0, 3].tolist() == [15, 9, 2]
    assert persons.scores.tolist() == [1] and persons.image_ids.tolist() == [7]
    image, joints = PersonDataset(persons, PersonCrop(64, 32, PARTNERS))[0, random_for(0, 0, 0)]
    assert image.shape == (3, 64, 32) and image.dtype == joints.dtype == np.float32


def test_persons_without_joints_crowds_and_boxes_off_the_image_are_left_out(write):
    good = person(1, [70, 50, 40, 40], labelled=1)
    file = write(content(
        person(2, [0, 0, 5, 5], labelled=0), person(3, [0, 0, 5, 5], iscrowd=1),
        person(4, [WIDTH, 0, 5, 5]), person(5, [-9, 0, 5, 5]), person(6, [3, 3, 0, 5]),
        person(8, [0, 0, 5, 5], category_id=2), good))
    persons = read_annotations(file, file.parent)
    assert persons.boxes.tolist() == [[70, 50, 10, 10]]


def test_a_person_without_the_field_of_joints_is_left_out(write):
    bare = person(2, [0, 0, 5, 5])
    del bare["keypoints"]
    file = write(content(bare, person(1, [1, 1, 9, 9])))
    assert len(read_annotations(file, file.parent)) == 1


@pytest.mark.parametrize("box, expected", [
    ((1, 2, 3, 4), (1, 2, 3, 4)), ((-1, -2, 3, 4), (0, 0, 2, 2)), ((8, 9, 5, 5), (8, 9, 2, 1)),
    ((10, 0, 2, 2), None), ((0, -2, 2, 2), None), ((0, 0, 0, 2), None),
    ((0, 0, float("nan"), 2), None)])
def test_boxes_are_cut_off_at_the_border(box, expected):
    assert clip(box, 10, 10) == expected


@pytest.mark.parametrize("value, message", [
    ("no json", "is not a json file"),
    ([1, 2], "is not an annotation file of COCO's keypoints"),
    ({"images": []}, "is not an annotation file of COCO's keypoints"),
    (content(person(1, [0, 0, 5, 5], labelled=0)), "no person with a labelled joint"),
    (content(), "no person with a labelled joint"),
    (content(person(1, [0, 0, 5, 5], keypoints=[1, 2, 3])), "has 3 joint numbers, expected 51"),
    (content(person(1, [0, 0, 5])), "is not an annotation file"),
    (content(person(1, [0, 0, 5, 10 ** 400])), "is not an annotation file")])
def test_files_of_another_kind_are_refused(write, value, message):
    file = write(value)
    with pytest.raises(UserError, match=message):
        read_annotations(file, file.parent)


@pytest.mark.parametrize("number", ["a", "7", 1 << 63])
def test_images_are_numbered(write, number):
    value = content(person(1, [10, 5, 30, 40], image_id=number))
    value["images"][0]["id"] = number
    file = write(value)
    with pytest.raises(UserError, match="has an id that is no whole number of 64 bits"):
        read_annotations(file, file.parent)


def test_an_image_of_another_size_is_refused(write):
    value = content(person(1, [10, 5, 30, 40]))
    value["images"][0].update(width=160, height=120)
    file = write(value)
    data = PersonDataset(read_annotations(file, file.parent), PersonCrop(64, 32, PARTNERS))
    with pytest.raises(UserError, match="a.png .image 7 of .* is 60 x 80 pixels .height x width., "
                                        "but its annotations are for 120 x 160"):
        data[0, random_for(0, 0, 0)]


def test_missing_files_are_named(tmp_path, write):
    with pytest.raises(UserError, match="none.json cannot be read"):
        read_annotations(tmp_path / "none.json", tmp_path)
    file, crop = write(content(person(1, [10, 5, 30, 40]))), PersonCrop(64, 32, PARTNERS)
    with pytest.raises(UserError, match="elsewhere cannot be read as the folder of the images of"):
        PersonDataset(read_annotations(file, tmp_path / "elsewhere"), crop)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="lists 1 image that is not in .*empty, first a.png .image"):
        PersonDataset(read_annotations(file, tmp_path / "empty"), crop)
    data = PersonDataset(read_annotations(file, tmp_path), crop)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="a.png cannot be read"):
        data[0, random_for(0, 0, 0)]
    assert "person 0" in data.name(0)


def found(score, box=(10, 5, 30, 40), **more):
    return {"image_id": 7, "category_id": 1, "bbox": list(box), "score": score, **more}


def test_detections_are_filtered_by_score_category_and_place(write):
    annotations = write(content())
    file = write([found(0.9), found(0.1), found(0.8, category_id=3), found(0.7, (90, 0, 5, 5))],
                 "boxes.json")
    persons = read_detections(file, annotations, file.parent, min_score=0.5)
    assert persons.scores.tolist() == [0.9] and not persons.joints.any()
    with pytest.raises(UserError, match="no person of score 0.95 or more"):
        read_detections(file, annotations, file.parent, min_score=0.95)


def test_detections_in_other_images_are_refused(write):
    annotations = write(content())
    file = write([found(0.9, image_id=8)], "boxes.json")
    with pytest.raises(UserError, match="detections in image 8"):
        read_detections(file, annotations, file.parent)
    file = write({"images": []}, "boxes.json")
    with pytest.raises(UserError, match="is not a list of detections"):
        read_detections(file, annotations, file.parent)


def test_names_partners_and_skeleton_agree():
    swapped = [name.replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")
               for name in JOINTS]
    assert [JOINTS[partner] for partner in PARTNERS] == swapped
    mirrored = {frozenset((PARTNERS[a], PARTNERS[b])) for a, b in SKELETON}
    assert mirrored == {frozenset(pair) for pair in SKELETON}


@pytest.mark.parametrize("box", [(10, 20, 30, 80), (10, 20, 90, 30)])
def test_the_crop_holds_the_grown_box_and_its_centre(box):
    matrix = crop_matrix(box, 64, 48, margin=1.25)
    x, y, width, height = box
    corners = np.array([[x + width / 2, y + height / 2, 0], [x, y, 0],
                        [x + width, y + height, 0]])
    centre, low, high = move(corners, matrix)[:, :2]
    np.testing.assert_allclose(centre, [24, 32])
    share = (high - low) / [48, 64]
    assert share.max() == pytest.approx(0.8) and share.min() < 0.8


def test_the_way_back_inverts_the_crop():
    matrix = crop_matrix((3, 9, 31, 47), 64, 48, scale=1.2, degrees=33)
    joints = np.random.rand(17, 3) * 50
    np.testing.assert_allclose(move(move(joints, matrix), inverse(matrix)), joints, atol=1e-9)


def test_a_turn_keeps_distances():
    matrix = crop_matrix((0, 0, 48, 64), 64, 48, margin=1, degrees=40)
    points = np.random.rand(2, 3) * 40
    np.testing.assert_allclose(np.linalg.norm(np.diff(move(points, matrix)[:, :2], axis=0)),
                               np.linalg.norm(np.diff(points[:, :2], axis=0)))


def test_flip_of_flip_is_the_identity():
    image = np.random.randint(0, 256, (6, 8, 3), np.uint8)
    joints = np.random.rand(17, 3)
    again = mirror(*mirror(image, joints, PARTNERS), PARTNERS)
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_allclose(again[1], joints)


def test_joints_go_where_their_pixels_go():
    """A bright dot at each joint is found at the joint of the crop, turned, sized and mirrored."""
    crop = PersonCrop(128, 96, PARTNERS, scale=0.3, rotation=40, rotate_prob=0.6, flip=True)
    for index in range(12):
        joints = np.zeros((17, 3), np.float32)
        joints[5] = 52, 71, 2
        image = np.zeros((160, 120, 3), np.uint8)
        image[71, 52] = 255
        cut, moved = crop(image, (20, 20, 80, 100), joints, random_for(3, 0, index))
        labelled = 5 if moved[5, 2] else 6
        y, x = np.unravel_index(cut[0].argmax(), cut.shape[1:])
        assert np.hypot(*(moved[labelled, :2] - (x, y))) <= 1
        assert (np.delete(moved, labelled, axis=0) == 0).all()


def test_randomness_is_of_its_published_size():
    crop = PersonCrop(64, 48, PARTNERS, scale=0.3, rotation=40, rotate_prob=0.6, flip=True)
    image = np.zeros((64, 48, 3), np.uint8)
    joints = np.zeros((17, 3), np.float32)
    joints[0], joints[1] = (24, 32, 2), (24, 12, 2)
    arms, flips = [], 0
    for index in range(400):
        _, moved = crop(image, (0, 0, 48, 64), joints, random_for(0, 0, index))
        flips += moved[2, 2] > 0
        arms.append(moved[1 if moved[1, 2] else 2, :2] - moved[0, :2])
    arms = np.array(arms)
    scale = 20 / 1.25 / np.linalg.norm(arms, axis=1)
    degrees = np.degrees(np.arctan2(abs(arms[:, 0]), -arms[:, 1]))
    assert scale.min() == pytest.approx(0.7, abs=1e-3) and scale.max() == pytest.approx(
        1.3, abs=1e-3)
    assert degrees.max() == pytest.approx(80, abs=0.1)
    assert 0.3 < (degrees < 0.1).mean() < 0.5 and 160 < flips < 240


def test_without_randomness_the_crop_is_the_box(write):
    crop = PersonCrop(64, 48, PARTNERS)
    joints = np.array([[30.0, 20.0, 1]] * 17, np.float32)
    image = np.random.randint(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    first, moved = crop(image, (10, 5, 30, 40), joints, random_for(0, 0, 0))
    second, _ = crop(image, (10, 5, 30, 40), joints, random_for(5, 6, 7))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(moved, move(joints, crop.matrix((10, 5, 30, 40))), rtol=1e-6)


def test_an_empty_box_is_refused():
    with pytest.raises(UserError, match="positive width and height"):
        crop_matrix((1, 2, 0, 4), 64, 48)


def test_joints_without_label_come_out_as_zeros():
    joints = np.array([[9.0, 9.0, 0]] * 17, np.float32)
    _, moved = PersonCrop(64, 48, PARTNERS)(np.zeros((60, 80, 3), np.uint8), (0, 0, 60, 80),
                                            joints, random_for(0, 0, 0))
    assert not moved.any()


def test_synthetic_persons_show_their_joints_and_describe_themselves():
    data = SyntheticPersons(3, PersonCrop(64, 48, PARTNERS), seed=2)
    one, joints = data[1, random_for(0, 0, 1)]
    again, _ = pickle.loads(pickle.dumps(data))[1, random_for(9, 9, 9)]
    np.testing.assert_array_equal(one, again)
    truth = data.ground_truth()
    assert len(truth["annotations"]) == 3 and (joints[:, 2] > 0).all()
    json.dumps(truth)


def test_coco_samples_read_as_pycocotools_reads_them(data_root):
    pytest.importorskip("pycocotools")
    for file in (data_root / "coco_keypoints_sample/test_coco.json",
                 data_root / "tiny_coco/annotations/person_keypoints_val2017.json"):
        persons = read_annotations(file, file.parent)
        truth = read_json(file)
        labelled = [a for a in copy.deepcopy(truth["annotations"])
                    if a["num_keypoints"] and not a["iscrowd"]]
        assert len(persons) == len(labelled)
        np.testing.assert_array_equal(persons.joints.reshape(len(persons), -1),
                                      [a["keypoints"] for a in labelled])


def test_the_given_detection_file_is_read(data_root):
    folder = data_root / "coco_keypoints_sample"
    persons = read_detections(folder / "test_coco_det_AP_H_56.json", folder / "test_coco.json",
                              folder)
    assert len(persons) == 118
