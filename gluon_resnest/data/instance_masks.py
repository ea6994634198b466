"""Masks of objects: COCO's polygons and run lengths, moved with their image, decoded if needed."""
from typing import NamedTuple, Tuple

import cv2
import numpy as np

from gluon_resnest.errors import MissingExtra


class BadMask(Exception):
    """What is wrong with a segmentation."""


class Move(NamedTuple):
    """What becomes of an image: a window is cut out, resized and mirrored, in this order.

    window: (top, left, height, width) in pixels of the image.
    height, width: of the result.
    mirrored: left and right are exchanged.
    """

    window: Tuple[int, int, int, int]
    height: int
    width: int
    mirrored: bool = False

    def points(self, xy):
        """Returns points float64 (..., 2), x before y, where they are in the result."""
        top, left, height, width = self.window
        scale = self.width / width, self.height / height
        moved = (np.asarray(xy, np.float64) - (left, top)) * scale
        if self.mirrored:
            moved[..., 0] = self.width - moved[..., 0]
        return moved

    def boxes(self, corners):
        """Returns boxes float32 (G, 4), corners, in the result, cut off at its border."""
        moved = self.points(np.reshape(corners, (-1, 2, 2)))
        if self.mirrored:
            moved[..., 0] = moved[:, ::-1, 0]
        limits = (self.width, self.height)
        return np.clip(moved, 0, limits).reshape(-1, 4).astype(np.float32)

    def mask(self, mask):
        """Returns a mask uint8 (H, W) of the image in the result, resized to the nearest."""
        top, left, height, width = self.window
        cut = np.ascontiguousarray(mask[top:top + height, left:left + width], np.uint8)
        if cut.shape != (self.height, self.width):
            cut = cv2.resize(cut, (self.width, self.height), interpolation=cv2.INTER_NEAREST)
        return cut[:, ::-1] if self.mirrored else cut


class RunLengthMasks:
    """Masks of one image, decoded when asked for: used like an array uint8 (G, H, W).

    `masks[number]` is uint8 (H, W) of 0 and 1; `masks[rows]`, rows being a slice or an array of
    bool or numbers, are RunLengthMasks again.

    Args:
      codes: list of G COCO's compressed run lengths, bytes.
      height, width: of all of them.
    """

    def __init__(self, codes, height, width):
        self.codes, self.height, self.width = list(codes), height, width

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, rows):
        if isinstance(rows, (int, np.integer)):
            return coco_masks().decode(self._run_lengths(rows))
        chosen = np.arange(len(self))[rows]
        return RunLengthMasks([self.codes[row] for row in chosen], self.height, self.width)

    def dense(self):
        """Returns uint8 (G, H, W)."""
        masks = [self[number] for number in range(len(self))]
        return np.array(masks, np.uint8).reshape(-1, self.height, self.width)

    def boxes(self):
        """Returns the smallest boxes around the masks, float32 (G, 4) corners; empty ones are 0."""
        if not self.codes:
            return np.zeros((0, 4), np.float32)
        boxes = coco_masks().toBbox([self._run_lengths(row) for row in range(len(self))])
        boxes[:, 2:] += boxes[:, :2]
        return boxes.astype(np.float32)

    def _run_lengths(self, row):
        return {"size": [self.height, self.width], "counts": self.codes[row]}


def moved_mask(segmentation, size, move):
    """Returns the compressed run lengths, bytes, that a mask has after a Move of its image.

    Polygons are moved and then filled; run lengths and arrays are moved as pixels.

    Args:
      segmentation: list of polygons [x, y, x, y, ...], COCO's run lengths {"size", "counts"},
        compressed or not, or an array (H, W).
      size: (height, width) of the image.
      move: Move.

    Raises:
      BadMask: if run lengths do not add up to their size, or it is not that of the image.
    """
    tools = coco_masks()
    if not isinstance(segmentation, (list, tuple)):
        pixels = move.mask(as_pixels(segmentation, size))
        return tools.encode(np.asfortranarray(pixels))["counts"]
    moved = [move.points(np.reshape(polygon, (-1, 2))).ravel() for polygon in segmentation]
    return tools.merge(tools.frPyObjects([polygon.tolist() for polygon in moved],
                                         move.height, move.width))["counts"]


def as_pixels(segmentation, size):
    """Decodes run lengths {"size", "counts"}, compressed or not: uint8 (H, W); arrays stay.

    Raises:
      BadMask: if they do not fit the size, or are none.
    """
    if not isinstance(segmentation, dict):
        return segmentation
    try:
        height, width = (int(side) for side in segmentation["size"])
        runs = segmentation["counts"]
        runs = np.array(runs if isinstance(runs, list) else run_lengths(runs), np.int64)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadMask(f"no run lengths of COCO ({type(error).__name__}: {error})") from error
    if (height, width) != tuple(size) or runs.sum() != height * width or (runs < 0).any():
        raise BadMask(f"run lengths of {runs.sum()} pixels and size {height} x {width} for an "
                      f"image of {size[0]} x {size[1]}")
    values = np.arange(len(runs)) % 2
    return np.repeat(values.astype(np.uint8), runs).reshape(width, height).T


def run_lengths(code):
    """Returns the numbers in COCO's compressed run lengths, bytes or str, as a list.

    Each is written in groups of five bits, the lowest first, a sixth bit for "more follows"; from
    the fourth number on, the difference to the last but one.
    """
    code = code.encode("ascii") if isinstance(code, str) else code
    numbers, value, shift = [], 0, 0
    for letter in code:
        bits = letter - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{chr(letter)!r} among the letters")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("it ends within a number")
    return numbers


def coco_masks():
    """Returns the module pycocotools.mask.

    Raises:
      MissingExtra: if it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise MissingExtra("pycocotools", "coco") from None
    return mask
