"""Person crops: a box of the image to the network's input, with random size, turn and mirroring.

Everything is one affine map, so that a joint and its pixel go the same way. A box is (x, y, width,
height) in pixels; its centre becomes the point (width / 2, height / 2) of the input.
"""
import math
from dataclasses import dataclass
from typing import Tuple

import cv2
import numpy as np

from gluon_resnest.data import color
from gluon_resnest.errors import UserError


def crop_matrix(box, height, width, *, margin=1.25, scale=1.0, degrees=0.0):
    """Returns the affine map from the image to the input, float64 (2, 3).

    The box is first grown on one side to the input's aspect ratio, then on all sides.

    Args:
      box: (x, y, width, height).
      height, width: of the input.
      margin: share of the grown box that is seen, as a side's length.
      scale: further factor on it.
      degrees: turn.
    """
    x, y, box_width, box_height = (float(number) for number in box)
    if not (box_width > 0 and box_height > 0):
        raise UserError(f"expected a box of positive width and height, got {tuple(box)}; leave it "
                        "out")
    seen = max(box_width, box_height * width / height) * margin * scale
    turn = math.radians(degrees)
    linear = width / seen * np.array([[math.cos(turn), math.sin(turn)],
                                      [-math.sin(turn), math.cos(turn)]])
    centre = np.array([x + box_width / 2, y + box_height / 2])
    return np.column_stack([linear, np.array([width / 2, height / 2]) - linear @ centre])


def move(joints, matrix):
    """Returns joints (..., 3) with x and y mapped by a (2, 3) matrix; the third number stays."""
    moved = np.array(joints, dtype=np.float64)
    moved[..., :2] = moved[..., :2] @ matrix[:, :2].T + matrix[:, 2]
    return moved


def inverse(matrix):
    """Returns the affine map back."""
    return cv2.invertAffineTransform(matrix)


@dataclass(frozen=True)
class PersonCrop:
    """Cuts a person out: `(image, box, joints, rng) -> (float32 (3, height, width), joints)`.

    Joints are float32 (J, 3): x, y in pixels of what they belong to, visibility. Those without
    visibility come out as zeros. Drawn from `rng` in this order: size, whether turned, turn,
    whether mirrored; all four in any case.

    Attributes:
      height, width: of the output.
      partners: for each joint the one it is seen as in a mirror.
      margin: see `crop_matrix`.
      scale: standard deviation of the random size around 1, and its largest distance from 1.
      rotation: standard deviation of the random turn in degrees, cut off at twice that.
      rotate_prob: share of the samples that are turned.
      flip: mirror half of the samples.
    """

    height: int
    width: int
    partners: Tuple[int, ...]
    margin: float = 1.25
    scale: float = 0.0
    rotation: float = 0.0
    rotate_prob: float = 0.0
    flip: bool = False

    def matrix(self, box):
        """Returns the map of a crop that nothing random changes; see `crop_matrix`."""
        return crop_matrix(box, self.height, self.width, margin=self.margin)

    def __call__(self, image, box, joints, rng):
        size, turned, turn, mirrored = (rng.normal(), rng.random(), rng.normal(), rng.random())
        matrix = crop_matrix(
            box, self.height, self.width, margin=self.margin,
            scale=1 + float(np.clip(size * self.scale, -self.scale, self.scale)),
            degrees=float(np.clip(turn, -2, 2)) * self.rotation * (turned < self.rotate_prob))
        crop = cv2.warpAffine(image, matrix, (self.width, self.height), flags=cv2.INTER_LINEAR)
        joints = move(joints, matrix)
        if self.flip and mirrored < 0.5:
            crop, joints = mirror(crop, joints, self.partners)
        joints[joints[:, 2] <= 0] = 0
        return color.apply(crop, color.normalization()), joints.astype(np.float32)


def mirror(image, joints, partners):
    """Mirrors an image (H, W, 3) left and right with its joints (J, 3); its own inverse.

    Pixel x goes to W - 1 - x, and a left joint becomes a right one.
    """
    mirrored = joints[list(partners)].copy()
    mirrored[:, 0] = image.shape[1] - 1 - mirrored[:, 0]
    return cv2.flip(image, 1), mirrored
