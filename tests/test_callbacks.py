"""What may listen to a run, and the speed of the input alone."""
import json
import sys
import time
import types

import pytest
from mxnet import nd

from gluon_resnest.engine.callbacks import Profile, WeightsAndBiases
from gluon_resnest.engine.comm import Comm
from gluon_resnest.engine.report import RunLog
from gluon_resnest.engine.speed import input_speed
from gluon_resnest.errors import MissingExtra, UserError

WINDOW = {"losses": {"loss": 2.0}, "steps": 1, "seconds": 1.0, "data_wait": 0.5}


class Listener:
    """Notes what it hears."""

    def __init__(self):
        self.heard = []

    def advance(self):
        self.heard.append("step")

    def write(self, line):
        self.heard.append(line["kind"])

    def close(self):
        self.heard.append("closed")


def run_log(folder, *callbacks):
    return RunLog(folder, Comm(), total_steps=4, steps_per_epoch=2, batch=2, callbacks=callbacks)


def test_a_callback_hears_every_step_and_line_and_is_closed_once(tmp_path):
    listener = Listener()
    with run_log(tmp_path, listener) as log:
        log.begin(0)
        log.advance()
        log.training(1, 0.1, WINDOW)
        log.begin(0)                                # after a rollback
        log.advance()
        log.evaluation(1, {"top1": 1.0})
    assert listener.heard == ["step", "training", "step", "evaluation", "closed"]


@pytest.mark.parametrize("steps, traced", [(2, False), (9, True)])   # MXNet traces once
def test_a_trace_names_the_operators_of_its_steps_only(steps, traced, tmp_path):
    file = tmp_path / "trace.json"
    profile = Profile(file, skip=3, steps=4)
    operators = [nd.sin, nd.sin, nd.sin, nd.cos, nd.cos, nd.cos, nd.cos, nd.tan, nd.tan]
    for operator in operators[:steps]:
        operator(nd.ones((2, 2))).wait_to_read()
        profile.advance()
    profile.close()
    assert file.exists() is traced
    if traced:
        names = {event.get("name") for event in json.loads(file.read_text())["traceEvents"]}
        assert "cos" in names and not names & {"sin", "tan"}


def test_a_trace_without_directory_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no directory .*absent; make it first"):
        Profile(tmp_path / "absent/trace.json")
    with pytest.raises(UserError, match="is a directory; give the name of a file in it"):
        Profile(tmp_path)


def test_wandb_gets_the_numbers_of_the_log(tmp_path, monkeypatch):
    sent, told = [], {}

    class Run:
        def log(self, numbers, step):
            sent.append((step, numbers))

        def finish(self):
            sent.append("finished")

    def init(**options):
        told.update(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with run_log(tmp_path, WeightsAndBiases("nets", {"batch": 2})) as log:
        log.begin(0)
        log.training(1, 0.1, WINDOW)
        log.evaluation(2, {"top1": 7.0})
    assert told == {"project": "nets", "config": {"batch": 2}}
    assert sent == [(1, {"lr": 0.1, "losses/loss": 2.0, "images_per_second": 2.0,
                         "data_wait": 0.5}), (2, {"metrics/top1": 7.0}), "finished"]


def test_wandb_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"wandb is needed here .*gluon-resnest\[wandb\]"):
        WeightsAndBiases("nets", {})


def test_input_speed_is_images_over_seconds_without_the_start():
    class Slow:
        def batches(self, start_step):
            assert start_step == 0
            for step in range(100):
                time.sleep(0.2 if step < 2 else 0.02)
                yield step

    speed = input_speed(Slow(), Comm(), batch=8, steps=10, skip=2)
    assert 0.5 * 8 / 0.02 < speed <= 8 / 0.02
