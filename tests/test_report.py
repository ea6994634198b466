"""Laws of the log, the curves and the result."""
import importlib.util
import json
import logging
import os
import re
import sys

import numpy as np
import pytest

from gluon_resnest.engine.comm import Comm
from gluon_resnest.engine.report import (
    RunLog, draw_curves, logged_speed, machine, read_log, verdict, write_result)
from gluon_resnest.errors import MissingExtra, UserError


def window(loss=1.0, steps=5):
    return {"losses": {"loss": loss, "aux": 0.5}, "steps": steps, "seconds": 2.0,
            "data_wait": 0.25}


def run_log(folder, comm=None):
    return RunLog(folder, comm or Comm(), total_steps=40, steps_per_epoch=10, batch=8)


def write(folder, start, stop, comm=None):
    with run_log(folder, comm) as log:
        log.begin(start)
        for step in range(start + 5, stop + 1, 5):
            for _ in range(5):
                log.advance()
            log.training(step, 0.1 * step, window(loss=1 / step))
            if step % 10 == 0:
                log.evaluation(step, {"top1": float(step), "top1_hits": 3 * step})
        return log.images_per_second


def without_time(folder):
    return [{name: value for name, value in line.items() if name != "time"}
            for line in read_log(folder / "log.jsonl")]


def test_a_line_says_what_happened(tmp_path):
    write(tmp_path, 0, 10)
    assert without_time(tmp_path) == [
        {"kind": "training", "step": 5, "epoch": 0.5, "lr": 0.5,
         "losses": {"loss": 0.2, "aux": 0.5}, "images_per_second": 20.0, "data_wait": 0.25},
        {"kind": "training", "step": 10, "epoch": 1.0, "lr": 1.0,
         "losses": {"loss": 0.1, "aux": 0.5}, "images_per_second": 20.0, "data_wait": 0.25},
        {"kind": "evaluation", "step": 10, "epoch": 1.0,
         "metrics": {"top1": 10.0, "top1_hits": 30}}]


def test_images_per_second_is_that_of_the_training_steps(tmp_path):
    assert write(tmp_path, 0, 20) == 8 * 5 / 2
    assert run_log(tmp_path).images_per_second == 0.0


def test_the_speed_of_a_log_is_that_of_its_steps(tmp_path):
    assert logged_speed(tmp_path / "log.jsonl") is None
    write(tmp_path, 0, 20)
    assert logged_speed(tmp_path / "log.jsonl") == pytest.approx(8 * 5 / 2)
    with run_log(tmp_path) as log:
        log.begin(20)
        log.training(40, 0.1, {**window(steps=20), "seconds": 80.0})    # 160 images
    # 320 images; each of the four lines before took 2 s
    assert logged_speed(tmp_path / "log.jsonl") == pytest.approx(320 / (4 * 2 + 80))


def test_a_resumed_log_has_no_step_twice(tmp_path):
    write(tmp_path / "whole", 0, 40)
    write(tmp_path / "parts", 0, 30)
    write(tmp_path / "parts", 15, 40)
    assert without_time(tmp_path / "parts") == without_time(tmp_path / "whole")


def test_a_line_cut_by_a_kill_is_written_again(tmp_path):
    write(tmp_path / "whole", 0, 40)
    write(tmp_path / "parts", 0, 25)
    log = tmp_path / "parts" / "log.jsonl"
    log.write_text(log.read_text()[:-20])
    write(tmp_path / "parts", 20, 40)
    assert without_time(tmp_path / "parts") == without_time(tmp_path / "whole")


def test_only_the_main_worker_writes(tmp_path):
    """The others take part in what all workers do, and do nothing on their own."""
    comm = Comm()
    comm.rank = 1
    comm.on_main = lambda action: None
    assert write(tmp_path / "run", 0, 10, comm) == 20.0
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_the_log_once(tmp_path):
    """Also after a resume: one event for each number of a line."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    write(tmp_path, 0, 30)
    write(tmp_path, 15, 40)
    file, = os.listdir(tmp_path / "tensorboard")
    seen = []
    for event in LegacyEventFileLoader(str(tmp_path / "tensorboard" / file)).Load():
        seen += [(event.step, value.tag, value.tensor.float_val[0])
                 for value in event.summary.value]
    expected = []
    for line in read_log(tmp_path / "log.jsonl"):
        named = {"lr": line.get("lr"), "images_per_second": line.get("images_per_second"),
                 "data_wait": line.get("data_wait")}
        named.update((f"losses/{name}", value) for name, value in line.get("losses", {}).items())
        named.update((f"metrics/{name}", value) for name, value in line.get("metrics", {}).items())
        expected += [(line["step"], name, pytest.approx(value, rel=1e-6))
                     for name, value in named.items() if value is not None]
    assert sorted(seen) == sorted(expected, key=lambda item: item[:2])


def test_the_log_does_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    write(tmp_path, 0, 10)
    assert os.listdir(tmp_path) == ["log.jsonl"]


def test_progress_is_a_sentence_now_and_then_where_no_terminal_is(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write(tmp_path, 0, 40)
    spoken = [record.message for record in caplog.records]
    assert len([line for line in spoken if " left" in line]) == 2       # the first and the last
    assert re.fullmatch(r"step 5 of 40: loss 0.2, aux 0.5, lr 0.5, 20.0 images/s, 25% waiting for "
                        r"data, \d+:\d\d:\d\d left", spoken[0])
    assert spoken[1] == "step 10, epoch 1: top1 10, top1_hits 30"
    assert spoken[-2].endswith("0:00:00 left")


def test_progress_is_a_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")        # the bar shortens its text on a narrow screen
    monkeypatch.setenv("LINES", "50")
    write(tmp_path, 0, 40)
    shown = capsys.readouterr()
    assert "40/40" in shown.err and "20.0 images/s" in shown.err
    assert "step 20, epoch 2: top1 20, top1_hits 60" in shown.out


@pytest.mark.parametrize("text", [
    b"no json\n{}\n", b"[1]\n", b'{"kind": "training"}\n', b"3\n3\n", b'{"kind": "\xe9"}\n{}\n'])
def test_a_foreign_log_is_a_sentence(text, tmp_path):
    (tmp_path / "log.jsonl").write_bytes(text)
    with pytest.raises(UserError, match="line 1 of .*log.jsonl is not one of a training log; move"):
        run_log(tmp_path).begin(0)


def test_an_unwritable_run_directory_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot read .*log.jsonl: Not a directory; give anoth"):
        run_log(tmp_path / "file").begin(0)


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    with run_log(tmp_path) as log:
        log.begin(0)

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")
        monkeypatch.setattr("builtins.open", full)
        with pytest.raises(UserError, match="cannot write .*log.jsonl': No space left on device"):
            log.training(5, 0.1, window())


def test_curves_are_drawn_from_the_log_alone(tmp_path):
    from PIL import Image
    write(tmp_path, 0, 40)
    picture = draw_curves(tmp_path)
    assert picture == tmp_path / "curves.png"
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape == (400, 1500, 3)
    for panel in np.split(pixels, 3, axis=1):       # something of the first colour in each
        assert (np.abs(panel.astype(int) - (31, 119, 180)).sum(axis=2) < 30).sum() > 20


def test_curves_of_a_run_without_a_line_are_empty(tmp_path):
    assert draw_curves(tmp_path).exists()


def test_curves_need_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"matplotlib is needed here .*pip install matplotlib"):
        draw_curves(tmp_path)


@pytest.mark.parametrize("measured, expected, tolerance, said", [
    (81.0, 81.04, 0.3, "reached"), (80.74, 81.04, 0.3, "reached"), (80.7, 81.04, 0.3, "missed"),
    (85.0, 81.04, None, "reached"), (81.0, 81.04, None, "missed"), (3.0, None, 0.3, "no target"),
    (float("nan"), 81.04, 0.3, "missed")])
def test_verdict(measured, expected, tolerance, said):
    assert verdict(measured, expected, tolerance) == said


def test_result_holds_what_a_reader_needs(tmp_path):
    result = write_result(tmp_path / "result.json", measured={"top1": 80.9, "images": 50000},
                          main_metric="top1", expected=81.04, tolerance=0.3, seconds=12.5,
                          images_per_second=3.5)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert list(result) == ["measured", "metric", "expected", "tolerance", "verdict", "commit",
                            "seconds", "images_per_second", "parameters", "machine"]
    assert result["verdict"] == "reached" and result["metric"] == "top1"
    assert result["measured"] == {"top1": 80.9, "images": 50000}
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_result_without_a_run_directory_is_returned_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = write_result(None, measured={"top1": 3.0}, main_metric="top1", seconds=0.0,
                          images_per_second=0.0)
    assert result["verdict"] == "no target" and os.listdir(tmp_path) == []


def test_machine_names_no_host_and_no_path():
    facts = machine()
    assert list(facts) == ["cpu", "cores", "memory_gib", "gpus", "python", "mxnet", "numpy"]
    assert os.uname().nodename not in json.dumps(facts).split() and "/" not in json.dumps(facts)
    assert facts["cores"] >= 1 and facts["memory_gib"] > 0
