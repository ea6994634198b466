"""The command line of the recipes: what a user may do wrong, and a whole tiny run."""
import argparse
import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from gluon_resnest import cli, execution, provenance, run_directory
from gluon_resnest.data.recordio import RecordWriter
from gluon_resnest.engine import heartbeat, occupied
from gluon_resnest.engine.comm import Comm
from gluon_resnest.errors import UserError
from gluon_resnest.tasks.classification import Classification
from gluon_resnest.zoo import get_model

ROOT = Path(__file__).resolve().parents[1]


def load_recipe(name):
    """Imports a file of recipes/ under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / f"recipes/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECIPES = load_recipe("imagenet").RECIPES
TINY = ["--network", "resnest_tiny", "--classes", "3", "--crop-px", "32", "--eval-px", "32",
        "--batch", "4", "--epochs", "2", "--warmup-epochs", "0", "--lr", "0.05",
        "--auto-augment", "none", "--eval-every", "1", "--data-workers", "0", "--log-every", "1",
        "--expect-top1", "none"]


def jpeg(label, number, size=(40, 52)):
    image = np.random.RandomState(number).randint(0, 60, size + (3,), np.uint8)
    image[..., label] += 150
    return cv2.imencode(".jpg", image)[1].tobytes()


@pytest.fixture
def rec(tmp_path):
    """A record file of ten images in three classes."""
    path = tmp_path / "some.rec"
    with RecordWriter(path) as writer:
        for number in range(10):
            writer.write(number % 3, jpeg(number % 3, number))
    return path


def run(capsys, *words):
    """Runs the command line in this process; returns (exit code, stdout, stderr)."""
    code = 0
    try:
        cli.main(RECIPES, Classification, [str(word) for word in words])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    return code, out, err


def assert_one_sentence(outcome, *parts):
    code, _, err = outcome
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "Traceback" not in err, err
    for part in parts:
        assert part in errors[0]


def test_a_run_trains_evaluates_and_leaves_a_whole_directory(capsys, tmp_path, rec):
    code, out, err = run(capsys, *TINY, "--rec-train", rec, "--rec-val", rec, "--workdir",
                         tmp_path / "run")
    assert code == 0, err
    assert "of 10)" in out
    for name in ("config.json", "log.jsonl", "result.json", "curves.png", "checkpoints"):
        assert (tmp_path / "run" / name).exists(), name
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["measured"]["images"] == 10 and result["verdict"] == "no target"
    assert {"commit", "seconds", "images_per_second", "machine"} <= set(result)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "training"] == [1, 2, 3, 4, 5, 6]

    code, out, _ = run(capsys, *TINY, "--rec-val", rec, "--workdir", tmp_path / "run",
                       "--eval-only")
    assert code == 0 and "of 10)" in out
    evaluated = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert evaluated["measured"]["images"] == 10


def test_a_finished_run_is_not_trained_again(capsys, tmp_path, rec):
    words = [*TINY, "--rec-train", rec, "--rec-val", rec, "--workdir", tmp_path / "run"]
    run(capsys, *words)
    files = [tmp_path / "run" / name for name in
             ("checkpoints/step-00000006/manifest.json", "config.json", "result.json")]
    first = [file.read_bytes() for file in files]
    code, out, _ = run(capsys, *words)
    assert code == 0 and "of 10)" in out
    assert [file.read_bytes() for file in files] == first

    files[-1].write_text("{")                                       # one that is no result
    code, _, err = run(capsys, *words)
    assert code == 0, err
    measured = json.loads(first[-1])["measured"]
    again = json.loads(files[-1].read_text())
    assert again["measured"] == measured and again["images_per_second"] > 0


def test_evaluation_of_a_parameter_file_equals_that_of_its_run(capsys, tmp_path, rec):
    run(capsys, *TINY, "--rec-train", rec, "--rec-val", rec, "--workdir", tmp_path / "run")
    best = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1] / "model.params"
    code, out, _ = run(capsys, *TINY, "--rec-val", rec, "--eval-only", "--weights", best,
                       "--workdir", tmp_path / "other")
    assert code == 0
    ours = json.loads((tmp_path / "other/result.json").read_text())["measured"]
    assert ours == json.loads((tmp_path / "run/result.json").read_text())["measured"]

    recipe = dataclasses.replace(next(iter(RECIPES.values())), seed=3)
    run_directory.claim(tmp_path / "other", recipe, resume="auto")
    assert (tmp_path / "other/result.json").exists()
    run_directory.enter(tmp_path / "other", recipe, model="x", data={})
    assert not (tmp_path / "other/result.json").exists()        # that of another run


def test_each_batch_of_an_evaluation_is_a_sign_of_life(capsys, tmp_path, rec, monkeypatch):
    monkeypatch.setattr(heartbeat, "_end_with", lambda lease: None)
    monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path))
    run(capsys, *TINY, "--rec-train", rec, "--rec-val", rec, "--workdir", tmp_path / "run")
    code, _, err = run(capsys, *TINY, "--rec-val", rec, "--eval-batch", "4", "--eval-only",
                       "--workdir", tmp_path / "run")
    assert code == 0, err
    beat = heartbeat.beats(tmp_path)[0]
    assert (beat.phase, beat.beats) == ("evaluation", 1 + 3)    # ten images


def test_config_json_starts_the_same_run(capsys, tmp_path, rec):
    run(capsys, *TINY, "--seed", "3", "--rec-train", rec, "--rec-val", rec, "--workdir",
        tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    (note,) = config["circumstances"]
    assert note["commit"] == config["commit"] and note["step"] == 0 and note["workers"] == 1
    words = [word for part in (config["recipe"], note["data"]) for name, value in part.items()
             if not (part is note["data"] and value is None)
             for word in ("--" + name.replace("_", "-"), "none" if value is None else value)]
    code, _, err = run(capsys, "--model", config["model"], *words, "--device", note["device"],
                       "--on-nan", note["on_nan"], "--workdir", tmp_path / "again")
    assert code == 0, err
    manifests = [tmp_path / name / "checkpoints/step-00000006/manifest.json"
                 for name in ("run", "again")]
    ours, theirs = (json.loads(manifest.read_text()) for manifest in manifests)
    assert ours["files"]["model.params"] == theirs["files"]["model.params"]


def test_config_json_notes_from_which_step_a_run_went_on_otherwise(capsys, tmp_path, rec,
                                                                   monkeypatch):
    words = [*TINY, "--rec-train", rec, "--rec-val", rec, "--workdir", tmp_path / "run"]
    run(capsys, *words)
    for newest in (tmp_path / "run/checkpoints").glob("step-00000006"):
        shutil.rmtree(newest)
    monkeypatch.setattr(run_directory, "commit", lambda: "another")
    with_warning = run(capsys, *words, "--save-every", "1")
    assert with_warning[0] == 0
    first, second = json.loads((tmp_path / "run/config.json").read_text())["circumstances"]
    assert first["step"] == 0 and second == {**first, "step": 3, "commit": "another",
                                             "save_every": 1}


def test_a_note_of_an_older_version_differs_in_what_it_has_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"recipe": {}, "commit": "older"}')
    changed = run_directory.note_circumstances(tmp_path, 3, {"workers": 2, "data": {"data": "d"}})
    assert changed == [f"commit: 'older' there, {provenance.commit()!r} now"]
    again = run_directory.note_circumstances(tmp_path, 5, {"workers": 2, "data": {"data": "e"}})
    assert again == ["data: 'd' there, 'e' now"]


def test_evaluation_takes_the_recipe_of_the_run(capsys, tmp_path, rec):
    """Its seed chose the images held out: another would judge those it was trained with."""
    words = ["--rec-train", rec, "--workdir", tmp_path / "run"]
    code, _, err = run(capsys, "--model", "resnest101", *TINY, "--seed", "3", "--hold-out", "4",
                       *words)
    assert code == 0, err
    trained = json.loads((tmp_path / "run/config.json").read_text())["recipe"]
    code, _, err = run(capsys, *words, "--eval-only", "--eval-px", "40", "--data-workers", "0")
    assert code == 0, err
    evaluated = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert evaluated["recipe"] == {**trained, "eval_px": 40}
    assert evaluated["measured"]["images"] == 4
    assert_one_sentence(run(capsys, *words, "--eval-only", "--model", "resnest50"),
                        "a run of 'resnest101', not of 'resnest50'")


def test_evaluation_numbers_the_classes_as_the_training_did(capsys, tmp_path):
    for folder, labels in (("train", (0, 1, 2)), ("val", (1, 2))):
        for label in labels:
            (tmp_path / folder / "abc"[label]).mkdir(parents=True)
            for number in range(4):
                (tmp_path / folder / "abc"[label] / f"{number}.jpg").write_bytes(
                    jpeg(label, number))
    words = ["--rec-val", tmp_path / "val", "--workdir", tmp_path / "run"]
    code, _, err = run(capsys, *TINY, "--rec-train", tmp_path / "train", *words)
    assert code == 0, err
    seen = []

    class Watched(Classification):
        def scored(self, loader):
            for batch, logits in super().scored(loader):
                seen.extend(batch.arrays[1].tolist())
                yield batch, logits

    cli.main(RECIPES, Watched, [str(word) for word in [*TINY, *words, "--eval-only"]])
    assert sorted(seen) == [1, 1, 1, 1, 2, 2, 2, 2]
    best = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1] / "model.params"
    assert_one_sentence(run(capsys, *TINY, "--rec-val", tmp_path / "val", "--eval-only",
                            "--weights", best), "2 class folders and the network 3 classes")


def test_a_directory_is_trained_in_by_one_process(capsys, tmp_path, rec, monkeypatch):
    (tmp_path / "run").mkdir()
    words = [*TINY, "--rec-train", rec, "--rec-val", rec, "--workdir", tmp_path / "run"]
    with subprocess.Popen(
            [sys.executable, "-c", "import fcntl, sys; file = open(sys.argv[1], 'w'); "
             "fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()",
             str(tmp_path / "run" / occupied.LOCK)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        monkeypatch.setattr(occupied, "PATIENCE", 0.2)
        assert_one_sentence(run(capsys, *words), "another process trains in")
    code, _, err = run(capsys, *words)
    assert code == 0, err


def test_curves_that_cannot_be_drawn_cost_no_result(capsys, tmp_path, rec):
    (tmp_path / "run/curves.png").mkdir(parents=True)
    code, _, err = run(capsys, *TINY, "--rec-train", rec, "--rec-val", rec, "--workdir",
                       tmp_path / "run")
    assert code == 0, err
    assert (tmp_path / "run/result.json").is_file()


@pytest.mark.parametrize("words", [("--smoke", "--eval-only"), ("--test-io", "1", "--eval-only"),
                                   ("--plan", "workers=2", "--smoke")])
def test_a_run_does_one_thing(capsys, words):
    code, _, err = run(capsys, *words)
    assert code == 2 and "not allowed with argument" in err


def test_weights_of_no_teacher_are_refused(capsys, tmp_path, rec):
    assert_one_sentence(run(capsys, *TINY, "--rec-train", rec, "--rec-val", rec, "--workdir",
                            tmp_path / "run", "--teacher-weights", "x.params"), "--teacher NAME")


def test_unknown_model_names_the_nearest(capsys):
    assert_one_sentence(run(capsys, "--model", "resnset50", "--workdir", "x"), "'resnest50'")


def test_unknown_network_names_the_nearest(capsys, tmp_path, rec):
    assert_one_sentence(run(capsys, *TINY, "--network", "resnest51", "--rec-train", rec,
                            "--rec-val", rec, "--workdir", tmp_path / "run"), "'resnest50'")


def test_wrong_value_names_field_and_value(capsys):
    assert_one_sentence(run(capsys, "--epochs", "many"), "epochs must be int, got 'many'")


def test_missing_workdir(capsys, rec):
    assert_one_sentence(run(capsys, *TINY, "--rec-train", rec, "--rec-val", rec), "--workdir DIR")


def test_missing_training_set(capsys, tmp_path, rec):
    assert_one_sentence(run(capsys, *TINY, "--rec-val", rec, "--workdir", tmp_path / "run"),
                        "--rec-train PATH is missing")


def test_missing_evaluation_set(capsys, tmp_path, rec):
    assert_one_sentence(run(capsys, *TINY, "--rec-train", rec, "--rec-val", tmp_path / "val.rec",
                            "--workdir", tmp_path / "run"), "val.rec")
    assert_one_sentence(run(capsys, *TINY, "--rec-train", rec, "--workdir", tmp_path / "new"),
                        "--rec-val PATH is missing")


def test_empty_folder(capsys, tmp_path, rec):
    (tmp_path / "empty").mkdir()
    assert_one_sentence(run(capsys, *TINY, "--rec-train", tmp_path / "empty", "--rec-val", rec,
                            "--workdir", tmp_path / "run"), "folder")


def test_more_class_folders_than_classes(capsys, tmp_path, rec):
    for name in "abcd":
        (tmp_path / "many" / name).mkdir(parents=True)
        (tmp_path / "many" / name / "1.jpg").write_bytes(jpeg(0, 1))
    assert_one_sentence(run(capsys, *TINY, "--rec-train", rec, "--rec-val", tmp_path / "many",
                            "--workdir", tmp_path / "run"), "expected at most 3 classes", "got 4")


def test_label_out_of_range(capsys, tmp_path, rec):
    path = tmp_path / "labels.rec"
    with RecordWriter(path) as writer:
        writer.write(7, jpeg(0, 0))
    assert_one_sentence(run(capsys, *TINY, "--rec-train", path, "--rec-val", rec, "--workdir",
                            tmp_path / "run"), "label 7", "0 to 2")


def test_corrupt_jpeg(capsys, tmp_path, rec):
    path = tmp_path / "corrupt.rec"
    with RecordWriter(path) as writer:
        writer.write(0, b"no picture at all")
    assert_one_sentence(run(capsys, *TINY, "--rec-train", rec, "--rec-val", path, "--workdir",
                            tmp_path / "run"), "corrupt.rec")


def test_truncated_records(capsys, tmp_path, rec):
    data = rec.read_bytes()
    rec.write_bytes(data[:len(data) // 2 & ~3])
    assert_one_sentence(run(capsys, *TINY, "--rec-train", rec, "--rec-val", rec, "--workdir",
                            tmp_path / "run"), "some.")


def test_index_of_another_file(capsys, tmp_path, rec):
    index = rec.with_suffix(".idx")
    lines = index.read_text().splitlines()
    index.write_text("\n".join(lines[:3]) + "\n")
    assert_one_sentence(run(capsys, *TINY, "--rec-train", rec, "--rec-val", rec, "--workdir",
                            tmp_path / "run"), "some.")


def test_workdir_that_cannot_be_written(capsys, tmp_path, rec):
    (tmp_path / "file").write_text("in the way")
    assert_one_sentence(run(capsys, *TINY, "--rec-train", rec, "--rec-val", rec, "--workdir",
                            tmp_path / "file" / "run"), "cannot be written")


def test_workdir_of_another_recipe(capsys, tmp_path, rec):
    words = [*TINY, "--rec-train", rec, "--rec-val", rec, "--workdir", tmp_path / "run"]
    run(capsys, *words, "--epochs", "1")
    assert_one_sentence(run(capsys, *words), "epochs: 1 there, 2 now")


def test_a_run_goes_on_when_the_source_of_its_numbers_is_told_otherwise(capsys, tmp_path, rec):
    words = [*TINY, "--rec-train", rec, "--rec-val", rec, "--workdir", tmp_path / "run"]
    run(capsys, *words)
    code, _, err = run(capsys, *words, "--source", "another page")
    assert code == 0, err


def test_a_mistake_before_the_first_checkpoint_does_not_claim_the_workdir(capsys, tmp_path, rec):
    words = [*TINY, "--rec-train", rec, "--workdir", tmp_path / "run"]
    assert_one_sentence(run(capsys, *words, "--epochs", "1"), "--rec-val")
    code, _, err = run(capsys, *words, "--rec-val", rec)
    assert code == 0, err


@pytest.mark.parametrize("words, part", [
    (["--rec-train", "missing.rec"], "missing.rec"),
    (["--eval-only", "--weights", "tiny.params", "--rec-val", "corrupt.rec"], "corrupt.rec")])
def test_a_refused_command_leaves_the_result_that_is_there(words, part, capsys, tmp_path, rec,
                                                           monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = get_model("resnest_tiny", classes=3)
    net.initialize()
    net.save_parameters("tiny.params")
    with RecordWriter(tmp_path / "corrupt.rec") as writer:
        writer.write(0, jpeg(0, 0))
        writer.write(0, b"no picture at all")               # met by the evaluation itself
    files = [tmp_path / "run" / name for name in ("config.json", "result.json", "evaluation.json")]
    files[0].parent.mkdir()
    for file in files:
        file.write_text('{"of": "an evaluation"}')
    assert_one_sentence(run(capsys, *TINY, "--rec-train", rec, "--rec-val", rec, "--workdir",
                            tmp_path / "run", *words), part)
    assert [file.read_text() for file in files] == 3 * ['{"of": "an evaluation"}']


def test_checkpoints_that_no_config_tells_of_are_refused(capsys, tmp_path, rec):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    words = [*TINY, "--rec-train", rec, "--rec-val", rec, "--workdir", tmp_path / "run"]
    for resume in ("auto", "never"):
        assert_one_sentence(run(capsys, *words, "--resume", resume),
                            "has checkpoints/ but no config.json", "put that run's config.json")
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.parametrize("flag", ["--log-every", "--keep"])
@pytest.mark.parametrize("word", ["0", "-1", "some", "\u00b2"])
def test_counts_must_be_positive(capsys, flag, word):
    code, _, err = run(capsys, flag, word)
    assert code == 2 and "a whole number of at least 1" in err


@pytest.mark.parametrize("text", ["[1, 2", "[]", '{"kind": null, "recipe": {}}',
                                  '{"model": 3, "recipe": {}}', '{"recipe": 7}'])
def test_workdir_with_a_foreign_config(text, capsys, tmp_path, rec):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(text)
    assert_one_sentence(run(capsys, *TINY, "--rec-train", rec, "--rec-val", rec, "--workdir",
                            tmp_path / "run"), "is not the config.json of a recipe")


def test_resume_never_refuses_checkpoints(capsys, tmp_path, rec):
    words = [*TINY, "--rec-train", rec, "--rec-val", rec, "--workdir", tmp_path / "run"]
    run(capsys, *words)
    assert_one_sentence(run(capsys, *words, "--resume", "never"), "--resume auto")


def test_nothing_to_evaluate(capsys, tmp_path, rec):
    assert_one_sentence(run(capsys, *TINY, "--eval-only", "--rec-val", rec), "nothing to evaluate")


@pytest.mark.parametrize("action", ["train", "measure_input"])
def test_batch_must_be_divisible_by_the_workers(action, tmp_path, rec):
    class Three(Comm):
        size = 3

    words = [*TINY, "--rec-train", rec, "--rec-val", rec, "--workdir", tmp_path / "run"]
    recipe, flags = cli.parse(RECIPES, Classification, [str(word) for word in words])
    with pytest.raises(UserError, match=r"batch \(=4\) must be divisible .* 3 or 6"):
        getattr(execution, action)(recipe, flags, Classification, Three())


def test_diverged_training_names_the_step(capsys, tmp_path, rec):
    code, _, _ = run(capsys, *TINY, "--lr", "1e30", "--rec-train", rec, "--rec-val", rec,
                     "--workdir", tmp_path / "run")
    assert "is not finite at step" in code and "learning rate" in code


def test_help_teaches_every_field(capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "Trains something.")
    with pytest.raises(SystemExit) as exit:
        cli.parse(RECIPES, Classification, ["--help"])
    out, _ = capsys.readouterr()
    assert exit.value.code == 0
    for field in dataclasses.fields(RECIPES["resnest50"]):
        assert "--" + field.name.replace("_", "-") in out
    assert "--lr FLOAT|none" in out and "--epochs INT" in out and "OPTIONAL" not in out


def test_workers_of_one_machine_share_its_cores():
    environ = {"HOROVOD_LOCAL_SIZE": "10000"}
    cli.set_engine_environment(environ)
    assert environ["OMP_NUM_THREADS"] == "1"
    environ = {"OMP_NUM_THREADS": "7"}
    cli.set_engine_environment(environ)
    assert environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize("variable", ["HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE",
                                      "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE"])
def test_threads_are_those_of_the_cpus_that_the_workers_may_use(variable, monkeypatch):
    monkeypatch.setattr(cli.os, "sched_getaffinity", lambda process: {1, 3, 5, 6, 7, 8})
    for environ, threads in (({}, "6"), ({variable: "2"}, "3"), ({variable: "7"}, "1")):
        cli.set_engine_environment(environ)
        assert environ["OMP_NUM_THREADS"] == threads


def test_flags_are_a_namespace_without_recipe_fields():
    recipe, flags = cli.parse(RECIPES, Classification, ["--model", "resnest101", "--batch", "64"])
    assert isinstance(flags, argparse.Namespace) and not hasattr(flags, "batch")
    assert recipe.batch == 64 and recipe.eval_px == 256
