"""Drawn shapes before sky, water and ground: things and stuff with exact segments.

Kinds of stuff are told by their texture: sky is smooth, water has waves, ground is speckled;
colours are random but for a tendency.
"""
import functools

import cv2
import numpy as np

from gluon_resnest.data.coco_panoptic import labels_of
from gluon_resnest.data.panoptic import described
from gluon_resnest.data.sampling import random_for
from gluon_resnest.data.shapes import SLIVER, ShapeInstances, draw_scene

STUFF = ("sky", "water", "ground")
_SKY, _WATER, _GROUND = range(len(STUFF))
_BELOW_THE_HORIZON = ((_WATER, _GROUND), (_GROUND, _WATER), (_GROUND,), (_WATER,))
_CLOUD_PX, _WAVE_PX, _SPECKLE_PX = 24, 7, 3


class ShapeLandscapes(ShapeInstances):
    """A source of pictures with objects and stuff; see `instances` and `CocoPanoptic`.

    Args and errors: as of `ShapeInstances`.
    """

    stuff_names = STUFF

    def __init__(self, length, size, classes=3, *, seed=0, split="train", most=4):
        super().__init__(length, size, classes, seed=seed, split=split, most=most)
        self.stuff_ids = len(self.class_names) + 1 + np.arange(len(STUFF))

    def scene(self, index):
        """Returns the `Scene` of picture `index`."""
        return self._landscape(index)[0]

    def panoptic(self, index):
        """Returns what is true of a picture, `panoptic.Panoptic`: stuff, then the shapes."""
        scene, stuff = self._landscape(index)
        ids = 1 + stuff.astype(np.int32)
        categories = {1 + place: number for place, number in enumerate(self.stuff_ids)}
        for number, (mask, kind) in enumerate(zip(scene.masks, scene.kinds), 1 + len(STUFF)):
            ids[mask] = number
            categories[number] = self.category_ids[kind]
        crowd = {1 + len(STUFF) + int(place)
                 for place in np.flatnonzero(scene.shares < SLIVER)}
        return described(ids, categories, crowd)

    def labels(self, index):
        """Returns the class of every pixel, uint8 (H, W); see `coco_panoptic.labels_of`."""
        return labels_of(self.panoptic(index), {number: 1 + place for place, number
                                                in enumerate(self.stuff_ids.tolist())})

    def _landscape(self, index):
        return _landscape(*self._drawn, index, self.size(index))


@functools.lru_cache(maxsize=2)     # its parts are asked for one after the other
def _landscape(seed, split, most, kinds, index, size):
    rng = random_for(seed, split, index, "shape landscapes")
    stuff, ground = draw_ground(rng, *size)
    return draw_scene(rng, *size, most=most, kinds=kinds, ground=ground), stuff


def draw_ground(rng, height, width):
    """Draws sky above a wavy horizon, and water, ground or both below it.

    Returns:
      int64 (H, W), numbers in STUFF, and float64 (H, W, 3), the picture.
    """
    layers = (_SKY, *_BELOW_THE_HORIZON[int(rng.integers(len(_BELOW_THE_HORIZON)))])
    stuff = np.full((height, width), _SKY)
    top = rng.uniform(0.25, 0.5)
    for number, layer in enumerate(layers[1:]):
        border = height * (top + number * rng.uniform(0.2, 0.35)) + _wavy(rng, height, width)
        stuff[np.arange(height)[:, None] >= border] = layer
    picture = np.zeros((height, width, 3))
    for layer in layers:
        picture[stuff == layer] = _texture(rng, layer, height, width)[stuff == layer]
    return stuff, picture


def _wavy(rng, height, width):
    """Returns how far a border is from its mean height in each column, in pixels."""
    x = np.arange(width) / width * 2 * np.pi
    return sum(rng.uniform(0, 0.05) * height * np.sin(rng.uniform(0.5, 3) * x + rng.uniform(0, 7))
               for _ in range(2))


def _texture(rng, layer, height, width):
    """Returns the pixels of a layer that fills the picture, float64 (H, W, 3)."""
    color = rng.uniform(70, 170, 3)
    if layer == _SKY:
        color[2] += 60
        return color + _spots(rng, height, width, _CLOUD_PX, 30)
    if layer == _WATER:
        color[:2] -= 40
        rows = np.arange(height)[:, None] + 2 * np.sin(np.arange(width) / 9)
        waves = np.sin(2 * np.pi * rows / _WAVE_PX + rng.uniform(0, 7))
        return color + 28 * waves[..., None]
    color[0] += 40
    return color + _spots(rng, height, width, _SPECKLE_PX, 45)


def _spots(rng, height, width, side, contrast):
    """Returns grey spots of some pixels' size around 0, float64 (H, W, 1)."""
    spots = rng.uniform(-contrast, contrast, (height // side + 2, width // side + 2))
    return cv2.resize(spots, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
