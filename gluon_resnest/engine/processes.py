"""The processes below this one (Linux): to find them all, and to leave none behind."""
import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans():
    """Makes descendants whose parent dies children of this process, so that none gets lost.

    Raises:
      OSError: if the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot adopt orphaned processes")


def descendants(pid=None):
    """Returns the numbers of all living processes below `pid`, which is this one if None."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):                    # it has ended meanwhile
            # The command in parentheses may hold anything; state and parent follow the last one.
            stat = path.read_text(errors="replace")
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(path.parent.name))
    found, waiting = [], [pid or os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def kill_descendants(patience=30.0):
    """Kills every process below this one, also stopped ones, and waits until they have ended.

    Only for a process with `adopt_orphans`, which has no other children to keep.

    Raises:
      RuntimeError: naming those that live on after `patience` seconds (in the kernel, perhaps in
        a broken network file system or driver).
    """
    end = time.monotonic() + patience
    while True:
        alive = descendants()
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not alive:
            return
        if time.monotonic() > end:
            raise RuntimeError(f"processes {alive} cannot be killed")
        time.sleep(0.02)
