"""Published tables as data, what belongs to their rows, and the commands that make them."""
import functools
import importlib.util
import json
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gluon_resnest import cli
from gluon_resnest.engine.plan import Cluster, Workload, estimate
from gluon_resnest.errors import UserError
from gluon_resnest.recipes.cifar10 import RECIPES as CIFAR10
from gluon_resnest.recipes.deeplabv3 import RECIPES as DEEPLAB
from gluon_resnest.recipes.imagenet import RECIPES as IMAGENET
from gluon_resnest.reproduction import cost, page, results, rows, running
from gluon_resnest.reproduction.rows import Table, evaluated, printed, timed, trained
from gluon_resnest.zoo import backbone_name

ROOT = Path(__file__).resolve().parents[1]
ALL = [(table, row) for table in page.TABLES for row in table.rows]


def finished(directory, recipe, top1=62.0, *, data="cifar10", model="x", **result):
    """Writes what a finished run leaves; returns its directory."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(
        {"model": model, "kind": type(recipe).__name__, "recipe": recipe.to_json(),
         "data": {"data": data}}))
    (directory / "result.json").write_text(json.dumps(
        {"measured": {"top1": top1}, "parameters": 8584882, "images_per_second": 40.0, **result}))
    return directory


@pytest.mark.parametrize("table, row", [
    pytest.param(table, row, id=f"{table.name}-{row.name}") for table, row in ALL if row.recipe])
def test_rows_expect_what_their_recipes_expect_or_say_why_not(table, row):
    recipe = rows.recipe_of(row)
    if recipe is None:
        pytest.skip(f"there is no recipes/{row.recipe}.py yet")
    for metric, value in row.expected:
        own = rows.recipe_target(recipe, metric)
        if own is not None and own != value:
            assert row.remark, f"{row.name} prints {metric} {value}, its recipe expects {own}"


def test_recipes_with_a_published_number_have_a_row():
    """Nothing that a recipe expects of a paper's table is missing here."""
    known = {(row.recipe, row.model) for _, row in ALL}
    for recipe in sorted({row.recipe for _, row in ALL if row.recipe} - {"finetune"}):
        module = importlib.import_module(f"gluon_resnest.recipes.{recipe}")
        for entry, content in module.RECIPES.items():
            if content.expected is not None and re.search("Table [0-9I]", content.source):
                if "text of B.1" not in content.source and not entry.endswith("@180"):
                    assert (recipe, entry) in known, f"{recipe}/{entry} has no row"


def test_names_are_unique_and_evaluations_do_not_share_a_result():
    assert len({table.name for table in page.TABLES}) == len(page.TABLES)
    for table in page.TABLES:
        assert len({row.name for row in table.rows}) == len(table.rows), table.name
        own = [row.evaluated_directory for row in table.rows if row.evaluation]
        assert not set(own) & {row.directory for row in table.rows if row.recipe}


def test_every_metric_has_a_title():
    assert {metric for _, row in ALL for metric, _ in row.expected} <= set(rows.TITLES)


def test_select_names_the_nearest_row():
    table = next(table for table in page.TABLES if table.name == "table3")
    assert [row.name for row in table.select(["resnest50*"])] == [
        "resnest50_fast", "resnest50_fast at 320", "resnest50", "resnest50 at 320"]
    with pytest.raises(UserError, match="table3 has no row 'resnst50'; did you mean 'resnest50'"):
        table.select(["resnst50"])


def test_a_row_of_an_unknown_entry_is_refused():
    with pytest.raises(UserError, match="has no entry 'resnst50'; did you mean 'resnest50'"):
        rows.recipe_of(trained("x", "imagenet/resnst50"))


def test_a_row_appears_when_its_recipe_exists():
    row = trained("x", "panoptic/resnest200", pq=47.90)
    assert rows.recipe_of(row) is None
    assert "no recipes/panoptic.py yet" in running.why_not(row)


# What belongs to a row

ROW = trained("14", "cifar10/resnest14_2s1x64d", top1=62.64)
RECIPE = CIFAR10["resnest14_2s1x64d"]


def test_a_run_belongs_to_the_row_of_its_recipe_whatever_its_seed(tmp_path):
    run = results.read_run(finished(tmp_path / "a", replace(RECIPE, seed=7, expect_top1=None)))
    assert results.differences(run, ROW) == []
    assert results.differences(run, trained("18", "cifar10/resnet18")) == ["network"]
    assert results.differences(run, trained("50", "deeplabv3/resnest50_ade")) == ["recipe"]


def test_a_run_with_other_numbers_or_drawn_images_does_not_belong(tmp_path):
    run = results.read_run(finished(tmp_path / "a", replace(RECIPE, epochs=5)))
    assert results.differences(run, ROW) == ["epochs"]
    run = results.read_run(finished(tmp_path / "b", RECIPE, data="synthetic"))
    assert results.differences(run, ROW) == ["data"]
    assert results.runs_of(ROW, [run]) == []


def test_a_field_added_later_had_its_default(tmp_path):
    directory = finished(tmp_path / "a", RECIPE)
    config = json.loads((directory / "config.json").read_text())
    del config["recipe"]["precision"]
    (directory / "config.json").write_text(json.dumps(config))
    assert results.differences(results.read_run(directory), ROW) == []


def test_seeds_give_mean_and_spread_by_hand(tmp_path):
    for seed, top1 in [(0, 61.0), (1, 63.0), (2, 62.0)]:
        finished(tmp_path / str(seed), replace(RECIPE, seed=seed), top1)
    runs = results.runs_of(ROW, results.read_runs(tmp_path))
    assert results.outcome(runs, "top1") == results.Outcome(62.0, 1.0, 3)
    assert results.judge(ROW, runs) == "reached"            # 62.0 >= 62.64 - 2
    assert page.describe(ROW, runs) == "top-1 % 62.00 ± 1.00 (3 seeds)"
    assert results.judge(ROW, runs[:1]) == "reached"
    assert results.judge(trained("b", "cifar10/resnest14_2s1x64d", top1=64.01), runs) == "missed"
    assert results.judge(ROW, []) is None


@pytest.mark.parametrize("content, message", [
    (None, "is not the directory of a finished run: result.json"), ("{}", "of another program")])
def test_what_is_no_run_is_refused(tmp_path, content, message):
    directory = finished(tmp_path / "a", RECIPE)
    (directory / "result.json").unlink()
    if content:
        (directory / "result.json").write_text(content)
    with pytest.raises(UserError, match=message):
        results.read_run(directory)


def test_keeping_a_run_leaves_out_paths_of_the_machine(tmp_path):
    run = finished(tmp_path / "a", replace(RECIPE, seed=3), data="/" + "home/me/cifar10.tar.gz")
    kept = results.keep(run, page.TABLES, tmp_path / "results")
    assert kept == tmp_path / "results/cifar10/resnest14_2s1x64d-seed3"
    text = (kept / "config.json").read_text()
    assert "me/" not in text and json.loads(text)["data"] == {"data": "cifar10.tar.gz"}
    assert results.read_run(kept).seed == 3
    with pytest.raises(UserError, match="belongs to no row of a table: cifar10/.* another epochs"):
        results.keep(finished(tmp_path / "b", replace(RECIPE, epochs=5)), page.TABLES, tmp_path)


# The page

def test_the_page_tells_what_was_measured_and_what_a_row_would_cost(tmp_path):
    table = Table("t", "A table", "a source", (
        ROW, trained("50", "imagenet/resnest50", "why", top1=81.13),
        evaluated("320", "imagenet/resnest50", {"eval_px": "320"}, top1=81.82),
        trained("later", "panoptic/resnest200", pq=47.9),
        timed("fast", "infer --paper table4 --device gpu", 51.2),
        printed("N", "quoted", top1=82.7)))
    finished(tmp_path / "cifar10/a", RECIPE, 61.5)
    text = page.render(tmp_path, [table])
    assert "| [t](#a-table) | A table | 6 | 3 | 1 |" in text
    lines = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line[:2] == "| "}
    assert "top-1 % 62.64 | 2 | top-1 % 61.50 [0](" in lines["14"] and "reached" in lines["14"]
    assert "not run: needs 371 GPU hours |  | why" in lines["50"]
    assert "--eval-px 320 --eval-only` | top-1 % 81.82 | 0.3 | not run" in lines["320"]
    assert "no recipe yet" in lines["later"] and "needs a V100" in lines["fast"]
    assert "printed only" in lines["N"]
    assert page.render(tmp_path, [table]) == text


def test_costs_are_relative_to_the_first_row(tmp_path):
    table = next(table for table in page.TABLES if table.name == "cifar1")
    finished(tmp_path / "a", CIFAR10["resnet14_0s1x64d"], images_per_second=50.0,
             parameters=8030000)
    finished(tmp_path / "b", RECIPE, images_per_second=40.0)
    text = page.render(tmp_path, [table])
    assert "| resnest14_2s1x64d | 8.58 | 8.58 | 6471 | 0.79 | 0.80 |" in text
    assert "| resnest14_1s2x64d | 13.63 |  | 7646 | 0.94 |  |" in text


def test_gpu_hours_are_those_of_the_plan():
    recipe = IMAGENET["resnest50"]
    work = Workload(8192, 1281167 // 8192, 270, 1, 1, 0)
    assert cost.gpu_hours(recipe) == pytest.approx(
        estimate(work, Cluster(images_per_second=258)).hours)
    assert cost.gpu_hours(replace(recipe, crop_px=448)) == pytest.approx(
        4 * cost.gpu_hours(recipe))
    assert cost.gpu_hours(replace(recipe, classes=7)) is None


def test_declared_work_of_segmentation_and_pose_is_that_of_the_networks():
    from gluon_resnest.interop.analysis import analyze
    from gluon_resnest.zoo import get_model, variant
    macs = analyze(get_model("fcn_resnest50_ade"), (480, 480)).total().macs
    assert cost.SEGMENTATION_GMACS["fcn_resnest50"] == pytest.approx(macs / 1e9, abs=0.06)
    macs = analyze(get_model("simple_pose_resnest50"), (256, 192)).total().macs / 1e9
    assert cost.DECONVOLUTION_GMACS == pytest.approx(
        macs - variant("resnest50").gmacs * 256 * 192 / 224 ** 2, abs=0.01)


def test_every_segmentation_row_has_a_price():
    for _, row in ALL:
        if row.recipe == "deeplabv3":
            assert cost.gpu_hours(DEEPLAB[row.model]) > 0, row.name


# The commands

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


def test_backbone_is_filled_in(tmp_path):
    row = trained("x", "cascade_rcnn/mask_resnest101_dcn")
    step, = running.steps_of(row, tmp_path, extra=["--backbone-weights", "runs/{backbone}"])
    assert "runs/resnest101" in step.words


def test_every_backbone_of_a_row_has_an_entry_that_trains_it():
    """So that runs/imagenet/{backbone} is a run that somebody can make."""
    for _, row in ALL:
        recipe = rows.recipe_of(row)
        if recipe is not None and row.recipe not in ("imagenet", "cifar10"):
            assert IMAGENET[backbone_name(recipe.network)].network == backbone_name(
                recipe.network), row.name


def command_line(recipe, monkeypatch):
    """Returns what a file of recipes gives to `cli.main`: (recipes, task class)."""
    given = []
    monkeypatch.setattr(cli, "main", lambda *arguments: given.extend(arguments))
    runpy.run_path(str(ROOT / f"recipes/{recipe}.py"), run_name="__main__")
    return given


def test_the_data_of_every_row_is_told_once_and_its_recipe_knows_these_flags(monkeypatch):
    main = functools.lru_cache(maxsize=None)(lambda name: command_line(name, monkeypatch))
    for table, row in ALL:
        if row.recipe is None or row.server:
            continue
        flags, = [flags for pattern, flags in table.parts()
                  if row in table.select([pattern])]
        recipes, task = main(row.recipe)
        if hasattr(task, "completed"):
            monkeypatch.delattr(task, "completed")      # looks into the data
        *_, step = running.steps_of(row, "runs", extra=flags.split())
        recipe, run = cli.parse(recipes, task, list(step.words[1:]))
        assert recipe == rows.recipe_of(row), row.name
        if hasattr(run, "backbone_weights"):
            assert run.backbone_weights.startswith("runs/imagenet/res"), row.name


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


def test_unknown_names_are_answered_with_the_nearest():
    done = command("tabel3")
    assert done.returncode == 2 and "did you mean 'table3'" in done.stderr, done.stderr


def test_dry_run_prints_each_command_once(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce().main(["table3", "--only", "resnest50*", "--dry-run", "-np", "8", "--workdir",
                          str(tmp_path), "--", "--rec-train", "a b.rec"])
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
    assert re.search(r"^tiny: expected top-1 % 62.64; obtained top-1 % \d+\.\d\d$", told, re.M)
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
