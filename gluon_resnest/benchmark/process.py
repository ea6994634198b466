"""Processes of competitors: started, asked for turns, ended."""
import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from gluon_resnest._environment import without_waiting
from gluon_resnest.benchmark.sides.worker import MARK
from gluon_resnest.benchmark.timing import Turn
from gluon_resnest.engine.processes import descendants
from gluon_resnest.errors import UserError

_WORKER = Path(__file__).with_name("sides") / "worker.py"
_ROOT = Path(__file__).resolve().parents[2]
_LONG = "86400"         # Horovod's workers wait so long for each other, also while they are stopped
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Process:
    """A competitor at work; a context manager that leaves nothing behind.

    Between its turns it is stopped with all it started, so that loaders do not read ahead in the
    turns of others, nor Horovod's threads ask each other for news.

    Args:
      label: of this competitor in reports.
      python: interpreter it runs under.
      job: what to build; see the sides. `workers` processes, joined by Horovod if there are more
        than one, each on its own of `cores`.
      environ: further variables.
      log: file that takes what its libraries print.
      patience: seconds to wait for the first result, or for a turn.

    Attributes:
      ready: {"first": seconds from the start to the first result, "seconds": of a unit then,
        "versions", "flops"}.
      memory, device_memory: peak bytes so far, of the first process; None before the first turn.

    Raises:
      UserError: if it ends, fails or is silent; the log's last line says why.
    """

    def __init__(self, label, python, job, *, environ, log, patience):
        self._label, self._log, self._patience = label, log, patience
        self.memory = self.device_memory = None
        self._folder = tempfile.TemporaryDirectory(prefix="gluon-resnest-benchmark-")
        address, job_file = (str(Path(self._folder.name) / name) for name in ("socket", "job"))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen(1)
        Path(job_file).write_text(json.dumps({**job, "socket": address, "began": time.monotonic()}))
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [*_launcher(python, job["workers"]), python, str(_WORKER), job_file],
                env={**without_waiting(os.environ), **dict.fromkeys(_THREADS, str(job["threads"])),
                     "PYTHONPATH": os.pathsep.join(filter(None, [
                         str(_ROOT), os.environ.get("PYTHONPATH")])),
                     "HOROVOD_GLOO_TIMEOUT_SECONDS": _LONG, MARK: address, **environ},
                stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True)
        self._connection = self._stream = None
        try:
            with listener:
                self._connection = self._accepted(listener)
            self._stream = self._connection.makefile("rw")
            self.ready = self._read()["ready"]
            self._signal(signal.SIGSTOP)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def turn(self, seconds):
        """Works for about so many seconds; returns the Turn."""
        self._signal(signal.SIGCONT)
        try:
            self._stream.write(f"{seconds}\n")
            self._stream.flush()
        except BrokenPipeError:
            raise self._failure("ended") from None
        said = self._read()
        self._signal(signal.SIGSTOP)
        self.memory, self.device_memory = said.pop("memory"), said.pop("device_memory")
        return Turn(**said)

    def close(self):
        """Ends the process and what it started."""
        for opened in (self._stream, self._connection):
            if opened is not None:
                with contextlib.suppress(BrokenPipeError):
                    opened.close()
        self._signal(signal.SIGCONT)
        for number in (0, signal.SIGTERM, signal.SIGKILL):      # 0: it ends without a reader
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self._process.pid, number)
                self._process.wait(10)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)        # children that outlived it
        self._process.wait()
        self._folder.cleanup()

    def _signal(self, number):
        # horovodrun's workers are in sessions of their own, beyond `killpg`.
        for process in (self._process.pid, *descendants(self._process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def _accepted(self, listener):
        listener.settimeout(0.2)
        end = time.monotonic() + self._patience
        while self._process.poll() is None and time.monotonic() < end:
            try:
                connection, _ = listener.accept()
            except socket.timeout:
                continue
            connection.settimeout(self._patience)
            return connection
        raise self._failure("did not start")

    def _read(self):
        try:
            line = self._stream.readline()
        except ConnectionError:
            line = ""
        except OSError:
            raise self._failure(f"said nothing for {self._patience:g} s") from None
        if not line:
            raise self._failure("ended")
        said = json.loads(line)
        if "error" in said:
            raise self._failure(f"failed: {said['error']}")
        return said

    def _failure(self, what):
        lines = Path(self._log).read_text(errors="replace").split("\n")
        last = next((line.strip()[:300] for line in reversed(lines) if line.strip()), "nothing")
        return UserError(f"{self._label} {what}; the last it printed: {last}; "
                         "correct that, or leave it out of --vs")


def _launcher(python, workers):
    """Returns the words in front of the interpreter that start several workers."""
    if workers == 1:
        return []
    return [str(launcher(python)), "-np", str(workers), "-H", f"localhost:{workers}"]


def launcher(python):
    """Returns the path of horovodrun beside an interpreter, whether it is there or not."""
    return Path(python).with_name("horovodrun")
