"""What a worker tells its supervisor: that it lives, and how it ended.

A supervised worker finds a directory in the environment variable GLUON_RESNEST_HEARTBEATS:

    lease           locked by the supervisor for as long as it wants this job
    beat-0.json     worker 0 now: process, phase, step, beats so far, mean seconds per phase
    outcome-0.json  how worker 0 ended: exit code and last words; absent if it was killed

A worker without supervisor does nothing of this.
"""
import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gluon_resnest.engine.launchers import told
from gluon_resnest.errors import UserError

VARIABLE = "GLUON_RESNEST_HEARTBEATS"
LEASE = "lease"
_LINE = 512                 # bytes of a beat file: rewritten in place, in one system call


@dataclass(frozen=True)
class Beat:
    """The last sign of life of a worker.

    Attributes:
      pid, host: where it runs.
      phase: what it began with this beat: "start" (also behind an evaluation that a run goes on
        with), "step", "evaluation", "writing" (what was saved before it reaches the disk),
        "saving", "finishing" (the last save reaches the disk) or "end".
      first, step: updates done when it began, and now.
      beats: number of beats so far.
      means: {phase: mean seconds} of what it has finished.
    """

    pid: int
    host: str
    phase: str
    first: int
    step: int
    beats: int
    means: dict


@dataclass(frozen=True)
class Outcome:
    """How a worker ended: exit code and last words."""

    code: int
    text: str


class Heart:
    """Writes the beats of one worker.

    Args:
      rank: number of the worker.
      environ: the environment; says where, if somebody listens.
    """

    last = None                 # of this process, for `alive`

    def __init__(self, rank, environ=os.environ):
        self._file = None
        if VARIABLE in environ:
            self._file = os.open(Path(environ[VARIABLE]) / f"beat-{rank}.json",
                                 os.O_WRONLY | os.O_CREAT, 0o644)
        self._beats, self._phase, self._began, self._first = 0, None, 0.0, None
        self._sums = {}                                       # phase -> (how often, seconds)
        Heart.last = self

    def beat(self, phase, step):
        """Tells that `phase` begins after `step` updates; costs some ten microseconds."""
        if self._file is None:
            return
        now = time.monotonic()
        if self._phase is None:
            self._first = step
        else:
            count, seconds = self._sums.get(self._phase, (0, 0.0))
            self._sums[self._phase] = (count + 1, seconds + now - self._began)
        self._phase, self._began, self._step = phase, now, step
        self.go_on()

    def go_on(self):
        """Tells that the phase goes on."""
        if self._file is None:
            return
        self._beats += 1
        means = {name: round(seconds / count, 4) for name, (count, seconds) in self._sums.items()}
        beat = Beat(os.getpid(), socket.gethostname(), self._phase, self._first, self._step,
                    self._beats, means)
        os.pwrite(self._file, json.dumps(asdict(beat)).ljust(_LINE).encode(), 0)


def alive():
    """Tells that the phase this process is in goes on, from deep inside a long one."""
    if Heart.last is not None:
        Heart.last.go_on()


@contextlib.contextmanager
def reported(environ=os.environ):
    """Wraps the main function of a worker: it ends with its supervisor and leaves its outcome."""
    if VARIABLE not in environ:
        yield
        return
    directory = Path(environ[VARIABLE])
    rank = told(environ, "rank", 0)
    threading.Thread(target=_end_with, args=(directory / LEASE,), daemon=True).start()
    code, text = 0, ""
    try:
        yield
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 1 if exit.code else 0
        text = "" if isinstance(exit.code, int) else str(exit.code or "")
        raise
    except UserError as error:
        code, text = 2, str(error)
        raise
    except BaseException as error:
        code, text = 1, f"{type(error).__name__}: {error}".strip()
        raise
    finally:
        with contextlib.suppress(OSError):                    # taken for killed, at worst
            (directory / f"outcome-{rank}.json").write_text(json.dumps({"code": code,
                                                                        "text": text}))


def beats(directory):
    """Returns {rank: Beat} of the workers that have begun."""
    return {rank: Beat(**values) for rank, values in _read(directory, "beat")}


def outcomes(directory):
    """Returns {rank: Outcome} of the workers that could still tell how they ended."""
    return {rank: Outcome(**values) for rank, values in _read(directory, "outcome")}


def _read(directory, kind):
    for path in sorted(Path(directory).glob(f"{kind}-*.json")):
        with contextlib.suppress(ValueError):                 # being written: look again later
            yield int(path.stem.rpartition("-")[2]), json.loads(path.read_text())


def _end_with(lease):
    """Ends this process, whatever it does, when the supervisor's lock is gone."""
    with contextlib.suppress(FileNotFoundError):
        with open(lease) as file:
            fcntl.flock(file, fcntl.LOCK_SH)                  # waits
    print("error: the supervisor has gone or given this worker up; ending", file=sys.stderr,
          flush=True)
    os._exit(1)
