"""The input pipeline written out plainly: everything on whole images, one step after the other.

Twin of what data/images.py, operations.py and color.py compute faster; it draws from the same
generator in the same order.
"""
import io
import math

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from gluon_resnest.data import color, crops


def affine(image, fill, *coefficients):
    return image.transform(image.size, Image.AFFINE, coefficients, Image.BICUBIC, fillcolor=fill)


PILLOW = {
    "Identity": lambda image, value, fill: image,
    "ShearX": lambda image, value, fill: affine(image, fill, 1, value, 0, 0, 1, 0),
    "ShearY": lambda image, value, fill: affine(image, fill, 1, 0, 0, value, 1, 0),
    "TranslateX": lambda image, value, fill: affine(
        image, fill, 1, 0, value * image.width, 0, 1, 0),
    "TranslateY": lambda image, value, fill: affine(
        image, fill, 1, 0, 0, 0, 1, value * image.height),
    "Rotate": lambda image, value, fill: image.rotate(value, fillcolor=fill),
    "AutoContrast": lambda image, value, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, value, fill: ImageOps.equalize(image),
    "Invert": lambda image, value, fill: ImageOps.invert(image),
    "Solarize": lambda image, value, fill: ImageOps.solarize(image, value),
    "Posterize": lambda image, value, fill: ImageOps.posterize(image, value),
    "Color": lambda image, value, fill: ImageEnhance.Color(image).enhance(value),
    "Contrast": lambda image, value, fill: ImageEnhance.Contrast(image).enhance(value),
    "Brightness": lambda image, value, fill: ImageEnhance.Brightness(image).enhance(value),
    "Sharpness": lambda image, value, fill: ImageEnhance.Sharpness(image).enhance(value),
}


def decode(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def train(data, rng, size, policy=None, interpolation="bilinear"):
    """Returns what train_transform(size) makes of a file: float64 (3, size, size)."""
    image = decode(data)
    if policy:
        for step in policy.table[rng.integers(len(policy.table))]:
            if rng.random() < step.probability:
                value = step.span.draw(step.strength, rng) if step.span else None
                image = PILLOW[step.name](image, value, policy.fill)
    top, left, height, width = crops.random_area_box(rng, image.height, image.width, size)
    image = image.crop((left, top, left + width, top + height))
    if interpolation == "bicubic":
        image = np.asarray(image.resize((size, size), Image.BICUBIC), np.float64)
    else:
        image = cv2.resize(np.asarray(image, np.float32), (size, size)).astype(np.float64)
    if rng.random() < 0.5:
        image = image[:, ::-1]
    for step in rng.permutation(3):
        factor = 1 + rng.uniform(-0.4, 0.4)
        if step == 0:
            image = factor * image
        elif step == 1:
            image = factor * image + (1 - factor) * (image @ color.LUMA).mean()
        else:
            image = factor * image + (1 - factor) * (image @ color.SATURATION_GREY)[:, :, None]
    image = image + color.LIGHTING_BASIS @ rng.normal(0, 0.1, size=3)
    return _normalized(image)


def evaluate(data, size):
    """Returns what eval_transform(size), below 320 px, makes of a file."""
    image, short = np.asarray(decode(data)), math.ceil(size / 0.875)
    height, width = image.shape[:2]
    image = cv2.resize(image, (short * width // min(height, width),
                               short * height // min(height, width)))
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return _normalized(image[top:top + size, left:left + size])


def _normalized(image):
    return ((image / 255 - color.MEAN) / color.STD).transpose(2, 0, 1)
