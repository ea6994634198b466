"""Where the lines of a run's log are shown: a progress bar or sentences, and TensorBoard.

Each has `advance()`, called at every step, `write(line)` with a line of log.jsonl, and `close()`.
"""
import datetime
import importlib.util
import logging
import shutil
import sys
import time

from gluon_resnest.engine.heartbeat import alive

_log = logging.getLogger(__name__)


def displays(step, total, lines, directory):
    """Opens what suits this process.

    Args:
      step: updates done; total: of the whole run.
      lines: the log so far, for TensorBoard, where it is installed.
      directory: of TensorBoard's files; replaced.
    """
    terminal = sys.stderr.isatty() and importlib.util.find_spec("tqdm")
    opened = [Bar(step, total) if terminal else Sentences(step, total)]
    if importlib.util.find_spec("tensorboard"):
        opened.append(TensorBoard(directory, lines))
    return opened


def evaluating(steps, length, comm):
    """Yields the `length` steps of a worker's evaluation, each a sign of life, beside a bar."""
    from tqdm import tqdm
    for step in tqdm(steps, "evaluating", length, leave=False,
                     disable=None if comm.is_main else True):
        yield step
        alive()


class Bar:
    """A progress bar: images per second and time left."""

    def __init__(self, step, total):
        from tqdm import tqdm
        self._bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True)

    def advance(self):
        self._bar.update()

    def write(self, line):
        if line["kind"] == "evaluation":
            self._bar.write(_sentence(line))
        elif line["kind"] == "training":
            self._bar.set_postfix_str(_numbers(line), refresh=False)

    def close(self):
        self._bar.close()


class Sentences:
    """A logged sentence now and then, where no terminal is."""

    EVERY_SECONDS = 30

    def __init__(self, step, total):
        self._first, self._total, self._began, self._spoken = step, total, time.monotonic(), -1e9

    def advance(self):
        pass

    def write(self, line):
        now = time.monotonic()
        if line["kind"] == "evaluation":
            _log.info(_sentence(line))
        elif line["kind"] != "training":
            return
        elif now - self._spoken >= self.EVERY_SECONDS or line["step"] == self._total:
            self._spoken = now
            pace = (now - self._began) / (line["step"] - self._first)
            left = datetime.timedelta(seconds=round(pace * (self._total - line["step"])))
            _log.info("step %d of %d: %s, %s left", line["step"], self._total, _numbers(line), left)

    def close(self):
        pass


class TensorBoard:
    """Scalars for TensorBoard, rewritten from the log so that a resumed run shows one curve."""

    def __init__(self, directory, lines):
        from tensorboard.summary import Writer
        shutil.rmtree(directory, ignore_errors=True)
        self._writer = Writer(str(directory))
        for line in lines:
            self.write(line)

    def advance(self):
        pass

    def write(self, line):
        for name, value in scalars(line):
            self._writer.add_scalar(name, value, line["step"], wall_time=line["time"])
        self._writer.flush()

    def close(self):
        self._writer.close()


def scalars(line):
    """Yields (name, value) of a log line's numbers."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", number) for key, number in value.items())
        elif name in ("lr", "images_per_second", "data_wait"):
            yield name, value


def _numbers(line):
    losses = ", ".join(f"{name} {value:.4g}" for name, value in line["losses"].items())
    return (f"{losses}, lr {line['lr']:.3g}, {line['images_per_second']:.1f} images/s, "
            f"{line['data_wait']:.0%} waiting for data")


def _sentence(line):
    values = ", ".join(f"{name} {value:.6g}" for name, value in line["metrics"].items())
    return f"step {line['step']}, epoch {line['epoch']:.3g}: {values}"
