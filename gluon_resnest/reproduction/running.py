"""Runs the rows of a table one after another, each under the supervisor.

A row whose result is there is skipped, one that was interrupted goes on, and the weights for an
evaluation of their own are trained first, unless they are there.
"""
import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from gluon_resnest.engine.checkpoint import MODEL, Checkpoints
from gluon_resnest.engine.report import RESULT
from gluon_resnest.errors import UserError
from gluon_resnest.reproduction.page import command
from gluon_resnest.reproduction.rows import recipe_of
from gluon_resnest.zoo import backbone_name

# Exit codes of a recipe that end the whole table: refused by the user's mistake, or stopped.
FINAL = (2, 130, 143)


@dataclass(frozen=True)
class Step:
    """One process that a row needs.

    Attributes:
      row: the Row; directory: its run directory; words: recipe file and flags; done: whether its
      result is there already; trained: run directory whose best weights are evaluated, or None.
    """

    row: object
    directory: Path
    words: tuple
    done: bool
    trained: Optional[Path] = None


def steps_of(row, workdir, *, seed=None, extra=()):
    """Returns the `Step`s that make a row's number: a training, and its evaluation if apart.

    Args:
      row: Row; workdir: folder of all runs; seed: instead of the recipe's own; extra: words for
        the recipe; {backbone} becomes the zoo name of the row's backbone.

    Raises:
      UserError: if nothing that runs here makes the number.
    """
    recipe = recipe_of(row)
    if recipe is None or row.server:
        raise UserError(f"row {row.name!r} is not run: {why_not(row)}")
    ending = "" if seed in (None, recipe.seed) else f"-seed{seed}"
    extra = [word.replace("{backbone}", backbone_name(recipe.network)) for word in extra]
    shared = [str(_file(row.recipe)), "--model", row.model, *_flags(row.changes),
              *(["--seed", str(seed)] if ending else []), *extra]
    training = Path(workdir) / (row.directory + ending)
    steps = [Step(row, training, (*shared, "--workdir", str(training)), _finished(training))]
    if row.evaluation:
        own = Path(workdir) / (row.evaluated_directory + ending)
        steps.append(Step(row, own, (*shared, *_flags(row.evaluation), "--eval-only",
                                     "--workdir", str(own)), _finished(own), training))
    return steps


def why_not(row):
    """Returns why a row has nothing to run, for people; "" if it has."""
    if row.benchmark:
        return f"it is a speed, measured by: python {command(row)}"
    if row.recipe is None:
        return "it is a number in print, nothing here makes it"
    if recipe_of(row) is None:
        return f"there is no recipes/{row.recipe}.py yet"
    return f"{row.remark}: train its row on val2017, then: python {command(row)}" \
        if row.server else ""


def run(step, *, workers=1):
    """Runs a Step under the supervisor; returns its exit code."""
    return subprocess.run(process_words(step, workers)).returncode


def process_words(step, workers=1, *, dry=False):
    """Returns the words of the process of a Step.

    Args:
      dry: name weights that are still to be trained by a pattern, instead of raising.

    Raises:
      UserError: if the weights to evaluate are not there.
    """
    weights = []
    if step.trained:
        weights = ["--weights", _best(step.trained, dry)]
    return [sys.executable, "-m", "gluon_resnest.engine.supervise", "-np", str(workers), "--",
            *step.words, *weights]


def result_of(step):
    """Returns the content of a step's result.json, or None."""
    path = step.directory / RESULT
    return json.loads(path.read_text()) if path.is_file() else None


def _best(trained, dry):
    checkpoints = Checkpoints(trained / "checkpoints")
    found = checkpoints.best() or checkpoints.latest() if (trained / "checkpoints").is_dir() \
        else None
    if found is None:
        if dry:
            return str(trained / "checkpoints" / "BEST" / MODEL)
        raise UserError(f"{trained} has no checkpoint to evaluate; train its row first")
    return str(checkpoints.path(found.state.step) / MODEL)


def _finished(directory):
    return (directory / RESULT).is_file()


def _flags(changes):
    return [word for name, value in changes for word in (f"--{name.replace('_', '-')}", value)]


def _file(recipe):
    """Returns the file of a recipe, as the current folder sees it."""
    origin = Path(importlib.util.find_spec(f"gluon_resnest.recipes.{recipe}").origin)
    try:
        return origin.relative_to(Path.cwd())
    except ValueError:
        return origin
