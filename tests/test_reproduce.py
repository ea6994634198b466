"""tools/reproduce.py: rows as commands; what is skipped, continued, stopped, no result of a row."""
import importlib.util
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from finished_run import finished
from test_checkpoint import net_of, update_of

from gluon_resnest import cli
from gluon_resnest.engine.checkpoint import State
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.errors import UserError
from gluon_resnest.recipes.cifar10 import RECIPES as CIFAR10
from gluon_resnest.recipes.imagenet import RECIPES as IMAGENET
from gluon_resnest.reproduction import page, results, rows, running
from gluon_resnest.reproduction.rows import Table, evaluated, printed, timed, trained
from gluon_resnest.zoo import backbone_name

ROOT = Path(__file__).resolve().parents[1]
ALL = [(table, row) for table in page.TABLES for row in table.rows]
RECIPE = CIFAR10["resnest14_2s1x64d"]


def test_steps_of_an_evaluation_train_first(tmp_path):
    row = evaluated("320", "imagenet/resnest50", {"eval_px": "320"}, top1=81.82)
    training, evaluation = running.steps_of(row, tmp_path, seed=1, extra=["--keep", "2"])
    assert training.directory == tmp_path / "imagenet/resnest50-seed1"
    assert evaluation.directory == tmp_path / "imagenet/resnest50-eval_px_320-seed1"
    assert training.words[1:] == ("--model", "resnest50", "--seed", "1", "--keep", "2",
                                  "--workdir", str(training.directory))
    assert "--eval-only" in evaluation.words and evaluation.trained == training.directory
    with pytest.raises(UserError, match="has no checkpoint to evaluate"):
        running.process_words(evaluation)


def test_the_weights_to_evaluate_are_the_newest_not_those_chosen_on_the_same_images(tmp_path):
    row = evaluated("320", "imagenet/resnest50", {"eval_px": "320"}, top1=81.82)
    training, evaluation = running.steps_of(row, tmp_path)
    checkpoints = Checkpoints(training.directory / "checkpoints")
    assert "LAST" in running.process_words(evaluation, dry=True)[-1]
    net = net_of()
    for step in (1, 2):
        checkpoints.save(net, update_of(net), State(step=step, best=0.5, best_step=1))
    assert checkpoints.best().state.step == 1
    assert running.process_words(evaluation)[-2:] == [
        "--weights", str(checkpoints.path(2) / "model.params")]


def test_backbone_is_filled_in(tmp_path):
    row = trained("x", "cascade_rcnn/mask_resnest101_dcn")
    step, = running.steps_of(row, tmp_path, extra=["--backbone-weights", "runs/{backbone}"])
    assert "runs/resnest101" in step.words


def test_every_backbone_of_a_row_has_an_entry_that_trains_it():
    """So that runs/imagenet/{backbone} is a run that somebody can make."""
    for _, row in ALL:
        recipe = rows.recipe_of(row)
        if recipe is not None and row.recipe not in ("imagenet", "cifar10"):
            name = backbone_name(recipe.network)
            assert {**CIFAR10, **IMAGENET}[name].network == name, row.name


def command_line(recipe, monkeypatch):
    """Returns what a file of recipes gives to `cli.main`: (recipes, task class)."""
    given = []
    monkeypatch.setattr(cli, "main", lambda *arguments: given.extend(arguments))
    runpy.run_path(str(ROOT / f"recipes/{recipe}.py"), run_name="__main__")
    return given


def test_the_program_of_a_row_is_what_its_file_runs(monkeypatch):
    for row in {row.recipe: row for _, row in ALL if row.recipe}.values():
        recipes, task = command_line(row.recipe, monkeypatch)
        assert (rows.program_of(row.recipe)[0], rows.program_of(row.recipe)[1]) == (recipes, task)


def test_the_data_of_every_row_is_told_once_and_its_recipe_knows_these_flags():
    for table, row in ALL:
        if row.recipe is None or row.server:
            continue
        flags, = [flags for pattern, flags in table.parts()
                  if row in table.select([pattern])]
        assert table.data_of(row) == flags
        *_, step = running.steps_of(row, "runs", extra=flags.split())
        running.check(step, flags)
        recipe, run = cli.parse_words(*rows.program_of(row.recipe), list(step.words[1:]))
        assert recipe == rows.recipe_of(row), row.name
        if hasattr(run, "backbone_weights"):
            assert run.backbone_weights.startswith("runs/imagenet/res"), row.name


@pytest.mark.parametrize("table, words, message", [
    ("table1", "--rec-train a --rec-val b",
     "'faster resnet50' refuses its words: unrecognized arguments: --rec-train a --rec-val b; "),
    ("table3", "--rec-train a --rec-val b --batchsize 3",
     "'resnet50' refuses its words: unrecognized arguments: --batchsize 3"),
    ("cifar1", "--data a --batch x", "'resnet14_0s1x64d' refuses its words: .*batch"),
    ("cifar1", "--data a --log-every 0", "refuses its words: argument --log-every: expected a "),
    ("table3", "--rec-train a", "'resnet50' also needs --rec-val; give behind -- what is like "),
    ("table5", "--root a", "'faster resnet50' also needs --backbone-weights; "),
    ("hotdog", "--data a", "'resnest50' also needs --weights; ")])
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_words_that_a_row_cannot_take_are_told_before_the_first_begins(
        table, words, message, dry, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "run", None)
    with pytest.raises(SystemExit) as ended:
        reproduce().main([table, *dry, "--workdir", str(tmp_path), "--", *words.split()])
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out and re.search(message, said.err), said
    assert len(said.err.splitlines()) == 1


def test_four_flags_replace_a_root(tmp_path):
    row = trained("x", "faster_rcnn/resnest50")
    without, = running.steps_of(row, tmp_path)
    with pytest.raises(UserError, match="'x' also needs --root"):
        running.check(without, "--root coco")
    step, = running.steps_of(row, tmp_path, extra=["--train-annotations", "a"])
    running.check(step, "--root coco")


@pytest.mark.parametrize("count", ["0", "-1"])
def test_less_than_one_worker_is_refused(count, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce().main(["cifar1", "--dry-run", "-np", count, "--", "--data", "a"])
    assert ended.value.code == 2 and "-np must be at least 1" in capsys.readouterr().err


def test_what_is_not_run_says_why():
    with pytest.raises(UserError, match="is not run: it is a number in print"):
        running.steps_of(printed("x", top1=1.0), "runs")
    assert "tools/benchmark.py infer" in running.why_not(timed("x", "infer", 1.0))


def reproduce():
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "tools/reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(*words):
    return subprocess.run([sys.executable, str(ROOT / "tools/reproduce.py"), *words], cwd=str(ROOT),
                          capture_output=True, text=True, timeout=300)


SERVED = [(table, row) for table, row in ALL if row.server]


@pytest.mark.parametrize("table, row", SERVED, ids=[table.name for table, _ in SERVED])
def test_both_commands_of_a_row_of_test_dev_are_whole(table, row, tmp_path, capsys):
    training, evaluation = (line.split()[2:] for line in running.by_hand(row, table.data_of(row)))
    recipe, run = cli.parse_words(*rows.program_of(row.recipe), training)
    judged, seen = cli.parse_words(*rows.program_of(row.recipe), evaluation)
    assert judged == rows.recipe_of(row) and seen.eval_only
    assert {name for name, value in rows.essence(judged.to_json()).items()
            if value != getattr(recipe, name)} <= {"eval_flip", "eval_scales"}
    assert recipe.unit == "iterations" and seen.weights == \
        f"{run.workdir}/checkpoints/step-{recipe.length:08d}/model.params"
    assert run.backbone_weights == f"runs/imagenet/{backbone_name(recipe.network)}"
    assert run.root and seen.val_annotations and seen.val_images and seen.workdir != run.workdir
    with pytest.raises(SystemExit) as ended:
        reproduce().main([table.name, "--only", row.name, "--workdir", str(tmp_path)])
    told = capsys.readouterr().out
    assert ended.value.code == 0 and not list(tmp_path.iterdir())
    assert all(f"    {line}\n" in told
               for line in running.by_hand(row, table.data_of(row), tmp_path))


def test_commands_quote_a_folder_with_a_blank():
    table, row = SERVED[0]
    training, evaluation = map(shlex.split, running.by_hand(row, table.data_of(row), "my runs"))
    assert training[-1] == f"my runs/{row.recipe}/{row.server}"
    assert evaluation[-1] == f"{training[-1]}-test-dev"


def test_commands_of_test_dev_have_the_words_that_were_given(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce().main(["table10", "--only", "cascade resnest101_dcn", "--dry-run", "--seeds",
                          "0,7", "-np", "2", "--workdir", str(tmp_path), "--", "--device", "gpu",
                          "--root=/data/a coco", "--batch", "8", "--length", "100000"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert ended.value.code == 0 and len(lines) == 4
    _, row = next(pair for pair in SERVED if pair[0].name == "table10")
    for seed, line, judging in ((0, *lines[:2]), (7, *lines[2:])):
        words, judged = shlex.split(line), shlex.split(judging)
        assert words[:6] == judged[:6] == [
            "python", "-m", "gluon_resnest.engine.supervise", "-np", "2", "--"]
        recipe, run = cli.parse_words(*rows.program_of(row.recipe), words[7:])
        seen_recipe, seen = cli.parse_words(*rows.program_of(row.recipe), judged[7:])
        for each, flags in ((recipe, run), (seen_recipe, seen)):
            assert (each.batch, each.length, each.seed, flags.device) == (8, 100000, seed, "gpu")
        assert (run.root, run.backbone_weights) == ("/data/a coco", "runs/imagenet/resnest101")
        assert seen.val_annotations == "/data/a coco/annotations/image_info_test-dev2017.json"
        assert seen.val_images == "/data/a coco/test2017" and seen.root is None
        assert run.workdir == f"{tmp_path}/{row.recipe}/{row.server}" + ("-seed7" if seed else "")
        assert seen.weights == f"{run.workdir}/checkpoints/step-00100000/model.params"


def test_the_page_of_detection_has_the_commands_of_test_dev():
    page = " ".join((ROOT / "docs/detection.md").read_text().replace("\\\n", " ").split())
    table, row = next(pair for pair in SERVED if pair[0].name == "table10")
    assert all(line in page for line in running.by_hand(row, table.data_of(row)))


@pytest.mark.parametrize("seeds", ["\u00b2", "-1", "1,", "a"])
def test_seeds_that_are_no_numbers_are_refused(seeds):
    with pytest.raises(UserError, match="--seeds must be whole numbers with commas between"):
        reproduce().seeds_of(seeds)


def test_unknown_names_are_answered_with_the_nearest():
    done = command("tabel3")
    assert done.returncode == 2 and "did you mean 'table3'" in done.stderr, done.stderr


def test_dry_run_prints_each_command_once(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce().main(["table3", "--only", "resnest50*", "--dry-run", "-np", "8", "--workdir",
                          str(tmp_path), "--", "--rec-train", "a b.rec", "--rec-val", "b.rec"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and len(lines) == len(set(lines)) == 4
    assert all("engine.supervise -np 8 --" in line and "'a b.rec'" in line for line in lines)
    assert not list(tmp_path.iterdir())


TINY = (("network", "resnest_tiny"), ("epochs", "1"), ("batch", "4"))
TRIAL = Table("trial", "A trial", "nowhere", (
    trained("tiny", "cifar10/resnest14_2s1x64d", changes=TINY, top1=62.64),
    replace(evaluated("tiny at 40", "cifar10/resnest14_2s1x64d", {"eval_px": "40"}, top1=1.0),
            changes=TINY),
    printed("quoted", top1=3.0)))
EXTRA = ["--", "--data", "synthetic", "--synthetic-steps", "2", "--data-workers", "1"]


def test_a_table_is_run_skipped_and_continued(tmp_path, capfd):
    """For real: trains, evaluates apart, skips what is finished, goes on with what is not."""
    tool = reproduce()

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            tool.main(["trial", "--workdir", str(tmp_path), *words, *EXTRA], [TRIAL])
        return ended.value.code, capfd.readouterr().out

    code, told = run("--only", "tiny*", "--only", "quoted")
    assert code == 0, told
    folder = tmp_path / TRIAL.rows[0].directory
    assert f"{folder}: running" in told
    assert re.search(r"^tiny: expected top-1 % 62.64; obtained top-1 % \d+\.\d\d, with another "
                     "data$", told, re.M)
    assert re.search(r"^tiny at 40: expected top-1 % 1.00; obtained top-1 % ", told, re.M)
    assert "quoted: not run: it is a number in print" in told
    own = results.read_run(tmp_path / TRIAL.rows[1].evaluated_directory)
    assert own.config["recipe"]["eval_px"] == 40
    assert results.differences(own, TRIAL.rows[1]) == ["data"]          # drawn images

    (folder / "result.json").unlink()                                  # interrupted at the end
    before = (folder / "log.jsonl").read_text()
    code, told = run("--only", "tiny*")
    assert code == 0 and f"{folder}: running" in told
    assert f"{tmp_path / TRIAL.rows[1].evaluated_directory}: finished before" in told
    assert (folder / "log.jsonl").read_text().startswith(before.splitlines()[0])


def test_a_row_runs_in_the_environment_of_the_tool():
    """The threads that recipes set where they are imported are those of one worker alone."""
    code = """if True:
        import os
        from gluon_resnest.reproduction import page, running
        running.steps_of(page.TABLES[0].rows[0], "runs")
        running.subprocess.Popen = lambda *_, env, **__: exit(
            f"{'OMP_NUM_THREADS' in os.environ} {'OMP_NUM_THREADS' in env}")
        running.run(running.Step(None, None, (), False))
    """
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), env=environ,
                          capture_output=True, text=True, timeout=300)
    assert done.stderr.split() == ["True", "False"], done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_reaches_the_recipe_which_saves(number, tmp_path):
    """Ctrl-C goes to all processes of the terminal's group, SIGTERM to one."""
    running = subprocess.Popen(
        [sys.executable, str(ROOT / "tools/reproduce.py"), "cifar1", "--only", "resnet14_0s1x64d",
         "--workdir", str(tmp_path), *EXTRA, "--synthetic-steps=5000", "--network", "resnest_tiny",
         "--batch", "4", "--log-every", "1"], cwd=str(ROOT), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True)
    folder = tmp_path / "cifar10/resnet14_0s1x64d"
    try:
        end = time.monotonic() + 200
        while not (folder / "log.jsonl").is_file() and time.monotonic() < end:
            assert running.poll() is None, running.communicate()
            time.sleep(0.1)
        (os.killpg if number == signal.SIGINT else os.kill)(running.pid, number)
        told, _ = running.communicate(timeout=100)
    finally:
        running.kill()
    assert running.returncode == 128 + number, told
    assert f"stopped by {number.name}; the same command continues" in told
    assert list((folder / "checkpoints").iterdir()) and "Traceback" not in told


def test_a_result_of_another_experiment_is_no_finished_row(tmp_path):
    row = trained("14", "cifar10/resnest14_2s1x64d", top1=62.64)
    finished(tmp_path / row.directory, replace(RECIPE, epochs=1))
    with pytest.raises(UserError, match="the row '14' asks for, with another epochs; give another"):
        running.steps_of(row, tmp_path)
    for extra in (["--epochs", "1"], ["--epochs=1"]):
        step, = running.steps_of(row, tmp_path, extra=extra)
        assert step.done
    with pytest.raises(UserError, match="with another epochs, batch"):
        running.steps_of(row, tmp_path, extra=["--epochs", "2", "--batch", "7"])


def test_a_result_of_another_seed_is_no_finished_row(tmp_path):
    row = trained("14", "cifar10/resnest14_2s1x64d", top1=62.64)
    finished(tmp_path / row.directory, replace(RECIPE, seed=7))
    assert running.steps_of(row, tmp_path, seed=7)[-1].done
    for seed in (None, RECIPE.seed):
        with pytest.raises(UserError, match="with another seed; give another"):
            running.steps_of(row, tmp_path, seed=seed)


def test_drawn_images_are_a_result_only_where_they_are_asked_for(tmp_path):
    row = trained("14", "cifar10/resnest14_2s1x64d", top1=62.64)
    finished(tmp_path / row.directory, RECIPE, data="synthetic")
    with pytest.raises(UserError, match="with another data"):
        running.steps_of(row, tmp_path, extra=["--data", "cifar10"])
    step, = running.steps_of(row, tmp_path, extra=["--data", "synthetic"])
    assert step.done


def test_a_run_of_another_row_that_trains_alike_counts(tmp_path):
    """Whose default seed is another, so that the directories differ."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/result.json").write_text("[]")          # another program's
    ours, theirs = (trained("x", f"cifar10/{name}", top1=62.0)
                    for name in ("resnest14_2s1x64d", "resnest14"))
    first = finished(tmp_path / ours.directory, RECIPE)
    second = finished(tmp_path / theirs.directory, replace(RECIPE, seed=1))
    for row in (ours, theirs):
        made = [running.steps_of(row, tmp_path, seed=seed)[-1] for seed in (0, 1, 2)]
        assert [step.directory for step in made[:2]] == [first, second]
        assert [step.done for step in made] == [True, True, False]
    assert running.steps_of(theirs, tmp_path)[-1].directory == second
    *_, step = running.steps_of(ours, tmp_path, seed=1, extra=["--epochs", "3"])
    assert not step.done
    training, evaluation = running.steps_of(
        replace(theirs, evaluation=(("eval_px", "40"),)), tmp_path, seed=0)
    assert training.done and not evaluation.done and evaluation.trained == first


def test_another_start_is_another_experiment(tmp_path):
    """Whether a row is finished is asked of the weights that the command names."""
    row, = (row for table, row in ALL if (table.name, row.name) == ("hotdog", "resnest14 ours"))
    finished(tmp_path / row.directory, rows.recipe_of(row), data="hotdog",
             weights="runs/cifar10/resnest14_2s1x64d")
    step, = running.steps_of(row, tmp_path, extra=[
        "--data", "x/hotdog", "--weights=x/{backbone}"])
    assert step.done
    for words, others in ((["--data", "hotdog"], "weights"),
                          (["--data=a.b", "--weights", "c"], "data, weights")):
        with pytest.raises(UserError, match=f"with another {others}; give another"):
            running.steps_of(row, tmp_path, extra=words)


@pytest.mark.parametrize("words", [["--smoke"], ["--plan", "images=5"], ["--workdir=x"], ["-h"]])
def test_flags_that_make_no_number_of_a_row_are_refused(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce().main(["cifar1", "--workdir", str(tmp_path), "--", *words])
    assert ended.value.code == 2 and f"{words[0]} cannot follow --" in capsys.readouterr().err


def test_a_row_without_a_printed_number_tells_what_it_obtained(tmp_path):
    row = trained("own", "cifar10/resnest14_2s1x64d")
    run = results.read_run(finished(tmp_path / "a", RECIPE, metric="top1"))
    assert (reproduce().expected(row), reproduce().obtained(row, run)) == ("", "top-1 % 62.00")


def test_lost_checkpoints_of_a_finished_training_are_told_before_the_first_row_begins(
        tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "run", None)
    first, judged = TRIAL.rows[:2]
    table = Table("t", "T", "nowhere", (replace(first, name="first", changes=()), judged))
    training = finished(tmp_path / judged.directory, rows.recipe_of(replace(judged, evaluation=())))
    for dry in ([], ["--dry-run"]):
        with pytest.raises(SystemExit) as left:
            reproduce().main(["t", "--workdir", str(tmp_path), *dry], [table])
        said = capsys.readouterr()
        assert left.value.code == 2 and not said.out
        assert f"{training} has no checkpoint to evaluate" in said.err


@pytest.mark.parametrize("code, ended, tried", [(1, 1, 2), (2, 2, 1), (143, 143, 1)])
def test_a_failure_goes_on_but_a_mistake_or_a_stop_ends_the_table(code, ended, tried, tmp_path,
                                                                  monkeypatch):
    seen = []
    monkeypatch.setattr(running, "run", lambda step, workers: seen.append(step) or code)
    table = Table("t", "T", "nowhere", (TRIAL.rows[0], replace(
        TRIAL.rows[0], name="again", changes=(*TINY, ("lr", "0.1")))))
    with pytest.raises(SystemExit) as left:
        reproduce().main(["t", "--workdir", str(tmp_path)], [table])
    assert (left.value.code, len(seen)) == (ended, tried)
