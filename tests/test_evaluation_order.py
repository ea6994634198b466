"""A checkpoint lies on the disk before its evaluation begins; who goes on there evaluates first."""
import os
import signal

import mxnet as mx
import pytest
from test_loop import EPOCH, STEPS, Toy, contents, lines, train

from gluon_resnest.engine import loop
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import Comm
from gluon_resnest.engine.stopping import Stopped
from gluon_resnest.errors import UserError


class Settling(Toy):
    """Evaluates with new running statistics, which are saved, and from random numbers."""

    trouble = None              # called at the start of an evaluation

    def evaluate(self):
        if self.trouble is not None:
            self.trouble()
        mean = self.net[1].running_mean
        mean.set_data(mx.nd.random.normal(self.epochs[-1], 1, shape=mean.shape))
        return super().evaluate()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    task, update, summary, _ = train(folder, task=Settling(Comm()))
    return contents(task, update), lines(folder), summary


def found(folder):
    return sorted(os.listdir(folder / "checkpoints"))


def assert_goes_on(folder, undisturbed, *, trained):
    """Runs the rest: `trained` steps, to the same bits, log and outcome as `undisturbed`."""
    task, update, summary, _ = train(folder, task=Settling(Comm()))
    assert contents(task, update) == undisturbed[0]
    assert lines(folder) == undisturbed[1]
    assert (summary.best, summary.best_step, summary.metrics) == \
        (undisturbed[2].best, undisturbed[2].best_step, undisturbed[2].metrics)
    assert task.yielded == trained
    assert found(folder) == [f"step-{step:08d}" for step in range(EPOCH, STEPS + 1, EPOCH)]


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_an_evaluation_that_fails_costs_no_step(epoch, undisturbed, tmp_path):
    task = Settling(Comm())

    def damaged():
        if len(task.epochs) == epoch:
            raise UserError("image 3 is damaged")
    task.trouble = damaged
    with pytest.raises(UserError, match="image 3 is damaged"):
        train(tmp_path, task=task)
    assert found(tmp_path)[-1] == f"unevaluated-{epoch * EPOCH:08d}"
    assert Checkpoints(tmp_path / "checkpoints").latest().state.unevaluated
    assert_goes_on(tmp_path, undisturbed, trained=STEPS - epoch * EPOCH)


def test_one_killed_before_its_evaluation_is_saved_has_one_line_of_it(
        undisturbed, tmp_path, monkeypatch):
    store = Checkpoints.store

    def failing(self, checkpoint):
        if checkpoint.state.step == 2 * EPOCH and not checkpoint.state.unevaluated:
            raise UserError("killed")
        return store(self, checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "store", failing)
        with pytest.raises(UserError, match="killed"):
            train(tmp_path, task=Settling(Comm()))
    assert [line["step"] for line in lines(tmp_path) if line["kind"] == "evaluation"][:2] == \
        [EPOCH, 2 * EPOCH]
    assert_goes_on(tmp_path, undisturbed, trained=STEPS - 2 * EPOCH)


def test_a_first_write_that_fails_is_made_up_for(undisturbed, tmp_path, monkeypatch, caplog):
    store = Checkpoints.store

    def failing(self, checkpoint):
        if checkpoint.state.step == 2 * EPOCH and checkpoint.state.unevaluated:
            raise UserError("no space left")
        return store(self, checkpoint)
    monkeypatch.setattr(Checkpoints, "store", failing)
    assert_goes_on(tmp_path, undisturbed, trained=STEPS)
    assert "no space left; it is tried once more" in caplog.text


def test_time_counts_a_resumed_evaluation(tmp_path, monkeypatch):
    own, hours = loop.time.monotonic, [0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: own() + 3600 * hours[0])
    task = Settling(Comm())

    def damaged():
        raise UserError("image 3 is damaged")
    task.trouble = damaged
    with pytest.raises(UserError, match="image 3 is damaged"):
        train(tmp_path, EPOCH, task=task)

    def slow():
        hours[0] += 1
    task.trouble = slow
    assert 3600 <= train(tmp_path, EPOCH, task=task)[2].seconds < 2 * 3600


@pytest.mark.parametrize("step", [2 * EPOCH, STEPS])
def test_a_run_that_is_to_stop_leaves_the_evaluation_to_the_next(step, undisturbed, tmp_path,
                                                                 monkeypatch):
    class Stopping(loop.Stop):
        calls = 0

        def agreed(self):
            self.calls += 1
            return signal.SIGTERM if self.calls == step else super().agreed()
    task = Settling(Comm())
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Stop", Stopping)
        with pytest.raises(Stopped, match=f"stopped by SIGTERM after step {step}"):
            train(tmp_path, task=task)
    assert task.evaluations == step // EPOCH - 1
    assert_goes_on(tmp_path, undisturbed, trained=STEPS - step)
