"""Randomness as a function, and which worker reads which sample when.

Nothing here keeps a state: the same arguments give the same answer in every process, in any
order of calls. That alone makes a run independent of the number of loader processes and a
resumed run equal to an uninterrupted one.
"""
import functools
import hashlib
import operator

import numpy as np

from gluon_resnest.errors import UserError, check_choice

ORDERS = ("global", "shards")
REMAINDERS = ("fill", "discard")


def random_for(seed, epoch, index, purpose="augment"):
    """Returns the random generator that belongs to one sample in one epoch.

    Args:
      seed: the run's seed, any integer.
      epoch: epoch number.
      index: number of the sample in its dataset.
      purpose: what is drawn; different purposes get independent streams.

    Returns:
      numpy.random.Generator over Philox, whose 128-bit key is the BLAKE2 hash of the arguments.
      A new generator each time: drawing from it affects nobody else.
    """
    numbers = "/".join(str(operator.index(value)) for value in (seed, epoch, index))
    digest = hashlib.blake2b(f"{numbers}/{purpose}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8")))


def epoch_order(length, seed, epoch):
    """Returns the order in which an epoch visits its samples: int64 (length,), a permutation."""
    return random_for(seed, epoch, 0, "order").permutation(length)


def shard(length, rank, size):
    """Returns the samples of worker `rank` among `size`: all shards together are 0..length-1, once.

    Shards are interleaved (rank, rank + size, ...), so that a file sorted by class does not hand
    a worker only some of the classes; their lengths differ by at most one.
    """
    _check_worker(rank, size)
    return range(rank, length, size)


class TrainPlan:
    """Says which samples a worker trains on at every step.

    With order "global", step s of an epoch covers positions [s * batch, (s + 1) * batch) of the
    epoch's permutation and worker r takes the r-th contiguous part of them: what all workers see
    together does not depend on how many they are. With "shards" (paper, section 5.1) each worker
    keeps the same `shard` for the whole run and reshuffles it every epoch.

    Args:
      length: samples in the dataset.
      batch: samples of one step over all workers; must be a multiple of `size`.
      rank: this worker, 0..size-1.
      size: number of workers.
      seed: the run's seed.
      order: "global" or "shards".
      remainder: "fill" completes an epoch's last batch from the permutations of the epochs that
        follow; "discard" leaves the rest of the permutation out.

    Attributes:
      batch: samples of one step on this worker.
      steps_per_epoch: the same on all workers.

    Raises:
      UserError: if the numbers do not fit together.
    """

    def __init__(self, length, batch, rank, size, seed, order="global", remainder="fill"):
        _check_worker(rank, size)
        check_choice("order", order, ORDERS)
        check_choice("remainder", remainder, REMAINDERS)
        if length < 1:
            raise UserError("expected a training set with at least one sample, got an empty one; "
                            "check the path of the training data")
        if batch < 1 or batch % size:
            low = max(batch // size, 1) * size
            raise UserError(f"expected a global batch divisible by the {size} workers, got {batch};"
                            f" use {low} or {low + size}")
        if order == "shards" and length < size:
            raise UserError(f"expected at least one sample for each of the {size} workers, got "
                            f"{length}; use order 'global' or fewer workers")
        self.batch = batch // size
        self._part = rank if order == "global" else 0
        if order == "global":
            smallest = largest = length
            stride = batch
            self._permutation = _cached(lambda epoch: epoch_order(length, seed, epoch))
        else:
            smallest, largest = length // size, -(-length // size)
            stride = self.batch
            own = np.array(shard(length, rank, size), dtype=np.int64)
            self._permutation = _cached(
                lambda epoch: random_for(seed, epoch, rank, "shard").permutation(own))
        self._stride = stride
        self.steps_per_epoch = (-(-largest // stride) if remainder == "fill"
                                else smallest // stride)
        if not self.steps_per_epoch:
            raise UserError(f"expected at least one whole batch in an epoch, got {length} samples "
                            f"for a batch of {batch}; use a smaller batch or remainder 'fill'")

    def indices(self, epoch, step):
        """Returns this worker's samples at `step` of `epoch`: int64 (batch,)."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"an epoch has steps 0..{self.steps_per_epoch - 1}, got {step}")
        start = step * self._stride + self._part * self.batch
        return self._positions(epoch, start, start + self.batch)

    def _positions(self, epoch, start, stop):
        """Returns a slice of the endless sequence of permutations that begins with `epoch`."""
        parts = []
        while start < stop:
            order = self._permutation(epoch)
            parts.append(order[start:stop])
            start, stop = max(start - len(order), 0), stop - len(order)
            epoch += 1
        return np.concatenate(parts)


class EvalPlan:
    """Says which samples a worker evaluates at every step; all workers together: each one once.

    Has the interface of `TrainPlan`. Every worker has the same number of steps, also one whose
    share is shorter or empty: its last batches are then shorter, down to no sample at all.

    Args:
      length: samples in the dataset; may be smaller than the number of workers.
      batch: samples of one step over all workers, rounded up to a multiple of `size`.
      rank: this worker, 0..size-1.
      size: number of workers.

    Raises:
      UserError: if there is nothing to evaluate or the numbers make no sense.
    """

    def __init__(self, length, batch, rank=0, size=1):
        _check_worker(rank, size)
        if length < 1:
            raise UserError("expected an evaluation set with at least one sample, got an empty "
                            "one; check the path of the validation data")
        if batch < 1:
            raise UserError(f"expected a batch of at least 1, got {batch}")
        self.batch = -(-batch // size)
        self.steps_per_epoch = -(-length // (self.batch * size))
        self._own = shard(length, rank, size)

    def indices(self, epoch, step):
        """Returns this worker's samples at `step`, whatever the epoch: int64 (0..batch,)."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"an epoch has steps 0..{self.steps_per_epoch - 1}, got {step}")
        return np.array(self._own[step * self.batch:(step + 1) * self.batch], dtype=np.int64)


def _cached(permutation):
    """Keeps the two permutations in use: an epoch's own and the one that fills its last batch."""
    return functools.lru_cache(maxsize=2)(permutation)


def _check_worker(rank, size):
    if not 0 <= rank < size:
        raise UserError(f"expected a worker number from 0 to {size - 1}, got {rank}")
