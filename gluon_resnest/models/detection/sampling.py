"""Draws the few boxes and classes that a loss looks at, as functions of `rng`'s key."""
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


def draw_classes(present, counts, number, rng):
    """Draws the classes that the federated loss counts: those present, and others.

    Without replacement, each time with a chance in proportion to the root of a class's images.

    Args:
      present: int64, classes 0..K-1 that are there; all of them are taken.
      counts: int64 (K,), training images of each class; one without any is not drawn.
      number: how many classes in all; those that are there may be more, the others too few.
      rng: numpy Generator, keyed by seed, epoch and step.

    Returns:
      float32 (K,) of 0 and 1.
    """
    with np.errstate(divide="ignore"):      # whose exponential clock rings first is drawn first
        moments = rng.exponential(size=len(counts)) / np.sqrt(counts)
    moments[present] = -1
    first = np.argsort(moments, kind="stable")[:max(number, len(np.unique(present)))]
    chosen = np.zeros(len(counts), np.float32)
    chosen[first[np.isfinite(moments[first])]] = 1
    return chosen


def fill(indices, count):
    """Repeats indices in their order up to `count`; returns int64 (count,) and which are first.

    Arrays of fixed size make every step run the same graph; repeats, rather than zeros, leave the
    statistics of normalisation layers those of real boxes. Losses give repeats no weight.
    """
    order = np.arange(count)
    return np.asarray(indices)[order % len(indices)], order < len(indices)
