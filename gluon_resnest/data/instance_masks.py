"""Masks of objects: COCO's polygons and run lengths, moved with their image, decoded if needed."""
from typing import NamedTuple, Tuple

import numpy as np
from PIL import Image

from gluon_resnest.errors import MissingExtra

_LONGEST_PX = 1 << 22           # of outlines; pycocotools keeps some 80 bytes for each pixel of one
_MAX_LETTERS = 7                # of a run length of 32 bits, five bits a letter


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
        """Returns a mask uint8 (H, W) of the image in the result.

        Each pixel is what the mask has at its centre: OpenCV's nearest is that of its corner.
        """
        top, left, height, width = self.window
        cut = np.ascontiguousarray(mask[top:top + height, left:left + width], np.uint8)
        if cut.shape != (self.height, self.width):
            cut = np.asarray(Image.fromarray(cut).resize((self.width, self.height),
                                                         Image.NEAREST))
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
      BadMask: if run lengths do not add up to their size, or it is not that of the image; if the
        outline of a polygon is longer than can be filled.
    """
    tools = coco_masks()
    if not isinstance(segmentation, (list, tuple)):
        pixels = move.mask(as_pixels(segmentation, size))
        return tools.encode(np.asfortranarray(pixels))["counts"]
    moved = [move.points(np.reshape(polygon, (-1, 2))) for polygon in segmentation]
    for points in moved:
        _check_outline(points)
    return tools.merge(tools.frPyObjects([points.ravel().tolist() for points in moved],
                                         move.height, move.width))["counts"]


def outlines(segmentation):
    """Returns the polygons that are masks, of three points or more; all but a list stays as it is.
    """
    if not isinstance(segmentation, list):
        return segmentation
    return [polygon for polygon in segmentation if not isinstance(polygon, list)
            or len(polygon) >= 6 and len(polygon) % 2 == 0]


def check_mask(segmentation, size):
    """Refuses what pycocotools would not survive: it trusts whatever it is given.

    Args:
      segmentation: of an annotation file, see `moved_mask`; may be anything that json can say. Only
        its `outlines` are for pycocotools.
      size: (height, width) of the image.

    Raises:
      BadMask: says what is wrong with it.
    """
    if isinstance(segmentation, dict):
        _runs(segmentation, size)
        return
    try:
        polygons = [np.array(polygon, np.float64) for polygon in outlines(segmentation)]
        if not polygons:
            raise BadMask("no polygon of three points or more")
        if any(numbers.ndim != 1 for numbers in polygons):
            raise ValueError("lists among the coordinates")
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise BadMask(f"neither polygons nor run lengths of COCO ({type(error).__name__}: "
                      f"{error})") from error
    for numbers in polygons:
        _check_outline(numbers.reshape(-1, 2))


def as_pixels(segmentation, size):
    """Decodes run lengths {"size", "counts"}, compressed or not: uint8 (H, W); arrays stay.

    Raises:
      BadMask: if they do not fit the size, or are none.
    """
    if not isinstance(segmentation, dict):
        return segmentation
    runs = _runs(segmentation, size)
    values = np.arange(len(runs)) % 2
    return np.repeat(values.astype(np.uint8), runs).reshape(size[1], size[0]).T


def _runs(segmentation, size):
    """Returns the run lengths of {"size", "counts"}, int64 (R,), which add up to the size."""
    try:
        height, width = (int(side) for side in segmentation["size"])
        runs = segmentation["counts"]
        if len(runs) > _MAX_LETTERS * (size[0] * size[1] + 1):
            raise ValueError("more than a run for each pixel")
        runs = np.array(runs if isinstance(runs, list) else run_lengths(runs), np.int64)
        if runs.ndim != 1:
            raise ValueError("lists among the counts")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise BadMask(f"no run lengths of COCO ({type(error).__name__}: {error})") from error
    # Each by itself, because a sum of int64 may go around to the right one.
    fits = (height, width) == tuple(size) and ((0 <= runs) & (runs <= height * width)).all()
    if not fits or runs.sum() != height * width:
        raise BadMask(f"run lengths of {sum(runs.tolist())} pixels and size {height} x {width} for "
                      f"an image of {size[0]} x {size[1]}")
    return runs


def _check_outline(points):
    """Refuses a polygon, float64 (P, 2), whose outline in pixels would not fit into memory."""
    reach = np.abs(points).max(initial=0)
    length = 0
    if reach <= _LONGEST_PX:
        length = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1, initial=0).sum()
    if not max(reach, length) <= _LONGEST_PX:
        raise BadMask(f"a polygon of more than {_LONGEST_PX} pixels in reach or outline")


def run_lengths(code):
    """Returns the numbers in COCO's compressed run lengths, bytes or str, as int64 (R,).

    Each is written in groups of five bits, the lowest first, a sixth bit for "more follows"; from
    the fourth number on, the difference to the last but one.

    Raises:
      ValueError: if it is no such code.
    """
    code = code.encode("ascii") if isinstance(code, str) else code
    letters = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    strange = np.flatnonzero((letters < 0) | (letters >= 64))
    if len(strange):
        raise ValueError(f"{chr(code[strange[0]])!r} among the letters")
    if not len(letters):
        return letters
    if letters[-1] >= 32:
        raise ValueError("it ends within a number")
    ends = np.flatnonzero(letters < 32) + 1
    starts = np.append(0, ends[:-1])
    lengths = ends - starts
    if lengths.max() > _MAX_LETTERS:
        raise ValueError(f"a number of {lengths.max()} letters")
    places = np.arange(len(letters)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((letters & 31) << 5 * places, starts)
    numbers -= np.where(letters[ends - 1] & 16, 1 << 5 * lengths, 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
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
