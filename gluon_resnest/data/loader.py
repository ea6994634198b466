"""Batches from a dataset and a plan: in order, the same for any number of processes.

With `workers` processes, the samples of a batch are divided among them in chunks; whoever is free
takes the next chunk and writes it into a slot of shared memory. The consumer gets views of that
slot. Two batches are prepared ahead; memory is bounded by four slots.
"""
import itertools
import os
import pickle
import signal
import socket
import subprocess
import sys
import weakref
from collections import deque
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gluon_resnest.data.ring import Layout, Ring, Spec
from gluon_resnest.data.sampling import random_for
from gluon_resnest.data.worker import TASK, fill
from gluon_resnest.errors import UserError

_LEASED = 2                                                   # the consumer's batch and its last
_AHEAD = 2                                                    # being filled meanwhile
_CHUNKS_PER_WORKER = 4                                        # of a batch: small enough to balance
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
                     "OPENCV_FOR_THREADS_NUM")                # each worker is one thread


class Batch(NamedTuple):
    """One worker's part of a step.

    arrays: one array (N, ...) for each part of a sample: images, labels, ...
    indices: which samples these are, int64 (N,).
    epoch, step: where in the run they belong.

    The arrays stay as they are for as long as somebody holds them.
    """
    arrays: tuple
    indices: np.ndarray
    epoch: int
    step: int


class Loader:
    """Reads the samples a plan names and stacks them into batches.

    The batches depend on dataset, plan and seed, never on the number of worker processes. One
    stream of batches is active at a time: starting another ends the first. Use as a context
    manager or call `close`; a loader that is forgotten, or whose process is killed, leaves neither
    processes nor shared memory behind.

    Args:
      dataset: `len`, `dataset[index, rng]`, `name(index)`; all samples of equal shapes. With
        workers it must be picklable, its class in an importable module.
      plan: a `sampling.TrainPlan` or `sampling.EvalPlan`.
      seed: the run's seed.
      workers: number of processes; 0 reads in this one.

    Raises:
      UserError: if the first sample cannot be read, the memory does not suffice, or the dataset
        cannot be sent to a process.
    """

    def __init__(self, dataset, plan, *, seed, workers):
        if workers < 0:
            raise UserError(f"expected 0 or more data workers, got {workers}")
        self.dataset, self._plan, self._seed = dataset, plan, seed
        self._stream_number = 0
        self.steps_per_epoch = plan.steps_per_epoch
        sample = dataset[0, random_for(seed, 0, 0)]
        self._specs = tuple(Spec(np.shape(part), np.asarray(part).dtype.str) for part in sample)
        self._pool = None
        if workers:
            layout = Layout(self._specs, plan.batch, _LEASED + _AHEAD, workers)
            self._pool = _Pool(dataset, layout, seed)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def epoch(self, epoch, start_step=0):
        """Yields the batches of one epoch in order, beginning with `start_step`.

        Raises:
          UserError: if a sample is broken; names it.
          RuntimeError: if a worker process dies, or the dataset has a bug.
        """
        if not 0 <= start_step <= self.steps_per_epoch:
            raise UserError(f"expected a step from 0 to {self.steps_per_epoch}, got {start_step}")
        return self._stream((epoch, step) for step in range(start_step, self.steps_per_epoch))

    def batches(self, start_step=0):
        """Yields batches without end, from a global step on; epochs follow without a pause."""
        return self._stream(divmod(step, self.steps_per_epoch)
                            for step in itertools.count(start_step))

    def close(self):
        """Ends the worker processes; the loader cannot be used afterwards."""
        self._stream_number += 1
        if self._pool is not None:
            self._pool.close()

    def _stream(self, moments):
        self._stream_number += 1
        stream = self._from_here if self._pool is None else self._from_pool
        return stream(moments, self._stream_number)

    def _from_here(self, moments, stream):
        for epoch, step in moments:
            self._check_active(stream)
            indices = self._plan.indices(epoch, step)
            arrays = tuple(np.empty((len(indices),) + spec.shape, spec.dtype)
                           for spec in self._specs)
            fill(self.dataset, self._seed, epoch, indices, arrays)
            yield Batch(arrays, indices, epoch, step)

    def _from_pool(self, moments, stream):
        pool = self._pool
        self._check_active(stream)
        pool.cancel()
        ahead = deque()
        while True:
            self._check_active(stream)
            for epoch, step in itertools.islice(moments, pool.free_slots()):
                ahead.append((pool.submit(epoch, self._plan.indices(epoch, step)), epoch, step))
            if not ahead:
                return
            slot, epoch, step = ahead.popleft()
            yield Batch(*pool.take(slot), epoch, step)

    def _check_active(self, stream):
        if stream != self._stream_number:
            raise RuntimeError("this stream of batches has ended, because its loader was closed or "
                               "has started another one; make one loader for each")


class _Pool:
    """The worker processes, the ring they fill and the tasks under way."""

    def __init__(self, dataset, layout, seed):
        self._dataset, self._layout = dataset, layout
        self._ring = Ring(layout)
        self._free = deque(range(layout.slots))
        self._leases = {}                                     # slot -> weak reference to its lease
        self._filled = {}                                     # slot -> number of samples
        self._tasks = {}                                      # number -> (slot, start, stop)
        self._last_task = 0
        message = (sys.path, layout, seed, _pickled(dataset))
        self._outlet, inlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._processes, self._reports = [], []
        self._finalizer = weakref.finalize(self, _end, self._outlet, self._reports,
                                           self._processes, self._ring.fd)
        try:
            with inlet:
                for number in range(layout.workers):
                    self._start(number, inlet.fileno())
            for number in range(layout.workers):
                self._introduce(number, message)
        except BaseException:
            self.close()
            raise

    def close(self):
        self._finalizer()

    def cancel(self):
        """Abandons all tasks; returns when no worker writes into any slot."""
        self._check_open()
        self._ring.cancelled[0] = self._last_task
        while self._tasks:
            self._receive(ignore_problems=True)
        self._free.extend(self._filled)
        self._filled.clear()

    def free_slots(self):
        """Returns how many slots can be filled, those included that the consumer has let go."""
        released = [slot for slot, lease in self._leases.items() if lease() is None]
        for slot in released:
            del self._leases[slot]
        self._free.extend(released)
        return len(self._free)

    def submit(self, epoch, indices):
        """Lets the workers fill a free slot with samples; returns the slot."""
        self._check_open()
        slot, count = self._free.popleft(), len(indices)
        self._ring.slot(slot)[0][:count] = indices
        self._filled[slot] = count
        chunk = max(1, -(-count // (_CHUNKS_PER_WORKER * self._layout.workers)))
        for start in range(0, count, chunk):
            self._last_task += 1
            stop = min(start + chunk, count)
            self._tasks[self._last_task] = (slot, start, stop)
            try:
                self._outlet.send(TASK.pack(self._last_task, slot, start, stop, epoch))
            except ConnectionError:                           # nobody is left to read
                while True:
                    self._receive()
        return slot

    def take(self, slot):
        """Waits until a slot is full; returns (arrays, indices), views of it or copies."""
        while self._receive(timeout=0):                       # notices a death even if all is ready
            pass
        while any(task[0] == slot for task in self._tasks.values()):
            self._receive()
        count = self._filled.pop(slot)
        indices, arrays, lease = self._ring.slot(slot)
        arrays, indices = tuple(part[:count] for part in arrays), indices[:count]
        if len(self._leases) < _LEASED:
            self._leases[slot] = weakref.ref(lease)
            return arrays, indices
        self._free.append(slot)                               # the consumer collects batches
        return tuple(part.copy() for part in arrays), indices.copy()

    def _start(self, number, inlet_fd):
        ours, theirs = socket.socketpair()
        with theirs:
            self._reports.append(connection.Connection(ours.detach()))
            fds = (inlet_fd, theirs.fileno(), self._ring.fd)
            root = str(Path(__file__).resolve().parents[2])
            environ = dict(os.environ, **dict.fromkeys(_THREAD_VARIABLES, "1"))
            environ["PYTHONPATH"] = os.pathsep.join(
                filter(None, [root, os.environ.get("PYTHONPATH")]))
            self._processes.append(subprocess.Popen(
                [sys.executable, "-m", "gluon_resnest.data.worker", *map(str, (number, *fds))],
                pass_fds=fds, stdin=subprocess.DEVNULL, env=environ))

    def _introduce(self, number, message):
        """Tells a new worker what it reads and waits until it is ready."""
        try:
            self._reports[number].send(message)
            _, problem = self._reports[number].recv()
        except (EOFError, ConnectionError):
            raise self._death(number) from None
        if problem:
            raise _not_portable(problem[1])

    def _check_open(self):
        if not self._finalizer.alive:
            raise RuntimeError("the loader is closed; make a new one")

    def _receive(self, timeout=None, ignore_problems=False):
        """Takes in reports, returns how many; raises what a worker met."""
        self._check_open()
        reports = connection.wait(self._reports, timeout)
        for report in reports:
            try:
                task, problem = report.recv()
            except (EOFError, ConnectionError):
                error = self._death(self._reports.index(report))
                self.close()
                raise error from None
            del self._tasks[task]
            if problem and not ignore_problems:
                kind, text = problem
                raise UserError(text) if kind == "UserError" else RuntimeError(
                    f"a data worker failed:\n{text}")
        return len(reports)

    def _death(self, number):
        """Returns the error that describes a worker's death."""
        try:
            code = self._processes[number].wait(timeout=1)
        except subprocess.TimeoutExpired:
            code = None
        how = (f"was killed by {signal.Signals(-code).name}" if (code or 0) < 0
               else f"ended with exit code {code}")
        task = self._tasks.get(int(self._ring.taken[number]))
        what = "while it had no task"
        if task:
            slot, start, stop = task
            indices = self._ring.slot(slot)[0][start:stop].tolist()
            names = [self._dataset.name(index) for index in indices]
            what = f"while reading {', '.join(names[:3])}" + (
                f" and {len(names) - 3} more" if len(names) > 3 else "")
        hint = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
        return RuntimeError(f"data worker {number} {how} {what}{hint}")


def _pickled(dataset):
    try:
        return pickle.dumps(dataset)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise _not_portable(error) from error


def _not_portable(reason):
    return UserError(f"the dataset cannot be sent to a worker process ({reason}); define its class "
                     f"and its transform in an importable module, or use --data-workers 0")


def _end(outlet, reports, processes, ring_fd):
    """Ends the workers: they leave when their sockets close, and are killed if they do not."""
    outlet.close()
    for report in reports:
        report.close()
    for process in processes:
        try:
            process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    os.close(ring_fd)
