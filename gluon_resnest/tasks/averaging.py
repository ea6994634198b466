"""The mean of several checkpoints of one network."""
import itertools
import logging
from pathlib import Path

import numpy as np

from gluon_resnest import params_file
from gluon_resnest.engine import checkpoint
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.errors import UserError
from gluon_resnest.files import write_whole
from gluon_resnest.interop.weights import read_params
from gluon_resnest.run_directory import CHECKPOINTS, is_training

_log = logging.getLogger(__name__)
_STATISTICS = ("running_mean", "running_var")


def average(models):
    """Returns the mean of models, added up in float64 and rounded once.

    Running statistics are averaged too, which is not what the averaged weights would see: a
    logged sentence says so where there are some.

    Args:
      models: non-empty list of {name: numpy array}, of one network.

    Raises:
      UserError: if names or shapes differ.
    """
    first = models[0]
    for number, model in enumerate(models[1:], 2):
        wrong = sorted(set(model) ^ set(first)) or [
            name for name in first if model[name].shape != first[name].shape]
        if wrong:
            raise UserError(f"checkpoint {number} is of another network than the first: "
                            f"{wrong[0]!r} is missing in one or of another shape")
    if any(name.endswith(_STATISTICS) for name in first):
        _log.warning("running statistics of batch norms are averaged like weights; recompute them "
                     "with engine.precise_bn on training images before relying on the accuracy")
    return {name: np.mean([model[name] for model in models], axis=0, dtype=np.float64)
            .astype(array.dtype) for name, array in first.items()}


def read_models(paths, last=None):
    """Reads what is to be averaged.

    Args:
      paths: .params files and checkpoint directories; or one run directory.
      last: how many of the run directory's newest whole checkpoints; None takes all of them, and
        is all there is without a run directory.

    Returns:
      [(path, {name: numpy array})].

    Raises:
      UserError: if something cannot be read, a run directory is not alone, or there is nothing.
    """
    paths = [Path(path) for path in paths]
    if len(paths) == 1 and is_training(paths[0]):
        checkpoints = Checkpoints(paths[0] / CHECKPOINTS)
        models = [(checkpoints.path_of(found), found.model)
                  for found in itertools.islice(checkpoints.whole(), last)][::-1]
    else:
        for path in paths:
            if is_training(path):
                raise UserError(f"{path} is a run directory, which is averaged alone; give one run "
                                f"directory, or checkpoints such as {path / CHECKPOINTS}/step-...")
        if last is not None:
            raise UserError("--last belongs to a run directory; leave it out with .params files "
                            "and checkpoints")
        models = [(path, checkpoint.read(path).model if path.is_dir() else read_params(path))
                  for path in paths]
    if not models:
        raise UserError("there are no checkpoints to average; give a run directory that has some, "
                        "or .params files")
    return models


def write_model(model, path):
    """Writes {name: numpy array} as a .params file, whole or not at all.

    Raises:
      UserError: if it cannot be written.
    """
    write_whole(path, b"".join(params_file.pack(model)),
                "give a path in a directory of yours with room")
