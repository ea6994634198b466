"""Starts the workers of a run and starts them again until it is done.

    python -m gluon_resnest.engine.supervise -np 8 --max-restarts 20 -- \\
        recipes/imagenet.py --model resnest50 --rec-train train.rec --rec-val val.rec --workdir run

Whatever ends a worker or makes it stand still, the whole job is ended and continues from its
newest checkpoint. It gives up when restarts bring no progress, and leaves no process behind.
SIGTERM and SIGINT are passed on: the workers finish their step and save.
"""
import argparse
import contextlib
import fcntl
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from gluon_resnest.engine import heartbeat
from gluon_resnest.engine.processes import adopt_orphans, descendants, kill_descendants
from gluon_resnest.errors import UserError, exit_on_user_error

POLL_SECONDS = 0.2
LONGEST_TURN = 1.0         # of the watch; one that took longer stood still with the machine
FRUITLESS = 3              # this many attempts in a row without a newer checkpoint: give up
SLACK = 20                 # standing still for so many times the usual duration is being stuck
START_SECONDS = "300"      # for workers to find each other; Horovod's own 30 s are short when busy
PAUSE = 5                  # seconds before the last of these attempts; the others begin at once

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How long a worker may give no sign of life, learnt from those it has given.

    Attributes:
      least: seconds that are always granted.
      unknown: seconds for a phase that has not been measured yet: the start until the first step
        is done, the first evaluation, the first save.
    """

    least: float
    unknown: float

    def seconds(self, mean):
        """Returns the limit of a phase of `mean` seconds; None if that is not known."""
        return self.unknown if mean is None else max(self.least, SLACK * mean)


@dataclass(frozen=True)
class Attempt:
    """One start of the job and its end.

    Attributes:
      code: exit code that the supervisor should end with if it does not start again.
      first, last: updates done when it began and when it ended; None if no worker came so far.
      seconds: how long it took.
      reason: how it ended, for people.
    """

    code: int
    first: Optional[int]
    last: Optional[int]
    seconds: float
    reason: str


class Supervisor:
    """Runs a job until it is done, is refused, is stopped, or makes no progress.

    Args:
      command: words that start the job.
      directory: for signs of life; on a file system that all hosts share.
      limits: Limits; max_restarts: how often a job may be started again; grace: seconds that
        workers get to save when the supervisor is asked to stop.
    """

    def __init__(self, command, directory, *, limits, max_restarts, grace):
        self._command, self._directory, self._limits = command, Path(directory), limits
        self._max_restarts, self._grace = max_restarts, grace
        self._means = {}                                      # phase -> seconds, of all attempts
        self._signals = []

    def run(self):
        """Returns the exit code: 0, 2 if the command is wrong, 130 or 143 if stopped, else 1."""
        adopt_orphans()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: self._signals.append(number))
        attempts, fruitless = [], 0
        while True:
            attempt = self._attempt(len(attempts))
            fruitless = 0 if _progressed(attempt, attempts) else fruitless + 1
            attempts.append(attempt)
            if self._signals:
                _log.warning("%s; the same command continues", attempt.reason)
                return 128 + self._signals[0]
            if attempt.code == 0:
                return 0
            # Who has trained before under this supervisor has not mistyped the command.
            if attempt.code == 2 and all(known.first == known.last for known in attempts):
                return 2
            if fruitless >= FRUITLESS or len(attempts) > self._max_restarts:
                why = "no newer checkpoint" if fruitless >= FRUITLESS else "--max-restarts"
                _log.error("giving up after %d attempts (%s):\n%s", len(attempts), why,
                           _table(attempts))
                return 1
            pause = PAUSE if fruitless > 1 else 0
            _log.warning("%s; restart %d of %d in %d s", attempt.reason, len(attempts),
                         self._max_restarts, pause)
            self._sleep(pause)
            if self._signals:
                _log.warning("stopped between two attempts; the same command continues")
                return 128 + self._signals[0]

    def _attempt(self, number):
        """Starts the job and waits for its end; none of its processes is left then."""
        directory = self._directory / f"attempt-{number}"
        directory.mkdir(parents=True)
        began = time.monotonic()
        with _held(directory / heartbeat.LEASE):
            job = subprocess.Popen(self._command, start_new_session=True, env={
                **os.environ, heartbeat.VARIABLE: str(directory)})
            try:
                reason = self._watched(job, directory)
                code = job.poll()
            finally:
                kill_descendants()
        seen, ends = heartbeat.beats(directory), heartbeat.outcomes(directory)
        steps = [beat.step for beat in seen.values()]
        firsts = [beat.first for beat in seen.values()]
        refused = code is not None and any(end.code == 2 for end in ends.values())
        return Attempt(2 if refused else 1 if code is None else code,
                       max(firsts, default=None), max(steps, default=None),
                       time.monotonic() - began, reason or _ending(code, seen, ends))

    def _watched(self, job, directory):
        """Waits until the job ends, stands still or is stopped; returns why, if we know."""
        clock = Clock()
        pulse = Pulse(self._limits, self._means, clock.now())
        stop_by = None
        while job.poll() is None:
            now = clock.now()
            if self._signals and stop_by is None:
                stop_by = now + self._grace
                self._pass_on(job, directory)
            if len(self._signals) > 1:
                return "stopped at once by a second signal"
            if stop_by is not None and now > stop_by:
                return f"stopped, but not saved within {self._grace:g} s"
            stuck = pulse.stuck(heartbeat.beats(directory), now)
            if stuck:
                return stuck
            time.sleep(POLL_SECONDS)
        return f"stopped by {signal.Signals(self._signals[0]).name}" if stop_by else None

    def _pass_on(self, job, directory):
        """Signals the workers of this host; they agree with all others."""
        below, here = set(descendants()), socket.gethostname()
        workers = [beat.pid for beat in heartbeat.beats(directory).values()
                   if beat.host == here and beat.pid in below]
        for pid in workers or [job.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, self._signals[0])

    def _sleep(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._signals:
            time.sleep(POLL_SECONDS)


class Clock:
    """Seconds in which this process ran: a machine that was suspended excuses its workers, too.

    Args:
      source: function that returns seconds, which go on meanwhile.
    """

    def __init__(self, source=time.monotonic):
        self._source, self._last, self._lost = source, source(), 0.0

    def now(self):
        """Returns seconds; between two calls at most LONGEST_TURN pass."""
        now = self._source()
        self._lost += max(0.0, now - self._last - LONGEST_TURN)
        self._last = now
        return now - self._lost


class Pulse:
    """Judges from the beats of one attempt whether the job stands still.

    Args:
      limits: Limits; means: {phase: seconds} learnt so far, which is added to; began: when the
        job was started.
    """

    def __init__(self, limits, means, began):
        self._limits, self._means, self._began = limits, means, began
        self._changed = {}                                    # rank -> (beats, when they changed)
        self._begun = False

    def stuck(self, beats, now):
        """Returns a sentence about the worker that stands still, or None.

        Args:
          beats: from `heartbeat.beats`; now: seconds, by the clock of `began`.
        """
        phases = {beat.phase for beat in beats.values()} - {"start"}
        if not self._begun and "step" in phases:        # else with an evaluation that was due
            self._means["start"] = max(now - self._began, self._means.get("start", 0.0))
        self._begun |= bool(phases)
        for beat in beats.values():
            self._means.update((phase, mean) for phase, mean in beat.means.items()
                               if phase != "start")           # which begins earlier for us
        for rank, beat in beats.items():
            if self._changed.get(rank, (0,))[0] != beat.beats:
                self._changed[rank] = beat.beats, now
        if not self._begun:
            return self._judged("the job", "start", now - self._began)
        for rank in sorted(beats, key=lambda rank: beats[rank].beats):   # the last one first
            beat = beats[rank]
            verdict = self._judged(f"worker {rank}, after step {beat.step},", beat.phase,
                                   now - self._changed[rank][1])
            if verdict:
                return verdict
        return None

    def _judged(self, who, phase, seconds):
        limit = self._limits.seconds(self._means.get(phase))
        if seconds <= limit:
            return None
        return f"stuck: {who} gave no sign of life in phase {phase!r} for {limit:.0f} s"


def main(argv=None):
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.add_argument("-np", "--workers", type=int, default=1, metavar="N",
                        help="workers; 1 runs without Horovod (default: %(default)s)")
    parser.add_argument("-H", "--hosts", metavar="HOST:SLOTS,...",
                        help="as for horovodrun (default: this machine)")
    parser.add_argument("--max-restarts", type=int, default=20, metavar="K",
                        help="starts after the first (default: %(default)s)")
    parser.add_argument("--stuck-after", type=float, default=60, metavar="SECONDS",
                        help=f"a worker is stuck when it gives no sign of life for {SLACK} times "
                        "the mean duration of what it does, but never earlier than this "
                        "(default: %(default)g)")
    parser.add_argument("--patience", type=float, default=1800, metavar="SECONDS",
                        help="the same for what has not been measured yet: the start, the first "
                        "evaluation, the first save (default: %(default)g)")
    parser.add_argument("--grace", type=float, default=120, metavar="SECONDS",
                        help="time to finish the step and save when this process gets SIGTERM or "
                        "SIGINT (default: %(default)g)")
    parser.add_argument("--status-dir", metavar="DIR",
                        help="where workers write their signs of life; with other hosts it must "
                        "be on a file system they share (default: a temporary directory)")
    parser.add_argument("recipe", nargs="+", metavar="-- SCRIPT ARGUMENTS",
                        help="the recipe and its flags, after --")
    flags = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s supervise: %(message)s",
                        datefmt="%H:%M:%S")
    with exit_on_user_error(), _status_directory(flags) as directory:
        command = _command(flags.workers, flags.hosts, flags.recipe)
        return Supervisor(command, directory, limits=Limits(flags.stuck_after, flags.patience),
                          max_restarts=flags.max_restarts, grace=flags.grace).run()


def _status_directory(flags):
    """Returns a new directory for the signs of life, a context manager that removes it."""
    remote = [host for host in (flags.hosts or "").split(",") if host.partition(":")[0] not in (
        "", "localhost", "127.0.0.1", socket.gethostname())]
    if remote and flags.status_dir is None:
        raise UserError(f"workers on {remote[0]} need a place for their signs of life; give "
                        "--status-dir DIR on a file system that all hosts share")
    place = flags.status_dir or tempfile.gettempdir()
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="supervise-", dir=place)
    except OSError as error:
        raise UserError(f"--status-dir {place} cannot be written: {error.strerror}; give a "
                        "directory of yours") from error


def _command(workers, hosts, recipe):
    """Returns the words that start the job."""
    if workers < 1:
        raise UserError(f"-np must be at least 1, got {workers}")
    if not Path(recipe[0]).is_file():
        raise UserError(f"there is no script {recipe[0]!r}; give the path of a recipe after --")
    script = [sys.executable, *recipe]
    if workers == 1 and hosts is None:
        return script
    launcher = Path(sys.executable).with_name("horovodrun")
    if not launcher.is_file():
        raise UserError(f"{workers} workers need {launcher}, which is not there; install Horovod "
                        "with `pip install 'gluon-resnest[train]'`")
    # In one word: horovodrun takes flags of the script, such as --network, for its own.
    words = " ".join(map(shlex.quote, ["exec", *script]))
    return [str(launcher), "-np", str(workers), "-H", hosts or f"localhost:{workers}",
            "--start-timeout", START_SECONDS, "--gloo-timeout-seconds", START_SECONDS,
            "sh", "-c", words]


@contextlib.contextmanager
def _held(path):
    """Holds a lock on a new file, as long as this process lives at most."""
    with open(path, "w") as file:                             # not inherited by other programs
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _progressed(attempt, before):
    """Returns whether an attempt began at a newer checkpoint than all before it."""
    known = [old.first for old in before if old.first is not None]
    return attempt.first is not None and (not known or attempt.first > max(known))


def _ending(code, beats, outcomes):
    """Returns a sentence about a job that ended by itself, from what its workers left behind."""
    if code == 0:
        return "done"
    silent = [rank for rank in beats if rank not in outcomes]
    if silent:
        return "; ".join(f"worker {rank} was killed or crashed after step {beats[rank].step}"
                         for rank in silent)
    told = {end.text.splitlines()[0]: rank for rank, end in sorted(outcomes.items(), reverse=True)
            if end.text}                                      # what all say is told once
    return "; ".join(f"worker {rank}: {text}" for text, rank in sorted(
        told.items(), key=lambda item: item[1])[:2]) or f"the job ended with exit code {code}"


def _table(attempts):
    """Returns what happened, a line for each attempt."""
    return "\n".join(
        f"  {number}: from step {attempt.first} to {attempt.last} in {attempt.seconds:.0f} s: "
        f"{attempt.reason}" for number, attempt in enumerate(attempts))


if __name__ == "__main__":
    sys.exit(main())
