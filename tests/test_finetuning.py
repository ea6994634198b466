"""Fine-tuning on folders: flags, head and stages, weights of classes, what a run leaves behind.

Started by horovodrun, this file is one of two workers.
"""
import argparse
import csv
import dataclasses
import importlib.util
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from class_folders import RECIPE, write_images, write_parts
from horovod_job import launch

from gluon_resnest import cli, execution, zoo
from gluon_resnest.engine import amp
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import Comm, connect
from gluon_resnest.errors import UserError
from gluon_resnest.interop.predictor import Predictor
from gluon_resnest.losses import balanced_weights
from gluon_resnest.models.norm import few_values
from gluon_resnest.tasks import finetuning
from gluon_resnest.tasks.finetuning import NETWORKS, FineTuning
from gluon_resnest.tasks.finetuning_data import open_folders

RUN = argparse.Namespace(data=None, synthetic_steps=3, data_workers=0, device="cpu", weights=None,
                         eval_only=False, eval_batch=3, teacher_weights=None, smoke=False,
                         workdir=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty-one one-channel images of two classes."""
    return write_images(tmp_path_factory.mktemp("pictures"), {"bright": 13, "dark": 8}, mode="L")


def make_task(folder, recipe=RECIPE, comm=None, **run):
    return FineTuning(recipe, argparse.Namespace(**{**vars(RUN), "data": str(folder), **run}),
                      comm or Comm())


def train(folder, workdir, *flags, recipe=RECIPE):
    words = ["--data", folder, "--workdir", workdir, "--data-workers", 0, "--log-every", 1, *flags]
    recipe, run = cli.parse({"tiny": recipe}, FineTuning, [str(word) for word in words])
    return execution.execute(recipe, run, FineTuning)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(folder, workdir)


# --- flags and folders -------------------------------------------------------------------------

@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("thirds"))


def test_a_third_set_is_judged_once_by_the_best_network(three, tmp_path):
    measured = train(three, tmp_path / "run")["measured"]
    assert (measured["images"], measured["test_images"]) == (6, 4)
    assert measured["test_top1"] == 25 * measured["test_top1_hits"]
    logged = (tmp_path / "run/log.jsonl").read_text()
    assert "top1_hits" in logged and "test_top1" not in logged
    rows = list(csv.reader((tmp_path / "run/test_confusion.csv").read_text().splitlines()))
    assert sum(int(count) for row in rows[1:] for count in row[1:-1]) == 4
    # --eval-only says the same, and draws beside what the training has left.
    before = (tmp_path / "run/confusion.png").read_bytes()
    shutil.copytree(three / "val", tmp_path / "others/val")
    shutil.copytree(three / "test", tmp_path / "others/test")
    again = judge(tmp_path / "others", "--workdir", tmp_path / "run")["measured"]
    assert again == {name: measured[name] for name in again} and "test_top1" in again
    assert (tmp_path / "run/confusion.png").read_bytes() == before
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        f"evaluation_{name}" for name in ("confusion.csv", "confusion.png", "mistakes.csv",
                                          "mistakes.png", "test_confusion.png")}


def test_the_folders_say_how_many_classes_there_are(tmp_path):
    write_images(tmp_path, {"a": 2, "b": 2, "c": 2})
    recipe, _ = cli.parse({"tiny": RECIPE}, FineTuning, ["--data", str(tmp_path)])
    assert recipe.classes == 3
    with pytest.raises(UserError, match="--classes is 5, but .* has 3 class folders; leave"):
        cli.parse({"tiny": RECIPE}, FineTuning, ["--data", str(tmp_path), "--classes", "5"])


def test_a_rate_that_changes_nothing_is_refused(folder):
    words = ["--data", str(folder), "--base-lr", "0.5"]
    with pytest.raises(UserError, match="base_lr=0.5 changes nothing, because lr is 0.05; set lr"):
        cli.parse({"tiny": RECIPE}, FineTuning, words)
    for lr, peak in (("none", 0.5 * RECIPE.batch / 256), ("0.1", 0.1)):
        recipe, _ = cli.parse({"tiny": RECIPE}, FineTuning, [*words, "--lr", lr])
        assert recipe.peak_lr == peak


def test_help_does_not_list_every_network(capsys):
    recipes = dict.fromkeys(NETWORKS, RECIPE)
    with pytest.raises(SystemExit):
        cli.parse(recipes, FineTuning, ["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "NETWORK or NETWORK@report" in told and "resnest200" not in told
    with pytest.raises(UserError, match="'x' is no recipe of this file; known are NETWORK or"):
        cli.parse(recipes, FineTuning, ["--model", "x"])


def test_a_folder_is_needed_but_for_a_plan():
    with pytest.raises(UserError, match="--data DIR is missing"):
        cli.parse({"tiny": RECIPE}, FineTuning, [])
    recipe, run = cli.parse({"tiny": RECIPE}, FineTuning, [
        "--plan", "images=300,workers=1,images_per_second=250"])
    assert "3 epochs x 38 steps" in execution.plan(recipe, run, FineTuning)


@pytest.mark.parametrize("layout, message", [
    (["val/a", "val/b"], "has val/ but no train/, expected both or only folders of classes"),
    (["test/a", "test/b"], "has test/ but no train/"),
    (["cat", "dog", "test"], "give a class of that name another one"),
    (["pictures/a", "pictures/b"], "has one class folder, 'pictures', expected at least two"),
    (["train/a", "val/a"], "train has one class folder, 'a'")])
def test_a_training_needs_folders_of_at_least_two_classes(tmp_path, layout, message):
    for folder in layout:
        write_images((tmp_path / folder).parent, {Path(folder).name: 1})
    with pytest.raises(UserError, match=message):
        cli.parse({"tiny": RECIPE}, FineTuning, ["--data", str(tmp_path)])


# --- network -----------------------------------------------------------------------------------

def values(net):
    return {name: parameter.data().asnumpy()
            for name, parameter in net._collect_params_with_prefix().items()}


@pytest.fixture(scope="module")
def trained_file(tmp_path_factory):
    net = zoo.get_model("resnest_tiny", classes=7)
    net.initialize(mx.init.Normal(0.3))
    net(mx.nd.zeros((1, 3, 32, 32)))
    path = str(tmp_path_factory.mktemp("weights") / "tiny.params")
    net.save_parameters(path)
    return path, values(net)


def test_all_but_the_head_starts_from_the_file(folder, trained_file):
    path, before = trained_file
    after = values(make_task(folder, weights=path).net)
    for name, value in after.items():
        if name.startswith("fc."):
            assert value.shape[0] == 2
        else:
            np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_a_run_directory_is_a_file_too(folder, finished):
    task = make_task(folder, weights=str(finished[0]))
    trained = cli_best(finished[0])
    np.testing.assert_array_equal(task.net.conv1[0].weight.data().asnumpy(),
                                  trained.conv1[0].weight.data().asnumpy())
    assert (task.net.fc.weight.data().asnumpy() != trained.fc.weight.data().asnumpy()).any()


def cli_best(workdir):
    from gluon_resnest.tasks.trained_run import open_run
    return open_run(workdir)[0]


def test_the_head_learns_ten_times_as_fast(folder):
    rates = {name: parameter.lr_mult
             for name, parameter in make_task(folder).net._collect_params_with_prefix().items()}
    assert rates["fc.weight"] == rates["fc.bias"] == 10 * rates["conv1.0.weight"]


def test_balanced_weights_by_hand():
    weights = balanced_weights([0, 0, 0, 2], 4)
    np.testing.assert_allclose(weights, [4 / 6, 0, 2, 0], rtol=1e-6)
    assert np.mean(weights[[0, 0, 0, 2]]) == pytest.approx(1)


def targets_of(folder, **changes):
    """Returns the targets of the first batch, of all 17 images."""
    recipe = dataclasses.replace(RECIPE, label_smoothing=0.2, flip=False, batch=17, **changes)
    return next(make_task(folder, recipe).batches(0))[1].asnumpy()


def test_class_weights_multiply_whole_images_and_are_one_on_average(folder):
    targets, shares = targets_of(folder), targets_of(folder, class_weights="none")
    weights = balanced_weights(make_task(folder)._train.dataset.labels, 2)
    np.testing.assert_allclose(targets, shares * weights[shares.argmax(1)][:, None], rtol=1e-5)
    assert weights[0] < 1 < weights[1] and targets.sum() == pytest.approx(17, rel=1e-5)


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_mixing_moves_no_weight_between_classes(folder, kind):
    # One lambda and partners in reversed order: a batch keeps the total of each class.
    mixed, plain = targets_of(folder, **{kind: 0.4}), targets_of(folder)
    assert abs(mixed - plain).max() > 0.1
    np.testing.assert_allclose(mixed.sum(0), plain.sum(0), rtol=1e-5)
    np.testing.assert_allclose(mixed.sum(0), [8.5, 8.5], rtol=1e-5)


def test_values_to_start_from_are_missed_aloud(folder, trained_file, caplog):
    make_task(folder, weights=trained_file[0])
    make_task(folder, data="synthetic")
    assert "--weights" not in caplog.text
    make_task(folder)
    assert "there are no --weights: a new run starts from random values" in caplog.text


# --- batches of one ----------------------------------------------------------------------------

def test_a_batch_of_one_trains_by_running_statistics(folder, caplog):
    recipe = dataclasses.replace(RECIPE, batch=1, epochs=1)
    task = make_task(folder, recipe)
    assert "would see a single value per channel" in caplog.text
    assert "layer1.0.conv2.bn1" in caplog.text
    before = values(task.net)
    task.update.step(task.losses, next(task.batches(0)), 0.1)
    after = values(task.net)
    assert all(np.isfinite(value).all() for value in after.values())
    for name in ("layer1.0.conv2.fc1.weight", "layer1.0.conv2.fc2.weight", "conv1.0.weight"):
        assert (after[name] != before[name]).any(), name
    statistics = "layer1.0.conv2.bn1.running_var"
    np.testing.assert_array_equal(after[statistics], before[statistics])
    # The stem sees many values of one image, and goes on with them.
    assert (after["bn1.running_var"] != before["bn1.running_var"]).any()


def test_no_norm_is_left_with_a_single_value(folder):
    task = make_task(folder, dataclasses.replace(RECIPE, batch=1))
    assert 1 not in few_values(task.net, (1, 3, 32, 32)).values()


def test_the_last_batch_is_never_of_one(folder):
    # 17 training images and a batch of 8: 17 = 2 * 8 + 1, and the epoch's last step is filled up.
    task = make_task(folder)
    assert len(task._train.dataset) == 17 and task.steps_per_epoch == 3
    sizes = [len(batch.indices) for batch in task._train.epoch(0)]
    assert sizes == [8, 8, 8]


def test_an_evaluation_batch_of_one_is_an_evaluation(folder):
    task = make_task(folder)
    alone = make_task(folder, eval_batch=1)
    metrics = task.evaluate()
    assert alone.evaluate() == metrics and metrics["images"] == 4


# --- a whole run -------------------------------------------------------------------------------

def test_a_run_on_twenty_grey_images_leaves_everything_behind(finished):
    workdir, result = finished
    made = {path.name for path in workdir.iterdir()}
    assert made >= {"confusion.png", "confusion.csv", "mistakes.png", "mistakes.csv",
                    "exported.json", "exported-symbol.json", "exported-0000.params", "result.json",
                    "classes.txt", "curves.png"}
    assert result["measured"]["images"] == 4 and result["measured"]["top1_hits"] in range(5)


def test_the_confusion_matrix_agrees_with_the_metrics_and_the_mistakes(finished):
    workdir, result = finished
    rows = list(csv.reader((workdir / "confusion.csv").read_text().splitlines()))
    assert rows[0][1:] == ["bright", "dark", "accuracy in %"]
    counts = np.array([row[1:-1] for row in rows[1:]], int)
    assert [float(row[-1]) for row in rows[1:]] == pytest.approx(
        100 * np.diag(counts) / counts.sum(axis=1), abs=0.005)
    assert counts.sum() == 4 and np.trace(counts) == result["measured"]["top1_hits"]
    mean = 100 * np.mean(np.diag(counts) / counts.sum(axis=1))
    assert result["measured"]["mean_class"] == pytest.approx(mean)
    mistakes = list(csv.DictReader((workdir / "mistakes.csv").read_text().splitlines()))
    assert len(mistakes) == 4 - np.trace(counts)
    assert all(row["true"] != row["predicted"] and row["true"] in row["file"] for row in mistakes)


def test_the_exported_network_is_the_best_checkpoint(finished, folder):
    workdir, result = finished
    predictor = Predictor.load(workdir / "exported")
    held = open_folders(RECIPE, folder).evaluation
    answers = list(predictor.classify([held.name(index) for index in range(4)], topk=1))
    hits = sum(answer.guesses[0].index == label for answer, label in zip(answers, held.labels))
    assert hits == result["measured"]["top1_hits"]
    assert predictor.card.class_names == ("bright", "dark")
    logged = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    best = max(line["metrics"]["top1"] for line in logged if line["kind"] == "evaluation")
    assert result["measured"]["top1"] == best


def test_a_process_of_16_bits_tells_the_command_that_exports(finished, monkeypatch, caplog):
    """MXNet's operators stay rewritten, so that files of float32 cannot be compared there."""
    monkeypatch.setattr(amp, "_enabled", "bfloat16")
    monkeypatch.setattr(finetuning, "export_classifier", None)
    finetuning._export(finished[0])
    assert f"tools/export_model.py {finished[0]} --out {finished[0]}/exported" in caplog.text


def test_the_same_command_again_only_concludes(finished, folder):
    workdir, result = finished
    assert train(folder, workdir)["measured"] == result["measured"]


def test_the_best_checkpoint_is_judged_as_it_was_saved(folder, tmp_path):
    """Without statistics recomputed anew, which would be others than the file holds."""
    recipe = dataclasses.replace(RECIPE, precise_bn_batches=2, dropblock=0.3)
    result = train(folder, tmp_path, recipe=recipe)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    task = make_task(folder, recipe)
    task.conclude(tmp_path, checkpoints, result["measured"])
    saved = checkpoints.best().model
    for name, value in values(task.net).items():
        np.testing.assert_array_equal(value, saved[name], err_msg=name)
    assert train(folder, tmp_path, recipe=recipe)["measured"] == result["measured"]


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3, 3], [0, 1, 2, 2], [0, 1, 2]])
def test_each_image_counts_exactly_once(folder, numbers, monkeypatch):
    task = make_task(folder)
    assert len(task._val.dataset) == 4
    batch = next(task._val.epoch(0))
    monkeypatch.setattr(task, "scored", lambda *_: [(
        batch._replace(arrays=(None, np.zeros(len(numbers), int)), indices=np.array(numbers)),
        np.eye(2)[np.zeros(len(numbers), int)])])
    with pytest.raises(RuntimeError, match=f"saw {len(numbers)} images, {len(set(numbers))} "
                                           "different ones, of 4"):
        task.evaluate()


def test_pictures_that_cannot_be_drawn_cost_no_result(folder, tmp_path, finished):
    for name in ("confusion.png", "evaluation_confusion.png"):
        (tmp_path / "run" / name).mkdir(parents=True)
    assert train(folder, tmp_path / "run")["measured"] == finished[1]["measured"]
    again = judge(folder, "--workdir", tmp_path / "run")["measured"]
    assert again.items() <= finished[1]["measured"].items()
    assert (tmp_path / "run/evaluation_mistakes.csv").exists()


def test_mistakes_are_listed_whatever_their_files_are_called(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "pictures")
    for file in (tmp_path / "pictures").rglob("*.png"):
        file.rename(file.with_name(os.fsdecode(b"K\xe4fer") + file.name))
    task = make_task(tmp_path / "pictures")
    task.report(tmp_path, task.evaluate())
    listed = (tmp_path / "mistakes.csv").read_text()
    assert r"K\udce4fer" in listed and (tmp_path / "mistakes.png").exists()


def test_it_learns_what_is_easy(folder, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=15, lr=0.01)
    result = train(folder, tmp_path, recipe=recipe)
    assert result["measured"]["top1"] == 100


def test_a_run_is_explained(finished, folder, tmp_path, capsys):
    file = next((folder / "bright").iterdir())
    assert predict(finished[0], file, "--explain", tmp_path / "why.png") == 0
    assert (tmp_path / "why.png").stat().st_size > 10000
    assert "bright" in capsys.readouterr().out


@pytest.mark.parametrize("network, message", [
    ("exported", "is an exported pair; give the run directory"), ("absent", "absent")])
def test_only_networks_can_be_explained(finished, folder, tmp_path, capsys, network, message):
    file = next((folder / "bright").iterdir())
    assert predict(finished[0] / network, file, "--explain", tmp_path / "why.png") == 2
    assert message in capsys.readouterr().err


def predict(*words):
    """Runs tools/predict.py; returns its exit code."""
    spec = importlib.util.spec_from_file_location(
        "predict", Path(__file__).resolve().parents[1] / "tools/predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.main([str(word) for word in words])
    except SystemExit as end:
        return end.code
    return 0


# --- the classes of a run ------------------------------------------------------------------------

@pytest.fixture(scope="module")
def of_three(tmp_path_factory):
    """Pictures of three classes, and a run that tells them apart."""
    root = tmp_path_factory.mktemp("three")
    pictures = write_images(root / "pictures", {"cat": 8, "dog": 8, "zebra": 8})
    recipe = dataclasses.replace(RECIPE, epochs=15, lr=0.01)
    assert train(pictures, root / "run", recipe=recipe)["measured"]["top1"] == 100
    return pictures, root / "run", recipe


@pytest.mark.parametrize("flag", ["--workdir", "--weights"])
@pytest.mark.parametrize("part", [".", "val", "test"])
def test_an_evaluation_numbers_classes_as_the_run_does(of_three, tmp_path, flag, part):
    for name in ("cat", "zebra"):
        shutil.copytree(of_three[0] / name, tmp_path / part / name)
    measured = judge(tmp_path, flag, of_three[1])["measured"]
    assert measured["top1"] == 100 and measured["images"] == (3 if part == "." else 16)


@pytest.mark.parametrize("flag", ["--workdir", "--weights"])
def test_an_evaluation_refuses_a_class_that_the_run_does_not_know(of_three, tmp_path, flag):
    write_images(tmp_path, {"cat": 2, "horse": 2})
    with pytest.raises(UserError, match="'horse', which is none of the 3 classes"):
        judge(tmp_path, flag, of_three[1])


def test_weights_of_a_run_are_judged_by_its_own_recipe(of_three, tmp_path):
    result = judge(of_three[0], "--weights", of_three[1], "--workdir", tmp_path)
    assert result["measured"]["top1"] == 100
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model"], config["recipe"]["classes"]) == ("tiny", 3)
    with pytest.raises(UserError, match="holds a run of 'tiny', .* leave --model out"):
        judge(of_three[0], "--weights", of_three[1], "--model", "other")


def judge(folder, *flags):
    """Evaluates; the entry that the command line does not name is of another network and size."""
    other = dataclasses.replace(RECIPE, network="resnet18", eval_px=64)
    words = ["--eval-only", "--data", folder, "--data-workers", 0, *flags]
    recipe, run = cli.parse({"other": other, "tiny": RECIPE}, FineTuning, list(map(str, words)))
    return execution.execute(recipe, run, FineTuning)


def test_a_run_goes_on_only_with_the_classes_it_began_with(of_three, tmp_path):
    pictures, workdir, recipe = of_three
    shutil.copytree(pictures, tmp_path / "pictures")
    (tmp_path / "pictures/dog").rename(tmp_path / "pictures/hound")
    with pytest.raises(UserError, match="other classes .class 1: 'dog' there, 'hound' now"):
        train(tmp_path / "pictures", workdir, recipe=recipe)
    assert (workdir / "classes.txt").read_text().split() == ["cat", "dog", "zebra"]
    shutil.rmtree(tmp_path / "pictures/hound")
    with pytest.raises(UserError, match="another recipe .classes: 3 there, 2 now"):
        train(tmp_path / "pictures", workdir, recipe=recipe)


@pytest.mark.horovod
def test_two_workers_count_each_image_once_and_stop_together(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "pictures")
    code, output, _ = launch(2, __file__, tmp_path, timeout=400)
    assert code == 0, output
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["measured"]["images"] == 4
    steps = [json.loads(line)["step"] for line in
             (tmp_path / "run/log.jsonl").read_text().splitlines()]
    # A rate of zero: the first evaluation stays the best, the third ends the run.
    assert max(steps) == 9


def worker(folder):
    """One of two workers: trains with a rate of zero and a patience of two."""
    comm = connect()
    recipe = dataclasses.replace(RECIPE, lr=0.0, epochs=9, patience=2, wd=0.0, norm="frozen")
    words = ["--data", f"{folder}/pictures", "--workdir", f"{folder}/run", "--data-workers", "0",
             "--log-every", "1"]
    recipe, run = cli.parse({"tiny": recipe}, FineTuning, words)
    execution.train(recipe, run, FineTuning, comm)
    comm.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    worker(*sys.argv[1:])
