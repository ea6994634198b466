"""The operations of augmentation policies, equal to Pillow's bit for bit.

Most of them look every value up in a table. Such a table is had by Pillow's own operation on a ramp
of 256 values, or from a histogram; and it is applied only to those pixels that somebody asks for:
to the crop, not to the whole picture. What moves or mixes pixels is Pillow's, as near to the crop
as its results allow.
"""
import functools
import math

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps, ImageStat

_RAMP = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))
_COUNTED = 2 ** 24          # pixels that OpenCV's histogram counts exactly, in float32
_UNIT = 2 ** 16             # of Pillow's fixed point, in a pixel


class View:
    """A changed image as an array, computed when, and as far as, its pixels are asked for.

    `view[top:bottom, left:right]` computes a box, `np.asarray(view)` the whole.

    Args:
      source: uint8 (H, W, 3), an array, an `images.Picture` or a View.
      part: computes a box of the result, `(top, bottom, left, right) -> uint8 (h, w, 3)`; None
        for the source itself.
      table: in place of `part`, what becomes of the values of each channel, uint8 (256, 3).

    Attributes:
      shape, dtype, ndim, size: of the array.
    """
    dtype, ndim = np.dtype(np.uint8), 3

    def __init__(self, source, part=None, table=None):
        self._source, self._part, self._table = source, part, table
        self._whole = None
        self.shape, self.size = source.shape, source.size

    def __getitem__(self, box):
        if self._whole is not None:
            return self._whole[box]
        if self._part is None:
            return _look_up(self._table, self._source[box])
        (top, bottom, _), (left, right, _) = (
            part.indices(length) for part, length in zip(box, self.shape))
        return self._part(top, bottom, left, right)

    def __array__(self, dtype=None):
        if self._whole is None:
            if self._part is None:
                self._whole = _look_up(self._table, np.asarray(self._source))
            else:
                self._whole = self._part(0, self.shape[0], 0, self.shape[1])
        return self._whole if dtype is None else self._whole.astype(dtype)

    @functools.cached_property
    def histogram(self):
        """How often each channel has each value: int64 (256, 3)."""
        if self._table is None:
            return _histogram(np.asarray(self))
        return np.stack([np.bincount(values, counts, 256) for values, counts in zip(
            self._table.T, self._source.histogram.T)], axis=1).astype(np.int64)


def _look_up(table, pixels):
    if table is None:
        return pixels
    grey = (table[:, :1] == table).all()                      # one table for all is twice as fast
    return cv2.LUT(pixels, table[:, :1].copy() if grey else table[None])


def _histogram(pixels):
    height, width = pixels.shape[:2]
    rows = max(_COUNTED // width, 1)
    return sum(np.stack([cv2.calcHist([pixels[top:top + rows]], [channel], None, [256], [0, 256])
                         for channel in range(3)], axis=-1)[:, 0].astype(np.int64)
               for top in range(0, height, rows))


def _picture(image):
    return Image.fromarray(np.ascontiguousarray(image))       # Pillow is slow with views


def _ramp(operation):
    """Makes an operation of one on a Pillow image that changes values, wherever they are."""
    table = functools.lru_cache(maxsize=64)(lambda value: np.asarray(operation(_RAMP, value))[0])
    return lambda image, value, fill: View(image, table=table(value))


def _enhancement(enhance, reach):
    """Makes an operation of a class of ImageEnhance; a pixel depends on others within `reach`."""
    def operation(image, value, fill):
        def part(top, bottom, left, right):
            y, x = max(top - reach, 0), max(left - reach, 0)
            around = _picture(image[y:bottom + reach, x:right + reach])
            return np.asarray(enhance(around).enhance(value))[top - y:bottom - y,
                                                              left - x:right - x]
        return View(image, part)
    return operation


def _affine(coefficients):
    """Makes a bicubic affine operation; `coefficients(value, width, height)` of the inverse map.

    Pillow's rounding depends on where the output begins, hence only its end is cut.
    """
    def operation(image, value, fill):
        def part(top, bottom, left, right):
            moved = _picture(image).transform(
                (right, bottom), Image.AFFINE, coefficients(value, *image.shape[1::-1]),
                Image.BICUBIC, fillcolor=fill)
            return np.asarray(moved)[top:, left:]
        return View(image, part)
    return operation


def _rotate(image, value, fill):
    """Turns about the centre, nearest neighbour, as `PIL.Image.rotate`.

    Pillow steps through the source in 65536ths of a pixel. The same steps, begun at the corner of
    a box, meet the same pixels; those lie between where the box's corners come from.
    """
    height, width = image.shape[:2]
    angle = -math.radians(value % 360)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    rows = []
    for across, down, middle in ((cos, sin, width / 2), (-sin, cos, height / 2)):
        origin = across * (-width / 2) + down * (-height / 2) + middle
        rows.append([math.floor(_UNIT * number + 0.5) for number in (
            across, down, origin + across * 0.5 + down * 0.5)])

    def part(top, bottom, left, right):
        coefficients, box = [], []
        for (across, down, origin), length in zip(rows, (width, height)):
            origin += left * across + top * down
            corners = [origin + x * across + y * down
                       for x in (0, right - left - 1) for y in (0, bottom - top - 1)]
            first = min(max(min(corners) // _UNIT, 0), length - 1)
            box.append(slice(first, max(max(corners) // _UNIT, first) + 1))
            origin -= first * _UNIT
            coefficients += [across / _UNIT, down / _UNIT,
                             (origin - across / 2 - down / 2) / _UNIT]
        turned = _picture(image[box[1], box[0]]).transform(
            (right - left, bottom - top), Image.AFFINE, coefficients, Image.NEAREST,
            fillcolor=fill)
        return np.asarray(turned)
    return View(image, part)


def _contrast(image, value, fill):
    mean = int(ImageStat.Stat(_picture(image).convert("L")).mean[0] + 0.5)
    return View(image, table=np.asarray(
        Image.blend(Image.new("RGB", _RAMP.size, (mean,) * 3), _RAMP, value))[0])


def _auto_contrast(counts):
    """Returns the table that stretches the values of one channel to 0..255."""
    low, high = np.flatnonzero(counts)[[0, -1]]
    if low == high:
        return np.arange(256)
    scale = 255.0 / (high - low)
    return (np.arange(256) * scale - low * scale).astype(np.int64).clip(0, 255)


def _equalize(counts):
    """Returns the table that makes the values of one channel equally frequent."""
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    if not step:
        return np.arange(256)
    below = np.cumsum(counts) - counts
    return ((step // 2 + below) // step).clip(0, 255)


def _from_histogram(table):
    """Makes an operation of a function of a channel's histogram that returns its table."""
    def operation(image, value, fill):
        return View(image, table=np.stack([table(counts) for counts in image.histogram.T],
                                          axis=1).astype(np.uint8))
    return operation


# name -> (View, value, fill) -> View. Shears in pixels per pixel, translations in shares of the
# size, both bicubic; rotation in degrees counter-clockwise, nearest.
OPERATIONS = {
    "Identity": lambda image, value, fill: image,
    "ShearX": _affine(lambda value, width, height: (1, value, 0, 0, 1, 0)),
    "ShearY": _affine(lambda value, width, height: (1, 0, 0, value, 1, 0)),
    "TranslateX": _affine(lambda value, width, height: (1, 0, value * width, 0, 1, 0)),
    "TranslateY": _affine(lambda value, width, height: (1, 0, 0, 0, 1, value * height)),
    "Rotate": _rotate,
    "AutoContrast": _from_histogram(_auto_contrast),
    "Equalize": _from_histogram(_equalize),
    "Invert": _ramp(lambda image, value: ImageOps.invert(image)),
    "Solarize": _ramp(ImageOps.solarize),
    "Posterize": _ramp(ImageOps.posterize),
    "Color": _enhancement(ImageEnhance.Color, reach=0),
    "Contrast": _contrast,
    "Brightness": _ramp(lambda image, value: ImageEnhance.Brightness(image).enhance(value)),
    "Sharpness": _enhancement(ImageEnhance.Sharpness, reach=1),
}
