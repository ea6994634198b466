"""Repeat-factor sampling: images that show a rare class come more often (Gupta et al. 2019,
"LVIS", appendix B.2).

A class that is on a share f of the images has the factor max(1, sqrt(threshold / f)), an image the
largest factor of its classes. An image whose factor is 2.3 comes twice in every pass over the set,
and once more in three of ten.
"""
import numpy as np

from gluon_resnest.data.sampling import random_for


def image_counts(shown, classes):
    """Counts the images that show each class.

    Args:
      shown: for each image the classes of its objects, int arrays; several of a class count once.
      classes: number of classes.

    Returns:
      int64 (classes,).
    """
    counts = np.zeros(classes, np.int64)
    for each in shown:
        counts[np.unique(each)] += 1
    return counts


def repeat_factors(shown, classes, threshold):
    """Returns how often each image comes in a pass, on average.

    Args:
      shown, classes: see `image_counts`.
      threshold: share of the images, 0..1; classes on fewer of them are repeated.

    Returns:
      float64 (images,), at least 1; 1 for an image without objects.
    """
    counts = image_counts(shown, classes)
    shares = np.maximum(counts, 1) / max(len(shown), 1)     # of classes that no image asks about
    factors = np.maximum(1, np.sqrt(threshold / shares))
    return np.array([factors[each].max(initial=1) for each in shown], np.float64)


def copies(factors, seed, number):
    """Returns how often each image comes in a pass: int64 (images,).

    The fractional part of a factor is the chance of one more; it is drawn for (seed, pass, image).
    """
    whole = np.floor(factors)
    drawn = random_for(seed, number, 0, "repeats").random(len(factors))
    return (whole + (drawn < factors - whole)).astype(np.int64)


def repeated_order(factors, seed, number):
    """Returns the order of a pass: int64, image + copy * len(factors) for each copy of an image.

    With factors of one it is `sampling.epoch_order`.
    """
    count = copies(factors, seed, number)
    samples = [np.flatnonzero(count > copy) + copy * len(factors)
               for copy in range(count.max(initial=0))]
    return random_for(seed, number, 0, "order").permutation(np.concatenate(samples))
