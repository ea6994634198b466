"""The pose task: exact evaluation and resume, starting backbones, the recipe's mistakes.

Started by horovodrun, this file is the worker: four evaluate, two train; it writes down what came
out.
"""
import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from horovod_job import launch
from mxnet import nd
from test_panoptic_task import Gathered, Part

from gluon_resnest import cli, execution, zoo
from gluon_resnest.config import ClassificationRecipe, PoseRecipe, override
from gluon_resnest.data.keypoints import PARTNERS, SyntheticPersons
from gluon_resnest.data.loader import Batch
from gluon_resnest.data.pose_transforms import PersonCrop
from gluon_resnest.engine.checkpoint import State
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import Comm, connect
from gluon_resnest.engine.optim import optimizer
from gluon_resnest.engine.update import Update
from gluon_resnest.errors import UserError
from gluon_resnest.interop.weights import save_parameters
from gluon_resnest.models.resnest import initialize
from gluon_resnest.models.simple_pose import FLIP_TESTS
from gluon_resnest.tasks.pose import Pose

RECIPE = PoseRecipe(network="resnest_tiny", source="a test", epochs=4, batch=8, decay_epochs="2,3",
                    height=64, width=64)
FILLED = dataclasses.replace(RECIPE, remainder="fill")
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


@pytest.mark.parametrize("size", [2, 4])
def test_what_many_workers_found_is_merged_exactly(tmp_path, size):
    """6 persons: the shares of 4 workers differ. One after the other they find, then gather."""
    def found(workdir, comm):
        task = make_task(comm=comm, workdir=str(workdir), eval_only=True)
        dataset = task._val.dataset
        joints = np.stack([dataset[index, np.random.default_rng(0)][1]
                           for index in range(len(dataset))])
        task.net = Knowing(joints, dataset, task)
        return task.evaluate()

    shares = []
    for rank in range(size):
        with pytest.raises(Gathered) as caught:
            found(tmp_path / "together", Part(rank, size))
        shares.append(caught.value.args[0])
    assert len({len(share) for share in shares}) == (1 if size == 2 else 2)
    assert found(tmp_path / "together", Part(0, size, shares)) == found(tmp_path / "1", Comm())
    assert (tmp_path / "together/keypoints.json").read_bytes() == (
        tmp_path / "1/keypoints.json").read_bytes()


@pytest.mark.horovod
def test_evaluation_of_many_workers_is_that_of_one(tmp_path):
    size = 4                                                # of 6 persons: the shares differ
    alone = evaluated(tmp_path, Comm())
    code, text, outcomes = launch(size, __file__, tmp_path)
    assert code == 0, text
    assert outcomes == [alone] * size and alone["images"] == 6
    ours, theirs = (json.loads((tmp_path / f"of{workers}/keypoints.json").read_text())
                    for workers in (size, 1))
    assert len(ours) == len(theirs) == 6
    for person, expected in zip(ours, theirs):      # a network may round otherwise elsewhere
        assert person.keys() == expected.keys()
        for key, value in expected.items():
            assert person[key] == pytest.approx(value, rel=1e-5), key


def test_a_person_seen_twice_is_an_error():
    class Twice(Comm):
        def gather(self, value):
            return [value, value]

    with pytest.raises(RuntimeError, match="looked at 12 persons of 6"):
        make_task(comm=Twice()).evaluate()


# ---- training -----------------------------------------------------------------------------------

def test_drawn_persons_that_are_evaluated_are_not_those_of_training():
    task = make_task()
    train, held = (loader.dataset.persons.joints[0] for loader in (task._train, task._val))
    assert (train != held).any()


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
        cli.main({recipe_name: FILLED}, Pose,
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
    recipe, flags = cli.parse({"a": FILLED}, Pose,
                              [str(word) for word in words(coco, tmp_path / "parts")])
    execution.train(recipe, flags, Pose, Comm(), stop_epoch=1)
    assert run(capsys, "a", *words(coco, tmp_path / "parts"))[0] == 0
    file = "checkpoints/step-00000004/model.params"
    assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
    results = json.loads((tmp_path / "whole/keypoints.json").read_text())
    assert len(results) == 3
    # From inside an epoch, too.
    inside = "checkpoints/step-00000001"
    assert run(capsys, "a", *words(coco, tmp_path / "saved"), "--save-every", "1", "--keep",
               "9")[0] == 0
    shutil.copytree(tmp_path / "saved" / inside, tmp_path / "inside" / inside)
    shutil.copy(tmp_path / "saved/config.json", tmp_path / "inside")
    assert run(capsys, "a", *words(coco, tmp_path / "inside"))[0] == 0
    assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "inside" / file).read_bytes()


@pytest.mark.horovod
def test_two_workers_train_one_network_on_all_persons(tmp_path):
    code, text, outcomes = launch(2, __file__, tmp_path)
    assert code == 0, text
    assert outcomes[0] == outcomes[1]           # the same parameters, bit for bit
    result = json.loads((tmp_path / "run/result.json").read_text())["measured"]
    assert result["images"] == len(json.loads((tmp_path / "run/keypoints.json").read_text())) == 6
    state = Checkpoints(tmp_path / "run/checkpoints").latest().state
    assert (state.workers, state.step, state.steps_per_epoch) == (2, 24, 6)


def trained(folder, comm):
    """Trains the tiny recipe as one of two workers; returns the checksums of the parameters."""
    recipe, flags = cli.parse({"a": RECIPE}, Pose, [
        "--data", "synthetic", "--synthetic-steps", "6", "--data-workers", "0", "--workdir",
        str(folder / "run")])
    kept = []

    class Kept(Pose):
        def close(self):
            kept.append(values(self.net))
            super().close()

    execution.train(recipe, flags, Kept, comm)
    return {name: hashlib.sha256(value.tobytes()).hexdigest()
            for name, value in kept[0].items()}


def test_detected_boxes_are_evaluated(capsys, tmp_path, coco):
    code, out, _ = run(capsys, "a", *words(coco, tmp_path / "run"), "--expect-ap", "50")
    assert code == 0 and "expected 50" in out
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 192, 256], "score": score}
             for score in (0.5, 0.25)]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    code, out, err = run(capsys, "a", *words(coco, tmp_path / "run"), "--eval-only", "--detections",
                         tmp_path / "boxes.json")
    assert code == 0 and "on 2 boxes" in out and "expected" not in out, err
    results = json.loads((tmp_path / "run/keypoints.json").read_text())
    assert len(results) == 1                                # the same box twice: one person


@pytest.mark.parametrize("damage, message", [
    ({"bbox": [0, 0, 9]}, "own.json is not an annotation file of COCO's keypoints"),
    ({"image_id": None}, "own.json is not an annotation file .*the field 'image_id' is missing"),
    ({"area": "x"}, "person 2 has .* as box and 'x' as area, expected four finite numbers and one"),
    ({"keypoints": [1, 2, 3]}, "person 2 has 3 joint numbers, expected 51")])
def test_truth_that_cannot_be_judged_is_refused_before_training(coco, tmp_path, damage, message):
    """A crowd is not trained on, but looked at when joints are judged."""
    file, folder = coco
    content = json.loads(file.read_text())
    row = {**content["annotations"][1], "iscrowd": 1, **damage}
    content["annotations"][1] = {name: value for name, value in row.items() if value is not None}
    own = tmp_path / "own.json"
    own.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        make_task(FILLED, data="real", train_annotations=file, train_images=folder,
                  val_annotations=own, val_images=folder)


@pytest.mark.parametrize("field", ["id", "file_name", "width", "height"])
def test_a_field_that_an_image_lacks_is_named(coco, field):
    file, folder = coco
    content = json.loads(file.read_text())
    del content["images"][1][field]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"persons.json is not .*the field '{field}' is missing"):
        make_task(FILLED, data="real", train_annotations=file, train_images=folder,
                  val_annotations=file, val_images=folder)


def test_a_person_in_an_image_that_is_not_listed_is_named(coco):
    file, folder = coco
    content = json.loads(file.read_text())
    del content["images"][1]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="has a person in image 1, which it does not list; add"):
        make_task(FILLED, data="real", train_annotations=file, train_images=folder,
                  val_annotations=file, val_images=folder)


def test_truth_without_joints_is_refused_before_the_evaluation_of_detections(coco, tmp_path):
    file, folder = coco
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        del row["keypoints"]
    own, boxes = tmp_path / "own.json", tmp_path / "boxes.json"
    own.write_text(json.dumps(content))
    boxes.write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 192, 256],
                                  "score": 0.5}]))
    with pytest.raises(UserError, match="own.json has no person with a labelled joint, so there"):
        make_task(FILLED, data="real", train_annotations=file, train_images=folder,
                  val_annotations=own, val_images=folder, detections=boxes)


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
    ({"decay_epochs": "", "warmup_epochs": 4.0}, "must be smaller than epochs .=4"),
    ({"eval_flip": "shift"}, "eval_flip must be one of")])
def test_recipe_mistakes_are_sentences(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(RECIPE, **change)


@pytest.mark.parametrize("words", [{"epochs": "3"}, {"decay_epochs": "2,4"}])
def test_a_rate_that_would_fall_behind_the_end_is_refused(words):
    with pytest.raises(UserError, match=r"decay_epochs must lie within epochs \(=\d\), got '2,"):
        override(RECIPE, words)
    assert not override(RECIPE, {**words, "decay_epochs": ""}).milestones


def test_a_run_whose_rate_never_fell_can_still_be_evaluated():
    kept = PoseRecipe.from_json({**RECIPE.to_json(), "epochs": 2})
    assert override(kept, {"eval_flip": "none"}).epochs == 2


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


if __name__ == "__main__":
    worker = connect()
    folder = Path(sys.argv[1])
    task = evaluated if worker.size == 4 else trained
    (folder / f"{worker.rank}.json").write_text(json.dumps(task(folder, worker)))
    worker.shutdown()
