"""The cross entropy of every pixel, from logits that are smaller than the image."""
import functools
import math
from typing import NamedTuple

import numpy as np
from mxnet import autograd, nd


class PixelCrossEntropy:
    """Adds up the cross entropy of labelled pixels, optionally of the hard ones only.

    Call with `logits` (N, K, h, w) and `labels` (N, H, W) below K, negative where a pixel is
    ignored; it gets exactly no gradient. The logits are enlarged to the labels bilinearly. Returns
    the sum, a scalar of shape (1,): it is divided by who knows how many pixels all workers have,
    so that the loss does not depend on their number. A pixel's loss is at most 87, -log of
    float32's smallest number; its gradient is exact beyond.

    Nothing of size N K H W exists: the enlarged logits, their softmax and its gradient live for a
    strip of rows at a time, which fits into a cache, and no operator but the softmax and two thin
    matrix products passes over them (docs/performance.md, "Where a training step of segmentation
    goes"). So the gradient is computed on the way forward.

    Online hard example mining (Shrivastava et al. 2016, for pixels) leaves out those whose true
    class already has a probability above `easy`, but keeps the `keep` hardest of each image.

    Args:
      easy: probability above which a pixel is left out; None counts all.
      keep: hardest pixels of an image that always count, at most H * W.
      corners: whether enlarging leaves the corners where they are, as `models.deeplab.resize_like`
        does; else it goes by the centres of pixels.
    """

    def __init__(self, easy=None, keep=256, corners=True):
        if easy is not None and (not 0 < easy < 1 or keep < 1):
            raise ValueError(f"mining needs 0 < easy < 1 and keep >= 1, got {easy!r} and {keep!r}")
        self._easy_loss = None if easy is None else -math.log(easy)
        self._keep, self._corners = keep, corners

    def __call__(self, logits, labels):
        wants_gradient = autograd.is_recording()
        logits = nd.amp_cast(logits, dtype="float32")
        labels = nd.clip(labels, -1, logits.shape[1] - 1)       # a scatter beyond would not notice
        with autograd.pause():
            maps = nd.transpose(logits, axes=(0, 2, 3, 1))
            sums, gradients = zip(*(self._image(*image, wants_gradient)
                                    for image in zip(maps, labels)))
            total = nd.add_n(*sums)
            if not wants_gradient:
                return total
            gradient = nd.transpose(nd.stack(*gradients), axes=(0, 3, 1, 2))
        # Its value is zero, its gradient is the one above times whatever arrives.
        slope = nd.sum(logits * gradient)
        return total + (slope - nd.BlockGrad(slope))

    def _image(self, logits, labels, wants_gradient):
        """Returns the sum of losses of an image and the gradient by its logits (h, w, K)."""
        height, width, classes = logits.shape
        rows, columns = labels.shape
        across = _strips(width, columns, self._corners, _COLUMNS, logits.context)
        wide = nd.concat(*(
            nd.batch_dot(_repeated(strip.matrix, height), _columns(logits, strip.band))
            for strip in across), dim=1).reshape((height, -1))                  # (h, W * K)
        step = max(1, _NUMBERS[logits.context.device_type] // (columns * classes))
        strips = _strips(height, rows, self._corners, step, logits.context)
        counts = labels >= 0
        if self._easy_loss is not None:
            counts = counts * self._hard(nd.concat(*(
                _negative_log(_own(_probabilities(wide, strip, classes), labels[strip.places]))
                for strip in strips), dim=0).reshape(labels.shape) * counts)
        sums, gradient = [], nd.zeros_like(wide) if wants_gradient else None
        for strip in strips:
            chances, own_labels = _probabilities(wide, strip, classes), labels[strip.places]
            own, counted = _own(chances, own_labels), counts[strip.places].reshape(-1)
            sums.append(nd.sum(_negative_log(own) * counted))
            if wants_gradient:
                difference = _minus_one_hot(chances, own, own_labels)
                difference = nd.SequenceMask(difference.reshape((-1, 1, classes)), counted, axis=1,
                                             use_sequence_length=True)
                band = gradient[strip.band]
                band += nd.dot(strip.matrix, difference.reshape((len(own_labels), -1)),
                               transpose_a=True)
        if not wants_gradient:
            return nd.add_n(*sums), None
        gradient, narrow = gradient.reshape((height, columns, classes)), nd.zeros_like(logits)
        for strip in across:
            narrow[:, strip.band] += nd.batch_dot(
                _repeated(strip.matrix, height), _columns(gradient, strip.places), transpose_a=True)
        return nd.add_n(*sums), narrow

    def _hard(self, losses):
        hardest = nd.topk(losses.reshape(-1), k=self._keep, ret_typ="value")
        return nd.broadcast_greater_equal(
            losses, nd.clip(nd.min(hardest), 0, self._easy_loss).reshape((1, 1)))


_NUMBERS = {"cpu": 1 << 20, "gpu": 1 << 26}    # of the enlarged logits that exist at a time
_COLUMNS = 128                                 # a strip of logits is enlarged to
_LEAST = np.finfo(np.float32).tiny


class _Strip(NamedTuple):
    """Places of the enlarged side, the places before that they depend on, and how much."""

    places: slice
    band: slice
    matrix: nd.NDArray      # (places, band)


def _repeated(matrix, times):
    return nd.broadcast_to(matrix.expand_dims(0), (times, *matrix.shape))


def _columns(x, columns):
    return nd.slice_axis(x, axis=1, begin=columns.start, end=columns.stop)


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
def _strips(size, enlarged, corners, step, context):
    """Cuts an enlarged side into strips of at most `step` places."""
    matrix = _interpolation(size, enlarged, corners)
    strips = []
    for start in range(0, enlarged, step):
        places = slice(start, min(start + step, enlarged))
        used = np.flatnonzero(matrix[places].any(axis=0))
        band = slice(int(used[0]), int(used[-1]) + 1)
        strips.append(_Strip(places, band, nd.array(matrix[places, band], ctx=context)))
    return strips


def _interpolation(size, enlarged, corners):
    """Returns the matrix (enlarged, size) of a bilinear resize."""
    if corners:
        places = np.linspace(0, size - 1, enlarged)
    else:
        places = np.clip((np.arange(enlarged) + 0.5) * size / enlarged - 0.5, 0, size - 1)
    return np.maximum(0, 1 - abs(places[:, None] - np.arange(size)))
