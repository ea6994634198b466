"""Laws of stopping: together, after a whole step, saved; a second signal at once."""
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import pytest
from mxnet import nd

from gluon_resnest.engine.comm import Comm
from gluon_resnest.engine.stopping import SIGNALS, Stop, Stopped

ROOT = Path(__file__).resolve().parents[1]


def heard(stop, votes=100):
    """Returns the signal that a lone worker agrees with itself on; the listener needs a moment."""
    for _ in range(votes):
        agreed = stop.agreed()
        if agreed:
            return agreed
        time.sleep(0.01)
    return None


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_heard_after_the_step(number):
    with Stop(Comm(), 3) as stop:
        assert stop.agreed() is None
        os.kill(os.getpid(), number)
        assert heard(stop) == number


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Stop(Comm(), 3):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_outside_the_main_thread_nothing_is_listened_to():
    seen = []

    def body():
        with Stop(Comm(), 3) as stop:
            seen.append(stop.agreed())
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [None]


class Pair:
    """Stands for the comms of two workers: a sum is known when both have voted."""

    def __init__(self):
        self.queues = deque(), deque()

    def of(self, rank):
        pair = self

        class Half(Comm):
            size = 2

            def sum_later(self, array, name):
                pair.queues[rank].append((name, array))
                return Lazy(pair, len(pair.queues[rank]) - 1)
        return Half()


class Lazy:
    def __init__(self, pair, place):
        self.pair, self.place = pair, place

    def asnumpy(self):
        (name, one), (other_name, other) = (queue[self.place] for queue in self.pair.queues)
        assert name == other_name
        return (one + other).asnumpy()


@pytest.mark.parametrize("asked", [0, 1, 4])
@pytest.mark.parametrize("delay", [1, 3])
def test_all_workers_agree_at_the_same_step(asked, delay):
    """Worker 1 is asked before its vote `asked`: both stop `delay` votes later."""
    pair = Pair()
    stops = [Stop(pair.of(0), delay), Stop(pair.of(1), delay)]
    answers = [], []
    for step in range(10):
        if step == asked:
            stops[1]._asked = signal.SIGTERM
        # Worker 0 comes first: what it looks at has already come from worker 1.
        answers[0].append(stops[0].agreed())
        answers[1].append(stops[1].agreed())
    expected = [None] * (asked + delay) + [signal.SIGTERM] * (10 - asked - delay)
    assert answers[0] == answers[1] == expected


def test_names_in_flight_differ():
    """Horovod mixes up two sums of one name."""
    pair = Pair()
    stop = Stop(pair.of(0), 3)
    pair.queues[1].extend((f"stop.{k % 4}", nd.zeros(2)) for k in range(12))
    for _ in range(12):
        stop.agreed()
    names = [name for name, _ in pair.queues[0]]
    assert all(len(set(names[k:k + 4])) == 4 for k in range(9)) and len(set(names)) == 4


def test_stopped_is_a_sentence():
    assert str(Stopped(signal.SIGTERM, 7)) == \
        "stopped by SIGTERM after step 7; the same command continues there"


STUCK = """
import ctypes
from gluon_resnest.engine.comm import Comm
from gluon_resnest.engine.stopping import Stop

with Stop(Comm(), 3):
    print("ready", flush=True)
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)           # never returns, whatever signal comes
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_stops_at_once(number, tmp_path):
    """Also while the main thread is deep in a call that never returns."""
    script = tmp_path / "script.py"
    script.write_text(STUCK)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(number)
            assert process.wait(10) == 128 + number
        finally:
            process.kill()
