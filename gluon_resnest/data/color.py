"""Colour jitter, lighting noise and normalisation as one affine map of RGB.

MXNet's `RandomColorJitter`, `RandomLighting`, `ToTensor` and `Normalize` are each affine in the
pixel's (R, G, B), and on float images they do not clip. The published runs had float images here
(see docs/decisions/0013), so composing the steps first and touching the pixels once computes the
same up to float rounding.

A colour map is a (3, 4) float64 array [M | b]: pixel -> M @ pixel + b.
"""
import cv2
import numpy as np

MEAN = (0.485, 0.456, 0.406)        # ImageNet, RGB in 0..1
STD = (0.229, 0.224, 0.225)

LUMA = (0.299, 0.587, 0.114)        # contrast: grey of the mean pixel
# MXNet's saturation means to use LUMA as well, but assigns where it should add, so that only the
# blue term survives. The published weights were trained with it.
SATURATION_GREY = (0.0, 0.0, 0.114)

# Columns: eigenvectors of ImageNet's RGB covariance times their eigenvalues (AlexNet, section 4.1).
LIGHTING_BASIS = np.array([
    [55.46 * -0.5675, 4.794 * 0.7192, 1.148 * 0.4009],
    [55.46 * -0.5808, 4.794 * -0.0045, 1.148 * -0.8140],
    [55.46 * -0.5836, 4.794 * -0.6948, 1.148 * 0.4203],
])
_EYE = np.eye(3)


def brightness(factor):
    """Returns the map that multiplies every channel."""
    return _affine(factor * _EYE)


def contrast(factor, grey_mean):
    """Returns the map that moves every channel away from the image's mean grey (0..255)."""
    return _affine(factor * _EYE, (1 - factor) * grey_mean)


def saturation(factor):
    """Returns the map that moves every channel away from the pixel's own grey."""
    return _affine(factor * _EYE + (1 - factor) * np.array(SATURATION_GREY))


def lighting(alpha):
    """Returns the map that adds the three principal components weighted with `alpha`."""
    return _affine(_EYE, LIGHTING_BASIS @ np.asarray(alpha, dtype=float))


def normalization(mean=MEAN, std=STD):
    """Returns the map from 0..255 to (value / 255 - mean) / std."""
    mean, std = np.asarray(mean, dtype=float), np.asarray(std, dtype=float)
    return _affine(_EYE / (255 * std), -mean / std)


def then(first, second):
    """Returns the map that applies `first`, then `second`."""
    result = second[:, :3] @ first
    result[:, 3] += second[:, 3]
    return result


def random_jitter(rng, mean_pixel, strength):
    """Draws brightness, contrast and saturation in random order, as MXNet's RandomColorJitter.

    Args:
        rng: numpy Generator.
        mean_pixel: (3,) mean RGB of the image, 0..255; contrast needs it.
        strength: each factor is uniform in 1 - strength .. 1 + strength.

    Returns:
        Colour map of the three steps.
    """
    total = brightness(1.0)
    for step in rng.permutation(3):
        factor = 1 + rng.uniform(-strength, strength)
        if step == 0:
            change = brightness(factor)
        elif step == 1:
            grey_mean = np.dot(LUMA, total[:, :3] @ mean_pixel + total[:, 3])
            change = contrast(factor, grey_mean)
        else:
            change = saturation(factor)
        total = then(total, change)
    return total


def apply(image, color_map):
    """Maps the colours of an image and moves the channels to the front.

    Args:
        image: (H, W, 3) RGB, uint8 or float32.
        color_map: (3, 4).

    Returns:
        (3, H, W) float32, contiguous, not clipped.
    """
    height, width = image.shape[:2]
    mapped = cv2.transform(image.astype(np.float32, copy=False), color_map)
    planes = np.empty((3, height, width), dtype=np.float32)
    cv2.split(mapped, list(planes))
    return planes


def _affine(matrix, offset=0.0):
    result = np.empty((3, 4))
    result[:, :3] = matrix
    result[:, 3] = offset
    return result
