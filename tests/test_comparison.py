"""Runs side by side: what the table says and the picture shows."""
import json

import pytest

from gluon_resnest.errors import UserError
from gluon_resnest.tasks.comparison import comparison_table, draw_comparison, metrics_of, open_runs


def write_run(folder, values, *, verdict=None, metric="ap"):
    folder.mkdir()
    lines = []
    for number, value in enumerate(values, 1):
        lines.append({"kind": "training", "step": 10 * number, "epoch": float(number), "lr": 0.1,
                      "losses": {"class": 2.0 / number, "box": 1.0 / number}, "time": 30 * number})
        lines.append({"kind": "evaluation", "step": 10 * number, "epoch": float(number),
                      "metrics": {metric: value, "images": 8}, "time": 30 * number + 5})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({"model": "resnest50", "recipe": {}}))
    if verdict:
        (folder / "result.json").write_text(json.dumps({"verdict": verdict}))
    return folder


def test_the_table_has_best_last_and_pace(tmp_path):
    runs = open_runs([write_run(tmp_path / "a", [10.0, 42.0, 40.5], verdict="reached"),
                      write_run(tmp_path / "b", [5.0])])
    assert metrics_of(runs) == ["ap"]                       # counts are not compared
    titles, first, second = comparison_table(runs, ["ap"])
    assert dict(zip(titles, first)) == {
        "run": "a", "recipe": "resnest50", "steps": "30", "epochs": "3.0", "loss": "1.0000",
        "best ap": "42.00", "last ap": "40.50", "s/step": "3.00", "verdict": "reached"}
    assert dict(zip(titles, second))["s/step"] == "-"


def test_the_picture_is_drawn(tmp_path):
    runs = open_runs([write_run(tmp_path / "a", [10.0, 42.0]), write_run(tmp_path / "b", [5.0])])
    draw_comparison(tmp_path / "x.png", runs, ["ap"])
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="cannot draw"):
        draw_comparison(tmp_path / "x.wrong", runs, ["ap"])


def test_mistakes_are_sentences(tmp_path):
    run = write_run(tmp_path / "a", [10.0])
    with pytest.raises(UserError, match="no run directory with a log"):
        open_runs([tmp_path])
    with pytest.raises(UserError, match="two runs are called 'a'"):
        open_runs([run, run])
    with pytest.raises(UserError, match="no run has a metric 'miou'; they share ap"):
        metrics_of(open_runs([run]), "miou")
