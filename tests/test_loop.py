"""Laws of the training loop: pure in the step, resumable anywhere, exact over workers.

Started by horovodrun, this file is one of two workers.
"""
import contextlib
import itertools
import json
import logging
import math
import os
import signal
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from horovod_job import launch
from mxnet import gluon, nd

from gluon_resnest.engine.checkpoint import State, snapshot
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import Comm, connect
from gluon_resnest.engine.finite import GradientsNotFinite, NotFinite
from gluon_resnest.engine.loop import STEPS_AHEAD, Summary, Window, device_seed, fit
from gluon_resnest.engine.optim import Cosine, optimizer, set_multipliers
from gluon_resnest.engine.report import RunLog, read_log
from gluon_resnest.engine.update import Update
from gluon_resnest.errors import UserError

EPOCH, STEPS, BATCH, SEED = 4, 12, 8, 7
SCHEDULE = Cosine(0.1, 3, STEPS)


class Toy:
    """A net with everything that must survive a resume: batch norm, dropout, several losses."""

    main_metric = "score"
    steps_per_epoch = EPOCH

    def __init__(self, comm, poison=None, dropout=0.5):
        self.net = gluon.nn.HybridSequential()
        self.net.add(gluon.nn.Dense(6, in_units=4), gluon.nn.BatchNorm(in_channels=6),
                     gluon.nn.Dropout(dropout), gluon.nn.Dense(3, in_units=6))
        mx.random.seed(1)
        self.net.initialize(mx.init.Normal(0.5))
        self.net.hybridize(static_alloc=True)
        self.params = self.net.collect_params()
        self.comm, self.poison = comm, poison
        self.epochs, self.evaluations, self.yielded = [], 0, 0

    def batches(self, start_step):
        part = self.comm.split(BATCH)
        own = slice(self.comm.rank * part, (self.comm.rank + 1) * part)
        for step in itertools.count(start_step):
            self.yielded += 1
            whole = np.random.RandomState(step).standard_normal((BATCH, 7))
            if self.poison == (step, self.comm.rank):
                whole[:] = math.nan
            yield nd.array(whole[own, :4]), nd.array(whole[own, 4:])

    def losses(self, batch):
        images, targets = batch
        outputs = self.net(images)
        return {"square": ((outputs - targets) ** 2).mean(), "size": 0.1 * outputs.abs().mean()}

    def evaluate(self):
        self.evaluations += 1
        self.comm.broadcast({name: parameter for name, parameter in self.params.items()
                             if parameter.grad_req == "null"})
        outputs = self.net(nd.ones((2, 4))).asnumpy()
        return {"score": float(self.comm.total(np.abs(outputs)).mean()), "images": 2}

    def on_epoch(self, epoch):
        self.epochs.append(epoch)


def train(folder, steps=STEPS, *, comm=None, task=None, save_every=None, log_every=3,
          eval_every=1, seed=SEED, keep=20, per_worker=(), patience=0):
    """Trains a Toy in `folder` up to `steps`, going on from what is there; returns all of it."""
    comm = comm or Comm()
    task = task or Toy(comm)
    set_multipliers(task.params)
    update = Update(comm.trainer(task.params, optimizer("nag", wd=1e-2)), task.net)
    checkpoints = Checkpoints(Path(folder) / "checkpoints", keep=keep)
    start = checkpoints.restore(task.net, update, comm)
    with RunLog(folder, comm, total_steps=STEPS, steps_per_epoch=EPOCH, batch=BATCH) as log:
        summary = fit(task, update, SCHEDULE, steps=steps, seed=seed, comm=comm, log=log,
                      checkpoints=checkpoints, start=start, log_every=log_every,
                      eval_every=eval_every * EPOCH, save_every=save_every, per_worker=per_worker,
                      patience=patience)
    return task, update, summary, checkpoints


def contents(task, update):
    """Returns parameters, running statistics, optimizer state and its numbers as plain values."""
    taken = snapshot(task.net, update, State())
    return {name: array.tobytes().hex()
            for name, array in [*taken.model.items(), *taken.arrays.items()]}, taken.numbers


def lines(folder):
    """The log without what a clock says."""
    clocked = ("time", "images_per_second", "data_wait")
    return [{name: value for name, value in line.items() if name not in clocked}
            for line in read_log(Path(folder) / "log.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    task, update, summary, _ = train(folder, save_every=1)
    return contents(task, update), lines(folder), summary


@pytest.mark.parametrize("stop", [1, 3, 4, 6, 8, 11, 12])
def test_a_resumed_run_equals_the_undisturbed_bit_for_bit(stop, undisturbed, tmp_path):
    """Stopped in the first, a middle and the last epoch, at an epoch's end and at the end."""
    train(tmp_path, save_every=1)
    (tmp_path / "again").mkdir()
    for step in range(stop + 1, STEPS + 1):         # as if it had been killed after this save
        os.rename(tmp_path / f"checkpoints/step-{step:08d}", tmp_path / f"again/{step}")
    task, update, summary, _ = train(tmp_path, save_every=1)
    assert contents(task, update) == undisturbed[0]
    assert lines(tmp_path) == undisturbed[1]
    assert task.yielded == STEPS - stop
    assert task.epochs == list(range(stop // EPOCH, STEPS // EPOCH))
    assert (summary.best, summary.best_step, summary.metrics) == \
        (undisturbed[2].best, undisturbed[2].best_step, undisturbed[2].metrics)


def test_saving_more_often_changes_nothing_but_the_log(undisturbed, tmp_path):
    task, update, _, checkpoints = train(tmp_path, log_every=5)
    assert contents(task, update) == undisturbed[0]
    assert checkpoints.steps() == [4, 8, 12]
    assert [line["step"] for line in lines(tmp_path) if line["kind"] == "training"] == \
        [4, 5, 8, 10, 12]


class Scripted(Toy):
    """A Toy whose evaluation after each epoch is given."""

    def __init__(self, scores):
        super().__init__(Comm())
        self.scores = scores

    def evaluate(self):
        return {"score": self.scores[self.epochs[-1]]}


@pytest.mark.parametrize("scores, eval_every, patience, last", [
    ([1, 3, 2, 3, 9], 1, 2, 16),            # as good is not better
    ([1, 3, 2, 4, 3], 1, 2, 20),
    ([5, 1, 1, 1, 1], 1, 1, 8),
    ([9, 5, 9, 4, 9], 2, 1, 16),            # only epochs 2 and 4 are evaluated
    ([5, 1, 1, 1, 1], 1, 0, 20)])
def test_training_stops_when_evaluations_do_not_improve(scores, eval_every, patience, last,
                                                        tmp_path):
    task, _, _, checkpoints = train(tmp_path, 20, task=Scripted(scores), eval_every=eval_every,
                                    patience=patience)
    assert checkpoints.latest().state.step == last == task.yielded


@pytest.mark.parametrize("stop", [4, 8, 10, 13, 16])
def test_a_continued_run_stops_early_where_the_undisturbed_does(stop, tmp_path):
    scores = [1, 3, 2, 3, 9]
    train(tmp_path, stop, task=Scripted(scores), save_every=1, patience=2)
    task, _, summary, checkpoints = train(tmp_path, 20, task=Scripted(scores), patience=2)
    assert checkpoints.latest().state.step == 16 and task.yielded == 16 - stop
    assert (summary.best, summary.best_step, summary.metrics) == (3, 8, {"score": 3})


def test_the_rate_of_every_step_is_the_closed_formula(undisturbed):
    rates = {line["step"]: line["lr"] for line in undisturbed[1] if line["kind"] == "training"}
    assert rates == {k: 0.1 * k / 3 if k < 3 else 0.05 * (1 + math.cos(math.pi * (k - 3) / 9))
                     for k in range(1, STEPS + 1)}
    assert rates[STEPS] == 0


class Recorder:
    """Stands for an Update; notes what it is told."""

    def __init__(self):
        self.rates = []

    def step(self, losses, batch, lr):
        self.rates.append(lr)
        with mx.autograd.record():
            return losses(batch)

    def averaged(self):
        return contextlib.nullcontext()

    def state(self):
        return {}, {}


class Quiet:
    """Stands for a RunLog."""

    images_per_second = 0.0

    def __init__(self):
        self.windows, self.evaluated = [], []

    def begin(self, step, unevaluated):
        pass

    def advance(self):
        pass

    def training(self, step, lr, window):
        self.windows.append((step, lr, window))

    def evaluation(self, step, metrics):
        self.evaluated.append(step)


def dry(tmp_path, steps=STEPS, task=None, **options):
    task, update, log = task or Toy(Comm()), Recorder(), Quiet()
    fit(task, update, SCHEDULE, steps=steps, seed=SEED, comm=Comm(), log=log,
        checkpoints=Checkpoints(tmp_path), **options)
    return task, update, log


def test_the_update_is_given_the_schedules_rates(tmp_path):
    assert dry(tmp_path)[1].rates == [SCHEDULE(k) for k in range(1, STEPS + 1)]


@pytest.mark.parametrize("steps, every, expected", [
    (12, None, [4, 8, 12]), (12, 4, [4, 8, 12]), (12, 8, [8, 12]), (12, 20, [12]),
    (10, 4, [4, 8, 10]), (2, 12, [2]), (12, 3, [3, 6, 9, 12])])
def test_evaluates_every_so_many_steps_and_at_the_end(steps, every, expected, tmp_path):
    assert dry(tmp_path, steps, eval_every=every)[2].evaluated == expected


def test_logged_losses_are_means_over_the_steps_of_their_window(tmp_path):
    task = Toy(Comm(), dropout=0.0)
    log = dry(tmp_path, 4, task, log_every=3)[2]
    values = []
    for step, batch in zip(range(4), Toy(Comm()).batches(0)):
        with mx.autograd.record():
            values.append(float(task.losses(batch)["square"].asscalar()))
    assert [(step, window["steps"]) for step, _, window in log.windows] == [(3, 3), (4, 1)]
    assert [window["losses"]["square"] for _, _, window in log.windows] == \
        pytest.approx([np.mean(values[:3]), values[3]], rel=1e-5)


def test_time_without_data_is_told_apart():
    """The clock is a list of moments: begin, after the wait; twice; then the end."""
    window = Window(Comm())
    for step in (1, 2):
        with window.waiting():
            mx.nd.waitall()
        window.add(step, {"loss": nd.ones(1)})
    window._began, window._waited = window._began - 10, 5.0
    record = window.close()
    assert record["data_wait"] == pytest.approx(5 / record["seconds"])
    assert record["seconds"] >= 10 and record["steps"] == 2


def test_few_steps_are_in_flight():
    """A step's losses are waited for when STEPS_AHEAD more have been handed over."""
    waited = []

    class Loss:
        def __init__(self, step):
            self.step = step

        def wait_to_read(self):
            waited.append(self.step)
    window = Window(Comm())
    for step in range(1, 6):
        window.add(step, {"loss": Loss(step)})
        assert waited == list(range(1, step - STEPS_AHEAD + 1))


@pytest.mark.parametrize("poisoned", [0, 4, 6, 11])
def test_a_loss_that_is_not_finite_names_its_step(poisoned, tmp_path):
    """Steps count from 1 in messages: step k is the k-th update. Nothing poisoned is saved."""
    with pytest.raises(FloatingPointError,
                       match=f"loss 'square' is not finite at step {poisoned + 1} on worker 0"):
        train(tmp_path, task=Toy(Comm(), poison=(poisoned, 0)), log_every=50)
    assert Checkpoints(tmp_path / "checkpoints").steps() == \
        [step for step in (4, 8, 12) if step <= poisoned]


def test_gradients_that_overflow_at_any_scale_name_their_step(tmp_path):
    class Overflowing(Recorder):
        def step(self, losses, batch, lr):
            if len(self.rates) == 4:
                raise GradientsNotFinite("the gradients are not finite")
            return super().step(losses, batch, lr)

    with pytest.raises(NotFinite, match="the gradients are not finite, at step 5") as raised:
        fit(Toy(Comm()), Overflowing(), SCHEDULE, steps=STEPS, seed=SEED, comm=Comm(), log=Quiet(),
            checkpoints=Checkpoints(tmp_path))
    assert raised.value.step == 5


def test_device_seeds_differ_by_seed_step_and_rank():
    seeds = [device_seed(seed, step, rank) for seed in range(4) for step in range(200)
             for rank in range(4)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2 ** 31 for seed in seeds)


def test_dropout_depends_on_seed_and_step_only(undisturbed, tmp_path):
    task, update, _, _ = train(tmp_path / "a", seed=SEED + 1)
    assert contents(task, update) != undisturbed[0]
    mx.random.seed(99)
    np.random.seed(99)
    task, update, _, _ = train(tmp_path / "b")
    assert contents(task, update) == undisturbed[0]


def test_a_finished_run_is_not_trained_again(undisturbed, tmp_path):
    _, _, first, _ = train(tmp_path)
    task, update, summary, _ = train(tmp_path)
    assert task.yielded == 0 and task.evaluations == 0
    assert contents(task, update) == undisturbed[0]
    assert summary == Summary(first.best, first.best_step, first.metrics, first.seconds, 0.0)


@pytest.mark.parametrize("first", [0.2, math.nan])
def test_best_is_the_first_highest_value(first, tmp_path):
    class Scored(Toy):
        scores = iter([first, 0.7, 0.7, 0.1])

        def evaluate(self):
            return {"score": next(self.scores)}
    _, _, summary, checkpoints = train(tmp_path, task=Scored(Comm()), keep=1)
    assert (summary.best, summary.best_step, summary.metrics) == (0.7, 8, {"score": 0.7})
    assert checkpoints.steps() == [8, 12]
    assert checkpoints.best().state.step == 8


@pytest.mark.parametrize("change, message", [
    ({"seed": SEED + 1}, "step 4 was trained with seed 7, this run has seed 8; use the same seed"),
    ({"epoch": 5}, "step 4 was trained with 4 steps per epoch, this run has 5; use the same data"),
])
def test_another_run_does_not_go_on(change, message, tmp_path):
    train(tmp_path, steps=4)
    task = Toy(Comm())
    task.steps_per_epoch = change.get("epoch", EPOCH)
    with pytest.raises(UserError, match=message):
        train(tmp_path, task=task, seed=change.get("seed", SEED))


def test_a_full_disk_ends_the_run_and_the_next_goes_on(undisturbed, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")
    train(tmp_path, steps=4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="cannot save step-00000008 .* No space left on device"):
            train(tmp_path)
    task, update, _, _ = train(tmp_path)
    assert contents(task, update) == undisturbed[0]


def work(folder):
    """Trains as one of two workers: through, in two parts, and with a poisoned batch."""
    comm = connect()
    folder = Path(folder)
    task, update, summary, _ = train(folder / "through", comm=comm)
    through = contents(task, update)
    train(folder / "parts", 5, comm=comm)
    task, update, _, _ = train(folder / "parts", comm=comm)
    parts = contents(task, update)
    try:
        train(folder / "poisoned", comm=comm, task=Toy(comm, poison=(6, 1)))
        failure = None
    except FloatingPointError as error:
        failure = str(error)
    wrong = folder / "file"
    if comm.is_main:
        wrong.write_text("not a folder")
    try:
        train(wrong, comm=comm)
        refusal = None
    except UserError as error:
        refusal = str(error)
    with open(folder / f"{comm.rank}.json", "w") as file:
        json.dump({"through": through, "parts": parts, "failure": failure, "refusal": refusal,
                   "best": [summary.best, summary.best_step]}, file)
    comm.shutdown()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    code, text, seen = launch(2, __file__, folder)
    assert code == 0, text
    return folder, seen


@pytest.mark.horovod
def test_two_workers_stay_equal(pair):
    assert pair[1][0]["through"] == pair[1][1]["through"]
    assert pair[1][0]["best"] == pair[1][1]["best"]


@pytest.mark.horovod
def test_two_workers_resume_bit_for_bit(pair):
    folder, seen = pair
    for worker in seen:
        assert worker["parts"] == worker["through"]
    assert lines(folder / "parts")[-1] == lines(folder / "through")[-1]


@pytest.mark.horovod
def test_all_workers_learn_of_a_failure(pair):
    for worker in pair[1]:
        assert worker["failure"] == "loss 'square' is not finite at step 7 on worker 1"
        assert "cannot read" in worker["refusal"] and "log.jsonl" in worker["refusal"]


def test_another_number_of_workers_is_told(tmp_path, caplog):
    train(tmp_path, steps=4)
    comm = Comm()
    comm.size = 2
    comm.gather = lambda value: [value, value]
    with caplog.at_level(logging.WARNING):
        train(tmp_path, comm=comm, steps=5, per_worker=("which images a batch norm sees",))
    assert ("step 4 was reached by 1 workers and goes on with 2; from an undisturbed run differ: "
            "which images a batch norm sees; the order of sums over workers") in caplog.text


if __name__ == "__main__":
    signal.alarm(170)
    work(sys.argv[1])
