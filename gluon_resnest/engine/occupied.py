"""A run directory belongs to one training process at a time."""
import errno
import fcntl
import os
import time
from pathlib import Path

from gluon_resnest.errors import UserError

LOCK = ".lock"
PATIENCE = 20.0         # seconds to wait for a process that may be ending just now
_held = {}      # file -> descriptor; closing any descriptor of a file gives up its lock


def occupy(workdir):
    """Takes a run directory for this process, until it ends.

    Two trainings in one directory would remove each other's checkpoints. The lock is one of POSIX:
    loader processes do not inherit it, and the death of its holder frees it.

    Raises:
      UserError: if another process holds it.
    """
    file = (Path(workdir) / LOCK).resolve()
    if file not in _held:
        _held[file] = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.lockf(_held[file], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return None             # a file system without locks
        if time.monotonic() > end:
            raise UserError(f"another process trains in {workdir}; wait for its end, or give "
                            "another --workdir")
        time.sleep(0.1)
