"""The images a classification recipe means, opened with its pipelines."""
from pathlib import Path

import numpy as np

from gluon_resnest.data.classification import FolderDataset, RecordDataset, first_difference
from gluon_resnest.data.splitting import Subset, split
from gluon_resnest.data.transforms import eval_transform, train_transform
from gluon_resnest.errors import UserError


def training_images(recipe, path, flag):
    """Opens the training images without those the recipe holds out; arguments as `open_images`."""
    dataset = open_images(path, flag, training_pipeline(recipe), recipe.classes)
    if not recipe.hold_out:
        return dataset
    return Subset(dataset, _split(dataset, recipe)[0])


def held_out_images(recipe, path, flag, training=None):
    """Opens the training images that the recipe holds out, for evaluation.

    Args:
      recipe, path, flag: as `training_images`.
      training: what that has returned; None: to be found out by reading all labels.
    """
    dataset = open_images(path, flag, evaluation_pipeline(recipe), recipe.classes)
    if training is None:
        return Subset(dataset, _split(dataset, recipe)[1])
    return Subset(dataset, np.setdiff1d(np.arange(len(dataset)), training.indices))


def _split(dataset, recipe):
    return split(dataset.labels, recipe.hold_out, recipe.seed, class_names=dataset.class_names)


def evaluation_images(recipe, path, flag, class_names=None):
    """Opens the evaluation images; arguments as `open_images`.

    Raises:
      UserError: also if a folder lacks classes and nothing says which, or a .rec file has others
        than `class_names`.
    """
    images = open_images(path, flag, evaluation_pipeline(recipe), recipe.classes, class_names)
    if isinstance(images, FolderDataset) and not class_names:
        found = len(images.class_names)
        if found < recipe.classes:
            raise UserError(f"{flag} {path} has {found} class folders and the network "
                            f"{recipe.classes} classes, so that their numbers are not known; give "
                            "the --workdir of the training, or a folder for each class")
    if isinstance(images, RecordDataset) and images.class_names and class_names:
        # A file of names does not keep the spaces around them.
        found = first_difference(images.class_names, map(str.strip, class_names))
        if found:
            number, here, there = found
            raise UserError(f"{flag} {path} numbers other classes than the training (class "
                            f"{number} is {here!r}, expected {there!r}); pack it with --classes "
                            "and the list of the training's classes")
    return images


def training_pipeline(recipe):
    """Returns the recipe's pipeline of training images; see `data.transforms`."""
    return train_transform(
        recipe.crop_px, auto_augment=recipe.auto_augment, crop=recipe.crop_rule,
        scale=recipe.crop_scale, flip=recipe.flip, jitter=recipe.jitter, lighting=recipe.lighting,
        erase_prob=recipe.erase_prob)


def evaluation_pipeline(recipe):
    """Returns the recipe's pipeline of evaluation images; see `data.transforms`."""
    return eval_transform(recipe.eval_px, recipe.eval_protocol)


def open_images(path, flag, transform, classes, class_names=None):
    """Opens class-labelled images by what `path` is.

    Args:
      path: a .rec file, or a folder of class folders.
      flag: the command line flag it came from, for the error messages.
      transform: pipeline applied to each image.
      classes: labels must be below.
      class_names: numbers the class folders of a folder, e.g. by the training set's names.

    Raises:
      UserError: if there is nothing to open, or more classes than the network has.
    """
    if not path:
        raise UserError(f"{flag} PATH is missing; give a .rec file or a folder of class folders, "
                        "or use --data synthetic")
    if not Path(path).is_dir():
        return RecordDataset(path, transform, classes=classes)
    return FolderDataset(path, transform, classes=classes, class_names=class_names)
