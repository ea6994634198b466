"""Laws of going on after numbers that are not finite.

Started by horovodrun, this file is one of two workers.
"""
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from horovod_job import launch
from mxnet import nd
from test_loop import BATCH, EPOCH, SCHEDULE, SEED, STEPS, Toy, contents, lines

from gluon_resnest.engine.checkpoint import read
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import Comm, connect
from gluon_resnest.engine.ema import Average
from gluon_resnest.engine.finite import NotFinite
from gluon_resnest.engine.loop import device_seed
from gluon_resnest.engine.optim import optimizer, set_multipliers
from gluon_resnest.engine.report import RunLog
from gluon_resnest.engine.rollback import ATTEMPTS, fit_past_faults
from gluon_resnest.engine.stopping import Stop, Stopped
from gluon_resnest.engine.update import Update
from gluon_resnest.errors import UserError


def update_of(task, comm):
    set_multipliers(task.params)
    return Update(comm.trainer(task.params, optimizer("nag", wd=1e-2)), task.net,
                  average=Average(task.net, 0.8))


def train(folder, *, task=None, on_nan="rollback", steps=STEPS, comm=None, log_every=3,
          save_every=None):
    comm = comm or Comm()
    task = task or Toy(comm)
    update = update_of(task, comm)
    checkpoints = Checkpoints(Path(folder) / "checkpoints", keep=20)
    start = checkpoints.restore(task.net, update, comm)
    with RunLog(folder, comm, total_steps=STEPS, steps_per_epoch=EPOCH, batch=BATCH) as log:
        fit_past_faults(task, update, SCHEDULE, steps=steps, seed=SEED, comm=comm, log=log,
                        checkpoints=checkpoints, start=start, log_every=log_every, on_nan=on_nan,
                        save_every=save_every)
    return task, update, checkpoints


def without(first, last):
    """Trains by hand, without the steps first ... last - 1; returns the outcome."""
    task = Toy(Comm())
    update = update_of(task, Comm())
    for step, batch in zip(range(STEPS), task.batches(0)):
        if first <= step < last:
            continue
        mx.random.seed(device_seed(SEED, step, 0))
        update.step(task.losses, batch, SCHEDULE(step + 1))
    return contents(task, update)


class Exploding(Toy):
    """Its loss is finite at one step, the gradient is not."""

    def __init__(self, comm, at):
        super().__init__(comm)
        self.at = at

    def batches(self, start_step):
        for step, batch in enumerate(super().batches(start_step), start_step):
            yield (*batch, step == self.at)

    def losses(self, batch):
        losses = super().losses(batch[:2])
        if batch[2]:
            tiny = nd.abs(self.net(batch[0])).mean() * 0
            losses["size"] = losses["size"] + nd.sqrt(tiny)
        return losses


@pytest.mark.parametrize("poisoned, save_every, skipped", [
    (4, None, (4, 5)), (6, None, (4, 7)), (7, None, (4, 8)), (8, None, (8, 9)), (5, 2, (4, 6)),
    (6, 1, (6, 7)), (10, None, (8, 11))])
def test_a_rolled_back_run_equals_one_without_the_poisoned_steps(poisoned, save_every, skipped,
                                                                 tmp_path):
    task, update, _ = train(tmp_path, task=Toy(Comm(), poison=(poisoned, 0)),
                            save_every=save_every)
    assert contents(task, update) == without(*skipped)
    assert task.yielded >= STEPS - (skipped[1] - skipped[0])


def test_what_was_skipped_is_not_in_the_log(tmp_path, caplog):
    train(tmp_path, task=Toy(Comm(), poison=(5, 0)))
    assert "loss 'square' is not finite at step 6 on worker 0; going back to step 4 and on from 6" \
        in caplog.text
    assert [line["step"] for line in lines(tmp_path) if line["kind"] == "training"] == \
        [3, 4, 8, 9, 12]
    noted, = [line for line in lines(tmp_path) if line["kind"] == "rollback"]
    assert (noted["to"], noted["step"]) == (4, 6)
    assert noted["reason"] == "loss 'square' is not finite at step 6 on worker 0"


def test_a_rolled_back_run_that_is_killed_comes_to_the_same(tmp_path):
    """Up to step 8, then anew: it meets the poison, goes back and skips the same steps."""
    train(tmp_path, task=Toy(Comm(), poison=(5, 0)), steps=8)
    task, update, _ = train(tmp_path, task=Toy(Comm(), poison=(5, 0)))
    assert contents(task, update) == without(4, 6)


def test_a_step_that_breaks_the_weights_is_undone(tmp_path):
    """Its own loss is finite, so the one after it, or the save, shows the fault."""
    for at, shown in ((5, 7), (7, 8)):
        task, update, _ = train(tmp_path / str(at), task=Exploding(Comm(), at))
        assert contents(task, update) == without(4, shown)


def test_a_signal_before_a_rollback_is_not_forgotten(tmp_path, monkeypatch):
    class Asked(Toy):
        def batches(self, start_step):
            for step, batch in enumerate(super().batches(start_step), start_step):
                if step == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                    yield batch[0] * math.nan, batch[1]
                yield batch

    def late(self):                                 # its vote is counted three steps later
        self.calls = getattr(self, "calls", 0) + 1
        return self._asked if self.calls > 8 else None
    monkeypatch.setattr(Stop, "agreed", late)
    with pytest.raises(Stopped, match="SIGTERM after step 9"):
        train(tmp_path, task=Asked(Comm()))


def test_an_evaluation_that_was_not_saved_is_made_where_it_goes_on(tmp_path, monkeypatch):
    """The save after the evaluation of step 8 fails, and the next step is poisoned."""
    store = Checkpoints.store

    def failing(self, checkpoint):
        if checkpoint.state.step == 8 and not checkpoint.state.unevaluated:
            raise UserError("no space left")
        return store(self, checkpoint)
    monkeypatch.setattr(Checkpoints, "store", failing)
    _, _, checkpoints = train(tmp_path, task=Toy(Comm(), poison=(8, 0)))
    assert checkpoints.steps() == [4, 9, 12]
    scores = {line["step"]: line["metrics"] for line in lines(tmp_path)
              if line["kind"] == "evaluation"}
    assert list(scores) == [4, 8, 9, 12] and scores[9] == scores[8]
    assert read(checkpoints.path(9)).state.metrics == scores[8]


def test_broken_weights_are_never_saved(tmp_path):
    with pytest.raises(NotFinite, match="parameters are not finite after step 8, though its loss "
                       "is; the last good checkpoint is of step 4"):
        train(tmp_path, task=Exploding(Comm(), 7), on_nan="stop")
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]


@pytest.mark.parametrize("poisoned, on_nan, message", [
    (6, "stop", "'square' is not finite at step 7 on worker 0; the last good checkpoint is of "
     "step 4"),
    (1, "stop", "at step 2 on worker 0; there is no checkpoint to go back to"),
    (1, "rollback", "at step 2 on worker 0; there is no checkpoint to go back to"),
    (11, "rollback", "at step 12 on worker 0; no step is left to go on with from step 8")])
def test_where_it_cannot_go_on_it_says_so(poisoned, on_nan, message, tmp_path):
    with pytest.raises(NotFinite, match=message):
        train(tmp_path, task=Toy(Comm(), poison=(poisoned, 0)), on_nan=on_nan)


def test_the_last_good_checkpoint_is_a_whole_one(tmp_path):
    class Damaging(Toy):
        def batches(self, start_step):
            for step, batch in enumerate(super().batches(start_step), start_step):
                if step == 9:
                    file = tmp_path / "checkpoints/step-00000008/model.params"
                    while not file.exists():        # it is written while training goes on
                        time.sleep(0.01)
                    file.write_bytes(b"cut")
                yield batch

    with pytest.raises(NotFinite, match="the last good checkpoint is of step 4"):
        train(tmp_path, task=Damaging(Comm(), poison=(10, 0)), on_nan="stop")


def test_a_checkpoint_is_gone_back_to_a_few_times_only(tmp_path):
    class Hopeless(Toy):
        def batches(self, start_step):
            for step, (images, targets) in enumerate(super().batches(start_step), start_step):
                yield images, targets * (math.nan if step >= 4 else 1)

    task = Hopeless(Comm())
    with pytest.raises(NotFinite, match="going back to step 4 does not help"):
        train(tmp_path, task=task, log_every=1)
    assert task.yielded == 4 + ATTEMPTS + 1


def test_the_average_is_evaluated_and_saved_and_training_goes_on_with_the_weights(tmp_path):
    class Seen(Toy):
        def evaluate(self):
            self.seen = {name: parameter.data().asnumpy() for name, parameter
                         in self.net._collect_params_with_prefix().items()}
            return super().evaluate()

    task, _, checkpoints = train(tmp_path, task=Seen(Comm()))
    saved = checkpoints.latest()
    np.testing.assert_equal(saved.model, task.seen)
    for name, parameter in task.net._collect_params_with_prefix().items():
        np.testing.assert_array_equal(parameter.data().asnumpy(), saved.arrays[f"trained:{name}"])
        assert (saved.model[name] != saved.arrays[f"trained:{name}"]).any(), name


def work(folder):
    comm = connect()
    task, update, _ = train(folder, comm=comm, task=Toy(comm, poison=(5, 1)))
    taken, numbers = contents(task, update)
    (Path(folder) / f"{comm.rank}.json").write_text(json.dumps({
        name: value for name, value in taken.items() if "running" not in name}))
    comm.shutdown()


@pytest.mark.horovod
def test_all_workers_go_back_together(tmp_path):
    code, text, seen = launch(2, __file__, tmp_path)
    assert code == 0, text
    assert seen[0] == seen[1]
    assert [line["step"] for line in lines(tmp_path) if line["kind"] == "training"] == \
        [3, 4, 8, 9, 12]
    assert all(np.isfinite(np.frombuffer(bytes.fromhex(value), "float32")).all()
               for value in seen[0].values())


if __name__ == "__main__":
    signal.alarm(170)
    work(sys.argv[1])
