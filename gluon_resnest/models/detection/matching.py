"""Which object a box stands for, if any, and which boxes a loss looks at."""
import numpy as np

IGNORED, NEGATIVE, POSITIVE = -1, 0, 1


def match(overlaps, low, high, *, low_quality=None):
    """Matches boxes with objects.

    Args:
      overlaps: IoU (R, G) of R boxes with G objects; G may be 0.
      low, high: a box whose best IoU is below `low` is negative, from `high` on positive, ignored
        in between.
      low_quality: also make positive each box that has, of all boxes, the largest IoU with some
        object, if that is at least this and above 0 (Faster R-CNN, section 3.1.2, case i); ties
        included. None leaves this out. Such a box still stands for the object that it overlaps
        most itself.

    Returns:
      best: int64 (R,), the object that each box overlaps most, 0 if there is none.
      labels: int64 (R,), POSITIVE, NEGATIVE or IGNORED.
    """
    count, objects = overlaps.shape
    if objects == 0:
        return np.zeros(count, np.int64), np.full(count, NEGATIVE, np.int64)
    best = overlaps.argmax(axis=1)
    largest = overlaps[np.arange(count), best]
    labels = np.full(count, IGNORED, np.int64)
    labels[largest < low] = NEGATIVE
    labels[largest >= high] = POSITIVE
    if low_quality is not None and count:
        top = overlaps.max(axis=0)
        wanted = (top > 0) & (top >= low_quality)
        labels[(overlaps == np.where(wanted, top, -1)).any(axis=1)] = POSITIVE
    return best, labels
