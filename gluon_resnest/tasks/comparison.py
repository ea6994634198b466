"""Several runs side by side: their curves in one picture, their numbers in one table."""
import json
from pathlib import Path
from statistics import median
from typing import NamedTuple, Optional

from gluon_resnest.engine.report import read_log
from gluon_resnest.errors import MissingExtra, UserError
from gluon_resnest.run_directory import CONFIG

_PANEL_INCHES = (4.6, 3.6)
_MOST_METRICS = 3


class Run(NamedTuple):
    """What a run directory tells.

    name: of the directory. model: the recipe entry. training, evaluations: lines of its log.
    result: content of result.json, {} while it trains.
    """

    name: str
    model: str
    training: list
    evaluations: list
    result: dict

    @property
    def seconds_per_step(self):
        """Median over the lines of the log, None without two of them."""
        pairs = zip(self.training, self.training[1:])
        paces = [(after["time"] - before["time"]) / (after["step"] - before["step"])
                 for before, after in pairs if after["step"] > before["step"]]
        return median(paces) if paces else None

    def curve(self, metric):
        """Returns the points (epoch, value) of a metric."""
        return [(line["epoch"], line["metrics"][metric]) for line in self.evaluations
                if metric in line["metrics"]]

    def loss(self):
        """Returns the points (epoch, sum of all losses)."""
        return [(line["epoch"], sum(line["losses"].values())) for line in self.training]


def open_runs(directories):
    """Returns the `Run` of each run directory.

    Raises:
      UserError: if a directory has no log, or two have the same name.
    """
    runs = [_run(Path(directory)) for directory in directories]
    names = [run.name for run in runs]
    for directory, name in zip(directories, names):
        if names.count(name) > 1:
            raise UserError(f"two runs are called {name!r}; {directory} is one of them, rename it")
    return runs


def metrics_of(runs, wanted: Optional[str] = None):
    """Returns the names of the metrics to compare: the wanted one, or the first that all have.

    Raises:
      UserError: if no run has the wanted one.
    """
    shared = [name for name, value in (runs[0].evaluations[-1]["metrics"].items()
                                       if runs[0].evaluations else ())
              if isinstance(value, float) and all(run.curve(name) for run in runs)]
    if wanted is None:
        return shared[:_MOST_METRICS]
    if not any(run.curve(wanted) for run in runs):
        raise UserError(f"no run has a metric {wanted!r}; they share {', '.join(shared) or 'none'}")
    return [wanted]


def draw_comparison(path, runs, metrics):
    """Draws the loss and the metrics of all runs over epochs, a colour a run.

    Raises:
      UserError: if the picture cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib") from error
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * (1 + len(metrics)), height), layout="constrained")
    panels = figure.subplots(1, 1 + len(metrics), squeeze=False)[0]
    for axes, title in zip(panels, ("loss", *metrics)):
        for run in runs:
            points = run.loss() if title == "loss" else run.curve(title)
            if points:
                axes.plot(*zip(*points), label=run.name,
                          marker=None if len(points) > 50 else ".")
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
    panels[0].set_yscale("log")
    for name in panels[0].legend(fontsize=8).get_texts():
        name.set_parse_math(False)      # what is between two $ would be a formula
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot draw {str(path)!r} ({error}); choose a writable .png, .pdf or "
                        ".svg") from error


def comparison_table(runs, metrics):
    """Returns the rows of a table as lists of text, the titles first."""
    rows = [["run", "recipe", "steps", "epochs", "loss", *(f"best {name}" for name in metrics),
             *(f"last {name}" for name in metrics), "s/step", "verdict"]]
    for run in runs:
        last = run.training[-1] if run.training else {"step": 0, "epoch": 0.0, "losses": {}}
        curves = [[value for _, value in run.curve(name)] for name in metrics]
        pace = run.seconds_per_step
        rows.append([
            run.name, run.model, str(last["step"]), f"{last['epoch']:.1f}",
            f"{sum(last['losses'].values()):.4f}",
            *(f"{max(values):.2f}" if values else "-" for values in curves),
            *(f"{values[-1]:.2f}" if values else "-" for values in curves),
            "-" if pace is None else f"{pace:.2f}", run.result.get("verdict", "-")])
    return rows


def _run(directory):
    lines = read_log(directory / "log.jsonl")
    if not lines:
        raise UserError(f"{str(directory)!r} is no run directory with a log; give the --workdir of "
                        "a training that has begun")
    return Run(directory.resolve().name, _content(directory / CONFIG).get("model", "-"),
               [line for line in lines if line["kind"] == "training"],
               [line for line in lines if line["kind"] == "evaluation"],
               _content(directory / "result.json"))


def _content(file):
    """Returns what a json file of a run holds, {} where there is none or it is being written."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
