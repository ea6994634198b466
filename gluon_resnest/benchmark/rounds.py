"""The run of a benchmark: all competitors started, then rounds of turns until enough count."""
import contextlib
import time
from dataclasses import dataclass
from typing import Dict, List

from gluon_resnest.benchmark.competitors import PROBE
from gluon_resnest.benchmark.process import Process
from gluon_resnest.benchmark.timing import Turn, undisturbed

PEAK = "machine's peak"     # the label of the probe


@dataclass(frozen=True)
class Plan:
    """How long and how strictly to measure.

    Attributes:
      rounds: undisturbed ones to reach; seconds: length of a turn; minutes: no round but the
        first begins that would end later than so many after the first process was started; limit:
        CPUs that others may hold in a turn that counts.
    """

    rounds: int
    seconds: float
    minutes: float
    limit: float


@dataclass(frozen=True)
class Entry:
    """One row of the benchmark.

    Attributes:
      label: of the row; python: that runs it; job: for its side; environ: further variables.
      images: of a unit.
    """

    label: str
    python: str
    job: dict
    environ: dict
    images: int


@dataclass(frozen=True)
class Outcome:
    """What was measured.

    Attributes:
      rounds: [{label: Turn}], all of them, those of the probe included.
      ready: {label: what the process said at its start}.
      memory, device_memory: {label: peak bytes}.
    """

    rounds: List[Dict[str, Turn]]
    ready: Dict[str, dict]
    memory: Dict[str, int]
    device_memory: Dict[str, int]


def probe(entry, python):
    """Returns the entry that measures the peak of as many threads as another entry has."""
    job = {**entry.job, "library": PROBE.library, "workers": 1, "cores": [],
           "threads": entry.job["threads"] * entry.job["workers"]}
    return Entry(PEAK, python, job, {}, images=1)


def run(entries, plan, folder, *, tell):
    """Measures; the entries take their turns in another order in each round.

    Args:
      entries: list of Entry, the probe's included.
      folder: takes the logs of the processes.
      tell: called with a sentence as things happen.
    """
    end = time.monotonic() + 60 * plan.minutes
    with contextlib.ExitStack() as stack:
        running = {}
        for entry in entries:
            running[entry.label] = stack.enter_context(Process(
                entry.label, entry.python, entry.job, environ=entry.environ,
                log=folder / f"{entry.label.replace(' ', '_')}.log", patience=60 * plan.minutes))
            tell(f"{entry.label}: first result after {running[entry.label].ready['first']:.1f} s")
        rounds, labels = [], list(running)
        while len(undisturbed(rounds, plan.limit)) < plan.rounds:
            began = time.monotonic()
            turns = {label: running[label].turn(plan.seconds) for label in labels}
            rounds.append(turns)
            labels = labels[1:] + labels[:1]
            tell(f"round {len(rounds)}: others held up to "
                 f"{max(turn.disturbance for turn in turns.values()):.2f} CPUs")
            if time.monotonic() + (time.monotonic() - began) > end:
                break
        return Outcome(rounds, {label: process.ready for label, process in running.items()},
                       {label: process.memory for label, process in running.items()},
                       {label: process.device_memory for label, process in running.items()})
