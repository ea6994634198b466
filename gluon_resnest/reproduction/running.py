"""Runs the rows of a table one after another, each under the supervisor.

A row whose result is there is skipped, one that was interrupted goes on, and the weights for an
evaluation of their own are trained first, unless they are there.
"""
import contextlib
import importlib.util
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from gluon_resnest.engine.checkpoint import MODEL
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.report import RESULT
from gluon_resnest.errors import UserError
from gluon_resnest.reproduction.page import command
from gluon_resnest.reproduction.results import differences, file_name, needs_of, read_run
from gluon_resnest.reproduction.rows import program_of, recipe_of
from gluon_resnest.run_directory import CHECKPOINTS, is_training
from gluon_resnest.zoo import backbone_name

# Exit codes of a recipe that end the whole table: refused by the user's mistake, or stopped.
FINAL = (2, 130, 143)
POLL_SECONDS = 0.2

# Before a recipe was imported here, which sets threads for a process alone (`cli`): those of
# several workers are fewer.
ENVIRONMENT = dict(os.environ)

# Flags of data that an evaluation on test-dev has no use for, or has its own.
_OF_TRAINING = re.compile("--(root|backbone-weights|(train|val)-(annotations|images))")


@dataclass(frozen=True)
class Step:
    """One process that a row needs.

    Attributes:
      row: the Row; directory: its run directory; words: recipe file and flags; done: whether its
      result is there already; trained: run directory whose last weights are evaluated, or None.
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
      UserError: if nothing that runs here makes the number, or another experiment lies there.
    """
    recipe = recipe_of(row)
    if recipe is None or row.server:
        raise UserError(f"row {row.name!r} is not run: {why_not(row)}")
    seed = recipe.seed if seed is None else seed
    ending = "" if seed == recipe.seed else f"-seed{seed}"
    extra = [word.replace("{backbone}", backbone_name(recipe.network)) for word in extra]
    shared = [str(_file(row.recipe)), "--model", row.model, *_flags(row.changes),
              *(["--seed", str(seed)] if ending else []), *extra]
    training, alone = Path(workdir) / (row.directory + ending), replace(row, evaluation=())
    done = _finished(training, alone, seed, extra)
    if not done:
        found = _twin(workdir, alone, seed, extra)
        training, done = found or training, found is not None
    steps = [Step(row, training, (*shared, "--workdir", str(training)), done)]
    if row.evaluation:
        own = Path(workdir) / (row.evaluated_directory + ending)
        steps.append(Step(row, own, (*shared, *_flags(row.evaluation), "--eval-only",
                                     "--workdir", str(own)), _finished(own, row, seed, extra),
                          training))
    return steps


def check(step, data=""):
    """Reads the words of a Step as its recipe will, but looks into no data.

    Args:
      step: Step; data: flags that its words must have, as `Table.data_of` gives them.

    Raises:
      UserError: naming the row, if the recipe would refuse the words or data is missing; or if the
        weights to evaluate are of a finished training that has no checkpoint any more.
    """
    from gluon_resnest import cli
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):      # argparse tells usage, too
            _, run = cli.parse_words(*program_of(step.row.recipe), list(step.words[1:]))
    except (UserError, SystemExit) as error:
        reason = told.getvalue().strip().rpartition("error: ")[2] or error
        raise UserError(f"the recipe of the row {step.row.name!r} refuses its words: {reason}; "
                        "mend what follows --, or choose by --only the rows that take "
                        "it") from error
    missing = [flag for flag in re.findall("--[a-z-]+", data) if not _given(run, flag)]
    if missing and run.data != "synthetic":
        raise UserError(f"the row {step.row.name!r} also needs {', '.join(missing)}; give behind "
                        f"-- what is like {data}")
    if step.trained and (step.trained / RESULT).is_file() and not step.done:
        _last(step.trained, dry=False)


def _given(run, flag):
    """Returns whether a command line has a flag of data, or what replaces it."""
    return getattr(run, flag[2:].replace("-", "_")) or (
        flag == "--root" and getattr(run, "train_annotations", None))


def why_not(row):
    """Returns why a row has nothing to run, for people; "" if it has."""
    if row.benchmark:
        return f"it is a speed, measured by: python {command(row)}"
    if row.recipe is None:
        return "it is a number in print, nothing here makes it"
    if recipe_of(row) is None:
        return f"there is no recipes/{row.recipe}.py yet"
    return row.remark if row.server else ""


def by_hand(row, data, workdir="runs", *, extra=(), seed=None, workers=1):
    """Returns the command lines of a row that COCO's server judges: training, then evaluation.

    Args:
      row: Row; data: flags of its table, for those that `extra` does not have; workdir: folder of
        all runs; extra, seed: as in `steps_of`; workers: of Horovod.
    """
    recipe = recipe_of(_asked(row, extra))
    given = {flag: value.replace("{backbone}", backbone_name(recipe.network))
             for flag, value in {**_by_flag(data.split()), **_by_flag(extra)}.items()}
    root = Path(given["--root"])
    if "--train-annotations" in given:          # which, with its like, replaces a root
        del given["--root"]
    ending = ""
    if seed not in (None, recipe.seed):
        given["--seed"], ending = str(seed), f"-seed{seed}"
    trained = Path(workdir) / row.recipe / (row.server + ending)
    program = ["python", *_supervised(workers), f"recipes/{row.recipe}.py"]
    judged = {flag: value for flag, value in given.items() if not _OF_TRAINING.fullmatch(flag)}
    return (
        shlex.join([*program, "--model", row.server, *_words(given), "--workdir", str(trained)]),
        shlex.join([
            *program, "--model", row.model, "--eval-only", "--val-annotations",
            str(root / "annotations/image_info_test-dev2017.json"), "--val-images",
            str(root / "test2017"), *_words(judged), "--weights",
            str(Checkpoints(trained / CHECKPOINTS).path(recipe.length) / MODEL),
            "--workdir", f"{trained}-test-dev"]))


def _supervised(workers):
    """Returns the words that start several workers of a program that follows; [] for one."""
    return ["-m", "gluon_resnest.engine.supervise", "-np", str(workers), "--"] * (workers > 1)


def _by_flag(words):
    """Returns {flag: value} of the words of a command line, in order; "" has none."""
    found, flag = {}, ""
    for word in words:
        if word.startswith("--"):
            flag, _, found[flag] = word.partition("=")
        else:
            found[flag] = word
    return found


def _words(given):
    """Returns the words of a command line from {flag: value}."""
    return [word for flag, value in given.items() for word in (flag, value) if word]


def run(step, *, workers=1):
    """Runs a Step under the supervisor, which SIGINT and SIGTERM reach; returns its exit code."""
    words = process_words(step, workers)
    with _signals_held() as held:
        # In a session of its own, so that Ctrl-C comes once, from here.
        child = subprocess.Popen(words, start_new_session=True, env=ENVIRONMENT)
        passed = 0
        while True:
            for number in held[passed:]:
                child.send_signal(number)
                passed += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(POLL_SECONDS)
                return code or (128 + held[0] if held else 0)


def process_words(step, workers=1, *, dry=False):
    """Returns the words of the process of a Step.

    Args:
      dry: name weights that are still to be trained by a pattern, instead of raising.

    Raises:
      UserError: if the weights to evaluate are not there.
    """
    weights = []
    if step.trained:
        weights = ["--weights", _last(step.trained, dry)]
    return [sys.executable, "-m", "gluon_resnest.engine.supervise", "-np", str(workers), "--",
            *step.words, *weights]


def _last(trained, dry):
    """Returns the file of the newest weights, of which the training's own result tells, too.

    The best would have been chosen on the images that are now to judge them.
    """
    checkpoints = Checkpoints(trained / CHECKPOINTS)
    found = checkpoints.latest() if is_training(trained) else None
    if found is None:
        if dry:
            return str(trained / CHECKPOINTS / "LAST" / MODEL)
        raise UserError(f"{trained} has no checkpoint to evaluate; train its row first, anew if "
                        "it is finished (remove that directory), or choose other rows by --only")
    return str(checkpoints.path_of(found) / MODEL)


@contextlib.contextmanager
def _signals_held():
    """Collects SIGINT and SIGTERM in a list instead of acting on them."""
    held = []
    before = {number: signal.signal(number, lambda number, _: held.append(number))
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finished(directory, row, seed, extra):
    """Returns whether the result of a row, changed by words for its recipe, is there."""
    if not (directory / RESULT).is_file():
        return False
    run = read_run(directory)
    others = differences(run, _asked(row, extra)) + ["seed"] * (run.seed != seed)
    if others:
        raise UserError(f"{directory} has the result of another experiment than the row "
                        f"{row.name!r} asks for, with another {', '.join(others)}; give another "
                        "--workdir, or remove it")
    return True


def _twin(workdir, row, seed, extra):
    """Returns the directory of a finished run that is what a row asks for, or None.

    Entries of several names train alike, and such a run of each seed is enough.
    """
    asked = _asked(row, extra)
    for path in sorted(Path(workdir).rglob(RESULT)):
        with contextlib.suppress(UserError):        # another program's
            run = read_run(path.parent)
            if run.seed == seed and not differences(run, asked):
                return path.parent
    return None


def _asked(row, words):
    """Returns a row changed as the words of a command line ask: its recipe, data, first weights."""
    words = [part for word in words for part in (
        word.split("=", 1) if word.startswith("--") else [word])]
    given = {flag[2:].replace("-", "_"): value for flag, value in zip(words, words[1:])
             if flag.startswith("--")}
    fields = type(recipe_of(row)).__dataclass_fields__
    needs = needs_of(row)
    for flag, pattern in needs.items():
        name = file_name(None if flag in fields else given.get(flag))
        needs[flag] = pattern if re.fullmatch(pattern, name) else re.escape(name)
    return replace(row, needs=tuple(needs.items()), changes=(
        *row.changes, *((name, given[name]) for name in given if name in fields)))


def _flags(changes):
    return [word for name, value in changes for word in (f"--{name.replace('_', '-')}", value)]


def _file(recipe):
    """Returns the file of a recipe, as the current folder sees it."""
    origin = Path(importlib.util.find_spec(f"gluon_resnest.recipes.{recipe}").origin)
    try:
        return origin.relative_to(Path.cwd())
    except ValueError:
        return origin
