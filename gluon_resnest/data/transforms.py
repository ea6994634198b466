"""Training and evaluation pipelines for classification, and the named evaluation protocols.

A pipeline is a picklable callable `(image, rng) -> array`: uint8 (H, W, 3) RGB of any size in, an
array or an `images.Picture`; contiguous float32 (3, size, size), normalised, out. All randomness
comes from `rng`, a `numpy.random.Generator`; evaluation pipelines ignore it.
"""
import math
from dataclasses import dataclass

import cv2
import numpy as np

from gluon_resnest.data import autoaugment, color, crops
from gluon_resnest.data.erasing import RandomErasing
from gluon_resnest.errors import UserError, check_choice

CROPS = ("auto", "gluon", "efficientnet", "pad", "whole")
SMALLEST_AREA = {"gluon": 0.08, "efficientnet": 0.1}
LARGE = 320     # crops of at least so many pixels follow EfficientNet's rules in the authors' code


def train_transform(size, *, auto_augment="none", crop="auto", scale=None, interpolation="auto",
                    flip=True, jitter=0.4, lighting=0.1, erase_prob=0.0, erase_fill="zero",
                    mean=color.MEAN, std=color.STD):
    """Builds the training pipeline of the published runs: policy, crop, flip, colour, erasing.

    Args:
        size: side of the output in pixels.
        auto_augment: "none", or a policy of `autoaugment.POLICIES`; the policy sees the whole
            decoded image.
        crop: "gluon" (MXNet's rule), "efficientnet" (TensorFlow's rule), or "auto": gluon below
            320 px, efficientnet from there on. "whole": the shorter side is resized, the centre
            taken; "pad": then shifted by up to size / 8 pixels, black coming in.
        scale: smallest share of the image's area in a crop; None is the rule's own, .08 for
            gluon and .1 for efficientnet.
        interpolation: "bilinear", "bicubic", or "auto": bicubic with "efficientnet", else bilinear.
        flip: mirrors half of the images.
        jitter: strength of brightness, contrast and saturation; 0 switches them off.
        lighting: standard deviation of the PCA noise; 0 switches it off.
        erase_prob: probability of random erasing.
        erase_fill: "zero" (the mean colour) or "pixel" (normal noise per value).
        mean, std: of the normalisation, RGB in 0..1.

    Returns:
        Pipeline `(image, rng) -> (3, size, size)`.

    Raises:
        UserError: for an unknown name or a value out of range.
    """
    _check_size(size)
    check_choice("crop", crop, CROPS)
    check_choice("auto_augment", auto_augment, ("none", *autoaugment.POLICIES))
    if crop == "auto":
        crop = "efficientnet" if size >= LARGE else "gluon"
    if interpolation == "auto":
        interpolation = "bicubic" if crop == "efficientnet" else "bilinear"
    check_choice("interpolation", interpolation, crops.INTERPOLATIONS)
    scale = SMALLEST_AREA.get(crop, 1.0) if scale is None else scale
    _check_range("scale", scale, 0, 1)
    _check_range("jitter", jitter, 0, 1)
    _check_range("lighting", lighting, 0, math.inf)

    stages = [] if auto_augment == "none" else [autoaugment.POLICIES[auto_augment]]
    if crop in ("pad", "whole"):
        stages.append(WholeImage(size, interpolation))
        stages += [PadThenCrop(size // 8)] if crop == "pad" else []
    else:
        stages.append(RandomCrop(size, crop, scale, interpolation))
    if flip:
        stages.append(random_flip)
    stages.append(RandomColor(jitter, lighting, tuple(mean), tuple(std)))
    if erase_prob:
        stages.append(RandomErasing(erase_prob, erase_fill))
    return Pipeline(tuple(stages))


def eval_transform(size, protocol="gluon", *, mean=color.MEAN, std=color.STD):
    """Builds the evaluation pipeline of a named protocol.

    "gluon": the authors' Gluon code, which gave the published numbers. Below 320 px the shorter
        side is resized to ceil(size / .875), bilinear, and the centre cropped (224 -> 256,
        256 -> 293); from 320 px the centred square of size / (size + 32) times the shorter side
        is resized, bicubic.
    "torch": the authors' PyTorch code, which crops the latter way, bicubic, at every size.
    "paper": section 5.1, shorter side to size / .875 at every size; bilinear up to 256 px and
        bicubic above (section 5.3).
    "whole": shorter side to the size itself, bilinear; images of that size stay as they are.

    Args:
        size: side of the output in pixels.
        protocol: a name of PROTOCOLS.
        mean, std: of the normalisation, RGB in 0..1.

    Returns:
        Pipeline `(image, rng=None) -> (3, size, size)`.

    Raises:
        UserError: for an unknown protocol or an impossible size.
    """
    _check_size(size)
    check_choice("protocol", protocol, PROTOCOLS)
    return Pipeline((PROTOCOLS[protocol](size), Normalize(tuple(mean), tuple(std))))


def _gluon(size):
    return CropThenResize(size) if size >= LARGE else ResizeThenCrop(size, "bilinear")


def _paper(size):
    return ResizeThenCrop(size, "bicubic" if size > 256 else "bilinear")


@dataclass(frozen=True)
class Pipeline:
    """Runs stages `(image, rng) -> image` one after the other."""
    stages: tuple

    def __call__(self, image, rng=None):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise UserError(f"expected a non-empty uint8 (H, W, 3) RGB image, got {image.dtype} "
                            f"{image.shape}; decode or convert it first")
        for stage in self.stages:
            image = stage(image, rng)
        return image


@dataclass(frozen=True)
class ResizeThenCrop:
    """Resizes the shorter side to ceil(size / .875), then takes the central square."""
    size: int
    interpolation: str

    def __call__(self, image, rng):
        short = math.ceil(self.size / 0.875)
        resized = crops.resize_short(np.asarray(image), short, self.interpolation)
        return crops.center_square(resized, self.size)


@dataclass(frozen=True)
class CropThenResize:
    """Resizes the centred square of size / (size + 32) times the shorter side, bicubic."""
    size: int

    def __call__(self, image, rng):
        box = crops.scaled_center_box(*image.shape[:2], self.size)
        return crops.resize(crops.cut(image, box), self.size, self.size, "bicubic")


@dataclass(frozen=True)
class WholeImage:
    """Resizes the shorter side to `size`, then takes the central square."""
    size: int
    interpolation: str = "bilinear"

    def __call__(self, image, rng):
        return crops.center_square(
            crops.resize_short(np.asarray(image), self.size, self.interpolation), self.size)


@dataclass(frozen=True)
class PadThenCrop:
    """Shifts by up to `padding` pixels each way; what comes in is black."""
    padding: int

    def __call__(self, image, rng):
        height, width = image.shape[:2]
        top, left = rng.integers(0, 2 * self.padding + 1, size=2)
        edge = (self.padding, self.padding)
        return np.pad(image, (edge, edge, (0, 0)))[top:top + height, left:left + width]


@dataclass(frozen=True)
class Normalize:
    """Turns uint8 (H, W, 3) into float32 (3, H, W), (value / 255 - mean) / std."""
    mean: tuple
    std: tuple

    def __call__(self, image, rng):
        return color.apply(image, color.normalization(self.mean, self.std))


@dataclass(frozen=True)
class RandomCrop:
    """Cuts a random box by the named rule and resizes it to a square.

    Bilinear resizing works on float32 and keeps its fractions, as it did in the published runs.
    """
    size: int
    rule: str
    scale: float
    interpolation: str

    def __call__(self, image, rng):
        height, width = image.shape[:2]
        if self.rule == "gluon":
            box = crops.random_area_box(rng, height, width, self.size, self.scale)
        else:
            box = crops.distorted_box(rng, height, width, self.size, self.scale)
        part = crops.cut(image, box)
        if self.interpolation == "bilinear":
            part = part.astype(np.float32)
        return crops.resize(part, self.size, self.size, self.interpolation)


def random_flip(image, rng):
    """Mirrors left and right with probability one half."""
    return cv2.flip(image, 1) if rng.random() < 0.5 else image


@dataclass(frozen=True)
class RandomColor:
    """Jitters and lights the colours and normalises: (H, W, 3) in, float32 (3, H, W) out."""
    jitter: float
    lighting: float
    mean: tuple
    std: tuple

    def __call__(self, image, rng):
        total = color.brightness(1.0)
        if self.jitter:
            mean_pixel = np.array(cv2.mean(image)[:3])
            total = color.random_jitter(rng, mean_pixel, self.jitter)
        if self.lighting:
            total = color.then(total, color.lighting(rng.normal(0, self.lighting, size=3)))
        return color.apply(image, color.then(total, color.normalization(self.mean, self.std)))


def _check_size(size):
    if size < 1:
        raise UserError(f"the crop size must be a positive number of pixels, got {size!r}")


def _check_range(what, value, low, high):
    if not low <= value <= high:
        raise UserError(f"{what} must lie in {low}..{high}, got {value!r}")


PROTOCOLS = {"gluon": _gluon, "torch": CropThenResize, "paper": _paper, "whole": WholeImage}
