"""Draws the few boxes that a loss looks at; what is drawn is a function of `rng`'s key."""
import numpy as np

from gluon_resnest.models.detection.matching import NEGATIVE, POSITIVE


def subsample(labels, count, positive, rng):
    """Draws positives and negatives without replacement, each with equal probability.

    Args:
      labels: int64 (R,) as `matching.match` gives them.
      count: how many to draw in all; fewer if there are not as many.
      positive: largest share of positives; negatives fill up what they leave.
      rng: numpy Generator, keyed by seed, epoch and image.

    Returns:
      Indices of the positives and of the negatives, in the order they were drawn.
    """
    positives, negatives = np.flatnonzero(labels == POSITIVE), np.flatnonzero(labels == NEGATIVE)
    drawn = rng.permutation(positives)[:int(count * positive)]
    return drawn, rng.permutation(negatives)[:count - len(drawn)]


def fill(indices, count):
    """Repeats indices in their order up to `count`; returns int64 (count,) and which are first.

    Arrays of fixed size make every step run the same graph; repeats, rather than zeros, leave the
    statistics of normalisation layers those of real boxes. Losses give repeats no weight.
    """
    order = np.arange(count)
    return np.asarray(indices)[order % len(indices)], order < len(indices)
