"""Which image is read when, if those of a batch shall have one orientation.

Detectron2's rule, made a function of the step: images come by in random order; portraits and
landscapes wait apart; whenever enough of a kind wait, they are a batch.
"""
import functools

import numpy as np

from gluon_resnest.data.repeat_factor import copies, repeated_order
from gluon_resnest.data.sampling import EvalPlan, TrainPlan, epoch_order


class GroupedPlan:
    """Says which samples a worker trains on at every step; has the interface of `TrainPlan`.

    Step k of the run is the k-th batch that gets complete in the endless sequence of passes over
    the samples, each a permutation, so that in the long run every sample comes as often as the
    others, or as its factor says. An epoch is the number of steps that shows as many samples as
    there are. Worker r takes the r-th contiguous part of a batch: what all workers see together
    does not depend on how many they are.

    Args:
      groups: int (L,), the group of each sample.
      batch, rank, size, seed, remainder: as for `TrainPlan`; "fill" rounds the steps of an epoch
        up, "discard" down. No sample is left out for that.
      shape: callable (epoch, sample) -> what the samples of a batch are sorted by before workers
        get their parts of it.
      factors: float (L,), how often each sample comes in a pass over them, see `repeat_factor`;
        None: once. An epoch is as long in either case. Copies are told apart: copy c of sample i
        is i + c * L.

    Raises:
      UserError: if the numbers do not fit together.
    """

    def __init__(self, groups, batch, rank, size, seed, remainder="fill", shape=None,
                 factors=None):
        plan = TrainPlan(len(groups), batch, rank, size, seed, remainder=remainder)
        self.batch, self.steps_per_epoch = plan.batch, plan.steps_per_epoch
        self._seed, self._whole, self._shape, self._factors = seed, batch, shape, factors
        self._groups, self._length = np.asarray(groups), len(groups)
        self._longest = self._length if factors is None else int(np.ceil(factors).sum())
        self._own = slice(rank * plan.batch, (rank + 1) * plan.batch)
        self._numbers, self._rows = np.unique(self._groups, return_inverse=True)
        self._come = [np.zeros(len(self._numbers), np.int64)]
        self._completed = functools.lru_cache(maxsize=2)(self._completed)

    def indices(self, epoch, step):
        """Returns this worker's samples at `step` of `epoch`: int64 (batch,)."""
        return self.of_all(epoch, step)[self._own]

    def of_all(self, epoch, step):
        """Returns the samples of all workers at `step` of `epoch`: int64 (batch * workers,)."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"an epoch has steps 0..{self.steps_per_epoch - 1}, got {step}")
        number = epoch * self.steps_per_epoch + step
        passed = number * self._whole // self._longest      # no batch is complete earlier
        while self._before(passed + 1) <= number:
            passed += 1
        batch = self._completed(passed)[number - self._before(passed)]
        if self._shape is not None:
            batch = np.array(sorted(batch.tolist(), key=lambda index: self._shape(epoch, index)))
        return batch

    def _before(self, passed):
        """Returns how many batches are complete before a pass begins."""
        return int((self._came(passed) // self._whole).sum())

    def _came(self, passed):
        """Returns how many samples of each group come before a pass: int64 (groups,)."""
        while len(self._come) <= passed:
            count = None if self._factors is None else copies(self._factors, self._seed,
                                                              len(self._come) - 1)
            self._come.append(self._come[-1] + np.bincount(self._rows, count).astype(np.int64))
        return self._come[passed]

    def _order(self, passed):
        """Returns the samples of a pass in their order."""
        if self._factors is None:
            return epoch_order(self._length, self._seed, passed)
        return repeated_order(self._factors, self._seed, passed)

    def _completed(self, passed):
        """Returns the batches that get complete in a pass, in this order: (steps, batch)."""
        order = self._order(passed)
        groups, batches, moments = self._groups[order % self._length], [], []
        for group, came in zip(self._numbers, self._came(passed).tolist()):
            places = np.flatnonzero(groups == group)
            waiting = came % self._whole
            line = np.concatenate([self._last(group, waiting, passed), order[places]])
            complete = len(line) // self._whole
            batches.append(line[:complete * self._whole].reshape(-1, self._whole))
            moments.append(places[np.arange(1, complete + 1) * self._whole - waiting - 1])
        return np.concatenate(batches)[np.argsort(np.concatenate(moments))]

    def _last(self, group, count, passed):
        """Returns the last `count` samples of a group that came before a pass."""
        line = np.zeros(0, np.int64)
        while len(line) < count:
            passed -= 1
            order = self._order(passed)
            line = np.concatenate([order[self._groups[order % self._length] == group], line])
        return line[len(line) - count:]


class SortedEvalPlan:
    """Says which samples a worker evaluates at every step; all workers together: each one once.

    Has the interface of `EvalPlan`. The samples are in the order of the shapes, so that those of a
    batch are alike, and dealt out in whole batches of `batch` over `size`: which samples are
    together, and so how they are padded, does not depend on how many workers there are.
    """

    def __init__(self, shapes, batch, rank=0, size=1):
        self._order = np.array(sorted(range(len(shapes)), key=shapes.__getitem__), np.int64)
        plan = EvalPlan(len(self._order), batch, rank, size)
        self.batch, self.steps_per_epoch = plan.batch, plan.steps_per_epoch
        self._rank, self._size = rank, size

    def indices(self, epoch, step):
        """Returns this worker's samples at `step`, whatever the epoch: int64 (0..batch,)."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"an epoch has steps 0..{self.steps_per_epoch - 1}, got {step}")
        start = (step * self._size + self._rank) * self.batch
        return self._order[start:start + self.batch]
