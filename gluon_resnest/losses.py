"""Losses as means over the local batch; each is a small HybridBlock without parameters."""
import numpy as np
from mxnet.gluon import HybridBlock


class SoftCrossEntropy(HybridBlock):
    """Computes the cross entropy against target probabilities (paper, eq. 4).

    Call with `logits` (N, K) and `targets` (N, K), each row of which sums to one, or to the weight
    of its image or mixture of images; returns the mean over N as a scalar of shape (1,).
    """

    def hybrid_forward(self, F, logits, targets):
        return -F.mean(F.sum(targets * F.log_softmax(logits, axis=-1), axis=-1))


class Distillation(HybridBlock):
    """Mixes the cross entropy with that against a teacher's softened prediction.

    `hard_weight * CE(logits, targets) + (1 - hard_weight) * T^2 * CE(logits / T, teacher / T)`
    (Hinton et al. 2015, section 2: T^2 keeps the gradient's size independent of T).

    Call with `logits`, `targets` as above, `teacher_logits`, all (N, K); returns a scalar of shape
    (1,).

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
        weights = F.sum(targets, axis=-1, keepdims=True)
        taught = F.broadcast_mul(weights, F.softmax(teacher_logits / t, axis=-1))
        soft = self._cross_entropy(logits / t, taught)
        hard = self._cross_entropy(logits, targets)
        return self._hard_weight * hard + (1 - self._hard_weight) * t * t * soft


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
    images counts nothing. It is the image that counts: PyTorch's CrossEntropyLoss multiplies each
    class's share of a smoothed target, by which a rare class attracts the images of all others.

    Args:
      labels: int (N,) of the training images.
    """
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    return np.divide(len(labels), present * counts, out=np.zeros(classes),
                     where=counts > 0).astype(np.float32)
