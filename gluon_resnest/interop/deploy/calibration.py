"""Prepared images of the user's records or folder, for calibration and for judging the result."""
from dataclasses import dataclass
from pathlib import Path
from typing import Tuple

import numpy as np

from gluon_resnest.data.classification import FolderDataset, RecordDataset
from gluon_resnest.data.transforms import eval_transform
from gluon_resnest.errors import UserError, check_count

BATCH = 16


@dataclass(frozen=True)
class Images:
    """Batches of (images float32 (N, 3, H, W), labels int64 (N,)).

    Attributes:
      calibration: of full batches, from which ranges are taken.
      judging: other images, on which networks are compared.
    """

    calibration: Tuple
    judging: Tuple


def check_counts(calibration, judging):
    """Raises a UserError unless so many images can be asked for, see `read_images`."""
    check_count("the number of judging images", judging)
    if calibration < BATCH:
        raise UserError(f"calibration goes by batches of {BATCH} images and needs at least one, "
                        f"got {calibration!r} images; give {BATCH} or more")


def read_images(source, card, *, judging_source=None, calibration=128, judging=512, seed=0):
    """Reads images at random, prepared as the card says.

    Args:
      source: a .rec file, or a folder that contains a folder for each class.
      card: `deployed.Card`.
      judging_source: the same of other images, such as a test set; None takes them from `source`
        as well, never an image twice.
      calibration, judging: numbers of images, at least BATCH and 1; fewer where there are fewer,
        `calibration` at most half of a source that serves both, and in full batches.
      seed: of the choice.

    Raises:
      UserError: if there are too few images, or they cannot be read.
    """
    check_counts(calibration, judging)
    dataset = _open(source, card)
    order = np.random.RandomState(seed).permutation(len(dataset))
    share = len(order) if judging_source else len(order) // 2
    calibration = min(calibration, share) // BATCH * BATCH
    if not calibration:
        least = BATCH if judging_source else 2 * BATCH
        raise UserError(f"calibration needs at least {least} images, {str(source)!r} has "
                        f"{len(dataset)}; give more images of the kind the network will see")
    ranges = tuple(_batches(dataset, order[:calibration]))
    if judging_source:
        dataset, calibration = _open(judging_source, card), 0
        order = np.random.RandomState(seed).permutation(len(dataset))
    return Images(ranges, tuple(_batches(dataset, order[calibration:calibration + judging])))


def _open(source, card):
    prepare = eval_transform(card.crop_px, card.protocol, mean=card.mean, std=card.std)
    if Path(source).is_dir():
        return FolderDataset(source, prepare, card.classes,
                             list(card.class_names) if card.class_names else None)
    return RecordDataset(source, prepare, card.classes)


def _batches(dataset, indices):
    for start in range(0, len(indices), BATCH):
        pairs = [dataset[int(index), None] for index in indices[start:start + BATCH]]
        yield (np.stack([image for image, _ in pairs]),
               np.array([label for _, label in pairs], np.int64))
