"""Metrics as counts: they add up exactly over batches and workers; a ratio is formed once."""
import numpy as np


class TopK:
    """Counts images whose true class is among the k highest logits.

    Ties are resolved against the network: the true class counts as hit at k only if fewer than
    k other classes score at least as high, so a constant or NaN output scores zero.
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
