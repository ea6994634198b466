"""Training pipeline of segmentation: the same scale, flip and crop for image and labels.

After GluonCV's script, whose numbers the published networks have: the longer side is uniform in
half to twice `base_px`, the padding black and ignored, half of the crops blurred.
"""
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from gluon_resnest.data import color
from gluon_resnest.data.label_maps import IGNORED


@dataclass(frozen=True)
class TrainTransform:
    """Cuts a random square out of a randomly scaled image and its labels.

    Call with an image uint8 (H, W, 3), labels int32 (H, W) and a `numpy.random.Generator`; returns
    (float32 (3, crop_px, crop_px) normalised, int32 (crop_px, crop_px)). An image smaller than the
    crop is padded at the right and at the bottom.

    Args:
      base_px: longer side at scale 1.
      crop_px: side of the result.
      scales: smallest and largest scale.
      flip: mirrors half of the images.
      blur: probability of a Gaussian blur of radius uniform in 0..1 pixel.
      mean, std: of the normalisation, RGB in 0..1.
    """

    base_px: int
    crop_px: int
    scales: tuple = (0.5, 2.0)
    flip: bool = True
    blur: float = 0.5
    mean: tuple = color.MEAN
    std: tuple = color.STD

    def __call__(self, image, labels, rng):
        if self.flip and rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        low, high = (max(1, int(self.base_px * scale)) for scale in self.scales)
        image, labels = _resized(image, labels, int(rng.integers(low, high + 1)))
        image, labels = _padded(image, labels, self.crop_px)
        top, left = (int(rng.integers(0, length - self.crop_px + 1)) for length in labels.shape)
        window = slice(top, top + self.crop_px), slice(left, left + self.crop_px)
        image, labels = image[window], labels[window]
        if rng.random() < self.blur:
            blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(rng.random()))
            image = np.asarray(blurred)
        return color.apply(image, color.normalization(self.mean, self.std)), labels


def scaled_size(height, width, longer):
    """Returns (height, width) with the longer side set, the other in proportion, rounded."""
    if height > width:
        return longer, max(1, int(width * longer / height + 0.5))
    return max(1, int(height * longer / width + 0.5)), longer


def _resized(image, labels, longer):
    """Resizes bilinearly, labels to the nearest."""
    height, width = scaled_size(*labels.shape, longer)
    image = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.BILINEAR)
    labels = Image.fromarray(np.ascontiguousarray(labels)).resize((width, height), Image.NEAREST)
    return np.asarray(image), np.asarray(labels)


def _padded(image, labels, side):
    """Appends black, ignored pixels until both sides are at least `side`."""
    margins = [(0, max(0, side - length)) for length in labels.shape]
    return (np.pad(image, [*margins, (0, 0)]),
            np.pad(labels, margins, constant_values=IGNORED))
