"""What may listen to a run besides log.jsonl: MXNet's profiler and Weights & Biases.

As the displays of `progress`, each has `advance()`, called after every step, `write(line)` with a
line of log.jsonl, and `close()`; `report.RunLog` calls them on the main worker.
"""
from pathlib import Path

import mxnet as mx

from gluon_resnest.engine.progress import scalars
from gluon_resnest.errors import MissingExtra, UserError


class Profile:
    """Writes a trace of a few steps, which chrome://tracing and Perfetto show.

    Args:
      file: of the trace, JSON.
      skip: steps before it, since the first ones are slower; steps: how many are traced.
    """

    def __init__(self, file, *, skip=5, steps=10):
        directory = Path(file).absolute().parent
        if not directory.is_dir():
            raise UserError(f"--profile {file}: there is no directory {directory}; make it first")
        if Path(file).is_dir():
            raise UserError(f"--profile {file} is a directory; give the name of a file in it")
        self._file, self._first, self._end = str(file), skip, skip + steps
        self._done, self._running = 0, False

    def advance(self):
        self._done += 1
        if self._done == self._first:
            mx.nd.waitall()
            mx.profiler.set_config(profile_all=True, filename=self._file)
            mx.profiler.set_state("run")
            self._running = True
        elif self._done == self._end:
            self.close()

    def write(self, line):
        pass

    def close(self):
        if self._running:
            self._running = False
            mx.nd.waitall()
            mx.profiler.set_state("stop")
            mx.profiler.dump()


class WeightsAndBiases:
    """Sends the numbers of the log to a project of wandb.ai, under its own settings.

    Args:
      project: name there.
      config: plain values that describe the run.
    """

    def __init__(self, project, config):
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("wandb", "wandb") from error
        self._run = wandb.init(project=project, config=config)

    def advance(self):
        pass

    def write(self, line):
        self._run.log(dict(scalars(line)), step=line["step"])

    def close(self):
        self._run.finish()
