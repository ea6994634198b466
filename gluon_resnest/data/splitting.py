"""Splits a labelled set in two: seeded, each class in proportion, equal images on one side."""
import numpy as np

from gluon_resnest.data.sampling import random_for
from gluon_resnest.errors import UserError


class Subset:
    """Some samples of a dataset, under numbers of their own.

    Attributes:
      indices: int (N,), their numbers in the dataset.
    """

    def __init__(self, dataset, indices):
        self._dataset, self.indices = dataset, np.asarray(indices)
        self.class_names = dataset.class_names

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, key):
        index, rng = key
        return self._dataset[int(self.indices[index]), rng]

    @property
    def labels(self):
        return self._dataset.labels[self.indices]

    def name(self, index):
        """Returns what an error message calls this sample."""
        return self._dataset.name(int(self.indices[index]))


def split(labels, count, seed, contents=None, *, class_names=None):
    """Chooses about `count` samples, of each class its share, at least one and never all.

    Samples of equal content go to the same side together, so that a class may miss its share by
    less than its largest group of such.

    Args:
      labels: int (N,).
      count: how many to choose, 1 to N - 1.
      seed: decides which.
      contents: one hashable thing for each sample, such as a checksum; None: all are different.
      class_names: what an error message calls the classes; None: their numbers.

    Returns:
      (others, chosen): their numbers, ascending int64, together 0 to N - 1 once each.

    Raises:
      UserError: if `count` is out of range, or some class has not two different samples.
    """
    labels = np.asarray(labels)
    if not 0 < count < len(labels):
        raise UserError(f"expected to split off 1 to {len(labels) - 1} of {len(labels)} images, "
                        f"got {count}")
    first = {}
    groups = {}
    for index, content in enumerate(range(len(labels)) if contents is None else contents):
        groups.setdefault(first.setdefault(content, index), []).append(index)
    chosen = np.zeros(len(labels), bool)
    quotas = _shares(np.bincount(labels), count)
    for label, quota in enumerate(quotas):
        own = [number for number in groups if labels[number] == label]
        if not own:
            continue
        if len(own) < 2:
            raise UserError(f"class {_called(label, class_names)} has {len(own)} different image, "
                            "expected at least 2 to split it; add images or give a folder for "
                            "each side")
        taken = 0
        for position in random_for(seed, 0, label, "split").permutation(len(own))[:-1]:
            if taken >= max(1, quota):
                break
            members = groups[own[position]]
            if taken and taken + len(members) > max(1, quota):
                continue
            chosen[members] = True
            taken += len(members)
    for label in np.unique(labels):
        sides = np.unique(chosen[labels == label])
        if len(sides) < 2:          # its samples are of groups that begin in other classes
            raise UserError(f"the images of class {_called(label, class_names)} are copies of "
                            "images of other classes, so that it cannot be on both sides of a "
                            "split; remove the copies or give a folder for each side")
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _called(label, class_names):
    return repr(class_names[label]) if class_names else label


def _shares(sizes, count):
    """Divides `count` in proportion to `sizes`: int (K,), rounded by the largest remainders."""
    exact = sizes * count / sizes.sum()
    shares = np.floor(exact).astype(int)
    rest = np.argsort(shares - exact, kind="stable")[:count - shares.sum()]
    shares[rest] += 1
    return shares
