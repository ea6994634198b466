"""SIGTERM and SIGINT: all workers stop after the same step; a second signal stops at once."""
import itertools
import os
import signal
import socket
import threading
from collections import deque

import mxnet as mx

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """Training was asked to stop, and has saved where it stands.

    Attributes:
      signal: signal.SIGINT or SIGTERM; step: updates done.
    """

    def __init__(self, number, step):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; the same "
                         "command continues there")
        self.signal, self.step = signal.Signals(number), step


class Stop:
    """Listens to SIGTERM and SIGINT while it is entered, and agrees with the other workers.

    A thread of its own hears the signals, since Python's handlers have to wait for the end of
    whatever call into MXNet the main thread is in. Outside the main thread, where Python hears no
    signals, nothing is listened to.

    Args:
      comm: this worker's Comm.
      delay: steps between a worker's vote and its being counted; with the steps that the loop
        runs ahead, counting never waits for another worker.
    """

    def __init__(self, comm, delay):
        self._comm, self._delay = comm, delay if comm.size > 1 else 0
        self._asked = None
        self._votes, self._calls = deque(), itertools.count()
        self._before, self._hears = {}, threading.current_thread() is threading.main_thread()

    def __enter__(self):
        if self._hears:
            listener, self._bell = socket.socketpair()
            self._bell.setblocking(False)
            self._wakeup_before = signal.set_wakeup_fd(self._bell.fileno())
            self._before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
            threading.Thread(target=self._listen, args=(listener,), daemon=True).start()
        return self

    def __exit__(self, *_):
        if self._hears:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup_before)
            self._bell.close()

    def agreed(self):
        """Votes, to be called by all workers after each step.

        Returns:
          The signal that some worker had got `delay` calls ago, the same on all; else None.
        """
        vote = mx.nd.array([self._asked == number for number in SIGNALS])
        # Few names, used again and again: Horovod's cache knows them.
        name = f"stop.{next(self._calls) % (self._delay + 1)}"
        self._votes.append(self._comm.sum_later(vote, name))
        if len(self._votes) <= self._delay:
            return None
        counts = self._votes.popleft().asnumpy()
        return next((number for number, count in zip(SIGNALS, counts) if count), None)

    def _listen(self, listener):
        with listener:
            while True:
                received = listener.recv(1)
                if not received:
                    return
                if received[0] in SIGNALS:
                    if self._asked is not None:
                        os._exit(128 + received[0])
                    self._asked = signal.Signals(received[0])
