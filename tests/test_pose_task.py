"""The pose task: OKS AP, exact evaluation and resume, starting backbones, the recipe's mistakes.

Started by horovodrun, this file is the worker: it evaluates and writes down what came out.
"""
import argparse
import dataclasses
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from horovod_job import launch
from mxnet import nd

from gluon_resnest import cli, zoo
from gluon_resnest.config import ClassificationRecipe, PoseRecipe
from gluon_resnest.data.keypoints import PARTNERS, Persons, SyntheticPersons, read_annotations
from gluon_resnest.data.loader import Batch
from gluon_resnest.data.pose_transforms import PersonCrop, inverse, move
from gluon_resnest.engine.checkpoint import Checkpoints, State
from gluon_resnest.engine.comm import Comm, connect
from gluon_resnest.engine.optim import optimizer
from gluon_resnest.engine.update import Update
from gluon_resnest.errors import UserError
from gluon_resnest.interop.weights import save_parameters
from gluon_resnest.models.resnest import initialize
from gluon_resnest.models.simple_pose import FLIP_TESTS, decode, encode
from gluon_resnest.tasks.pose import Pose
from gluon_resnest.tasks.pose_evaluation import coco_results, joint_sigmas, oks_ap, suppress

RECIPE = PoseRecipe(network="resnest_tiny", source="a test", epochs=4, batch=8, decay_epochs="2,3",
                    height=64, width=64)
RUN = argparse.Namespace(
    data="synthetic", synthetic_steps=6, data_workers=0, device="cpu", weights=None,
    eval_only=False, eval_batch=2, train_annotations=None, train_images=None, val_annotations=None,
    val_images=None, detections=None, backbone_weights=None, workdir=None)
TINY = ["--network", "resnest_tiny", "--height", "64", "--width", "64", "--batch", "2", "--epochs",
        "2", "--decay-epochs", "1", "--eval-every", "1", "--data-workers", "0", "--log-every", "1",
        "--expect-ap", "none"]


def make_task(recipe=RECIPE, comm=None, **run):
    return Pose(recipe, argparse.Namespace(**{**vars(RUN), **run}), comm or Comm())


def values(net):
    """Returns the parameters of a network by structural name."""
    return {name: parameter.data().asnumpy()
            for name, parameter in net._collect_params_with_prefix().items()}


def synthetic(length=5):
    return SyntheticPersons(length, PersonCrop(64, 64, PARTNERS))


# ---- evaluation ---------------------------------------------------------------------------------

def test_true_joints_have_an_ap_of_one_hundred():
    data = synthetic()
    joints = data.persons.joints.astype(float)
    metrics = oks_ap(data.ground_truth(), coco_results(data.persons, joints, 0.2))
    assert metrics["ap"] == metrics["ar"] == pytest.approx(100)
    assert "ap_medium" not in metrics and metrics["ap_large"] == pytest.approx(100)


def test_ap_falls_as_joints_move_away():
    data, before = synthetic(), 100.1
    for away in (4, 12, 100):
        joints = data.persons.joints + [away, 0, 0]
        ap = oks_ap(data.ground_truth(), coco_results(data.persons, joints, 0.2))["ap"]
        assert ap < before
        before = ap
    assert ap == 0


def test_score_of_a_person_is_that_of_its_box_times_the_sure_joints():
    persons = Persons({}, np.array([4, 9]), np.ones((2, 4)), np.zeros((2, 17, 3)),
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


def test_a_network_that_knows_the_joints_has_an_ap_near_one_hundred():
    """Through crop, heat maps, decoding and the way back; every flip test."""
    for flip in FLIP_TESTS:
        task = make_task(dataclasses.replace(RECIPE, eval_flip=flip, centre="exact",
                                             height=128, width=96))
        dataset = task._val.dataset
        joints = np.stack([dataset[index, np.random.default_rng(0)][1]
                           for index in range(len(dataset))])
        task.net = Knowing(joints, dataset, task)
        metrics = task.evaluate()
        assert metrics["ap"] > 99 and metrics["images"] == len(dataset) == 6, flip


class Knowing:
    """Stands for a network: recognises the images of a data set, also mirrored."""

    def __init__(self, joints, dataset, task):
        self._task = task
        images = [dataset[index, np.random.default_rng(0)][0] for index in range(len(dataset))]
        mirrored = joints[:, list(PARTNERS)].copy()
        mirrored[..., 0] = images[0].shape[2] - 1 - mirrored[..., 0]
        self._known = {image.tobytes(): own for image, own in zip(images, joints)}
        self._known.update((np.ascontiguousarray(image[..., ::-1]).tobytes(), own)
                           for image, own in zip(images, mirrored))

    def __call__(self, images):
        joints = np.stack([self._known[image.tobytes()] for image in images.asnumpy()])
        return self._task._drawn(Batch((images.asnumpy(), joints), None, 0, 0))[1]


def evaluated(folder, comm):
    """Evaluates a network of fixed parameters, reproducible anywhere; returns metrics."""
    task = make_task(comm=comm, workdir=str(folder / f"of{comm.size}"), eval_batch=1)
    for number, parameter in enumerate(task.params.values()):
        value = np.random.RandomState(number).uniform(0.01, 0.2, parameter.shape)
        parameter.set_data(nd.array(value))
    return task.evaluate()


@pytest.mark.horovod
def test_evaluation_of_many_workers_is_that_of_one(tmp_path):
    size = 4                                                # of 6 persons: the shares differ
    alone = evaluated(tmp_path, Comm())
    code, text, outcomes = launch(size, __file__, tmp_path)
    assert code == 0, text
    assert outcomes == [alone] * size and alone["images"] == 6
    assert (tmp_path / f"of{size}/keypoints.json").read_text() == (
        tmp_path / "of1/keypoints.json").read_text()


def test_a_person_seen_twice_is_an_error():
    class Twice(Comm):
        def gather(self, value):
            return [value, value]

    with pytest.raises(RuntimeError, match="looked at 12 persons of 6"):
        make_task(comm=Twice()).evaluate()


# ---- training -----------------------------------------------------------------------------------

def test_a_judge_that_is_missing_is_missed_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match="pycocotools is needed here"):
        make_task()


def test_learning_rate_falls_to_a_tenth_after_each_milestone():
    task = make_task()
    assert [round(task.lr_at(step * 6 + 1), 12) for step in range(4)] == [1e-3, 1e-3, 1e-4, 1e-5]
    assert task.lr_at(12) == 1e-3


def test_weights_of_unlabelled_joints_do_not_matter():
    task = make_task()
    batch = next(task.batches(0))
    images, maps, weights = batch
    assert maps.shape == (8, 17, 16, 16) and weights.shape == (8, 17, 1, 1)
    other = maps + (1 - weights) * 7
    assert task.losses((images, other, weights))["loss"].asscalar() == pytest.approx(
        task.losses(batch)["loss"].asscalar())


def run(capsys, recipe_name, *words):
    """Runs the command line in this process; returns (exit code, stdout, stderr)."""
    code = 0
    try:
        cli.main({recipe_name: dataclasses.replace(RECIPE, remainder="fill")}, Pose,
                 [str(word) for word in words])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def coco(tmp_path):
    """Three images of one person each as files: (annotations, folder)."""
    data = synthetic(3)
    truth = data.ground_truth()
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.png"
        pixels = np.random.randint(0, 256, (image["height"], image["width"], 3), np.uint8)
        cv2.imwrite(str(tmp_path / image["file_name"]), pixels)
    file = tmp_path / "persons.json"
    file.write_text(json.dumps(truth))
    return file, tmp_path


def words(coco, workdir):
    file, folder = coco
    return [*TINY, "--train-annotations", file, "--train-images", folder, "--val-annotations", file,
            "--val-images", folder, "--workdir", workdir]


def test_a_resumed_run_equals_an_uninterrupted_one(capsys, tmp_path, coco):
    code, out, err = run(capsys, "a", *words(coco, tmp_path / "whole"))
    assert code == 0 and "OKS AP" in out, err
    recipe, flags = cli.parse({"a": dataclasses.replace(RECIPE, remainder="fill")}, Pose,
                              [str(word) for word in words(coco, tmp_path / "parts")])
    cli.train(recipe, flags, Pose, Comm(), stop_epoch=1)
    assert run(capsys, "a", *words(coco, tmp_path / "parts"))[0] == 0
    file = "checkpoints/step-00000004/model.params"
    assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
    results = json.loads((tmp_path / "whole/keypoints.json").read_text())
    assert len(results) == 3


def test_detected_boxes_are_evaluated(capsys, tmp_path, coco):
    assert run(capsys, "a", *words(coco, tmp_path / "run"))[0] == 0
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 192, 256], "score": score}
             for score in (0.5, 0.25)]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    code, out, err = run(capsys, "a", *words(coco, tmp_path / "run"), "--eval-only", "--detections",
                         tmp_path / "boxes.json")
    assert code == 0 and "on 2 boxes" in out, err
    results = json.loads((tmp_path / "run/keypoints.json").read_text())
    assert len(results) == 1                                # the same box twice: one person


def test_missing_data_is_one_sentence(capsys, tmp_path):
    code, _, err = run(capsys, "a", *TINY, "--workdir", tmp_path / "run")
    assert code == 2 and "error: --train-annotations FILE is missing" in err
    code, _, err = run(capsys, "a", *TINY, "--workdir", tmp_path / "run", "--eval-only")
    assert code == 2 and "error: --val-annotations FILE is missing" in err


def test_training_starts_from_exactly_the_tensors_of_a_classification_run(tmp_path):
    recipe = ClassificationRecipe(network="resnest_tiny", source="a test", classes=3, crop_px=32)
    net = zoo.get_model("resnest_tiny", classes=3)
    initialize(net)
    for number, parameter in enumerate(net.collect_params().values()):
        parameter.set_data(nd.random.uniform(0.1, 1, parameter.shape) + number)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps({"recipe": recipe.to_json()}))
    trainer = Comm().trainer(net.collect_params(), optimizer("sgd", wd=0))
    Checkpoints(tmp_path / "run/checkpoints").save(net, Update(trainer, net), State(step=1))
    save_parameters(net, tmp_path / "file.params")
    expected = {name: value for name, value in values(net).items() if not name.startswith("fc.")}
    for source in ("run", "file.params"):
        task = make_task(backbone_weights=str(tmp_path / source))
        got = values(task.net.backbone)
        assert set(got) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value)


def test_backbones_that_do_not_fit_are_refused(tmp_path):
    net = zoo.get_model("resnest_tiny", features_only=True, out_indices=(0, 1, 2))
    initialize(net)
    save_parameters(net, tmp_path / "short.params")
    with pytest.raises(UserError, match="does not fit the net; .* missing: layer4"):
        make_task(backbone_weights=str(tmp_path / "short.params"))
    with pytest.raises(UserError, match="there is no weight file"):
        make_task(backbone_weights=str(tmp_path / "absent.params"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no run directory"):
        make_task(backbone_weights=str(tmp_path / "empty"))


# ---- recipes ------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, message", [
    ({"height": 250}, "height must be a multiple of 32"),
    ({"decay_epochs": "90;120"}, "decay_epochs must be epochs with commas"),
    ({"decay_epochs": "120,90"}, "decay_epochs must ascend"),
    ({"decay_epochs": "2", "warmup_epochs": 2.0}, "decay_epochs must ascend"),
    ({"eval_flip": "shift"}, "eval_flip must be one of")])
def test_recipe_mistakes_are_sentences(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(RECIPE, **change)


def test_the_expected_value_depends_on_the_flip_test():
    recipe = dataclasses.replace(RECIPE, expect_ap=73.4, expect_ap_no_flip=72.3)
    assert recipe.expected == 73.4
    assert dataclasses.replace(recipe, eval_flip="none").expected == 72.3


def test_the_given_detection_file_evaluates(data_root, capsys, tmp_path):
    folder = data_root / "coco_keypoints_sample"
    net = zoo.pose_model("resnest_tiny")
    initialize(net)
    save_parameters(net, tmp_path / "net.params")
    code, out, err = run(
        capsys, "a", *TINY, "--eval-only", "--weights", tmp_path / "net.params",
        "--val-annotations", folder / "test_coco.json", "--val-images", folder, "--detections",
        folder / "test_coco_det_AP_H_56.json", "--workdir", tmp_path / "run")
    assert code == 0 and "on 118 boxes" in out, err
    assert json.loads((tmp_path / "run/result.json").read_text())["measured"]["images"] == 118


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


if __name__ == "__main__":
    worker = connect()
    folder = Path(sys.argv[1])
    (folder / f"{worker.rank}.json").write_text(json.dumps(evaluated(folder, worker)))
    worker.shutdown()
