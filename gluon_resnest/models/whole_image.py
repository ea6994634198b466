"""Labels of a whole image from a network that sees windows, at several scales (paper, 6.3).

The rules are those of GluonCV's multi-scale evaluation, which gave the published numbers.
"""
import math

import mxnet as mx
import numpy as np
from mxnet import autograd, nd

from gluon_resnest.errors import UserError, check_choice

RULES = ("exp", "softmax")
STRIDE = 2 / 3              # of neighbouring windows, in windows
_MAX_SCORES = 1 << 26       # numbers at full size that are in memory at a time


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
    """

    def __init__(self, net, *, window_px, base_px=None, scales=(1.0,), flip=False, rule="softmax",
                 padding=(0.0, 0.0, 0.0), batch=4, ctx=None):
        check_choice("rule", rule, RULES)
        if not scales or min(scales) <= 0:
            raise UserError(f"scales must be positive numbers, got {scales!r}")
        self._net, self._ctx = net, ctx or mx.cpu()
        self._window, self._base, self._scales = window_px, base_px, tuple(scales)
        self._flip, self._rule, self._batch = flip, rule, batch
        self._padding = nd.array(padding, ctx=self._ctx).reshape((1, 3, 1, 1))

    def labels(self, image):
        """Returns the class of every pixel, int32 (H, W) numpy, of an image (3, H, W) float32."""
        height, width = image.shape[1:]
        maps = self.scores(image)
        classes = maps[0].shape[1]
        step = max(1, _MAX_SCORES // (height * width * len(maps)))
        best = labels = None
        for start in range(0, classes, step):
            total = sum(_resized(nd.slice_axis(scores, axis=1, begin=start,
                                               end=min(start + step, classes)), height, width)
                        for scores in maps)[0]
            top = total.max(axis=0).asnumpy()
            where = total.argmax(axis=0).asnumpy().astype(np.int32) + start
            if best is None:
                best, labels = top, where
            else:
                labels = np.where(top > best, where, labels)
                best = np.maximum(top, best)
        return labels

    def scores(self, image):
        """Returns the scores at each scale: list of NDArray (1, K, h, w)."""
        image = nd.array(image[None], ctx=self._ctx)
        with autograd.pause(train_mode=False):
            return [self._at_scale(image, scale) for scale in self._scales]

    def _at_scale(self, image, scale):
        height, width = image.shape[2:]
        longer = math.ceil((self._base or max(height, width)) * scale)
        factor = longer / max(height, width)
        size = tuple(longer if side == max(height, width) else max(1, int(side * factor + 0.5))
                     for side in (height, width))
        resized = self._padded(_resized(image, *size))
        tops, lefts = (window_starts(side, self._window) for side in resized.shape[2:])
        places = [(top, left) for top in tops for left in lefts]
        total = count = 0
        for start in range(0, len(places), self._batch):
            some = places[start:start + self._batch]
            scores = self._of_windows(nd.concat(*(self._cut(resized, *place) for place in some),
                                                dim=0))
            if len(places) == 1:
                return scores[:, :, :size[0], :size[1]]
            if start == 0:
                total = nd.zeros((1, scores.shape[1], *resized.shape[2:]), ctx=self._ctx)
                count = nd.zeros((1, 1, *resized.shape[2:]), ctx=self._ctx)
            for number, place in enumerate(some):
                window = self._cut(total, *place)
                rows, columns = (slice(begin, begin + self._window) for begin in place)
                total[:, :, rows, columns] = window + scores[number:number + 1]
                count[:, :, rows, columns] += 1
        return nd.broadcast_div(total, count)[:, :, :size[0], :size[1]]

    def _of_windows(self, windows):
        logits = self._net(windows)
        mirrored = self._net(windows.flip(axis=3)).flip(axis=3) if self._flip else None
        if self._rule == "exp":
            return nd.exp(logits if mirrored is None else logits + mirrored)
        scores = nd.softmax(logits, axis=1)
        return scores if mirrored is None else (scores + nd.softmax(mirrored, axis=1)) / 2

    def _cut(self, maps, top, left):
        return maps[:, :, top:top + self._window, left:left + self._window]

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


def _resized(maps, height, width):
    if maps.shape[2:] == (height, width):
        return maps
    return nd.contrib.BilinearResize2D(maps, height=height, width=width)
