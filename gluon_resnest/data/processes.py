"""A bounded, ordered map over worker processes, for packing and checking."""
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from gluon_resnest.errors import UserError

_AHEAD = 4                                                    # tasks a process may be ahead


def in_order(function, tasks, processes):
    """Yields function(task) for every task, in the order of the tasks.

    Args:
      function: picklable, as are tasks and results.
      tasks: iterable; not read further ahead than the processes need.
      processes: how many; 1 works in this one.

    Raises:
      UserError: if a process is killed.
    """
    if processes < 1:
        raise UserError(f"expected at least 1 process, got {processes}")
    if processes == 1:
        yield from map(function, tasks)
        return
    tasks = iter(tasks)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _prepare) as pool:
        try:
            with _interrupts_held():                          # the pool starts its processes here
                waiting = deque(pool.submit(function, task)
                                for task in itertools.islice(tasks, _AHEAD * processes))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, task) for task in itertools.islice(tasks, 1))
                yield result
        except BrokenProcessPool as error:
            raise UserError("one of the processes was killed, perhaps for lack of memory; run the "
                            "same command again, with fewer --processes") from error


@contextlib.contextmanager
def _interrupts_held():
    """Lets Ctrl-C wait; processes started inside never see it, not even while they import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare():
    """Leaves the world when the parent has left it."""
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
