"""Published tables as data, what belongs to their rows, and the page of both."""
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from finished_run import finished

from gluon_resnest import run_directory
from gluon_resnest.engine.plan import Cluster, Workload, estimate
from gluon_resnest.errors import UserError
from gluon_resnest.recipes.cifar10 import RECIPES as CIFAR10
from gluon_resnest.recipes.deeplabv3 import RECIPES as DEEPLAB
from gluon_resnest.recipes.imagenet import RECIPES as IMAGENET
from gluon_resnest.reproduction import cost, page, results, rows, running
from gluon_resnest.reproduction.rows import Table, evaluated, printed, timed, trained

ROOT = Path(__file__).resolve().parents[1]
ALL = [(table, row) for table in page.TABLES for row in table.rows]


def target(recipe, metric):
    """Returns what a recipe itself expects of a metric; None if it does not say."""
    if metric in ("top1", "miou", "ap"):
        return recipe.expected
    return getattr(recipe, f"expect_{metric}", None)


@pytest.mark.parametrize("table, row", [
    pytest.param(table, row, id=f"{table.name}-{row.name}") for table, row in ALL if row.recipe])
def test_rows_expect_what_their_recipes_expect_or_say_why_not(table, row):
    recipe = rows.recipe_of(row)
    if recipe is None:
        pytest.skip(f"there is no recipes/{row.recipe}.py yet")
    for metric, value in row.expected:
        own = target(recipe, metric)
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


@pytest.mark.parametrize("data, weights, others", [
    ("a b/my data/hotdog/", "b/resnest14_2s1x64d", []), ("noise", None, ["data", "weights"]),
    ("hotdog", "b/resnet14_0s1x64d", ["weights"])])
def test_a_row_that_names_data_and_first_weights_is_made_with_these(tmp_path, data, weights,
                                                                    others):
    row, = (row for table, row in ALL if (table.name, row.name) == ("hotdog", "resnest14 ours"))
    directory = finished(tmp_path / "a", rows.recipe_of(row), data=data, weights=weights)
    assert results.differences(results.read_run(directory), row) == others


def test_a_training_from_weights_is_that_of_no_row_which_names_none(tmp_path):
    run = results.read_run(finished(tmp_path / "a", RECIPE, weights="resnest14.params"))
    assert results.differences(run, ROW) == ["weights"]


def test_an_evaluation_belongs_to_a_row_with_weights_of_the_rows_training(tmp_path):
    row = evaluated("40", "cifar10/resnest14_2s1x64d", {"eval_px": "40"}, top1=62.0)
    own, other = (finished(tmp_path / name, replace(RECIPE, epochs=epochs), model=name)
                  for name, epochs in (("own", 20), ("other", 5)))
    file = "checkpoints/step-00000009/model.params"
    for number, (weights, others) in enumerate((
            (own / file, []), (other / file, ["weights"]), ("published", ["weights"]),
            ("resnest14_2s1x64d", ["weights"]), (own / "exported.params", ["weights"]))):
        run = finished(tmp_path / str(number), rows.recipe_of(row), weights=str(weights))
        assert results.differences(results.read_run(run), row) == others, weights

    judged = finished(tmp_path / "judged", rows.recipe_of(row))
    result = (judged / "result.json").read_text()
    run_directory.enter(judged, rows.recipe_of(row), model="x",
                        data={"data": "cifar10", "weights": str(own / file)})
    (judged / "result.json").write_text(result)
    (own / "config.json").unlink()                              # as on another machine
    kept = results.keep(judged, [Table("t", "T", "s", (ROW, row))], tmp_path / "results")
    assert results.differences(results.read_run(kept), row) == []


def test_persons_that_a_detector_found_are_no_row_of_table_8(tmp_path):
    row, = (row for table, row in ALL if (table.name, row.name) == ("table8", "resnest50"))
    directory = finished(tmp_path / "a", rows.recipe_of(row), data="real")
    for boxes, others in ((None, []), ("x/boxes.json", ["detections"])):
        config = json.loads((directory / "config.json").read_text())
        config["data"].update(backbone_weights="runs/resnest50", detections=boxes)
        (directory / "config.json").write_text(json.dumps(config))
        assert results.differences(results.read_run(directory), row) == others


def test_a_detector_stands_on_some_backbone(tmp_path):
    row = trained("50", "faster_rcnn/resnest50", ap=42.33)
    directory = finished(tmp_path / "a", rows.recipe_of(row), data="real")
    for backbone, others in ((None, ["backbone_weights"]), ("runs/resnest50", [])):
        config = json.loads((directory / "config.json").read_text())
        config["data"]["backbone_weights"] = backbone
        (directory / "config.json").write_text(json.dumps(config))
        assert results.differences(results.read_run(directory), row) == others


def test_every_kept_result_is_of_a_row():
    runs = results.read_runs(ROOT / "docs/results")
    assert runs and all(any(not results.differences(run, row) for _, row in ALL) for run in runs)


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
    assert "me/" not in text and json.loads(text)["data"] == {
        "data": "cifar10.tar.gz", "weights": None}
    assert results.read_run(kept).seed == 3
    config = {**json.loads((run / "config.json").read_text()), "circumstances": [
        {"step": 0, "cpu": "a/b", "data": {"data": "/" + "home/me/cifar10.tar.gz", "k": None}}]}
    (run / "config.json").write_text(json.dumps(config))
    results.keep(run, page.TABLES, tmp_path / "results")
    assert json.loads((kept / "config.json").read_text())["circumstances"] == [
        {"step": 0, "cpu": "a/b", "data": {"data": "cifar10.tar.gz", "k": None}}]
    with pytest.raises(UserError, match="belongs to no row of a table: cifar10/.* another epochs"):
        results.keep(finished(tmp_path / "b", replace(RECIPE, epochs=5)), page.TABLES, tmp_path)


def test_another_result_of_a_kept_seed_is_not_replaced(tmp_path):
    root = tmp_path / "results"
    kept = results.keep(finished(tmp_path / "a", RECIPE, 62.0), page.TABLES, root)
    other = finished(tmp_path / "b", RECIPE, 63.0)
    same_recipe = finished(tmp_path / "c", RECIPE, 64.0, model="resnest14")    # of another table
    for run in (other, same_recipe):
        with pytest.raises(UserError, match="resnest14_2s1x64d keeps another result of this row "
                                            "and seed; remove that folder"):
            results.keep(run, page.TABLES, root)
    assert results.read_run(kept).result["measured"] == {"top1": 62.0}
    assert results.keep(tmp_path / "a", page.TABLES, root) == kept


@pytest.fixture
def render_results(tmp_path, monkeypatch):
    """tools/render_results.py on a tree of its own, as a function of its words."""
    spec = importlib.util.spec_from_file_location("render_results",
                                                  ROOT / "tools/render_results.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for name in ("docs/results", "recipes"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    monkeypatch.setattr(tool, "ROOT", tmp_path / "tree")
    monkeypatch.setattr(tool, "RESULTS", tmp_path / "tree/docs/results")
    monkeypatch.setattr(tool, "render", lambda: "")

    def call(*words):
        monkeypatch.setattr("sys.argv", ["render_results.py", *map(str, words)])
        tool.main()
    return call


def test_unfinished_runs_of_a_glob_are_left_out_and_the_page_is_rendered(
        tmp_path, render_results, capsys):
    runs = [finished(tmp_path / name, replace(RECIPE, seed=seed))
            for seed, name in enumerate("abc")]
    (runs[1] / "result.json").unlink()
    render_results(*runs)
    kept = tmp_path / "tree/docs/results/cifar10"
    assert sorted(path.name for path in kept.iterdir()) == [
        "resnest14_2s1x64d", "resnest14_2s1x64d-seed2"]
    assert f"left out {runs[1]}: it is not finished" in capsys.readouterr().out
    assert "(2 seeds)" in (tmp_path / "tree/docs/reproduce.md").read_text()
    with pytest.raises(UserError, match="is not the directory of a finished run"):
        render_results(runs[1])


@pytest.mark.parametrize("other, message", [
    (replace(RECIPE, epochs=5), "belongs to no row"), (RECIPE, "are of one row and seed")])
def test_runs_are_kept_all_or_none(tmp_path, render_results, other, message):
    runs = [finished(tmp_path / "a", RECIPE), finished(tmp_path / "b", other)]
    with pytest.raises(UserError, match=message):
        render_results(*runs)
    assert not list((tmp_path / "tree/docs/results").iterdir())


@pytest.mark.parametrize("config, result, commits", [
    ({}, {}, []), ({"commit": "a"}, {"commit": "a"}, ["a"]),
    ({"commit": "a"}, {"commit": "b"}, ["a", "b"]),
    ({"commit": "a"}, {"commit": "b" * 40 + "+changes"}, ["a", "b" * 40 + "+changes"]),
    ({"commit": "a", "circumstances": [{"commit": "a"}, {"commit": "b"}, {"commit": "a"}]},
     {"commit": "a"}, ["a", "b"])])
def test_a_run_names_the_commits_that_trained_it(tmp_path, config, result, commits):
    directory = finished(tmp_path / "a", RECIPE, **result)
    before = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**before, **config}))
    assert results.read_run(directory).commits == commits
    text = page.render(tmp_path, [Table("t", "A table", "a source", (ROW,))])
    told = f" by a, then {page.short(commits[-1])} |" if len(commits) == 2 else None
    assert told in text if told else " then " not in text.partition("# A table")[2]


# The page

def test_the_page_tells_what_was_measured_and_what_a_row_would_cost(tmp_path):
    table = Table("t", "A table", "a source", (
        ROW, trained("50", "imagenet/resnest50", "why", top1=81.13),
        evaluated("320", "imagenet/resnest50", {"eval_px": "320"}, top1=81.82),
        trained("later", "panoptic/resnest200", pq=47.9),
        timed("fast", "infer --paper table4 --device gpu", 51.2),
        printed("N", "quoted", top1=82.7),
        trained("far", "imagenet/resnest101", server="resnest50", top1=83.0)))
    finished(tmp_path / "cifar10/a", RECIPE, 61.5)
    text = page.render(tmp_path, [table])
    assert "| [t](#a-table) | A table | 7 | 4 | 1 |" in text
    lines = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line[:2] == "| "}
    assert "top-1 % 62.64 | 2 | top-1 % 61.50 [0](" in lines["14"] and "reached" in lines["14"]
    assert "not run: needs 371 GPU hours |  | why" in lines["50"]
    assert "--eval-px 320 --eval-only` | top-1 % 81.82 | 0.3 | not run" in lines["320"]
    assert "no recipe yet" in lines["later"] and "needs a V100" in lines["fast"]
    assert "printed only" in lines["N"]
    assert "--eval-only` | top-1 % 83.00 |  | not run: needs the training of " \
        "`imagenet/resnest50` |" in lines["far"]
    assert page.render(tmp_path, [table]) == text


def test_a_row_tells_what_it_lacks_instead_of_hours(tmp_path):
    row = trained("x", "imagenet/resnest50", lacks="what nobody has", top1=81.0)
    text = page.render(tmp_path, [Table("t", "A table", "a source", (row,))])
    assert "| not run: needs what nobody has |" in text
    hotdog = page.render(tmp_path).partition("fine-tuning on hot dogs\n\nSource")[2]
    assert hotdog.count("not run: needs weights of ImageNet") == 2


def test_costs_are_relative_to_the_first_row(tmp_path):
    table = next(table for table in page.TABLES if table.name == "cifar1")
    finished(tmp_path / "b", RECIPE)
    assert "| resnest14_2s1x64d | 8.58 | 8.58 | 6471 | 0.79 |  |" in page.render(tmp_path, [table])
    (tmp_path / "speeds").mkdir()
    (tmp_path / "speeds/cifar1.json").write_text(json.dumps({
        "kind": "train", "settings": {"batch": 256, "threads": 1, "with_recipe": True},
        "commit": "0123456789",
        "machine": {"cpu": "a CPU", "cpus": 2}, "rows": [
            {"competitor": "resnest14_2s1x64d", "ratio": 0.8, "ratio_low": 0.75,
             "ratio_high": 0.851}]}))
    text = page.render(tmp_path, [table])
    assert "`tools/benchmark.py train --batch 256 --threads 1 --with-recipe`, in turns, at " \
        "0123456 (a CPU, 1 of 2 CPUs)" in text
    assert "| resnest14_2s1x64d | 8.58 | 8.58 | 6471 | 0.79 | 0.80 (0.75 to 0.85) |" in text
    assert "| resnest14_1s2x64d | 13.63 |  | 7646 | 0.94 |  |" in text


def test_the_networks_timed_for_a_table_are_those_of_its_rows():
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "tools/benchmark.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for table in page.TABLES:
        if table.costs:
            assert tool.PAPER[table.name] == ("train", [
                (rows.recipe_of(row).network, rows.recipe_of(row).crop_px) for row in table.rows
                if "parameters" in dict(row.expected)])


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


def test_a_row_without_a_printed_number_tells_what_its_runs_measured(tmp_path):
    table = next(table for table in page.TABLES if table.name == "hotdog")
    row = next(row for row in table.rows if row.name == "resnest14 ours")
    for seed, top1 in [(0, 72.0), (1, 78.0)]:
        finished(tmp_path / str(seed), replace(rows.recipe_of(row), seed=seed), top1, metric="top1",
                 data="my/hotdog/", weights="runs/cifar10/resnest14_2s1x64d")
    runs = results.runs_of(row, results.read_runs(tmp_path))
    assert page.describe(row, runs) == "top-1 % 75.00 ± 4.24 (2 seeds)"
    assert results.judge(row, runs) is None
