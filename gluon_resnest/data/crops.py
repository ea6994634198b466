"""Where to crop and how to resize: the rules of the published training and evaluation code.

A box is (top, left, height, width) in pixels and lies inside the image. The two resize methods
are not interchangeable: "bilinear" is OpenCV's (what MXNet calls; no anti-aliasing), "bicubic" is
Pillow's (anti-aliased when shrinking).
"""
import math

import cv2
import numpy as np
from PIL import Image

from gluon_resnest.errors import check_choice

ATTEMPTS = 10
ASPECT = (3 / 4, 4 / 3)     # width / height
INTERPOLATIONS = ("bilinear", "bicubic")


def resize(image, height, width, interpolation):
    """Resizes an (H, W, 3) image, uint8 or float32, without keeping the aspect ratio.

    Args:
        image: (H, W, 3); "bicubic" takes uint8 only.
        height, width: of the result, in pixels.
        interpolation: one of INTERPOLATIONS.

    Returns:
        (height, width, 3) of the same dtype.

    Raises:
        UserError: if the interpolation is unknown.
    """
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    if image.shape[:2] == (height, width):
        return image
    if interpolation == "bilinear":
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.BICUBIC))


def cut(image, box):
    """Returns the part of `image`, an array or an `images.Picture`, inside `box`."""
    top, left, height, width = box
    return image[top:top + height, left:left + width]


def random_area_box(rng, height, width, size, scale=0.08):
    """Draws a box as MXNet's RandomResizedCrop does.

    The share of the area is uniform in scale..1, the aspect ratio log-uniform in 3/4..4/3, the
    place uniform. Ten draws that do not fit give the centred square of side `size`, or less in
    a small image.
    """
    for _ in range(ATTEMPTS):
        pixels = rng.uniform(scale, 1) * height * width
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        box_width = round(math.sqrt(pixels * aspect))
        box_height = round(math.sqrt(pixels / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return _place(rng, height, width, box_height, box_width)
    side = min(size, height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def distorted_box(rng, height, width, size, scale=0.1):
    """Draws a box by EfficientNet's rule, TensorFlow's `sample_distorted_bounding_box`.

    The aspect ratio is uniform in 3/4..4/3; the height is uniform between the heights of the
    smallest and the largest area that this ratio allows inside the image. A draw of the whole
    image and ten draws below the share `scale` give `scaled_center_box(height, width, size)`.
    TensorFlow's minimal cover of the object, here the whole image, equals `scale`: no extra test.
    """
    largest = height * width
    smallest = scale * largest
    for _ in range(ATTEMPTS):
        aspect = rng.uniform(*ASPECT)
        tallest = min(round(math.sqrt(largest / aspect)), int(width / aspect), height)
        shortest = min(round(math.sqrt(smallest / aspect)), tallest)
        box_height = round(rng.uniform(shortest, tallest))
        box_width = round(box_height * aspect)
        fits = box_width <= width and smallest <= box_width * box_height <= largest
        if fits and (box_height, box_width) == (height, width):
            break
        if fits:
            return _place(rng, height, width, box_height, box_width)
    return scaled_center_box(height, width, size)


def scaled_center_box(height, width, size):
    """Returns the centred square of side size / (size + 32) times the shorter side."""
    side = size / (size + 32) * min(height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)
    box_height = min(max(round(top + side) - top, 1), height - top)
    box_width = min(max(round(left + side) - left, 1), width - left)
    return top, left, box_height, box_width


def resize_short(image, short, interpolation):
    """Resizes so that the shorter side is `short`; the longer one is rounded down, as in MXNet."""
    height, width = image.shape[:2]
    if height > width:
        return resize(image, short * height // width, short, interpolation)
    return resize(image, short, short * width // height, interpolation)


def center_square(image, side):
    """Returns the centred (side, side) view of an image that is at least that large."""
    height, width = image.shape[:2]
    return cut(image, ((height - side) // 2, (width - side) // 2, side, side))


def _place(rng, height, width, box_height, box_width):
    left = int(rng.integers(0, width - box_width + 1))
    top = int(rng.integers(0, height - box_height + 1))
    return top, left, box_height, box_width
