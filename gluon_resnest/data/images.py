"""Decodes image files to RGB arrays, strictly.

Pillow decodes, and decides what is a sound file: measured 1.5 times as fast as OpenCV's wheel on
photographs (docs/data.md), equal to it bit for bit on RGB JPEGs; and it refuses truncated files,
which OpenCV completes with grey. Where libturbojpeg is at hand, a `Picture` has it compute the
same pixels, only where they are needed.
"""
import io
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from gluon_resnest.data import jpeg
from gluon_resnest.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

# Of Pillow's formats those of pictures; others start programs (EPS) or break in many ways. JPEG
# includes the MPO of cameras.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")

_BIT_DEPTH = 24         # place of that byte in a PNG, whose header is always the first chunk

# What Pillow raises at damaged files, on purpose or not.
_FAULTS = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError,
           NotImplementedError, struct.error, Image.DecompressionBombError)


class BadImage(Exception):
    """What is wrong with the bytes of an image."""


class Kind(NamedTuple):
    """What an image file says of itself: format such as "JPEG", Pillow's mode such as "RGB"."""
    format: str
    mode: str


class Picture:
    """An encoded image as an array that is decoded when, and as far as, its pixels are asked for.

    `picture[top:bottom, left:right]` decodes a box, `np.asarray(picture)` the whole; both raise
    BadImage as `decode` does. The pixels equal those of `decode`, which is also what reads
    everything but intact JPEGs, and all where there is no libturbojpeg.

    Args:
      data: bytes of the file.

    Attributes:
      shape, dtype, ndim, size: of the uint8 (H, W, 3) RGB array.

    Raises:
      BadImage: if it is no image, damaged or truncated; of a JPEG the header is judged here.
    """
    dtype, ndim = np.dtype(np.uint8), 3

    def __init__(self, data):
        self._data = data
        self._header = jpeg.read_header(data)
        self._pixels = None if self._header else decode(data)
        height, width = self._header[:2] if self._header else self._pixels.shape[:2]
        self.shape, self.size = (height, width, 3), height * width * 3

    def __getitem__(self, box):
        rows, columns = (range(*part.indices(length)) for part, length in zip(box, self.shape))
        return self._box(rows.start, columns.start, len(rows), len(columns))

    def __array__(self, dtype=None):
        if self._pixels is None:
            self._pixels = self._box(0, 0, *self.shape[:2])
        return self._pixels if dtype is None else self._pixels.astype(dtype)

    def _box(self, top, left, height, width):
        if self._pixels is None:
            pixels = jpeg.decode(self._data, self._header, (top, left, height, width))
            if pixels is not None:
                return pixels
            self._pixels = decode(self._data)                 # Pillow has the last word
        return self._pixels[top:top + height, left:left + width]


def kind(data):
    """Returns the Kind of an encoded image without decoding its pixels.

    Raises:
      BadImage: if `data` is no image.
    """
    with _opened(data) as image:
        # An MPO of a camera is a JPEG with others behind it, which no decoder looks at.
        return Kind("JPEG" if image.format == "MPO" else image.format, image.mode)


def decode(data):
    """Decodes an image file.

    Greyscale is repeated in three channels, palettes are resolved, transparency is dropped, CMYK
    is converted, and of 16 bits the upper eight are kept. The EXIF orientation is ignored, as
    MXNet does.

    Args:
      data: bytes of a file of one of FORMATS.

    Returns:
      uint8 (H, W, 3), RGB.

    Raises:
      BadImage: if it is no image, damaged or truncated.
    """
    with _opened(data) as image:
        try:
            if image.mode.startswith("I"):                    # convert() would clip, not scale
                grey = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
        except _FAULTS as error:
            raise BadImage(f"damaged image: {error}") from error


def decode_labels(data):
    """Decodes an image whose pixels are numbers, not colours.

    Args:
      data: bytes of a PNG of one channel, 1 to 16 bits; of a palette image the indices count. Other
        formats are read as Pillow does, which scales what has fewer than eight bits.

    Returns:
      uint8 or int32 (H, W).

    Raises:
      BadImage: if it is no image, damaged, truncated or of several channels.
    """
    with _opened(data) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16L", "I;16B"):
            raise BadImage(f"expected one number a pixel, got a picture of mode {image.mode}")
        try:
            values = np.array(image)
        except _FAULTS as error:
            raise BadImage(f"damaged image: {error}") from error
        bits = data[_BIT_DEPTH] if (image.format, image.mode) == ("PNG", "L") else 8
    if bits < 8:
        values //= 255 // (2 ** bits - 1)                     # Pillow scales them to 0..255
    return values.astype(np.uint8 if values.dtype.kind == "b" or values.itemsize == 1
                         else np.int32, copy=False)


def read_file(path):
    """Returns the bytes of a file.

    Raises:
      UserError: if it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path and the list or "
                        f"folder it comes from") from error


def load(path):
    """Reads and decodes an image file: uint8 (H, W, 3), RGB; see `decode`.

    Raises:
      UserError: if it cannot be read or decoded.
    """
    try:
        return decode(read_file(path))
    except BadImage as error:
        raise UserError(f"{path}: {error}; replace or remove it") from error


def _opened(data):
    # GluonCV has Pillow complete truncated files. It is not put back: other threads decode, too.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise BadImage(f"{len(data)} bytes that are no image of a known format "
                       f"({', '.join(FORMATS)})") from error
    except _FAULTS as error:
        raise BadImage(f"damaged image: {error}") from error
