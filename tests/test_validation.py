"""Checking the zoo: what is right passes, what is wrong is told, the tool refuses in a sentence."""
import csv
import importlib.util
import io
from dataclasses import replace
from pathlib import Path

import pytest
from mxnet import init, nd

from gluon_resnest import zoo
from gluon_resnest.interop import validation
from gluon_resnest.interop.validation import Finding, validate

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("validate_zoo", ROOT / "tools/validate_zoo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_classifier_is_what_the_zoo_declares():
    found = validate("resnest14", size=(64, 96))
    assert found.verdict == "ok" and found.outputs == "1x1000" and found.top1 is None
    assert found.parameters == found.declared_parameters == 10611688
    assert found.gmacs == pytest.approx(2.75, abs=0.005) and found.seconds > 0


def test_other_networks_have_outputs_and_no_declaration():
    found = validate("simple_pose_resnest_tiny", size=(64, 96))
    assert (found.verdict, found.outputs, found.declared_parameters) == ("ok", "1x17x16x24", None)


def test_what_differs_from_the_declaration_is_told(monkeypatch):
    wrong = replace(zoo.VARIANTS["resnest14"], params=10, gmacs=2.70)
    monkeypatch.setitem(zoo.VARIANTS, "resnest14", wrong)
    assert validate("resnest14").verdict == (
        "10611688 parameters, 10 declared; 2.749 GMACs, 2.7 declared")


def test_what_is_not_finite_is_told(tmp_path):
    net = zoo.get_model("resnest_tiny")
    net.initialize(init.Xavier())
    net(nd.zeros((1, 3, 32, 32)))
    net.fc.weight.set_data(nd.full(net.fc.weight.shape, 3e38))          # its sums overflow
    net.save_parameters(str(tmp_path / "x.params"))
    assert validate("resnest_tiny", weights=tmp_path / "x.params").verdict == (
        "the outputs are not finite")


def test_a_model_that_cannot_be_built_or_loaded_is_a_finding(tmp_path):
    assert "did you mean 'resnest50'" in validate("resnest51").verdict
    assert validate("resnest_tiny", weights=tmp_path / "none.params").verdict != "ok"


def test_what_mxnet_refuses_is_a_finding():
    """The last stage would pool 2x2 of a map of one pixel."""
    assert "kernel size (2) exceeds input" in validate("resnest14", size=(16, 16)).verdict


def run(tool, capsys, *words):
    with pytest.raises(SystemExit) as ended:
        tool.main(list(map(str, words)))
    return ended.value.code, capsys.readouterr()


def test_the_tool_prints_a_row_for_each_model(tool, capsys, monkeypatch):
    monkeypatch.setattr(tool, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(tool, "look_at", lambda job: Finding(
        job[0], "ok" if "fast" in job[0] else "bad", parameters=5, gmacs=0.123456))
    code, told = run(tool, capsys, "resnest50*")
    rows = list(csv.DictReader(io.StringIO(told.out)))
    assert [row["name"] for row in rows] == zoo.list_models("resnest50*")
    assert rows[0]["gmacs"] == "0.1235" and rows[0]["top1"] == "" and tuple(rows[0]) == \
        validation.FIELDS
    assert code == 1 and "9 models, 1 not ok" in told.err


def test_a_killed_process_is_told_and_keeps_the_rows_before(tool, capsys, monkeypatch):
    class Breaks(InThisProcess):
        def map(self, function, jobs):
            yield function(jobs[0])
            raise tool.BrokenProcessPool("a process died")

    monkeypatch.setattr(tool, "ProcessPoolExecutor", Breaks)
    monkeypatch.setattr(tool, "look_at", lambda job: Finding(job[0], "ok"))
    code, told = run(tool, capsys, "resnest50*")
    assert code == 2 and "was killed" in told.err
    assert [row["name"] for row in csv.DictReader(io.StringIO(told.out))] == ["resnest50"]


def test_accuracy_is_measured_by_the_zoos_crop_and_protocol(tool, monkeypatch):
    asked = []
    monkeypatch.setattr(tool.subprocess, "run", lambda words, **_: asked.extend(words) or (
        Path(words[-1]) / "result.json").write_text('{"measured": {"top1": 83.5}}') and Ended())
    table = dict(zoo.VARIANTS)
    own = replace(table["resnest200"].weights, protocol="timm")
    monkeypatch.setitem(zoo.VARIANTS, "resnest200", replace(table["resnest200"], weights=own))
    assert tool.accuracy("resnest200", "w.params", "val.rec") == 83.5
    assert asked[asked.index("--eval-px") + 1] == "320"
    assert asked[asked.index("--eval-protocol") + 1] == "timm"


@pytest.mark.parametrize("name, crop_px", [
    ("efficientnet_b0", 224), ("efficientnet_b1", 240), ("efficientnet_b7", 600),
    ("resnest269", 416), ("resnet50", 224)])
def test_the_crop_is_that_of_the_zoos_page(tool, name, crop_px):
    assert tool.rule_of(name) == (crop_px, "gluon")


def test_help_names_the_columns(tool):
    columns = tool.__doc__.partition("Columns: ")[2]
    assert all(field in columns for field in validation.FIELDS)


def test_only_models_with_a_file_are_looked_at(tool, tmp_path):
    for name in ("resnest14-7e0b0cae.params", "resnest26.params", "resnest50.zip", "readme"):
        (tmp_path / name).write_text("")
    flags = tool.parse(["resnest*", "--weights", str(tmp_path)])
    assert {name: file.name for name, file in tool.chosen(flags).items()} == {
        "resnest14": "resnest14-7e0b0cae.params", "resnest26": "resnest26.params"}


@pytest.mark.parametrize("words, message", [
    (["resnst50"], "no model of the zoo matches 'resnst50'; did you mean 'resnest50'"),
    (["--size", "50"], "--size must be a multiple of 32, got 50"),
    (["--jobs", "0"], "--jobs must be at least 1, got 0"),
    (["--rec", "val.rec"], "--rec measures the accuracy of --weights, which is missing"),
    (["--weights", "nowhere"], "--weights must be a folder, got 'nowhere'"),
    (["resnest14", "--weights", str(ROOT / "docs")], "has no file of resnest14"),
    (["resnest14", "--csv", "no/such/folder/x.csv"], "--csv no/such/folder/x.csv cannot be")])
def test_what_cannot_be_done_is_refused_in_one_sentence(tool, capsys, words, message):
    code, told = run(tool, capsys, *words)
    assert code == 2 and told.err.count("\n") == 1 and message in told.err


class InThisProcess:
    def __init__(self, jobs, context):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    map = staticmethod(map)


class Ended:
    returncode = 0
