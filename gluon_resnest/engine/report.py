"""What a run leaves behind for people: log.jsonl, TensorBoard, progress, curves, result.json.

`log.jsonl` is the source; TensorBoard's files and the curves are redrawn from it. Its lines are

    {"kind": "training", "step", "epoch", "lr", "losses": {...}, "images_per_second", "data_wait",
     "time"}
    {"kind": "evaluation", "step", "epoch", "metrics": {...}, "time"}
    {"kind": "rollback", "step", "epoch", "to", "reason", "time"}

`step` counts the updates done, `time` is seconds since 1970.
"""
import io
import json
import os
import platform
import time
from pathlib import Path

from gluon_resnest import processor
from gluon_resnest.engine.progress import displays
from gluon_resnest.errors import MissingExtra, UserError
from gluon_resnest.files import write_whole
from gluon_resnest.provenance import commit

LOG, RESULT, CURVES, TENSORBOARD = "log.jsonl", "result.json", "curves.png", "tensorboard"
_LEGEND_ROWS = 12      # of a panel of curves: more names stand in columns
_ADVICE = "give a writable --workdir with room, or make room and run the same command again"


class RunLog:
    """The log of a run; only the main worker writes and speaks, the others keep silent.

    Use it as a context manager: it holds a progress bar and a TensorBoard file.

    Args:
      workdir: run directory.
      comm: this worker's Comm.
      total_steps: updates of the whole run; steps_per_epoch: of an epoch.
      batch: images per step over all workers.
      callbacks: from `callbacks`, for the main worker; closed with the log.
    """

    def __init__(self, workdir, comm, *, total_steps, steps_per_epoch, batch, callbacks=()):
        self._file = Path(workdir) / LOG
        self._comm = comm
        self._total, self._per_epoch, self._batch = total_steps, steps_per_epoch, batch
        self._steps = self._seconds = 0
        self._displays, self._callbacks = [], list(callbacks)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for listener in self._displays + self._callbacks:
            listener.close()

    @property
    def images_per_second(self):
        """Images per second of the training steps since `begin`, 0.0 before the first line."""
        return self._steps * self._batch / self._seconds if self._seconds else 0.0

    def begin(self, step, unevaluated=False):
        """Opens the log at `step`; forgets lines beyond it, which will be written again.

        Args:
          unevaluated: the evaluation of `step` will be written again, too.

        Raises:
          UserError: on all workers, if the run directory cannot be written; so do `training` and
            `evaluation`.
        """
        self._comm.on_main(lambda: self._open(step, unevaluated))

    def advance(self):
        """Moves the progress bar by one step."""
        for listener in self._displays + self._callbacks:
            listener.advance()

    def training(self, step, lr, window):
        """Writes a line of training.

        Args:
          step: updates done; lr: rate of the last one; window: from `loop.Window.close`.
        """
        self._steps += window["steps"]
        self._seconds += window["seconds"]
        self._write({"kind": "training", "step": step, "epoch": self._epoch(step), "lr": lr,
                     "losses": window["losses"],
                     "images_per_second": window["steps"] * self._batch / window["seconds"],
                     "data_wait": window["data_wait"], "time": time.time()})

    def evaluation(self, step, metrics):
        """Writes a line of evaluation."""
        self._write({"kind": "evaluation", "step": step, "epoch": self._epoch(step),
                     "metrics": metrics, "time": time.time()})

    def rollback(self, step, to, reason):
        """Writes that the steps from `to` to `step` were undone and left out."""
        self._write({"kind": "rollback", "step": step, "epoch": self._epoch(step), "to": to,
                     "reason": reason, "time": time.time()})

    def _epoch(self, step):
        return step / self._per_epoch

    def _write(self, line):
        self._comm.on_main(lambda: self._append(line))

    def _open(self, step, unevaluated):
        lines = [line for line in read_log(self._file) if line["step"] <= step and not
                 (unevaluated and line["step"] == step and line["kind"] == "evaluation")]
        write_whole(self._file, "".join(json.dumps(line) + "\n" for line in lines), _ADVICE)
        for display in self._displays:          # the run goes on after a rollback
            display.close()
        self._displays = displays(step, self._total, lines, self._file.parent / TENSORBOARD)

    def _append(self, line):
        try:
            with open(self._file, "a") as file:     # closed at once: a kill loses no line
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"cannot write '{self._file}': {error.strerror}; {_ADVICE}") from error
        for listener in self._displays + self._callbacks:
            listener.write(line)


def read_log(path):
    """Returns the lines of a log.jsonl as dicts; a last line cut by a kill is left out.

    Raises:
      UserError: if it cannot be read, or another line is not one of a log.
    """
    try:
        texts = Path(path).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give another --workdir") from error
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
            lines[-1]["step"], lines[-1]["kind"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(texts) and isinstance(error, ValueError):
                break
            raise UserError(f"line {number} of {path} is not one of a training log; move the file "
                            "away to start a new log") from error
    return lines


def logged_speed(path):
    """Returns the images per second of the training steps in a log.jsonl; None if it has none."""
    last = steps = seconds = 0
    for line in read_log(path):
        if line["kind"] == "training":      # of the steps since the line before
            steps += line["step"] - last
            seconds += (line["step"] - last) / line["images_per_second"]
            last = line["step"]
    return steps / seconds if seconds else None


def draw_curves(workdir):
    """Draws curves.png from log.jsonl: losses, learning rate, metrics over epochs.

    Returns:
      The path of the picture.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib") from error
    lines = read_log(Path(workdir) / LOG)
    panels = {"loss": {}, "learning rate": {}, "metric": {}}
    for line in lines:
        for name, value in line.get("losses", {}).items():
            panels["loss"].setdefault(name, []).append((line["epoch"], value))
        if "lr" in line:
            panels["learning rate"].setdefault("lr", []).append((line["epoch"], line["lr"]))
        for name, value in line.get("metrics", {}).items():
            if isinstance(value, float):                      # counts would flatten the ratios
                panels["metric"].setdefault(name, []).append((line["epoch"], value))
    figure = Figure(figsize=(15, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, curves) in zip(figure.subplots(1, 3), panels.items()):
        for name, points in curves.items():
            axes.plot(*zip(*points), label=name, marker="." if len(points) < 50 else None)
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
        columns = -(-len(curves) // _LEGEND_ROWS)
        if len(curves) > 1:
            axes.legend(ncol=columns, fontsize="medium" if columns == 1 else "x-small")
    target, picture = Path(workdir) / CURVES, io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    write_whole(target, picture.getvalue(), _ADVICE)
    return target


def write_result(path, *, measured, expected=None, tolerance=None, seconds, images_per_second,
                 main_metric, parameters=None, **more):
    """Judges a final evaluation, writes it as JSON and returns what was written.

    Args:
      path: result.json of a run directory; None writes nothing.
      measured: {name: value} of the final evaluation.
      expected: published value of `main_metric`, or None.
      tolerance: how far below it still counts as reached.
      seconds: wall time of training; images_per_second: over all workers, None if not known.
      parameters: of the network, as papers count them: frozen ones, too, no running statistics.
      more: further entries.
    """
    result = {"measured": measured, "metric": main_metric, "expected": expected,
              "tolerance": tolerance,
              "verdict": verdict(measured.get(main_metric), expected, tolerance),
              "commit": commit(), "seconds": seconds, "images_per_second": images_per_second,
              "parameters": parameters, "machine": machine(), **more}
    if path is not None:
        write_whole(path, json.dumps(result, indent=1) + "\n", _ADVICE)
    return result


def read_result(path):
    """Returns what `write_result` wrote, or None if there is no such file."""
    try:
        result = json.loads(Path(path).read_text())
        result["measured"], result["verdict"]
        return result
    except (OSError, ValueError, TypeError, KeyError):
        return None


def verdict(measured, expected, tolerance):
    """Returns "reached", "missed" or "no target"; larger is better, None was not measured."""
    if expected is None or measured is None:
        return "no target"
    rounding = 1e-9                 # 81.04 - 0.3 is a little more than 80.74
    return "reached" if measured >= expected - (tolerance or 0.0) - rounding else "missed"


def machine():
    """Returns what the numbers depend on: processor, memory, versions; no name of a host."""
    import mxnet as mx
    import numpy as np
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2 ** 30
    return {"cpu": processor.name(), "cores": os.cpu_count(), "memory_gib": round(gibibytes, 1),
            "gpus": mx.context.num_gpus(), "python": platform.python_version(),
            "mxnet": mx.__version__, "numpy": np.__version__}
