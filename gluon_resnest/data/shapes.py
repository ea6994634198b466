"""Pictures of drawn shapes with exact masks and boxes: data for tests and trials of dense tasks."""
import functools
from typing import NamedTuple

import cv2
import numpy as np

from gluon_resnest.data.instances import Annotations, DrawnPictures
from gluon_resnest.data.sampling import random_for
from gluon_resnest.errors import UserError, check_choice

KINDS = ("disc", "square", "triangle", "cross", "ring")
SPLITS = ("train", "held-out")
_TEXTURE_PX = 8     # of the background's spots
SLIVER = 0.2       # of a shape: who shows less of itself is not to be found


class Scene(NamedTuple):
    """A drawn picture.

    image: uint8 (H, W, 3).
    masks: bool (n, H, W), the visible pixels of each shape, lowest shape first; none is empty.
    boxes: float32 (n, 4), (left, top, right, bottom) of these pixels, right and bottom exclusive.
    kinds: int64 (n,), numbers in KINDS.
    shares: float64 (n,), how much of each outline is visible, 0..1; all of the last.
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    kinds: np.ndarray
    shares: np.ndarray


def draw_scene(rng, height, width, *, most=4, kinds=len(KINDS), ground=None):
    """Draws 1 to `most` shapes over one another on a spotted ground, under noise.

    A kind is told by its outline alone: colours are random, so that a network must look at shape.

    Args:
      rng: numpy Generator.
      height, width: of the picture in pixels.
      most: largest number of shapes.
      kinds: how many of KINDS are drawn, from the first.
      ground: what the shapes lie on, float64 (H, W, 3) around 0..255; None draws spots.
    """
    image = _ground(rng, height, width) if ground is None else ground.copy()
    masks, numbers, whole = [], [], []
    for _ in range(int(rng.integers(1, most + 1))):
        kind = int(rng.integers(kinds))
        mask = _outline(rng, KINDS[kind], height, width)
        color = image[mask].mean(axis=0) if mask.any() else np.zeros(3)
        image[mask] = _contrasting(rng, color)
        masks = [earlier & ~mask for earlier in masks] + [mask]
        numbers.append(kind)
        whole.append(mask.sum())
    seen = [number for number, mask in enumerate(masks) if mask.any()]
    masks = np.array([masks[number] for number in seen]).reshape(-1, height, width)
    noise = rng.normal(0, 8, image.shape)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return Scene(image, masks, np.array([_box(mask) for mask in masks],
                                        np.float32).reshape(-1, 4),
                 np.array([numbers[number] for number in seen], np.int64),
                 masks.sum(axis=(1, 2)) / [whole[number] for number in seen])


class ShapeScenes:
    """A source of scenes for `SegmentationDataset`: value 0 is ground, then the kinds.

    Picture i depends on (seed, i) only; different seeds make training and held-out sets.

    Args:
      length: number of pictures.
      size: height and width, one number or (height, width).
      classes: number of values; with fewer than 1 + len(KINDS), the last kinds are not drawn.
      seed: chooses the pictures.
    """

    def __init__(self, length, size, classes=1 + len(KINDS), seed=0):
        height, width = (size, size) if np.isscalar(size) else size
        if min(length, height, width) < 1 or classes < 2:
            raise UserError(f"expected a positive length and size and at least 2 classes, got "
                            f"{length}, {size} and {classes}")
        self._length, self._seed, self._size = length, seed, (height, width)
        self._kinds = min(classes - 1, len(KINDS))

    def __len__(self):
        return self._length

    def scene(self, index):
        """Returns the `Scene` of picture `index`."""
        return draw_scene(random_for(self._seed, 0, index, "shapes"), *self._size,
                          kinds=self._kinds)

    def read(self, index):
        scene = self.scene(index)
        values = np.zeros(self._size, np.int32)
        for mask, kind in zip(scene.masks, scene.kinds):
            values[mask] = kind + 1
        return scene.image, values

    def name(self, index):
        return f"drawn picture {index}"


class ShapeInstances(DrawnPictures):
    """A source of scenes with objects, see `instances`; the last shape is always visible.

    Picture i depends on (seed, split, i) only. Shapes of which others cover more than four fifths
    are crowds: neither learnt nor counted.

    Args:
      length: number of pictures.
      size: height and width, one number or (height, width); exchanged in odd pictures.
      classes: how many of KINDS are drawn, from the first.
      seed: chooses the pictures.
      split: "train" or "held-out", which share no picture.
      most: largest number of shapes in a picture.

    Raises:
      UserError: if a number makes no sense.
    """

    def __init__(self, length, size, classes=3, *, seed=0, split="train", most=4):
        super().__init__(length, size, KINDS[:classes])
        if min(length, *self._size, most) < 1 or not 1 <= classes <= len(KINDS):
            raise UserError(f"expected a positive length, size and number of shapes and 1 to "
                            f"{len(KINDS)} classes, got {length}, {size}, {most} and {classes}")
        check_choice("split", split, SPLITS)
        self._drawn = (seed, SPLITS.index(split), most, classes)
        self._split = split

    def name(self, index):
        return f"drawn {self._split} picture {index}"

    def scene(self, index):
        """Returns the `Scene` of picture `index`."""
        return _scene(*self._drawn, index, self.size(index))

    def read(self, index):
        return self.scene(index).image

    def objects(self, index):
        scene = self.scene(index)
        count, most = len(scene.kinds), self._drawn[2]
        return Annotations(index * most + 1 + np.arange(count), scene.boxes, scene.kinds,
                           scene.shares < SLIVER, scene.masks.sum(axis=(1, 2)).astype(np.float64),
                           list(scene.masks))


@functools.lru_cache(maxsize=2)     # image and objects are asked for one after the other
def _scene(seed, split, most, kinds, index, size):
    return draw_scene(random_for(seed, split, index, "shape instances"), *size, most=most,
                      kinds=kinds)


def _ground(rng, height, width):
    """Returns float64 (H, W, 3): smooth spots around one colour."""
    spots = rng.uniform(-25, 25, (height // _TEXTURE_PX + 2, width // _TEXTURE_PX + 2, 3))
    spots = cv2.resize(spots, (width, height), interpolation=cv2.INTER_CUBIC)
    return rng.uniform(60, 195, 3) + spots


def _contrasting(rng, color):
    """Draws a colour that differs from `color` by at least 60 in some channel."""
    while True:
        drawn = rng.uniform(20, 235, 3)
        if np.abs(drawn - color).max() >= 60:
            return drawn


def _outline(rng, kind, height, width):
    """Returns the pixels of a shape of random size, place and angle: bool (H, W)."""
    side = min(height, width)
    radius = rng.uniform(0.14, 0.3) * side
    centre = rng.uniform((0.1 * width, 0.1 * height), (0.9 * width, 0.9 * height))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width] + 0.5
    x, y = x - centre[0], y - centre[1]
    x, y = (np.cos(angle) * x + np.sin(angle) * y) / radius, \
        (np.cos(angle) * y - np.sin(angle) * x) / radius
    distance = np.hypot(x, y)
    if kind == "disc":
        return distance < 1
    if kind == "ring":
        return (distance < 1) & (distance > 0.55)
    if kind == "square":
        return np.maximum(abs(x), abs(y)) < 0.8
    if kind == "cross":
        return (np.minimum(abs(x), abs(y)) < 0.28) & (np.maximum(abs(x), abs(y)) < 1)
    return (y < 0.55) & (abs(x) * np.sqrt(3) < y + 0.9)                 # an even triangle


def _box(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
