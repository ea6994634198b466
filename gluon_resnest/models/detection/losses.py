"""Losses of two-stage detectors as sums with their normalisers (Detectron2's definitions).

A mean over the images of all workers is the sum of all totals over the sum of all counts; who
knows the workers divides. Rows whose label is negative take no part.
"""
from typing import NamedTuple

from mxnet import nd


class Loss(NamedTuple):
    """total: NDArray (1,), the sum over this worker's batch. count: what it is divided by."""

    total: nd.NDArray
    count: float

    def mean(self, count=None):
        """Returns the loss as NDArray (1,), divided by `count` instead of its own if one is given.

        With N workers that average gradients, the sum of all counts over N makes them equal to
        one worker with the whole batch.
        """
        return self.total / max(self.count if count is None else count, 1)


def rpn_losses(logits, deltas, labels, targets, *, beta):
    """Sums over sampled anchors.

    Args:
      logits: (R,). deltas, targets: (R, 4). labels: (R,), 1 object, 0 background, -1 ignored.
      beta: of smooth L1.

    Returns:
      Binary cross-entropy of the logits, and smooth L1 of the objects' deltas.
    """
    return (nd.sum(_binary_cross_entropy(nd, logits, labels) * (labels >= 0)),
            nd.sum(smooth_l1(deltas - targets, beta).sum(axis=1) * (labels == 1)))


def box_losses(logits, deltas, classes, targets, *, beta, counted=None):
    """Sums over sampled RoIs.

    Args:
      logits: (R, K + 1). deltas: (R, K or 1, 4). targets: (R, 4).
      classes: (R,), 0..K-1, K for background, -1 ignored.
      beta: of smooth L1.
      counted: None for the cross-entropy of softmax; (K,), which classes' `class_entropy` counts,
        for that of sigmoids.

    Returns:
      Cross-entropy, and smooth L1 of the objects' deltas: those of their own class, if each has
      its own.
    """
    background = logits.shape[1] - 1
    valid, is_object = classes >= 0, (classes >= 0) * (classes < background)
    if counted is None:
        entropy = -nd.pick(nd.log_softmax(logits, axis=1), nd.maximum(classes, 0), axis=1)
    else:
        entropy = class_entropy(nd, logits, classes, counted)
    own = deltas[:, 0] if deltas.shape[1] == 1 else own_class(nd, deltas, classes * is_object)
    return (nd.sum(entropy * valid),
            nd.sum(smooth_l1(own - targets, beta).sum(axis=1) * is_object))


def mask_loss(logits, classes, targets, valid):
    """Returns the summed binary cross-entropy of the masks of the RoIs' own classes.

    Args:
      logits: (R, K, H, W). classes: (R,). targets: (R, H, W) of 0 and 1. valid: (R,) of 0 and 1.
    """
    entropy = _binary_cross_entropy(nd, own_class(nd, logits, classes), targets)
    return nd.sum(entropy.sum(axis=(1, 2)) * valid)


def class_entropy(F, logits, classes, counted):
    """Returns each row's binary cross-entropies, added up over the classes that count: (R,).

    With all classes it is the sigmoid loss; with those of a step's images and a few drawn others
    the federated one, which does not teach that an object unannotated is absent (Zhou et al. 2021,
    "Probabilistic two-stage detection", appendix D).

    Args:
      logits: (R, K + 1), the background's, the last, unused.
      classes: (R,), 0..K-1; any other number says that no class is there.
      counted: (K,) of 0 and 1.
    """
    numbers = F.expand_dims(F.contrib.arange_like(counted), axis=0)
    wanted = F.broadcast_equal(F.expand_dims(classes, axis=1), numbers)
    entropy = _binary_cross_entropy(F, F.slice_axis(logits, axis=1, begin=0, end=-1), wanted)
    return F.sum(F.broadcast_mul(entropy, F.expand_dims(counted, axis=0)), axis=1)


def own_class(F, values, classes):
    """Returns the entry (R, ...) of each row's class (R,) from values (R, K, ...)."""
    row = F.contrib.arange_like(classes, axis=0)
    return F.gather_nd(values, F.stack(row, classes, axis=0))


def smooth_l1(x, beta):
    """x^2 / (2 beta) below beta, |x| - beta / 2 above; beta 0 is |x| (Fast R-CNN, eq. 3)."""
    if beta == 0:
        return nd.abs(x)
    return nd.smooth_l1(x, scalar=beta ** -0.5)


def _binary_cross_entropy(F, logits, labels):
    """-log sigmoid of the logit where the label is 1, of its negative where it is 0."""
    return F.relu(logits) - logits * labels + F.log1p(F.exp(-F.abs(logits)))
