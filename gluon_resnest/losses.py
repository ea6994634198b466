"""Losses as means over the local batch; each is a small HybridBlock without parameters."""
import math

import numpy as np
from mxnet.gluon import HybridBlock


class SoftCrossEntropy(HybridBlock):
    """Computes the cross entropy against target probabilities (paper, eq. 4).

    Call with `logits` (N, K) and `targets` (N, K), each row of which sums to one; returns the
    mean over N as a scalar of shape (1,).
    """

    def hybrid_forward(self, F, logits, targets):
        return -F.mean(F.sum(targets * F.log_softmax(logits, axis=-1), axis=-1))


class Distillation(HybridBlock):
    """Mixes the cross entropy with that against a teacher's softened prediction.

    `hard_weight * CE(logits, targets) + (1 - hard_weight) * T^2 * CE(logits / T, teacher / T)`
    (Hinton et al. 2015, section 2: T^2 keeps the gradient's size independent of T).

    Call with `logits`, `targets`, `teacher_logits`, all (N, K); returns a scalar of shape (1,).

    Args:
      temperature: T > 0.
      hard_weight: share of the true labels, in [0, 1].
    """

    def __init__(self, temperature, hard_weight):
        super().__init__()
        if temperature <= 0 or not 0 <= hard_weight <= 1:
            raise ValueError("distillation needs temperature > 0 and hard_weight in [0, 1], got "
                             f"{temperature!r} and {hard_weight!r}")
        self._temperature, self._hard_weight = temperature, hard_weight
        self._cross_entropy = SoftCrossEntropy()

    def hybrid_forward(self, F, logits, targets, teacher_logits):
        t = self._temperature
        soft = self._cross_entropy(logits / t, F.softmax(teacher_logits / t, axis=-1))
        hard = self._cross_entropy(logits, targets)
        return self._hard_weight * hard + (1 - self._hard_weight) * t * t * soft


class PixelCrossEntropy(HybridBlock):
    """Adds up the cross entropy of labelled pixels, optionally of the hard ones only.

    Call with `logits` (N, K, H, W) and `labels` (N, H, W), negative where a pixel is ignored; it
    gets exactly no gradient. Returns the sum, a scalar of shape (1,): it is divided by who knows
    how many pixels all workers have, so that the loss does not depend on their number.

    Online hard example mining (Shrivastava et al. 2016, for pixels) leaves out those whose true
    class already has a probability above `easy`, but keeps the `keep` hardest of each image.

    Args:
      easy: probability above which a pixel is left out; None counts all.
      keep: hardest pixels of an image that always count, at most H * W.
    """

    def __init__(self, easy=None, keep=256):
        super().__init__()
        if easy is not None and (not 0 < easy < 1 or keep < 1):
            raise ValueError(f"mining needs 0 < easy < 1 and keep >= 1, got {easy!r} and {keep!r}")
        self._easy_loss = None if easy is None else -math.log(easy)
        self._keep = keep

    def hybrid_forward(self, F, logits, labels):
        # Classes last: along another axis, MXNet's softmax takes twice the time.
        logits = F.transpose(logits, axes=(0, 2, 3, 1))
        losses = -F.pick(F.log_softmax(logits, axis=-1), F.relu(labels), axis=-1) * (labels >= 0)
        if self._easy_loss is not None:
            flat = F.reshape(F.BlockGrad(losses), shape=(0, -1))
            hardest = F.topk(flat, axis=1, k=self._keep, ret_typ="value")
            least = F.clip(F.min(hardest, axis=1), 0, self._easy_loss)
            hard = F.broadcast_greater_equal(F.BlockGrad(losses),
                                             F.reshape(least, shape=(-1, 1, 1)))
            losses = losses * hard
        return F.sum(losses)


class JointHeatmapLoss(HybridBlock):
    """Computes half the mean squared difference of heat maps, weighted by joint (SimplePose).

    Call with `heatmaps` and `targets`, both (N, J, H, W), and `weights` (N, J, 1, 1); the mean is
    over all pixels, those of weight 0 included. Returns a scalar of shape (1,).
    """

    def hybrid_forward(self, F, heatmaps, targets, weights):
        return F.mean(F.broadcast_mul(weights, F.square(heatmaps - targets))) / 2


def balanced_weights(labels, classes):
    """Returns what an image of each class counts, float32 (classes,), inverse to its frequency.

    All classes weigh the same then, and the mean weight of an image is one; a class without
    images counts nothing.

    Args:
      labels: int (N,) of the training images.
    """
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    return np.divide(len(labels), present * counts, out=np.zeros(classes),
                     where=counts > 0).astype(np.float32)
