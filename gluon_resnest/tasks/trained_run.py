"""Opens what a finished run has trained."""
from pathlib import Path

import mxnet as mx

from gluon_resnest import zoo
from gluon_resnest.config import (
    ClassificationRecipe, DetectionRecipe, PanopticRecipe, PoseRecipe, SegmentationRecipe)
from gluon_resnest.data.classification import first_difference, read_class_names
from gluon_resnest.engine import checkpoint
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.errors import UserError
from gluon_resnest.interop.deployed import Card
from gluon_resnest.models.resnest import initialize
from gluon_resnest.run_directory import (
    CHECKPOINTS, CLASS_NAMES, is_training, read_config, read_recipe)
from gluon_resnest.tasks.detector import build_detector, build_panoptic

_EXPORT = ("export it with tools/export_model.py, which takes the runs of all recipes of this "
           "version, and give tools/predict.py what it has written")


def open_run(directory, *, ctx=None):
    """Builds the network of a run directory with the values of its best checkpoint.

    A run that was never evaluated has no best checkpoint; its newest is taken.

    Args:
      directory: run directory of a classification recipe.
      ctx: Context of the parameters; the CPU by default.

    Returns:
      (net, recipe).

    Raises:
      UserError: if it is no run directory, one of another kind of recipe, or has no whole
        checkpoint.
    """
    recipe = recipe_of(directory, ClassificationRecipe)
    net = zoo.get_model(recipe.network, classes=recipe.classes)
    return _filled(net, directory, ctx), recipe


def open_classifier(directory, *, ctx=None):
    """Builds the network of a classification run and the card that says how to feed it.

    Args and errors: as `open_run`.

    Returns:
      (net, `interop.deployed.Card`).
    """
    net, recipe = open_run(directory, ctx=ctx)
    names = class_names(directory)
    return net, Card(recipe.network, recipe.classes, recipe.eval_px, recipe.eval_protocol,
                     class_names=names and tuple(names))


def open_pose_run(directory, *, ctx=None):
    """Builds the network of a run directory of a pose recipe; as `open_run`."""
    recipe = recipe_of(directory, PoseRecipe)
    return _filled(zoo.pose_model(recipe.network), directory, ctx), recipe


def open_segmentation_run(directory, *, ctx=None):
    """Builds the network of a run directory of a segmentation recipe; as `open_run`."""
    recipe = recipe_of(directory, SegmentationRecipe)
    net = zoo.segmentation_model(
        recipe.network, recipe.classes, output_stride=recipe.output_stride,
        head_channels=recipe.head_channels, head_dropout=recipe.head_dropout)
    return _filled(net, directory, ctx), recipe


def open_detection_run(directory, *, class_names=None, ctx=None):
    """Builds the network of a run directory of a detection recipe; as `open_run`.

    Args:
      class_names: of its classes; None numbers them.
    """
    recipe = recipe_of(directory, DetectionRecipe)
    return _filled(build_detector(recipe, class_names=class_names), directory, ctx), recipe


def open_panoptic_run(directory, *, ctx=None):
    """Builds the network of a run directory of a panoptic recipe; as `open_run`.

    It has the names of things and stuff that the run has written, if any.
    """
    recipe = recipe_of(directory, PanopticRecipe)
    names = tuple(class_names(directory) or ())
    net = build_panoptic(recipe, class_names=names[:recipe.classes],
                         stuff_names=names[recipe.classes:])
    return _filled(net, directory, ctx), recipe


def class_names(directory, distinct=True):
    """Returns the class names that a training has left in its run directory, or None."""
    file = directory and Path(directory) / CLASS_NAMES
    return read_class_names(file, distinct) if file and file.is_file() else None


def check_classes(workdir, names):
    """Refuses to go on with a run of other classes.

    Args:
      workdir: of the run; None or without a training: nothing to compare with.
      names: of the classes now; None: not known.
    """
    before = class_names(workdir, distinct=False) if is_training(workdir) else None
    if not before or not names:
        return
    # A file of names does not keep the spaces around them.
    found = first_difference(before, map(str.strip, names))
    if found:
        number, there, here = found
        raise UserError(f"--workdir {workdir} holds a run of other classes (class {number}: "
                        f"{there!r} there, {here!r} now); give another directory, or the images of "
                        "that run")


def kind_of_run(directory):
    """Returns the name of the recipe class of a run directory, such as "PoseRecipe".

    Raises:
      UserError: if it is no run directory.
    """
    return read_config(directory)["kind"]


def recipe_of(directory, recipe_class, advice=_EXPORT):
    """Returns the recipe of a run directory, of this class; see `run_directory.read_recipe`."""
    return read_recipe(directory, recipe_class, advice)[1]


def load_backbone(backbone, source, *, network, ctx=None):
    """Starts a backbone from a trained classifier.

    Args:
      backbone: `FeatureExtractor`, or a Block with other children of a classifier.
      source: run directory of a classification recipe, whose best checkpoint is taken; path or
        URL of a parameter file; or a zoo name, whose published weights are taken.
      network: name of the network that the backbone is part of. A run or a zoo name of another
        variant is refused; a file does not say what it is of.
      ctx: Context of the parameters; the CPU by default.

    Raises:
      UserError: if it is not to be had or does not fit; nothing is changed then.
    """
    if Path(source).is_dir():
        _check_variant(source, _classifier_of(Path(source)), network)
        _, path = _best(source)
        source = path / checkpoint.MODEL
    elif zoo.is_named(str(source)):
        _check_variant(source, str(source), network)
    zoo.load_backbone_weights(backbone, str(source), ctx=ctx)


def _classifier_of(directory):
    """Returns the name of the network that a classification run has trained."""
    return recipe_of(directory, ClassificationRecipe,
                     "a backbone starts from the run of a classification recipe, or from a .params "
                     "file").network.lower()


def _check_variant(source, found, network):
    """Refuses a classifier of another variant than the backbone of `network`.

    Names that are not of our table, such as GluonCV's, cannot be compared.
    """
    wanted = zoo.backbone_name(network)
    if zoo.is_named(found) and zoo.is_named(wanted) and not zoo.is_same_network(found, wanted):
        place = wanted if wanted == network else f"{wanted}, the backbone of {network}"
        raise UserError(f"{str(source)!r} has weights of {found}, expected those of {place}: equal "
                        "parameters compute something else in another variant; give a run or a "
                        f".params file of {wanted}")


def _filled(net, directory, ctx):
    """Returns `net` with the values of the best checkpoint."""
    found, path = _best(directory)
    initialize(net, ctx=ctx or mx.cpu())
    checkpoint.load(net, found.model, source=path)
    return net


def _best(directory):
    """Returns the best Checkpoint of a run directory, else the newest, and its path."""
    checkpoints = Checkpoints(Path(directory) / CHECKPOINTS)
    found = checkpoints.best() or checkpoints.latest()
    if found is None:
        raise UserError(f"{str(directory)!r} has no whole checkpoint yet; let the run reach the "
                        "end of an epoch")
    return found, checkpoints.path_of(found)
