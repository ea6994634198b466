"""Resizing, cropping and mirroring of images with objects, by Detectron2's and mmdetection's rules.

A transform says what becomes of an image, a `Move`; `moved` and `moved_objects` do it. Pixels are
normalised only when a batch is put together, so that four times as many images fit into the memory
shared with loader processes.
"""
from dataclasses import dataclass, replace
from typing import NamedTuple, Optional, Tuple

import cv2
import numpy as np
from PIL import Image

from gluon_resnest.data.instance_masks import BadMask, Move, RunLengthMasks, moved_mask
from gluon_resnest.errors import UserError, check_choice

RULES = ("detectron2", "mmdetection")
CHOICES = ("range", "choice")
MEAN, STD = (123.68, 116.779, 103.939), (58.393, 57.12, 57.375)     # models.detection.conventions


class DetectionObjects(NamedTuple):
    """The objects of one image in pixels of what the network sees; there may be none.

    boxes: float32 (G, 4), corners (left, top, right, bottom).
    classes: int64 (G,).
    masks: `instance_masks.RunLengthMasks` of G masks (H, W), or None.
    crowd: bool (G,).
    """

    boxes: np.ndarray
    classes: np.ndarray
    masks: Optional[object]
    crowd: np.ndarray


@dataclass(frozen=True)
class EvalTransform:
    """Resizes to a shorter side of `short_px`, or less where the longer would exceed `max_px`.

    Args:
      short_px, max_px: limits of the shorter and the longer side.
      rule: "detectron2": the limits one after the other, Pillow's anti-aliased bilinear
        interpolation; "mmdetection": both limits at once, OpenCV's without anti-aliasing.
      flip: mirror, for test-time augmentation.
      mean, std: of RGB in 0..255; used when a batch is made.
    """

    short_px: int = 800
    max_px: int = 1333
    rule: str = "detectron2"
    flip: bool = False
    mean: Tuple[float, float, float] = MEAN
    std: Tuple[float, float, float] = STD

    def __post_init__(self):
        _check(self, (self.short_px,))

    @property
    def largest_short_px(self):
        return self.short_px

    def move(self, height, width, boxes=None, rng=None):
        """Returns the Move of an image of this size; nothing else matters."""
        size = resized(height, width, self.short_px, self.max_px, self.rule)
        return Move((0, 0, height, width), *size, self.flip)

    def limited(self, max_px):
        """Returns this transform with `max_px`, if that is smaller."""
        return replace(self, max_px=min(self.max_px, max_px))


@dataclass(frozen=True)
class TrainTransform:
    """Random crop, random shorter side, random mirror; otherwise as `EvalTransform`.

    Drawn from the generator in this order: crop, shorter side, mirror.

    Args:
      short_px: shorter sides: the ends of a range, or all that can be chosen.
      sampling: "range" draws any number between the smallest and the largest, "choice" one of them.
      max_px, rule, mean, std: see `EvalTransform`.
      flip: mirror half of the images.
      crop: None, or the smallest shares of height and width that a window keeps; it contains the
        centre of one of the objects. A cut object gets the box of what is left of its mask, or of
        its box without masks.
    """

    short_px: Tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    sampling: str = "choice"
    max_px: int = 1333
    rule: str = "detectron2"
    flip: bool = True
    crop: Optional[Tuple[float, float]] = None
    mean: Tuple[float, float, float] = MEAN
    std: Tuple[float, float, float] = STD

    def __post_init__(self):
        check_choice("sampling", self.sampling, CHOICES)
        _check(self, self.short_px)
        if self.crop is not None and not all(0 < share <= 1 for share in self.crop):
            raise UserError(f"expected shares of height and width in 0..1 to crop, got {self.crop}")

    @property
    def largest_short_px(self):
        return max(self.short_px)

    def limited(self, max_px):
        """Returns this transform with `max_px`, if that is smaller."""
        return replace(self, max_px=min(self.max_px, max_px))

    def move(self, height, width, boxes, rng):
        """Draws the Move of an image of this size; `boxes()` tells where its objects are."""
        window = (0, 0, height, width)
        if self.crop is not None:
            window = random_window(rng, height, width, self.crop, boxes())
        if self.sampling == "range":
            short = int(rng.integers(min(self.short_px), max(self.short_px) + 1))
        else:
            short = self.short_px[int(rng.integers(len(self.short_px)))]
        size = resized(*window[2:], short, self.max_px, self.rule)
        return Move(window, *size, self.flip and rng.random() < 0.5)


def resized(height, width, short_px, max_px, rule="detectron2"):
    """Returns (height, width) with the shorter side `short_px`, the longer at most `max_px`."""
    if rule == "mmdetection":
        scale = min(max_px / max(height, width), short_px / min(height, width))
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    scale = short_px / min(height, width)
    sides = (short_px, scale * width) if height < width else (scale * height, short_px)
    if max(sides) > max_px:
        shrink = max_px / max(sides)
        sides = sides[0] * shrink, sides[1] * shrink
    return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))


def random_window(rng, height, width, shares, boxes):
    """Draws a window (top, left, height, width) around the centre of a drawn object.

    Its sides are uniform in shares..1 of the image's; without objects it lies anywhere.
    """
    drawn = shares + rng.random(2) * (1 - np.array(shares))
    sides = (np.array([height, width]) * drawn + 0.5).astype(np.int64)
    low, high = np.zeros(2, np.int64), np.array([height, width]) - sides
    if len(boxes):
        left, top, right, bottom = boxes[int(rng.integers(len(boxes)))]
        centre = np.clip(((top + bottom) / 2, (left + right) / 2), 0, (height, width))
        low = np.maximum(np.floor(centre).astype(np.int64) - sides, 0)
        high = np.maximum(np.minimum(high, np.ceil(centre).astype(np.int64)), low)
    top, left = (int(value) for value in rng.integers(low, high + 1))
    return top, left, int(sides[0]), int(sides[1])


def moved(image, move, rule="detectron2"):
    """Returns the image after a Move, uint8 (h, w, 3)."""
    top, left, height, width = move.window
    image = image[top:top + height, left:left + width]
    if image.shape[:2] != (move.height, move.width):
        if rule == "mmdetection":
            image = cv2.resize(image, (move.width, move.height), interpolation=cv2.INTER_LINEAR)
        else:
            image = np.asarray(Image.fromarray(image).resize((move.width, move.height),
                                                             Image.BILINEAR))
    return cv2.flip(image, 1) if move.mirrored else image


def moved_objects(annotations, size, move, masks):
    """Returns the DetectionObjects of a moved image: boxes cut off at its border, none empty.

    Args:
      annotations: Annotations.
      size: (height, width) of the image.
      move: Move.
      masks: whether they are wanted; then objects without a segmentation, or with nothing left of
        their mask, are left out.

    Raises:
      BadMask: see `instance_masks.moved_mask`; names the annotation.
    """
    boxes = move.boxes(annotations.boxes)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if masks:
        keep &= np.array([each is not None for each in annotations.segmentations], bool)
    rows = np.flatnonzero(keep)
    boxes, pixels = boxes[rows], None
    if masks:
        pixels = _moved_masks(annotations, rows, size, move)
        shown = pixels.boxes()
        visible = (shown[:, 2:] > shown[:, :2]).all(axis=1)
        cut = _cut(annotations.boxes[rows], move.window, size)
        boxes = np.where(cut[:, None], shown, boxes)[visible]
        rows, pixels = rows[visible], pixels[visible]
    return DetectionObjects(boxes, annotations.classes[rows], pixels, annotations.crowd[rows])


def _moved_masks(annotations, rows, size, move):
    codes = []
    for row in rows:
        try:
            codes.append(moved_mask(annotations.segmentations[row], size, move))
        except BadMask as error:
            raise BadMask(f"annotation {annotations.ids[row]} has a broken mask: "
                          f"{error}") from error
    return RunLengthMasks(codes, move.height, move.width)


def _cut(boxes, window, size):
    """Tells which boxes reach over the border of a window: bool (G,)."""
    top, left, height, width = window
    if (height, width) == tuple(size):
        return np.zeros(len(boxes), bool)
    over = (boxes[:, :2] < (left, top)) | (boxes[:, 2:] > (left + width, top + height))
    return over.any(axis=1)


def _check(transform, short_px):
    check_choice("rule", transform.rule, RULES)
    if not short_px or min(short_px) < 1 or max(short_px) > transform.max_px:
        raise UserError(f"expected shorter sides from 1 to the longer side's limit "
                        f"{transform.max_px}, got {short_px}")
