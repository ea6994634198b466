"""The operations of augmentation policies, equal to Pillow's bit for bit.

Most of them look every value up in a table. Such a table is had by Pillow's own operation on a ramp
of 256 values, or from a histogram; and it is applied only to those pixels that somebody asks for:
to the crop, not to the whole picture. What moves pixels is Pillow's.
"""
import functools

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_RAMP = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))
_COUNTED = 2 ** 24          # pixels that OpenCV's histogram counts exactly, in float32


class View:
    """A changed image as an array, computed when, and as far as, its pixels are asked for.

    `view[top:bottom, left:right]` computes a box, `np.asarray(view)` the whole.

    Args:
      source: uint8 (H, W, 3), an array, an `images.Picture` or a View.
      change: what happens to the pixels, each by itself: an array (h, w, 3) to another; None is
        the identity.
      table: in place of `change`, what becomes of the values of each channel, uint8 (256, 3).

    Attributes:
      shape, dtype, ndim, size: of the array.
    """
    dtype, ndim = np.dtype(np.uint8), 3

    def __init__(self, source, change=None, table=None):
        self._source, self._change, self._table = source, change, table
        self.shape, self.size = source.shape, source.size

    def __getitem__(self, box):
        return self._changed(self._source[box])

    def __array__(self, dtype=None):
        whole = self._changed(np.asarray(self._source))
        return whole if dtype is None else whole.astype(dtype)

    @functools.cached_property
    def histogram(self):
        """How often each channel has each value: int64 (256, 3)."""
        if self._table is None:
            return _histogram(np.asarray(self))
        return np.stack([np.bincount(values, counts, 256) for values, counts in zip(
            self._table.T, self._source.histogram.T)], axis=1).astype(np.int64)

    def _changed(self, pixels):
        if self._table is not None:
            return cv2.LUT(pixels, self._table[None])
        return pixels if self._change is None else self._change(pixels)


def _histogram(pixels):
    height, width = pixels.shape[:2]
    rows = max(_COUNTED // width, 1)
    return sum(np.stack([cv2.calcHist([pixels[top:top + rows]], [channel], None, [256], [0, 256])
                         for channel in range(3)], axis=-1)[:, 0].astype(np.int64)
               for top in range(0, height, rows))


def _picture(image):
    return Image.fromarray(np.ascontiguousarray(image))       # a view would be slow


def _ramp(operation):
    """Makes an operation of one on a Pillow image that changes values, wherever they are."""
    return lambda image, value, fill: View(image, table=np.asarray(operation(_RAMP, value))[0])


def _moving(operation):
    """Makes an operation of one on a Pillow image that moves pixels."""
    return lambda image, value, fill: View(np.asarray(operation(_picture(image), value, fill)))


def _affine(picture, coefficients, fill):
    return picture.transform(picture.size, Image.AFFINE, coefficients, Image.BICUBIC,
                             fillcolor=fill)


def _contrast(image, value, fill):
    grey = ImageEnhance.Contrast(_picture(image)).degenerate.getpixel((0, 0))
    return View(image, table=np.asarray(
        Image.blend(Image.new("RGB", _RAMP.size, grey), _RAMP, value))[0])


def _color(image, value, fill):
    return View(image, change=lambda pixels: np.asarray(
        ImageEnhance.Color(_picture(pixels)).enhance(value)))


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
    def operation(image, value, fill):
        return View(image, table=np.stack([table(counts) for counts in image.histogram.T],
                                          axis=1).astype(np.uint8))
    return operation


# name -> (View, value, fill) -> View. Shears in pixels per pixel, translations in shares of the
# size, both bicubic; rotation in degrees counter-clockwise, nearest.
OPERATIONS = {
    "Identity": lambda image, value, fill: image,
    "ShearX": _moving(lambda image, value, fill: _affine(image, (1, value, 0, 0, 1, 0), fill)),
    "ShearY": _moving(lambda image, value, fill: _affine(image, (1, 0, 0, value, 1, 0), fill)),
    "TranslateX": _moving(lambda image, value, fill: _affine(
        image, (1, 0, value * image.width, 0, 1, 0), fill)),
    "TranslateY": _moving(lambda image, value, fill: _affine(
        image, (1, 0, 0, 0, 1, value * image.height), fill)),
    "Rotate": _moving(lambda image, value, fill: image.rotate(value, fillcolor=fill)),
    "AutoContrast": _from_histogram(_auto_contrast),
    "Equalize": _from_histogram(_equalize),
    "Invert": _ramp(lambda image, value: ImageOps.invert(image)),
    "Solarize": _ramp(ImageOps.solarize),
    "Posterize": _ramp(ImageOps.posterize),
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _ramp(lambda image, value: ImageEnhance.Brightness(image).enhance(value)),
    "Sharpness": _moving(lambda image, value, fill: ImageEnhance.Sharpness(image).enhance(value)),
}
