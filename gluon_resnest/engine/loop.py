"""The only training loop."""
import contextlib
import logging
import math
import time
import zlib
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterator, Optional, Protocol

import mxnet as mx

from gluon_resnest.engine.checkpoint import State, snapshot
from gluon_resnest.engine.finite import GradientsNotFinite, NotFinite, all_finite
from gluon_resnest.engine.heartbeat import Heart
from gluon_resnest.engine.stopping import Stop, Stopped
from gluon_resnest.engine.writer import Writer
from gluon_resnest.errors import UserError

STEPS_AHEAD = 2      # steps handed to MXNet's engine before the loop waits for the oldest

_log = logging.getLogger(__name__)


class Task(Protocol):
    """What `fit` trains."""

    net: Any
    params: Any
    steps_per_epoch: int
    main_metric: str

    def batches(self, start_step: int) -> Iterator:
        """Returns an endless iterator of batches, from a global step on (counted from 0)."""

    def losses(self, batch) -> Dict[str, mx.nd.NDArray]:
        """Returns named scalars, means over the local batch; called under autograd.record()."""

    def evaluate(self) -> Dict[str, float]:
        """Returns named values, exact over all workers and equal on each."""

    def on_epoch(self, epoch: int) -> None:
        """Prepares an epoch; called before its first step, also when a run resumes inside it."""


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    Attributes:
      best, best_step: highest main metric and where; None before the first evaluation.
      metrics: the last evaluation.
      seconds: wall time of all runs of this directory.
      images_per_second: of the training steps of this run, all workers; 0 if there were none.
    """

    best: Optional[float]
    best_step: Optional[int]
    metrics: Dict[str, float]
    seconds: float
    images_per_second: float


def fit(task, update, lr_at, *, steps, seed, comm, log, checkpoints, start=State(), log_every=50,
        eval_every=None, save_every=None, patience=0, per_worker=(), stop=None):
    """Trains `task` up to `steps` updates; see docs/architecture.md for what a task is.

    Args:
      update: `update.Update`: changes the parameters by the loss of a batch.
      lr_at: schedule; the k-th update, counted from 1, uses `lr_at(k)`.
      seed: of what is drawn on the device (dropout, DropBlock), with step and rank.
      comm, log, checkpoints: this worker's `Comm`, `RunLog` and `Checkpoints`.
      start: where to begin, from `checkpoints.restore`; a fresh State begins at 0.
      log_every: steps between log lines; losses are looked at only there and before a save.
      eval_every: steps between evaluations (default: those of an epoch); the last step is always
        followed by one.
      save_every: steps between checkpoints inside an epoch; each epoch ends with one, which is
        written before its evaluation and, with the values of that, after it.
      patience: stop when so many evaluations in a row were no better than the best; 0: never.
      per_worker: what depends on how many workers share a batch, as phrases; said when a run goes
        on with another number of them.
      stop: an entered `stopping.Stop` that outlives this call; None: one of its own.

    Raises:
      NotFinite: on all workers, naming step, loss term and worker of the first loss that is not
        finite, or the step whose gradients, or after which the parameters, are not; nothing of it
        is saved.
      UserError: `start` belongs to another seed or data set, or a checkpoint could not be written
        (found at the next one, or at the end).
      Stopped: on all workers after the same step, saved; some worker got SIGTERM or SIGINT.
    """
    heart = Heart(comm.rank)
    heart.beat("start", start.step)
    state = _continued(start, seed, comm.size, task.steps_per_epoch, per_worker)
    eval_every = eval_every or task.steps_per_epoch
    began = time.monotonic() - start.seconds
    comm.broadcast(task.params)
    log.begin(start.step, start.unevaluated)
    window = Window(comm)
    batches = task.batches(start.step)

    def save():
        heart.beat("saving", state.step)
        comm.on_main(lambda: writer.store(snapshot(task.net, update, state)))

    def evaluated():
        heart.beat("evaluation", state.step)
        mx.random.seed(device_seed(seed, state.step, comm.rank))    # statistics may be recomputed
        with update.averaged():
            metrics = task.evaluate()
        log.evaluation(state.step, metrics)
        return _judged(state, metrics, task.main_metric)

    listening = contextlib.nullcontext(stop) if stop else Stop(comm, STEPS_AHEAD + 1)
    with listening as stop, Writer(checkpoints) as writer:
        if state.unevaluated:
            task.on_epoch((state.step - 1) // task.steps_per_epoch)
            state = replace(evaluated(), seconds=time.monotonic() - began)
            save()
            heart.beat("start", state.step)
        for step in range(start.step, steps):
            if _tired(state, step, eval_every, patience):
                _log.info("stopping after step %d: no evaluation was better than that of step %d, "
                          "%d times", step, state.best_step, patience)
                break
            if step == start.step or step % task.steps_per_epoch == 0:
                task.on_epoch(step // task.steps_per_epoch)
            with window.waiting():
                batch = next(batches)
            mx.random.seed(device_seed(seed, step, comm.rank))
            try:
                losses = update.step(task.losses, batch, lr_at(step + 1))
            except GradientsNotFinite as error:
                raise NotFinite(f"{error}, at step {step + 1}", step + 1) from error
            window.add(step + 1, losses)
            log.advance()

            done = step + 1
            stopping = stop.agreed()
            due = done == steps or done % eval_every == 0
            saves = (due or stopping or done % task.steps_per_epoch == 0
                     or (save_every and done % save_every == 0))
            if saves or done % log_every == 0:
                log.training(done, lr_at(done), window.close())
            if saves:
                mx.nd.waitall()      # a hybridized net's running statistics may lag behind
                _check_parameters(task, comm, done)
                state = replace(state, step=done, unevaluated=due,
                                seconds=time.monotonic() - began)
                save()
                if due and not stopping:    # who stops has little time, and comes back to this
                    state = replace(evaluated(), seconds=time.monotonic() - began)
                    heart.beat("writing", done)
                    comm.on_main(writer.settle)
                    save()
            if stopping:
                heart.beat("finishing", done)
                comm.on_main(writer.finish)
                raise Stopped(stopping, done)
            heart.beat("step", done)
        heart.beat("finishing", state.step)
        comm.on_main(writer.finish)
    heart.beat("end", state.step)
    return Summary(state.best, state.best_step, state.metrics, state.seconds,
                   log.images_per_second)


def device_seed(seed, step, rank):
    """Returns the seed, in [0, 2**31), of what step `step` draws on the device of worker `rank`."""
    return zlib.crc32(f"{seed}/{step}/{rank}".encode()) >> 1


class Window:
    """The losses of the steps since the last log line, left on the device until `close`."""

    def __init__(self, comm):
        self._comm = comm
        self._clear()

    def _clear(self):
        self._steps, self._losses, self._waited, self._began = [], [], 0.0, None

    @contextlib.contextmanager
    def waiting(self):
        """Times what is inside as waiting for data; the first call starts the window's clock.

        The loader may fill this time while the device still computes, so the share is an upper
        bound of what a faster loader would save.
        """
        before = time.monotonic()
        self._began = self._began or before
        yield
        self._waited += time.monotonic() - before

    def add(self, step, losses):
        """Keeps a step's losses; waits, without copying, so that few steps are in flight.

        Without this the loop would queue all batches of the window in memory.
        """
        self._steps.append(step)
        self._losses.append(losses)
        if len(self._losses) > STEPS_AHEAD:
            for value in self._losses[-1 - STEPS_AHEAD].values():
                value.wait_to_read()

    def close(self):
        """Reads the losses, compares notes with the other workers, starts anew.

        Returns:
          {"losses": {name: mean over steps and workers}, "steps", "seconds",
          "data_wait": share of the seconds this worker waited for data}.

        Raises:
          NotFinite: on all workers, if a loss of any of them is not finite.
        """
        values = {name: mx.nd.concat(*(losses[name].reshape(-1) for losses in self._losses),
                                     dim=0).asnumpy().astype("float64")
                  for name in self._losses[0]}
        seconds = time.monotonic() - self._began
        fault = next(((step, name) for at, step in enumerate(self._steps) for name in values
                      if not math.isfinite(values[name][at])), None)
        notes = self._comm.gather((fault, {name: row.mean() for name, row in values.items()}))
        faults = [(*fault, rank) for rank, (fault, _) in enumerate(notes) if fault]
        if faults:
            step, name, rank = min(faults, key=lambda fault: fault[0])
            raise NotFinite(f"loss {name!r} is not finite at step {step} on worker {rank}", step)
        means = {name: float(sum(note[name] for _, note in notes) / len(notes)) for name in values}
        record = {"losses": means, "steps": len(self._steps), "seconds": seconds,
                  "data_wait": self._waited / seconds}
        self._clear()
        return record


def _continued(start, seed, workers, steps_per_epoch, per_worker):
    """Returns the State of this run at its first step."""
    here = replace(start, seed=seed, workers=workers, steps_per_epoch=steps_per_epoch)
    if start.step == 0:
        return here
    if start.seed != seed:
        raise UserError(f"the checkpoint of step {start.step} was trained with seed {start.seed}, "
                        f"this run has seed {seed}; use the same seed, or another workdir")
    if start.steps_per_epoch != steps_per_epoch:
        raise UserError(f"the checkpoint of step {start.step} was trained with "
                        f"{start.steps_per_epoch} steps per epoch, this run has {steps_per_epoch}; "
                        "use the same data and batch, or another workdir")
    if start.workers != workers:
        changes = [*per_worker, "the order of sums over workers"]
        _log.warning("step %d was reached by %d workers and goes on with %d; from an undisturbed "
                     "run differ: %s", start.step, start.workers, workers, "; ".join(changes))
    return here


def _check_parameters(task, comm, step):
    """Raises NotFinite, on all workers, if a parameter is not finite: a loss tells a step late."""
    if comm.any(not all_finite([parameter.data() for parameter in task.params.values()])):
        raise NotFinite(f"the parameters are not finite after step {step}, though its loss is",
                        step)


def _tired(state, step, interval, patience):
    """Returns whether the evaluations up to `step`, one each `interval`, tell to stop early.

    Only what a checkpoint holds decides, so that a continued run stops where an undisturbed one
    does.
    """
    return (patience and state.best_step is not None
            and step // interval - state.best_step // interval >= patience)


def _judged(state, metrics, main_metric):
    """Returns the state with an evaluation's values, and with it as best if it is."""
    state, value = replace(state, metrics=metrics, unevaluated=False), metrics[main_metric]
    if not math.isnan(value) and (state.best is None or not value <= state.best):
        return replace(state, best=value, best_step=state.step)
    return state
