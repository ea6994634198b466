"""Losses as means over the local batch, or sums over its pixels; none has parameters."""
import functools
import math
from typing import NamedTuple

import numpy as np
from mxnet import autograd, nd
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


class PixelCrossEntropy:
    """Adds up the cross entropy of labelled pixels, optionally of the hard ones only.

    Call with `logits` (N, K, h, w) and `labels` (N, H, W), negative where a pixel is ignored; it
    gets exactly no gradient. The logits are enlarged to the labels bilinearly, corners staying
    where they are, as `models.deeplab.resize_like` does. Returns the sum, a scalar of shape (1,): it
    is divided by who knows how many pixels all workers have, so that the loss does not depend on
    their number. A pixel's loss is at most 87, -log of float32's smallest number; its gradient is
    exact beyond.

    Nothing of size N K H W exists: the enlarged logits, their softmax and its gradient live for a
    strip of rows at a time, which fits into a cache, and no operator but the softmax and two thin
    matrix products passes over them (docs/performance.md, "Where a training step of segmentation
    goes"). So the gradient is computed on the way forward.

    Online hard example mining (Shrivastava et al. 2016, for pixels) leaves out those whose true
    class already has a probability above `easy`, but keeps the `keep` hardest of each image.

    Args:
      easy: probability above which a pixel is left out; None counts all.
      keep: hardest pixels of an image that always count, at most H * W.
    """

    def __init__(self, easy=None, keep=256):
        if easy is not None and (not 0 < easy < 1 or keep < 1):
            raise ValueError(f"mining needs 0 < easy < 1 and keep >= 1, got {easy!r} and {keep!r}")
        self._easy_loss = None if easy is None else -math.log(easy)
        self._keep = keep

    def __call__(self, logits, labels):
        wants_gradient = autograd.is_recording()
        with autograd.pause():
            maps = nd.transpose(logits, axes=(0, 2, 3, 1)).astype("float32")
            sums, gradients = zip(*(self._image(*image, wants_gradient)
                                    for image in zip(maps, labels)))
            total = nd.add_n(*sums)
            if not wants_gradient:
                return total
            gradient = nd.transpose(nd.stack(*gradients), axes=(0, 3, 1, 2)).astype(logits.dtype)
        # Its value is zero, its gradient is the one above times whatever arrives.
        slope = nd.sum(logits * gradient).astype("float32")
        return total + (slope - nd.BlockGrad(slope))

    def _image(self, logits, labels, wants_gradient):
        """Returns the sum of losses of an image and the gradient by its logits (h, w, K)."""
        height, width, classes = logits.shape
        rows, columns = labels.shape
        across = _enlargement(width, columns, logits.context)
        across = nd.broadcast_to(across.expand_dims(0), (height, *across.shape))
        wide = nd.batch_dot(across, logits).reshape((height, -1))           # (h, W * K)
        strips = _strips(height, rows, columns * classes, logits.context)
        counts = labels >= 0
        if self._easy_loss is not None:
            counts = counts * self._hard(nd.concat(*(
                _negative_log(_own(_probabilities(wide, strip, classes), labels[strip.rows]))
                for strip in strips), dim=0).reshape(labels.shape) * counts)
        sums, gradient = [], nd.zeros_like(wide)
        for strip in strips:
            chances, own_labels = _probabilities(wide, strip, classes), labels[strip.rows]
            own, counted = _own(chances, own_labels), counts[strip.rows].reshape(-1)
            sums.append(nd.sum(_negative_log(own) * counted))
            if wants_gradient:
                difference = _minus_one_hot(chances, own, own_labels)
                difference = nd.SequenceMask(difference.reshape((-1, 1, classes)), counted, axis=1,
                                             use_sequence_length=True)
                band = gradient[strip.band]
                band += nd.dot(strip.matrix, difference.reshape((len(own_labels), -1)),
                               transpose_a=True)
        gradient = nd.batch_dot(across, gradient.reshape((height, columns, classes)),
                                transpose_a=True)
        return nd.add_n(*sums), gradient

    def _hard(self, losses):
        hardest = nd.topk(losses.reshape(-1), k=self._keep, ret_typ="value")
        return nd.broadcast_greater_equal(
            losses, nd.clip(nd.min(hardest), 0, self._easy_loss).reshape((1, 1)))


_STRIP_NUMBERS = {"cpu": 1 << 20, "gpu": 1 << 26}    # of the enlarged logits that exist at a time
_LEAST = np.finfo(np.float32).tiny


class _Strip(NamedTuple):
    """Rows of an image, the rows of its logits they depend on, and how much."""

    rows: slice
    band: slice
    matrix: nd.NDArray      # (rows, band)


def _probabilities(wide, strip, classes):
    """Returns the probabilities (pixels, K) of a strip."""
    enlarged = nd.dot(strip.matrix, wide[strip.band]).reshape((-1, classes))
    return nd.softmax(enlarged, axis=-1, out=enlarged)


def _own(chances, labels):
    """Returns the probability of each pixel's own class; of the first where it is ignored."""
    return nd.pick(chances, nd.relu(labels).reshape(-1), axis=-1)


def _negative_log(chances):
    return -nd.log(nd.maximum(chances, _LEAST))


def _minus_one_hot(chances, own, labels):
    """Subtracts one from the probability of each pixel's own class, in place."""
    labels = nd.relu(labels).reshape(-1)
    pixels = nd.arange(len(labels), ctx=labels.context)
    chances[pixels, labels] = own - 1
    return chances


@functools.lru_cache(maxsize=64)
def _enlargement(size, enlarged, context):
    """Returns the matrix (enlarged, size) of a bilinear resize that keeps the ends."""
    return nd.array(_interpolation(size, enlarged), ctx=context)


@functools.lru_cache(maxsize=64)
def _strips(size, enlarged, numbers, context):
    """Returns the strips of an image of so many rows, each of so many numbers."""
    matrix = _interpolation(size, enlarged)
    step = max(1, _STRIP_NUMBERS[context.device_type] // numbers)
    strips = []
    for start in range(0, enlarged, step):
        rows = slice(start, min(start + step, enlarged))
        used = np.flatnonzero(matrix[rows].any(axis=0))
        band = slice(int(used[0]), int(used[-1]) + 1)
        strips.append(_Strip(rows, band, nd.array(matrix[rows, band], ctx=context)))
    return strips


def _interpolation(size, enlarged):
    places = np.linspace(0, size - 1, enlarged)
    return np.maximum(0, 1 - abs(places[:, None] - np.arange(size)))


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
