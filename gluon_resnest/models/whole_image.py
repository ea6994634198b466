"""Labels of a whole image from a network that sees windows, at several scales (paper, 6.3).

The rules are those of GluonCV's multi-scale evaluation, which gave the published numbers.
"""
import math
from typing import NamedTuple, Optional

import mxnet as mx
import numpy as np
from mxnet import autograd, nd

from gluon_resnest.errors import UserError, check_choice, diverged
from gluon_resnest.models.resizing import resized

RULES = ("exp", "softmax")
STRIDE = 2 / 3              # of neighbouring windows, in windows
_MAX_SCORES = 1 << 26       # numbers at full size that are in memory at a time
# Sums from here on hold what is a millionth of them, too: float32 begins at 1e-38.
_LEAST_SUM = 1e-30


class Scores(NamedTuple):
    """Scores of pixels: `values * exp(logs)`.

    values: (N, K, h, w), from 0 on. logs: (N, 1, h, w), or None for 0.
    """

    values: mx.nd.NDArray
    logs: Optional[mx.nd.NDArray] = None

    def part(self, index):
        """Returns the `Scores` at an index of both arrays that leaves the classes alone."""
        return Scores(self.values[index], None if self.logs is None else self.logs[index])


class WholeImage:
    """Labels images of any size.

    At each scale s, the image is resized so that its longer side is ceil(s * base_px), padded to
    at least a window with `padding`, and covered by overlapping square windows. The scores of each,
    and of its mirror image, are averaged where windows overlap, resized to the image and added up
    over the scales.

    Args:
      net: images (N, 3, window_px, window_px) to logits (N, K, window_px, window_px), NDArrays.
      window_px: side of a window.
      base_px: longer side at scale 1; None is the image's own.
      scales: positive numbers.
      flip: whether mirror images are looked at too.
      rule: how logits become scores. "exp", as published: the exponential of the logits' sum over
        the two mirror images; confident windows weigh more. "softmax": the mean probability.
      padding: value of the three channels outside of the image, normalised.
      batch: windows that are looked at together.
      ctx: Context of the network; the CPU by default.
      name: of the network, for complaints.
    """

    def __init__(self, net, *, window_px, base_px=None, scales=(1.0,), flip=False, rule="softmax",
                 padding=(0.0, 0.0, 0.0), batch=4, ctx=None, name="for pixels"):
        check_choice("rule", rule, RULES)
        if not scales or min(scales) <= 0:
            raise UserError(f"scales must be positive numbers, got {scales!r}")
        self._net, self._ctx = net, ctx or mx.cpu()
        self._window, self._base, self._scales = window_px, base_px, tuple(scales)
        self._flip, self._rule, self._batch, self._name = flip, rule, batch, name
        self._padding = nd.array(padding, ctx=self._ctx).reshape((1, 3, 1, 1))

    def labels(self, image):
        """Returns the class of every pixel, int32 (H, W) numpy, of an image (3, H, W) float32.

        Raises:
          UserError: if the network gives NaN or infinity, or a side is too long to be resized.
        """
        best, labels = self._best(self.scores(image), *image.shape[1:])
        if not (best.min() >= _LEAST_SUM and best.max() < np.inf):
            # Rare, so that it may look again: a sum of logit and mirrored one above 88.
            _, labels = self._best(self.scores(image, wide=True), *image.shape[1:])
        return labels

    def _best(self, maps, height, width):
        """Returns (values, labels), (H, W) numpy: the highest of a list of `Scores`, and whose."""
        classes = maps[0].values.shape[1]
        step = max(1, _MAX_SCORES // (height * width * len(maps)))
        best = labels = None
        for start in range(0, classes, step):
            end = min(start + step, classes)
            total = None
            for values, logs in maps:
                some = Scores(nd.slice_axis(values, axis=1, begin=start, end=end), logs)
                some = _resized_scores(some, height, width)
                total = some if total is None else _added(total, some)
            # Their `logs` are the same for all classes.
            top = total.values[0].max(axis=0).asnumpy()
            where = total.values[0].argmax(axis=0).asnumpy().astype(np.int32) + start
            if best is None:
                best, labels = top, where
            else:
                labels = np.where(top > best, where, labels)
                best = np.maximum(top, best)
        return best, labels

    def scores(self, image, *, wide=False):
        """Returns the `Scores` of an image at each scale.

        Args:
          image: see `labels`.
          wide: take the largest logit of each pixel out of the exponential, so that none makes
            its scores infinite or all of them zero.

        Raises:
          UserError: if `wide` and the network gives NaN or infinity.
        """
        image = nd.array(image[None], ctx=self._ctx)
        with autograd.pause(train_mode=False):
            maps = [self._at_scale(image, scale, wide) for scale in self._scales]
        if wide and not all(np.isfinite((values.sum(axis=1, keepdims=True) + logs).asnumpy()).all()
                            for values, logs in maps):
            raise diverged(self._name)
        return maps

    def _at_scale(self, image, scale, wide):
        height, width = image.shape[2:]
        longer = math.ceil((self._base or max(height, width)) * scale)
        factor = longer / max(height, width)
        size = tuple(longer if side == max(height, width) else max(1, int(side * factor + 0.5))
                     for side in (height, width))
        canvas = self._padded(_resized(image, *size))
        tops, lefts = (window_starts(side, self._window) for side in canvas.shape[2:])
        places = [(top, left) for top in tops for left in lefts]
        total = count = None
        for start in range(0, len(places), self._batch):
            some = places[start:start + self._batch]
            scores = self._of_windows(
                nd.concat(*(canvas[self._window_at(*place)] for place in some), dim=0), wide)
            if len(places) == 1:
                return scores.part(np.s_[:, :, :size[0], :size[1]])
            if start == 0:
                count = nd.zeros((1, 1, *canvas.shape[2:]), ctx=self._ctx)
                total = Scores(nd.zeros((1, scores.values.shape[1], *canvas.shape[2:]),
                                        ctx=self._ctx), count - np.inf if wide else None)
            for number, place in enumerate(some):
                where = self._window_at(*place)
                sums = _added(total.part(where), scores.part(np.s_[number:number + 1]))
                total.values[where] = sums.values
                if wide:
                    total.logs[where] = sums.logs
                count[where] += 1
        mean = Scores(nd.broadcast_div(total.values, count), total.logs)
        return mean.part(np.s_[:, :, :size[0], :size[1]])

    def _of_windows(self, windows, wide):
        """Returns the `Scores` of windows."""
        logits = self._net(windows)
        mirrored = self._net(windows.flip(axis=3)).flip(axis=3) if self._flip else None
        if self._rule == "exp":
            both = logits if mirrored is None else logits + mirrored
            if not wide:
                return Scores(nd.exp(both))
            highest = both.max(axis=1, keepdims=True)
            return Scores(nd.exp(nd.broadcast_sub(both, highest)), highest)
        scores = nd.softmax(logits, axis=1)
        if mirrored is not None:
            scores = (scores + nd.softmax(mirrored, axis=1)) / 2
        return Scores(scores, nd.zeros_like(scores[:, :1]) if wide else None)

    def _window_at(self, top, left):
        return np.s_[:, :, top:top + self._window, left:left + self._window]

    def _padded(self, image):
        """Appends `padding` at the right and bottom until both sides are at least a window."""
        height, width = image.shape[2:]
        full = max(height, self._window), max(width, self._window)
        if full == (height, width):
            return image
        canvas = nd.broadcast_to(self._padding, (1, 3, *full)).copy()
        canvas[:, :, :height, :width] = image
        return canvas


def window_starts(length, window):
    """Returns where windows begin along a side, the last at its end; together they cover it."""
    stride = max(1, int(window * STRIDE))
    return [min(start, length - window)
            for start in range(0, length - window + stride, stride)]


def _added(first, second, weights=(1, 1)):
    """Returns the weighted sum of two `Scores`; weights are broadcast, and 1 without `logs`."""
    if first.logs is None:
        return Scores(first.values + second.values)
    logs = nd.maximum(first.logs, second.logs)
    parts = [nd.broadcast_mul(scores.values, nd.exp(scores.logs - logs) * weight)
             for scores, weight in zip((first, second), weights)]
    return Scores(parts[0] + parts[1], logs)


def _resized_scores(scores, height, width):
    if scores.logs is None:
        return Scores(_resized(scores.values, height, width))
    return _stretched(_stretched(scores, 2, height), 3, width)


def _stretched(scores, axis, size):
    """Resizes wide `Scores` along one axis as BilinearResize2D does, ends to ends."""
    length = scores.logs.shape[axis]
    if length == size:
        return scores
    places = np.arange(size, dtype=np.float32) * np.float32((length - 1) / max(size - 1, 1))
    before = places.astype(int)
    share = places - before
    # A share of nothing must not look at its neighbour, whose `logs` may be far higher.
    after = np.minimum(before + (share > 0), length - 1)
    context = scores.logs.context
    sides = (Scores(*(nd.take(part, nd.array(indices, ctx=context), axis=axis) for part in scores))
             for indices in (before, after))
    share = nd.array(share.reshape([-1 if each == axis else 1 for each in range(4)]), ctx=context)
    return _added(*sides, weights=(1 - share, share))


def _resized(maps, height, width):
    if maps.shape[2:] == (height, width):
        return maps
    return resized(maps, height, width)
