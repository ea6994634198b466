"""Finished runs, the rows they belong to, and what several seeds of a row say.

A run belongs to a row if its config.json holds the recipe that the row asks for, whatever the seed
and the name of the entry, and data and first weights that the row needs. An evaluation's weights
are a checkpoint of a training that belongs to the row, too.
"""
import json
import re
import shutil
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from gluon_resnest.engine.report import CURVES, RESULT, verdict
from gluon_resnest.errors import UserError
from gluon_resnest.reproduction.rows import essence, recipe_of
from gluon_resnest.run_directory import CONFIG, training_of


@dataclass(frozen=True)
class Run:
    """A finished run: where it lies, and the content of config.json and result.json."""

    directory: Path
    config: dict
    result: dict

    @property
    def seed(self):
        """The seed of the run."""
        return self.config["recipe"]["seed"]

    @property
    def commits(self):
        """The commits it was trained by, the first one first; notes of older runs lack some."""
        notes = self.config.get("circumstances", [self.config])
        commits = [note.get("commit") for note in (*notes, self.result)]
        return list(dict.fromkeys(filter(None, commits)))


@dataclass(frozen=True)
class Outcome:
    """What the runs of a row say about one metric.

    Attributes:
      mean: over the runs; spread: standard deviation of a run, None of a single one.
      runs: how many.
    """

    mean: float
    spread: float
    runs: int


def read_run(directory):
    """Returns the `Run` of a run directory.

    Raises:
      UserError: if it is not that of a finished run.
    """
    directory = Path(directory)
    try:
        config, result = (json.loads((directory / name).read_text()) for name in (CONFIG, RESULT))
        config["kind"], config["recipe"]["seed"]
        config["data"].items(), result["measured"].items()
    except OSError as error:
        raise UserError(f"{directory} is not the directory of a finished run: "
                        f"{Path(error.filename).name}: {error.strerror}; finish the run, or leave "
                        "it out") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{directory} has a {CONFIG} or {RESULT} of another program "
                        f"({error}); leave it out") from error
    return Run(directory, config, result)


def read_runs(root):
    """Returns the `Run` of every result.json below a folder, in the order of their paths."""
    return [read_run(path.parent) for path in sorted(Path(root).rglob(RESULT))]


def differences(run, row):
    """Returns the names of what makes a run another experiment than a row asks for.

    Returns:
      [] if it belongs to the row; ["recipe"] if the row has none.
    """
    recipe = recipe_of(row)
    if recipe is None or run.config["kind"] != type(recipe).__name__:
        return ["recipe"]
    wanted = essence(recipe.to_json())
    # A field that was added since that run began had its default value there.
    defaults = essence({name: field.default
                        for name, field in type(recipe).__dataclass_fields__.items()})
    has = {**defaults, **essence(run.config["recipe"])}
    names = [name for name in {**wanted, **has} if wanted.get(name) != has.get(name)]
    data, named = run.config["data"], dict(row.needs)
    names += [flag for flag, pattern in needs_of(row).items()
              if (flag in data or flag in named)
              and not re.fullmatch(pattern, file_name(data.get(flag)))]
    if row.evaluation and not set(_differences_of_weights(run, row)) <= set(names):
        names.append("weights")
    return names


def _differences_of_weights(run, row):
    """Returns `differences` of the training that gave the weights of an evaluation."""
    # Older versions noted their path only, which leads nowhere on another machine.
    trained = run.config.get("weights_of") or training_of(run.config["data"].get("weights"))
    if trained is None:
        return ["weights"]
    return differences(Run(run.directory, trained, {}), replace(row, evaluation=()))


def needs_of(row):
    """Returns {flag: regular expression of the last part of its path}: what a row starts from.

    Where the row does not say: no drawn images, no boxes that a detector found, and for a training
    no weights but a backbone's.
    """
    start = {} if row.evaluation else {"weights": "", "backbone_weights": ".+"}
    return {"data": "(?!synthetic$).*", "detections": "", **start, **dict(row.needs)}


def file_name(path):
    """Returns the last part of a path or URL; "" for None."""
    return (path or "").rstrip("/").rpartition("/")[2]


def runs_of(row, runs):
    """Returns those of the runs that belong to a row, one for each seed, the first found."""
    found = {}
    for run in runs:
        if row.recipe and not row.server and not differences(run, row):
            found.setdefault(run.seed, run)
    return [found[seed] for seed in sorted(found)]


def outcome(runs, metric):
    """Returns the `Outcome` of a metric, or None if a run has no such number."""
    values = [run.result["measured"].get(metric, run.result.get(metric)) for run in runs]
    if not values or any(value is None for value in values):
        return None
    return Outcome(statistics.fmean(values),
                   statistics.stdev(values) if len(values) > 1 else None, len(values))


def metrics_of(row, run):
    """Returns the names of the metrics to tell of a row's run: the printed ones, else its own."""
    if row.expected:
        return [metric for metric, _ in row.expected]
    # Where early stopping chose the best evaluation, the last one is the honest one.
    return ["last_top1" if "last_top1" in run.result["measured"] else run.result["metric"]]


def judge(row, runs):
    """Returns "reached", "missed" or "no target" of the first metric, or None without runs."""
    if not runs or not row.expected:
        return None
    metric, expected = row.expected[0]
    measured = outcome(runs, metric)
    return measured and verdict(measured.mean, expected, recipe_of(row).tolerance)


def _without_paths(value):
    """Returns JSON's value with file names in place of paths, wherever "data" stands in it."""
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: _file_names(item) if name == "data" else _without_paths(item)
            for name, item in value.items()}


def _file_names(flags):
    return {flag: file_name(word) if isinstance(word, str) else word
            for flag, word in flags.items()}


def place(directory, tables, root):
    """Returns (`Run`, folder): what `keep` will copy, and where to.

    Raises:
      UserError: if the run is not finished or belongs to no row, or another result of its row and
        seed is kept.
    """
    run = read_run(directory)
    rows = [row for table in tables for row in table.rows if row.recipe and not row.server]
    mine = [row for row in rows if not differences(run, row)]
    if not mine:
        near = min(rows, key=lambda row: (differences(run, row) == ["recipe"],
                                          len(differences(run, row))))
        raise UserError(f"{directory} belongs to no row of a table: {near.recipe}/{near.model} has "
                        f"another {', '.join(differences(run, near))}; leave it out, or add a row")
    near = next((row for row in mine if row.model == run.config.get("model")), mine[0])
    own_seed = recipe_of(near).seed
    target = Path(root) / (near.evaluated_directory + (
        f"-seed{run.seed}" if run.seed != own_seed else ""))
    for kept in read_runs(root):
        if kept.directory == target or kept.seed == run.seed and not differences(kept, near):
            if kept.result != run.result:
                raise UserError(f"{kept.directory} keeps another result of this row and seed; "
                                f"remove that folder to replace it, or leave {directory} out")
            target = kept.directory
    return run, target


def keep(directory, tables, root):
    """Copies what a page needs of a finished run: result, settings, curves; no path of a machine.

    Args:
      directory: run directory; tables: of Table; root: folder of kept results.

    Returns:
      The folder of the copy.

    Raises:
      UserError: as `place`.
    """
    run, target = place(directory, tables, root)
    target.mkdir(parents=True, exist_ok=True)
    config = _without_paths(run.config)
    for name, content in ((CONFIG, config), (RESULT, run.result)):
        (target / name).write_text(json.dumps(content, indent=1) + "\n")
    if (run.directory / CURVES).is_file():
        shutil.copyfile(run.directory / CURVES, target / CURVES)
    return target
