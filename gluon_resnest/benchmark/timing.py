"""What the turns of a benchmark say: which rounds count, medians, spreads, paired ratios.

In a round each competitor takes a turn, one after the other. A round in which other processes held
a CPU, in whoever's turn, tells nothing about the competitors and is dropped.
"""
import statistics
from dataclasses import dataclass
from typing import Optional

FEWEST = 3                  # rounds below which a table is no measurement


@dataclass(frozen=True)
class Turn:
    """What one competitor did in one round.

    Attributes:
      units: batches or steps done.
      wall: seconds they took; cpu: seconds of CPU the competitor used meanwhile.
      others: seconds of CPU that went to other processes or virtual machines meanwhile.
    """

    units: int
    wall: float
    cpu: float
    others: float

    @property
    def seconds(self):
        """Wall time of a unit."""
        return self.wall / self.units

    @property
    def disturbance(self):
        """CPUs that others held, on average."""
        return self.others / self.wall


@dataclass(frozen=True)
class Summary:
    """A competitor over all rounds that count; times in seconds of a unit.

    Attributes:
      seconds: median; spread: (largest - smallest) / median.
      cpu: median CPU time.
      speed: how often as fast as the first competitor, median of the rounds; low, high: extremes.
      cpu_speed: the same of CPU time: what is left to compare on a machine that is never idle.
    """

    seconds: float
    spread: float
    cpu: float
    speed: float
    low: float
    high: float
    cpu_speed: Optional[float]


def undisturbed(rounds, limit):
    """Returns the rounds in whose every turn others held at most `limit` CPUs.

    Args:
      rounds: list of {competitor: Turn}.
    """
    return [turns for turns in rounds
            if all(turn.disturbance <= limit for turn in turns.values())]


def summarize(rounds, first):
    """Returns {competitor: Summary}, relative to the competitor `first`.

    Args:
      rounds: at least one {competitor: Turn}, the same competitors in each.
    """
    summaries = {}
    for name in rounds[0]:
        seconds = [turns[name].seconds for turns in rounds]
        speeds = [turns[first].seconds / turns[name].seconds for turns in rounds]
        median = statistics.median(seconds)
        cpu = [turns[name].cpu / turns[name].units for turns in rounds]
        summaries[name] = Summary(
            seconds=median, spread=(max(seconds) - min(seconds)) / median,
            cpu=statistics.median(cpu), speed=statistics.median(speeds), low=min(speeds),
            high=max(speeds), cpu_speed=_cpu_speed(rounds, first, name))
    return summaries


def _cpu_speed(rounds, first, name):
    """Returns the median ratio of CPU times, None where a turn was too short for the clock."""
    pairs = [(turns[first].cpu / turns[first].units, turns[name].cpu / turns[name].units)
             for turns in rounds]
    if not all(min(pair) > 0 for pair in pairs):
        return None
    return statistics.median(ours / theirs for ours, theirs in pairs)
