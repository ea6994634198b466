"""A run directory: the names of its files, what its config.json says, and whose it is."""
import contextlib
import dataclasses
import json
import operator
from pathlib import Path

from gluon_resnest import processor
from gluon_resnest.errors import UserError
from gluon_resnest.files import write_whole
from gluon_resnest.provenance import commit

CONFIG, CLASS_NAMES, CHECKPOINTS = "config.json", "classes.txt", "checkpoints"


def is_run(directory):
    """Returns whether a recipe has run there, trained or evaluated."""
    return (Path(directory) / CONFIG).is_file()


def is_training(directory):
    """Returns whether a training, not only an evaluation, has begun there; None is no directory."""
    return directory is not None and (Path(directory) / CHECKPOINTS).is_dir()


def read_config(directory):
    """Returns what config.json says: "model", "kind" (the recipe's class), "recipe",
    "circumstances" (see `note_circumstances`) and more.

    Raises:
      UserError: if it is no run directory, or the file is another program's.
    """
    file = Path(directory) / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        config = {"model": "-", "kind": "ClassificationRecipe", **config,
                  "recipe": dict(config["recipe"])}
        for name in ("model", "kind"):
            if not isinstance(config[name], str):
                raise TypeError(f"{name} is {config[name]!r}")
        # Older versions noted the first commit only.
        config["circumstances"] = [
            {**note, "step": operator.index(note["step"])} for note in config.get(
                "circumstances", [{"step": 0, "commit": config.get("commit", "unknown")}])]
        return config
    except OSError as error:
        raise UserError(f"{str(directory)!r} is no run directory, it has no readable {CONFIG} "
                        f"({error.strerror}); give the --workdir of a recipe") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{str(file)!r} is not the {CONFIG} of a recipe ({error}); give the "
                        "--workdir of a recipe, or move the file away") from error


def read_recipe(directory, recipe_class, advice, *, named=None):
    """Returns (model, recipe) of a run: the entry's name, and what it was trained with.

    Args:
      directory: path.
      recipe_class: whose recipe it must be; advice: ends the error's sentence, what to do instead.
      named: entry that the run must be of; None: any.

    Raises:
      UserError: if it is no run directory, or one of another kind or entry.
    """
    config = read_config(directory)
    model, kind = config["model"], config["kind"]
    if kind != recipe_class.__name__:
        raise UserError(f"{str(directory)!r} holds a run of a {kind}, not of a "
                        f"{recipe_class.__name__}; {advice}")
    if named not in (None, model):
        raise UserError(f"{str(directory)!r} holds a run of {model!r}, not of {named!r}; leave "
                        "--model out, or give another directory")
    return model, recipe_class.from_json(config["recipe"])


def claim(directory, recipe, *, resume):
    """Takes a directory for this process's run, if it may run there; what is there stays as it is.

    Args:
      directory: path; it is made.
      recipe: of the run.
      resume: "auto" goes on with what is there, "never" refuses it.

    Raises:
      UserError: if it cannot be written, another process trains there, or it holds a run of
        another recipe, or checkpoints of which no config.json tells.
    """
    from gluon_resnest.engine.occupied import occupy
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {directory} cannot be written: {error.strerror}; give a "
                        "directory of yours with room") from error
    occupy(directory)
    if not is_training(directory):
        return
    if not is_run(directory):
        raise UserError(f"--workdir {directory} has {CHECKPOINTS}/ but no {CONFIG} that says whose "
                        f"they are; put that run's {CONFIG} back, or give another directory")
    # A field that was added since that run began had its default value there.
    before = {**{field.name: field.default for field in dataclasses.fields(recipe)},
              **read_config(directory)["recipe"]}
    # What its numbers come from and are compared with may have been mended, and trains nothing.
    changed = [f"{name}: {before[name]!r} there, {value!r} now"
               for name, value in recipe.to_json().items()
               if before[name] != value and not name.startswith(("source", "expect_"))]
    if changed:
        raise UserError(f"--workdir {directory} holds a run of another recipe "
                        f"({'; '.join(changed)}); give another directory, or the same recipe")
    if resume == "never":
        raise UserError(f"--workdir {directory} has checkpoints and --resume is never; use "
                        "--resume auto to continue, or give another directory")


def enter(directory, recipe, *, model, data):
    """Writes config.json of a run into a directory it has claimed, unless a training goes on there.

    With another config.json go the results that were there. Of first weights that are a checkpoint
    it says in "weights_of" what `training_of` returns.

    Args:
      directory: path.
      recipe: of the run. model: its name among the recipes.
      data: {flag: value}, where the data and the first weights are; recorded only.
    """
    directory = Path(directory)
    if is_training(directory):
        return
    for result in ("result.json", "evaluation.json"):       # of what was there
        with contextlib.suppress(FileNotFoundError):
            (directory / result).unlink()
    trained = training_of(data.get("weights"))
    write_whole(directory / CONFIG, json.dumps({
        "model": model, "kind": type(recipe).__name__, "recipe": recipe.to_json(),
        "data": data, **({"weights_of": trained} if trained else {}), **_program()}, indent=1)
        + "\n")


def training_of(weights):
    """Returns what config.json says of the training whose checkpoint a file of weights is.

    Returns:
      {"model", "kind", "recipe", "data"}; None if it is no checkpoint of a run, or no path.
    """
    file = Path(weights or "")
    if len(file.parents) > 2 and file.parents[1].name == CHECKPOINTS:
        with contextlib.suppress(UserError):
            config = read_config(file.parents[2])
            return {name: config.get(name, {}) for name in ("model", "kind", "recipe", "data")}
    return None


def note_circumstances(directory, step, circumstances):
    """Notes in config.json what a run's numbers depend on beside its recipe, from a step on.

    What was noted at later steps is forgotten, as these will be done again; what is as before is
    not noted twice.

    Args:
      directory: of the run. step: updates done.
      circumstances: {name: value}, "data" being {flag: value}; program and processor are added.

    Returns:
      What differs from the note before, as phrases; [] of a new run.
    """
    config = read_config(directory)
    circumstances = {**_program(), "cpu": processor.name(), **circumstances}
    notes = [note for note in config["circumstances"] if note["step"] < step]
    before, now = _flat(notes[-1] if notes else {}), _flat(circumstances)
    changed = [f"{name}: {before[name]!r} there, {value!r} now"
               for name, value in now.items() if before.get(name, value) != value]
    if changed or not notes:
        notes.append({"step": step, **circumstances})
        write_whole(Path(directory) / CONFIG,
                    json.dumps({**config, "circumstances": notes}, indent=1) + "\n")
    return changed


def _flat(note):
    """Returns a note with the flags of "data" in place of that; older notes have none."""
    return {**{name: value for name, value in note.items() if name != "data"},
            **note.get("data", {})}


def _program():
    from gluon_resnest import __version__
    return {"version": __version__, "commit": commit()}
