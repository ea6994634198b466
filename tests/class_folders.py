"""Folders of pictures to fine-tune on, and the recipe of these tests."""
import numpy as np
from PIL import Image

from gluon_resnest.config import ClassificationRecipe

RECIPE = ClassificationRecipe(
    network="resnest_tiny", source="a test", classes=2, epochs=3, batch=8, lr=0.05,
    lr_factors="fc=10", warmup_epochs=0.0, crop_px=32, eval_px=32, auto_augment="none",
    crop_scale=0.5, jitter=0.0, lighting=0.0, dropblock=0.0, label_smoothing=0.0, mixup_alpha=0.0,
    last_gamma=False, class_weights="balanced", eval_every=1)


def write_images(root, counts, mode="RGB", seed=0):
    """Writes pictures of one brightness a class, {class: how many}, all different."""
    random = np.random.RandomState(seed)
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for image in range(count):
            shape = (40, 52) if mode == "L" else (40, 52, 3)
            pixels = random.randint(0, 60, shape) + 90 * number
            Image.fromarray(pixels.astype("uint8"), mode).save(root / name / f"{image}.png")
    return root


def write_parts(root):
    """Writes pictures in train/, val/ and test/, the last two of different sizes."""
    for seed, (part, count) in enumerate([("train", 4), ("val", 3), ("test", 2)]):
        write_images(root / part, {"bright": count, "dark": count}, seed=seed)
    return root
