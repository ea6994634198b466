"""Metrics as counts: they add up exactly over batches and workers; a ratio is formed once."""
import numpy as np


class TopK:
    """Counts images whose true class is among the k highest logits.

    Ties are resolved against the network: the true class counts as hit at k only if fewer than
    k other classes score at least as high, so a constant or NaN output scores zero, unless k is
    as large as the number of classes.
    """

    def __init__(self, ks=(1, 5)):
        self.ks = tuple(ks)
        self.hits = np.zeros(len(self.ks), np.int64)
        self.seen = 0

    def update(self, logits, labels):
        """Adds one batch.

        Args:
          logits: (N, K) numpy array.
          labels: (N,) integers in [0, K).
        """
        labels = np.asarray(labels, np.int64)
        own = logits[np.arange(len(labels)), labels]
        # `not (other < own)` rather than `other >= own`, so that a NaN counts as above
        above = (~(logits < own[:, None])).sum(axis=1) - 1
        self.hits += [int((above < k).sum()) for k in self.ks]
        self.seen += len(labels)

    def counts(self):
        """Returns int64 (len(ks) + 1,): the hits for each k, then the images seen."""
        return np.append(self.hits, np.int64(self.seen))


class ConfusionMatrix:
    """Counts pixels by true and predicted class; ignored pixels do not count.

    Attributes:
      pixels: int64 (classes, classes); [t, p] counts those of true class t predicted as p.
    """

    def __init__(self, classes):
        self.pixels = np.zeros((classes, classes), np.int64)

    def update(self, predicted, labels):
        """Adds an image: two integer arrays of one shape, `labels` negative where ignored."""
        counted = labels >= 0
        pairs = labels[counted].astype(np.int64) * len(self.pixels) + predicted[counted]
        self.pixels += np.bincount(pairs, minlength=self.pixels.size).reshape(self.pixels.shape)


def pixel_accuracy(pixels):
    """Returns the share of pixels on the diagonal of a confusion matrix; NaN without pixels."""
    total = pixels.sum()
    return float(np.trace(pixels) / total) if total else float("nan")


def intersection_over_union(pixels):
    """Returns each class's IoU, float64 (classes,); NaN if a class is neither true nor predicted.

    The mean over the others is mIoU.
    """
    hits = np.diag(pixels)
    union = pixels.sum(axis=0) + pixels.sum(axis=1) - hits
    return np.divide(hits, union, out=np.full(len(pixels), np.nan), where=union > 0)
