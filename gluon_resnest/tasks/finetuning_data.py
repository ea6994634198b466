"""The images of fine-tuning: folders of class folders, and what is held out of them."""
import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

from gluon_resnest.data.classification import FolderDataset
from gluon_resnest.data.images import read_file
from gluon_resnest.data.splitting import Subset, split
from gluon_resnest.errors import UserError
from gluon_resnest.tasks.classification_data import evaluation_pipeline, training_pipeline

HELD_OUT_SHARE = 0.2            # where there is neither val/ nor test/ nor a number in the recipe

_log = logging.getLogger(__name__)


class Sets(NamedTuple):
    """Datasets, or None: to train on; to choose the best and to stop by; to judge that once."""

    training: Any
    evaluation: Any
    test: Any


def open_folders(recipe, root, class_names=None, *, evaluating=False):
    """Opens the images below a folder.

    Without val/ or test/, or if the recipe holds images out, the evaluation images are split off:
    by the seed, of each class its share, files of equal content on one side.

    Args:
      recipe: a ClassificationRecipe.
      root: folder of class folders, or one that contains train/ and val/ or test/ or both.
      class_names: of the run that is evaluated; numbers the classes, of which some may be missing.
        None numbers them by the folders.
      evaluating: val/ or test/ alone will do.

    Returns:
      `Sets`: of val/ or test/ alone, without training images; with test/ where there are others
      to evaluate.

    Raises:
      UserError: if the folders are not like that, one is none of `class_names`, or a class has too
        few images to be split.
    """
    folder, val, test = find_folders(root, evaluating=evaluating)
    transform = evaluation_pipeline(recipe)
    if folder is None:
        return _sets(None, [FolderDataset(path, transform, recipe.classes, class_names)
                            for path in (val, test) if path])
    train = FolderDataset(folder, training_pipeline(recipe), recipe.classes, class_names)
    holds_out = recipe.hold_out or not (val or test)
    given = [FolderDataset(path, transform, recipe.classes, train.class_names)
             for path in (None if holds_out else val, test) if path]
    digests = _digests(train)
    for held in given:
        common = set(digests) & set(_digests(held))
        if common:
            _log.warning("%d images are in %s and in %s: the accuracy will flatter", len(common),
                         folder, held.root)
    if not holds_out:
        return _sets(train, given)
    count = recipe.hold_out or max(1, round(HELD_OUT_SHARE * len(train)))
    kept, chosen = split(train.labels, count, recipe.seed, digests, class_names=train.class_names)
    _log.info("%s: %d of the %d images of %s are held out for evaluation%s",
              "--hold-out" if recipe.hold_out else f"{root} has no val/ or test/", len(chosen),
              len(train), folder, f", {val} is left out" if val else "")
    same = FolderDataset(folder, transform, recipe.classes, train.class_names)
    return _sets(Subset(train, kept), [Subset(same, chosen), *given])


def find_folders(root, *, evaluating):
    """Returns which folders contain the class folders of training, of val/ and of test/, or None.

    The first is None where only images to evaluate are given.

    Raises:
      UserError: if there is no folder, or one to evaluate where one to train on is expected.
    """
    if root is None:
        raise UserError("--data DIR is missing; give a folder that contains a folder of images for "
                        "each class, or train/ and val/ with such folders")
    root = Path(root)
    train, *given = (root / name if (root / name).is_dir() else None
                     for name in ("train", "val", "test"))
    if train:
        if not _class_folders(train):
            raise UserError(f"{train} has no class folders, expected a folder of training images "
                            "for each class there; add them, or give a class of the name train "
                            "another one")
        return (train, *given)
    if not any(given):
        return root, None, None
    if evaluating and all(path in given for path in _class_folders(root)):
        return (None, *given)
    raise UserError(f"{root} has {next(filter(None, given)).name}/ but no train/, expected both or "
                    "only folders of classes; name the folder of training images train/, or give "
                    "a class of that name another one")


def _class_folders(root):
    return [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _sets(train, others):
    """Returns `Sets` of one or two datasets to evaluate."""
    return Sets(train, *others, *[None] * (2 - len(others)))


def _digests(dataset):
    """Returns a checksum of each image file."""
    return [hashlib.sha256(read_file(dataset.name(index))).digest()
            for index in range(len(dataset))]
