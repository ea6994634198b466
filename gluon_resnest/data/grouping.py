"""Which image is read when, if those of a batch shall have one orientation.

Detectron2's rule, made a function of the step: images come by in random order; portraits and
landscapes wait apart; whenever enough of a kind wait, they are a batch.
"""
import functools

import numpy as np

from gluon_resnest.data.sampling import EvalPlan, TrainPlan, epoch_order


class GroupedPlan:
    """Says which samples a worker trains on at every step; has the interface of `TrainPlan`.

    Step k of the run is the k-th batch that gets complete in the endless sequence of the epochs'
    permutations, so that in the long run every sample comes equally often. An epoch is the number
    of steps that shows as many samples as there are. Worker r takes the r-th contiguous part of
    a batch: what all workers see together does not depend on how many they are.

    Args:
      groups: int (L,), the group of each sample.
      batch, rank, size, seed, remainder: as for `TrainPlan`; "fill" rounds the steps of an epoch
        up, "discard" down. No sample is left out for that.
      shape: callable (epoch, sample) -> what the samples of a batch are sorted by before workers
        get their parts of it.

    Raises:
      UserError: if the numbers do not fit together.
    """

    def __init__(self, groups, batch, rank, size, seed, remainder="fill", shape=None):
        plan = TrainPlan(len(groups), batch, rank, size, seed, remainder=remainder)
        self.batch, self.steps_per_epoch = plan.batch, plan.steps_per_epoch
        self._groups, self._seed, self._whole = np.asarray(groups), seed, batch
        self._shape = shape
        self._own = slice(rank * plan.batch, (rank + 1) * plan.batch)
        self._counts = np.unique(self._groups, return_counts=True)[1].tolist()
        self._numbers = np.unique(self._groups).tolist()
        self._completed = functools.lru_cache(maxsize=2)(self._completed)

    def indices(self, epoch, step):
        """Returns this worker's samples at `step` of `epoch`: int64 (batch,)."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"an epoch has steps 0..{self.steps_per_epoch - 1}, got {step}")
        number = epoch * self.steps_per_epoch + step
        permutation = number * self._whole // len(self._groups)     # no batch is complete earlier
        while self._before(permutation + 1) <= number:
            permutation += 1
        batch = self._completed(permutation)[number - self._before(permutation)]
        if self._shape is not None:
            batch = np.array(sorted(batch.tolist(), key=lambda index: self._shape(epoch, index)))
        return batch[self._own]

    def _before(self, permutation):
        """Returns how many batches are complete before a permutation begins."""
        return sum(permutation * count // self._whole for count in self._counts)

    def _completed(self, permutation):
        """Returns the batches that get complete in a permutation, in this order: (steps, batch)."""
        order = epoch_order(len(self._groups), self._seed, permutation)
        batches, moments = [], []
        for group, count in zip(self._numbers, self._counts):
            places = np.flatnonzero(self._groups[order] == group)
            waiting = permutation * count % self._whole
            line = np.concatenate([self._last(group, waiting, permutation), order[places]])
            complete = len(line) // self._whole
            batches.append(line[:complete * self._whole].reshape(-1, self._whole))
            moments.append(places[np.arange(1, complete + 1) * self._whole - waiting - 1])
        return np.concatenate(batches)[np.argsort(np.concatenate(moments))]

    def _last(self, group, count, permutation):
        """Returns the last `count` samples of a group that came before a permutation."""
        line = np.zeros(0, np.int64)
        while len(line) < count:
            permutation -= 1
            order = epoch_order(len(self._groups), self._seed, permutation)
            line = np.concatenate([order[self._groups[order] == group], line])
        return line[len(line) - count:]


class SortedEvalPlan:
    """Says which samples a worker evaluates at every step; all workers together: each one once.

    An `EvalPlan` in the order of the shapes, so that those of a batch are alike.
    """

    def __init__(self, shapes, batch, rank=0, size=1):
        self._order = np.array(sorted(range(len(shapes)), key=shapes.__getitem__), np.int64)
        self._plan = EvalPlan(len(self._order), batch, rank, size)
        self.batch, self.steps_per_epoch = self._plan.batch, self._plan.steps_per_epoch

    def indices(self, epoch, step):
        """Returns this worker's samples at `step`, whatever the epoch: int64 (0..batch,)."""
        return self._order[self._plan.indices(epoch, step)]
