"""Decodes boxes of JPEG files with libturbojpeg, bit for bit as a decoder of the whole would.

Pixels outside the box are not computed, and what lies below it is not even read. The library is
optional: version 3 of it, from the system or from the wheel `turbojpeg`; without it, and for
files that it does not like, Pillow decodes (see `images`).
"""
import contextlib
import ctypes
import functools
from importlib import metadata
from typing import NamedTuple

import numpy as np

_START, _END = b"\xff\xd8", b"\xff\xd9"
_LARGEST = 2 ** 26                                            # pixels; Pillow judges larger ones

# Numbers of turbojpeg.h, version 3.
_DECOMPRESS = 1
_SUBSAMPLING, _WIDTH, _HEIGHT, _COLORSPACE = 4, 5, 6, 8
_RGB = 0
_COLORSPACES = (0, 1, 2)                                      # RGB, YCbCr, grey; not CMYK, YCCK
_BLOCK_WIDTHS = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}     # by subsampling; -1 is unknown


class Header(NamedTuple):
    """Height and width in pixels; width of the blocks at whose edges decoding can begin."""
    height: int
    width: int
    block: int


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


def read_header(data):
    """Returns the Header of a JPEG that `decode` can read, None for all else.

    A file that does not end as a JPEG does may be truncated and is left to Pillow, too.
    """
    library = _library()
    if library is None or not (data.startswith(_START) and data.endswith(_END)):
        return None
    with _decompressor(library) as handle:
        if library.tj3DecompressHeader(handle, data, len(data)) != 0:
            return None
        height, width = library.tj3Get(handle, _HEIGHT), library.tj3Get(handle, _WIDTH)
        block = _BLOCK_WIDTHS.get(library.tj3Get(handle, _SUBSAMPLING))
        usual = library.tj3Get(handle, _COLORSPACE) in _COLORSPACES
    return Header(height, width, block) if usual and block and height * width <= _LARGEST else None


def decode(data, header, box):
    """Decodes a box.

    Args:
      data: bytes of the file.
      header: what `read_header(data)` returned.
      box: (top, left, height, width) in pixels, inside the image and not empty.

    Returns:
      uint8 (height, width, 3) RGB; None if the library finds fault with the data.
    """
    top, left, height, width = box
    # Smoothly upsampled colours depend on their neighbours: a block to the left, a pixel elsewhere.
    x, y = max(left // header.block - 1, 0) * header.block, max(top - 2, 0)
    region = _Region(x, y, min(left + width + header.block, header.width) - x,
                     min(top + height + 2, header.height) - y)
    pixels = np.empty((region.h, region.w, 3), np.uint8)
    library = _library()
    with _decompressor(library) as handle:
        if (library.tj3DecompressHeader(handle, data, len(data))
                or library.tj3SetCroppingRegion(handle, region)
                or library.tj3Decompress8(handle, data, len(data), pixels.ctypes.data, 0, _RGB)):
            return None
    return pixels[top - y:top - y + height, left - x:left - x + width]


@contextlib.contextmanager
def _decompressor(library):
    handle = library.tj3Init(_DECOMPRESS)
    if not handle:
        raise MemoryError("libturbojpeg cannot get memory for a decompressor")
    try:
        yield handle
    finally:
        library.tj3Destroy(handle)


@functools.lru_cache(maxsize=None)
def _library():
    """Returns libturbojpeg with the types of its functions, None if there is no version 3."""
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
            pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
            library.tj3Init.argtypes, library.tj3Init.restype = [number], pointer
            library.tj3Destroy.argtypes, library.tj3Destroy.restype = [pointer], None
            library.tj3DecompressHeader.argtypes = [pointer, ctypes.c_char_p, size]
            library.tj3Get.argtypes = [pointer, number]
            library.tj3SetCroppingRegion.argtypes = [pointer, _Region]
            library.tj3Decompress8.argtypes = [pointer, ctypes.c_char_p, size, pointer, number,
                                               number]
            return library
        except (OSError, AttributeError):                     # not there; version 2
            continue
    return None


def _candidates():
    yield "libturbojpeg.so.0"
    try:
        files = metadata.files("turbojpeg") or ()
    except metadata.PackageNotFoundError:
        return
    yield from (str(file.locate()) for file in files if file.name.startswith("libturbojpeg"))
