"""Bilinear resizing, with a sentence where MXNet's 16 bits of a side do not suffice."""
from mxnet import nd

from gluon_resnest.errors import UserError

MAX_SIDE = (1 << 15) - 1        # BilinearResize2D infers its shape in 16 bits


def resized(maps, height, width, *, align_corners=True):
    """Returns NDArray (N, C, height, width) of maps (N, C, h, w).

    Raises:
      UserError: if a side is longer than MAX_SIDE pixels.
    """
    if max(height, width) > MAX_SIDE:
        raise UserError(f"an image of {height} x {width} px is too long, expected at most "
                        f"{MAX_SIDE} px a side; cut it into parts")
    return nd.contrib.BilinearResize2D(maps, height=height, width=width,
                                       align_corners=align_corners)
