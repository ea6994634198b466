"""The workers of one job: this process alone, or joined to others by Horovod.

Every helper works in both cases, so that callers never ask which one it is. All workers must call
the same collective methods in the same order.
"""
import itertools
import math
import os

import mxnet as mx
import numpy as np

from gluon_resnest.engine.launchers import told
from gluon_resnest.errors import UserError, check_choice

COMPRESSIONS = ("none", "fp16")


def connect(environ=os.environ):
    """Joins the Horovod job that launched this process, or runs alone.

    Args:
      environ: the environment; a variable of the launcher says how many were launched.

    Raises:
      UserError: launched as one of several workers that could not find each other: without
        Horovod, or with one that does not speak the launcher's protocol, each would train alone.
    """
    workers = told(environ, "size", 1)
    if workers == 1:
        return Comm()
    try:
        import horovod.mxnet as hvd
    except ImportError as error:
        raise UserError(
            f"launched as one of {workers} workers, but horovod.mxnet cannot be imported, so that "
            "each would train alone; install it with `pip install 'gluon-resnest[train]'`"
        ) from error
    hvd.init()
    if hvd.size() != workers:
        raise UserError(
            f"launched as one of {workers} workers, but Horovod found {hvd.size()}; start with "
            "horovodrun, or build Horovod with the launcher's MPI")
    return HorovodComm(hvd)


class Comm:
    """One process alone, and what a group of workers offers.

    Attributes:
      rank: number of this worker, 0 ... size - 1.
      size: number of workers.
      local_rank: number of this worker on its machine.
    """

    rank, size, local_rank = 0, 1, 0

    @property
    def is_main(self):
        """Whether this is the worker that writes files and speaks."""
        return self.rank == 0

    def total(self, values):
        """Returns the sum of `values` over the workers, the same on each.

        Integers add up in int64; floats are summed in float64 and rounded once, so that the
        result does not depend on the order of the workers.

        Args:
          values: int, float, bool, numpy array, or dict of them (also nested); its structure and
            shapes must be equal on all workers.

        Returns:
          The same structure: int, float, or arrays of int64 or float64.
        """
        leaves = list(_leaves(values))
        whole = [leaf.ravel() for leaf in leaves if leaf.dtype == np.int64]
        real = [leaf.ravel() for leaf in leaves if leaf.dtype == np.float64]
        sums = {np.dtype(np.int64): iter(self._rows(whole).sum(axis=0) if whole else ()),
                np.dtype(np.float64): iter(_exact_sum(self._rows(real)) if real else ())}
        return _like(values, sums)

    def gather(self, value):
        """Returns the list of every worker's `value` (any picklable object), in order of rank."""
        return [value]

    def any(self, flag):
        """Returns whether `flag` is true on at least one worker."""
        return self.total(bool(flag)) > 0

    def sum_later(self, array, name):
        """Returns the sum of an NDArray over the workers, without waiting for it.

        For the inside of a network. MXNet's engine may start the sums of one worker in another
        order than those of the next, so they meet by name.

        Args:
          array: of the same shape and type on all workers; never changed afterwards.
          name: unique among the sums under way, and equal on all workers.
        """
        return array

    def barrier(self):
        """Returns when every worker has called it."""
        self.total(0)

    def on_main(self, action):
        """Runs `action()` on the main worker only.

        Returns:
          Its value (plain picklable data), on every worker.

        Raises:
          UserError: on every worker, if the action raised one, or an OSError; so none waits for a
            lost main.
        """
        try:
            return action()
        except OSError as error:
            raise _about_file(error) from error

    def share_arrays(self, arrays):
        """Returns the main worker's {name: numpy array} on every worker; others may pass None."""
        return arrays

    def broadcast(self, params):
        """Gives every worker the main worker's values, in place.

        Args:
          params: ParameterDict, or dict of Parameters or NDArrays. A Parameter whose shape is
            still unknown is broadcast when it is initialised.

        Raises:
          UserError: the workers have different names, and would wait for each other forever.
        """

    def warm_up(self):
        """Returns when the workers' ring of sums is built, so that the first step takes no longer.

        Raises:
          RuntimeError: if a sum over the workers is not what it must be.
        """
        total = self.sum_later(mx.nd.ones((1,)), "warm-up").asscalar()
        if total != self.size:
            raise RuntimeError(f"{self.size} workers added up to {total:g}: the all-reduce fails")

    def split(self, batch):
        """Returns this worker's part of a global batch size.

        Raises:
          UserError: if `batch` is not divisible by the number of workers.
        """
        if batch < 1 or batch % self.size:
            below, above = batch // self.size * self.size, (batch // self.size + 1) * self.size
            near = f"{below} or {above}" if below > 0 else f"{above}"
            raise UserError(f"batch (={batch}) must be divisible by the number of workers "
                            f"(={self.size}); take {near}")
        return batch // self.size

    def trainer(self, params, optimizer, optimizer_args=None, *, compression="none"):
        """Makes the trainer that updates `params` with gradients averaged over the workers.

        The loss is a mean over the local batch and local batches are equally large, so
        `trainer.step(1)` applies the mean gradient of the global batch.

        Args:
          params: ParameterDict, on one device of this process (Horovod reduces the first only).
          optimizer, optimizer_args: as in `mxnet.gluon.Trainer`.
          compression: "none", or "fp16": gradients travel, and are added up, in float16.
        """
        check_choice("compression", compression, COMPRESSIONS)
        return mx.gluon.Trainer(params, optimizer, optimizer_args, kvstore=None)

    def context(self, device):
        """Returns the device of this worker: `mx.cpu()`, or the GPU with its local rank.

        Args:
          device: "cpu" or "gpu".

        Raises:
          UserError: if this machine has no such GPU.
        """
        check_choice("device", device, ("cpu", "gpu"))
        if device == "cpu":
            return mx.cpu()
        present = mx.context.num_gpus()
        if self.local_rank >= present:
            raise UserError(
                f"worker {self.local_rank} of this machine needs GPU {self.local_rank}, but mxnet "
                f"sees {present}; start fewer workers here, use --device cpu, or install "
                "mxnet-cu112 with a driver")
        return mx.gpu(self.local_rank)

    def shutdown(self):
        """Leaves the job; nothing collective may follow."""

    def _rows(self, vectors):
        """Returns (size, n): each worker's concatenated vectors, in order of rank."""
        return np.concatenate(vectors)[None]


class HorovodComm(Comm):
    """One of several workers joined by Horovod."""

    def __init__(self, hvd):
        self._hvd = hvd
        self._calls = itertools.count()
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()

    def gather(self, value):
        return self._hvd.allgather_object(value, name="gather")

    def sum_later(self, array, name):
        return self._hvd.allreduce(array, op=self._hvd.Sum, name=name)

    def on_main(self, action):
        value = error = None
        if self.is_main:
            try:
                value = action()
            except UserError as caught:
                error = caught
            except OSError as caught:
                error = _about_file(caught)
        value, message = self._hvd.broadcast_object((value, error and str(error)),
                                                    name=self._unique())
        if message is not None:
            raise error or UserError(message)
        return value

    def share_arrays(self, arrays):
        kinds = self.on_main(lambda: [(name, array.shape, str(array.dtype))
                                      for name, array in arrays.items()])
        received = {name: mx.nd.array(arrays[name], dtype=kind) if self.is_main else
                    mx.nd.zeros(shape, dtype=kind) for name, shape, kind in kinds}
        self.broadcast(received)
        return {name: array.asnumpy() for name, array in received.items()}

    def broadcast(self, params):
        self._check_same(sorted(params))
        self._hvd.broadcast_parameters(params, root_rank=0, prefix=self._unique())

    def trainer(self, params, optimizer, optimizer_args=None, *, compression="none"):
        check_choice("compression", compression, COMPRESSIONS)
        return self._hvd.DistributedTrainer(
            params, optimizer, optimizer_args, prefix=self._unique(),
            compression=getattr(self._hvd.Compression, compression))

    def shutdown(self):
        mx.nd.waitall()
        self._hvd.shutdown()

    def _unique(self):
        """Returns a name for an operation: equal on all workers, of none that may be in flight.

        The main worker does not wait for its broadcasts; a name used again too early hangs all.
        """
        return f"{next(self._calls)}."

    def _check_same(self, names):
        """Compares the names of parameters, which begin with those of layers, over the workers."""
        everyones = self.gather(names)
        for rank, others in enumerate(everyones):
            if others != everyones[0]:
                name = min(set(others) ^ set(everyones[0]))
                has, lacks = (rank, 0) if name in others else (0, rank)
                raise UserError(
                    f"the workers built different networks: worker {has} has a parameter {name!r} "
                    f"and worker {lacks} has not; build the same blocks in the same order on every "
                    "worker, or give the network a prefix")

    def _rows(self, vectors):
        row = super()._rows(vectors)
        rows = self._hvd.allgather(mx.nd.array(row, dtype=row.dtype), name=f"rows.{row.dtype}")
        return rows.asnumpy()


def _about_file(error):
    """Returns a UserError that says what an OSError does."""
    about = f"{str(error.filename)!r} cannot be used" if error.filename else "a file failed"
    return UserError(f"{about}: {error.strerror or error}; give a writable --workdir with room, or "
                     "make room and run the same command again")


def _exact_sum(rows):
    """Returns the sum over the first axis, correctly rounded where everything is finite."""
    if not np.isfinite(rows).all():
        return rows.sum(axis=0)
    return np.array([math.fsum(column) for column in rows.T])


def _leaves(values):
    """Yields the numbers of a nested dict, by sorted key, as int64 or float64 arrays."""
    if isinstance(values, dict):
        for name in sorted(values):
            yield from _leaves(values[name])
        return
    array = None if isinstance(values, mx.nd.NDArray) else np.asarray(values)
    if array is None or array.dtype.kind not in "bif":
        raise TypeError("total adds Python numbers below 2**63, numpy arrays and dicts of "
                        f"them, got {type(values).__name__}")
    yield array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def _like(values, sums):
    """Rebuilds the structure of `values` from the iterators of summed numbers by dtype."""
    if isinstance(values, dict):
        built = {name: _like(values[name], sums) for name in sorted(values)}
        return {name: built[name] for name in values}
    array, = _leaves(values)
    added = np.array([next(sums[array.dtype]) for _ in range(array.size)], array.dtype)
    return added.reshape(array.shape) if isinstance(values, np.ndarray) else added[0].item()
