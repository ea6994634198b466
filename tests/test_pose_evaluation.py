"""OKS AP as COCO computes it: what is compared, scored and suppressed, and what heat maps lose."""
import json

import numpy as np
import pytest
from mxnet import nd

from gluon_resnest.data.keypoints import (
    PARTNERS, Persons, SyntheticPersons, read_annotations, read_truth)
from gluon_resnest.data.pose_transforms import PersonCrop, inverse, move
from gluon_resnest.errors import UserError
from gluon_resnest.models.simple_pose import decode, encode
from gluon_resnest.tasks.pose_evaluation import coco_results, joint_sigmas, oks_ap, suppress


def synthetic(length=5):
    return SyntheticPersons(length, PersonCrop(64, 64, PARTNERS))


def test_true_joints_have_an_ap_of_one_hundred():
    data = synthetic()
    joints = data.persons.joints.astype(float)
    metrics = oks_ap(data.ground_truth(), coco_results(data.persons, joints, 0.2))
    assert metrics["ap"] == metrics["ar"] == pytest.approx(100)
    assert "ap_medium" not in metrics and metrics["ap_large"] == pytest.approx(100)


def test_numbers_and_optional_fields_of_annotations_do_not_matter(tmp_path):
    """The judge takes the number 0 for no annotation; the others have values of COCO's."""
    data = synthetic()
    results = coco_results(data.persons, data.persons.joints + [12, 0, 0], 0.2)
    whole = oks_ap(data.ground_truth(), results)
    file, truth = tmp_path / "own.json", data.ground_truth()
    del truth["categories"]
    for number, row in enumerate(truth["annotations"]):
        row["id"] = number
        for field in ("area", "num_keypoints", "iscrowd"):
            del row[field]
    truth["annotations"] += [{"image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9]},
                             {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
                             {"image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9]}]
    file.write_text(json.dumps(truth))
    assert oks_ap(read_truth(file), results) == whole and 0 < whole["ap"] < 100


def test_true_joints_of_real_persons_have_an_ap_of_one_hundred(data_root, tmp_path):
    content = json.loads((data_root / "coco_keypoints_sample/test_coco.json").read_text())
    found = [{"image_id": row["image_id"], "category_id": 1, "keypoints": row["keypoints"],
              "score": 1.0} for row in content["annotations"] if row["num_keypoints"]]
    for number, row in enumerate(content["annotations"]):
        row["id"] = number
    (tmp_path / "own.json").write_text(json.dumps(content))
    assert oks_ap(read_truth(tmp_path / "own.json"), found)["ap"] == pytest.approx(100)


def test_ap_falls_as_joints_move_away():
    data, before = synthetic(), 100.1
    for away in (4, 12, 100):
        joints = data.persons.joints + [away, 0, 0]
        ap = oks_ap(data.ground_truth(), coco_results(data.persons, joints, 0.2))["ap"]
        assert ap < before
        before = ap
    assert ap == 0


def test_score_of_a_person_is_that_of_its_box_times_the_sure_joints():
    persons = Persons({}, {}, np.array([4, 9]), np.ones((2, 4)), np.zeros((2, 17, 3)),
                      np.array([0.5, 0.5]), "a test")
    joints = np.zeros((2, 17, 3))
    joints[0, :3, 2] = 0.1, 0.6, 1.0
    first, second = coco_results(persons, joints, 0.2)
    assert first["score"] == pytest.approx(0.5 * 0.8) and second["score"] == 0
    assert first["image_id"] == 4 and first["category_id"] == 1 and len(first["keypoints"]) == 51
    json.dumps([first, second])


def test_nothing_to_compare_with_is_a_sentence():
    data = synthetic(1)
    truth = data.ground_truth()
    truth["annotations"][0].update(num_keypoints=0, keypoints=[0] * 51)
    with pytest.raises(UserError, match="no person with labelled joints"):
        oks_ap(truth, coco_results(data.persons, data.persons.joints, 0.2))


def test_of_two_alike_persons_the_better_stays():
    points = np.random.rand(17, 3) * 50
    results = [{"image_id": image, "keypoints": (points + away).ravel().tolist(), "score": score}
               for image, away, score in [(1, 0, 0.5), (1, 0.1, 0.9), (1, 40, 0.4), (2, 0, 0.1)]]
    kept = suppress(results, [2500.0] * 4, 0.9, joint_sigmas())
    assert [result["score"] for result in kept] == [0.9, 0.4, 0.1]
    assert suppress(results, [2500.0] * 4, 1.0, joint_sigmas()) == results


def test_similarity_is_cocos():
    """Two persons are suppressed exactly where COCO's own similarity passes the threshold."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    data = synthetic(1)
    joints = data.persons.joints.astype(float)
    joints[..., 2] = 1
    moved = joints + np.random.normal(0, 6, joints.shape) * [1, 1, 0]
    truth = COCO()
    truth.dataset = data.ground_truth()
    truth.createIndex()
    results = coco_results(data.persons, moved, 0.2)
    judge = COCOeval(truth, truth.loadRes(results), "keypoints")
    judge.evaluate()
    similarity = float(judge.ious[0, 1])
    area = truth.dataset["annotations"][0]["area"]
    pair = coco_results(data.persons, joints, 0.2) + results
    pair[0]["score"] = 2.0
    for threshold, count in ((similarity - 1e-6, 1), (similarity + 1e-6, 2)):
        assert len(suppress(pair, [area, area], threshold, joint_sigmas())) == count


def test_true_joints_of_the_sample_have_an_ap_of_one_hundred(data_root):
    file = data_root / "coco_keypoints_sample/test_coco.json"
    persons = read_annotations(file, file.parent)
    metrics = oks_ap(json.loads(file.read_text()), coco_results(persons, persons.joints, 0.2))
    assert metrics["ap"] == pytest.approx(100)


@pytest.mark.parametrize("size, sigma, least", [
    ((256, 192), 2.0, {"rounded": 99, "exact": 100}),
    ((128, 96), 1.5, {"rounded": 91, "exact": 99})])
def test_heat_maps_lose_little_of_true_joints(data_root, size, sigma, least):
    """What evaluation would say of a network that draws every heat map perfectly."""
    file = data_root / "tiny_coco/annotations/person_keypoints_val2017.json"
    persons = read_annotations(file, file.parent)
    crop = PersonCrop(*size, PARTNERS)
    matrices = [crop.matrix(box) for box in persons.boxes]
    joints = np.stack([move(own, matrix) for own, matrix in zip(persons.joints, matrices)])
    for centre, bound in least.items():
        maps, _ = encode(nd.array(joints), size[0] // 4, size[1] // 4, sigma,
                         exact=centre == "exact")
        found = np.stack([move(own, inverse(matrix))
                          for own, matrix in zip(decode(maps.asnumpy()), matrices)])
        ap = oks_ap(json.loads(file.read_text()), coco_results(persons, found, 0.2))["ap"]
        print(f"{size} {centre}: OKS AP {ap:.1f}")
        assert ap >= bound - 1e-9
