"""The memory that loader processes share: a few batch-sized slots in one anonymous file."""
import mmap
import os
import tempfile
from typing import NamedTuple

import numpy as np

from gluon_resnest.errors import UserError

_ALIGN = 64                                                   # bytes, a cache line


class Spec(NamedTuple):
    """Shape and type of one part of a sample, e.g. ((3, 224, 224), "<f4") for the image."""
    shape: tuple
    dtype: str


class Layout(NamedTuple):
    """What a ring holds; travels to the worker processes.

    specs: one Spec for each array of a sample.
    batch: samples in a slot.
    slots: number of slots.
    workers: number of processes that fill them.
    """
    specs: tuple
    batch: int
    slots: int
    workers: int

    @property
    def head_bytes(self):
        return _aligned(8 * (1 + self.workers))

    @property
    def slot_bytes(self):
        return _aligned(8 * self.batch) + sum(_bytes(spec, self.batch) for spec in self.specs)

    @property
    def total_bytes(self):
        return self.head_bytes + self.slots * self.slot_bytes


class Ring:
    """Slots of a batch each in memory shared between processes.

    The memory is an anonymous file: it has no name that could be left behind, the kernel frees it
    with the last process, and it is not limited by the size of /dev/shm.

    Args:
      layout: what the ring holds.
      fd: descriptor of the ring of another process; None makes a new one.

    Attributes:
      cancelled: int64 (1,), tasks up to this number need no work any more.
      taken: int64 (workers,), the task each worker is busy with, 0 if none.

    Raises:
      UserError: if there is not enough memory.
    """

    def __init__(self, layout, fd=None):
        self.layout = layout
        self.fd = _anonymous_file(layout) if fd is None else fd
        self._memory = mmap.mmap(self.fd, layout.total_bytes)
        head = np.frombuffer(self._memory, np.int64, 1 + layout.workers)
        self.cancelled, self.taken = head[:1], head[1:]

    def slot(self, number):
        """Returns (indices int64 (batch,), arrays with a leading axis of batch, lease).

        All of them are views of `lease`, an array made for this call: while anybody holds a view,
        a weak reference to the lease is alive.
        """
        layout = self.layout
        lease = np.frombuffer(self._memory, np.uint8, layout.slot_bytes,
                              layout.head_bytes + number * layout.slot_bytes)
        position = _aligned(8 * layout.batch)
        arrays = []
        for spec in layout.specs:
            shape = (layout.batch,) + spec.shape
            part = lease[position:position + int(np.prod(shape)) * np.dtype(spec.dtype).itemsize]
            arrays.append(part.view(spec.dtype).reshape(shape))
            position += _bytes(spec, layout.batch)
        return lease[:8 * layout.batch].view(np.int64), tuple(arrays), lease


def available_bytes():
    """Returns the memory that can still be had, None where the system does not tell."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":") for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None


def _anonymous_file(layout):
    needed, available = layout.total_bytes, available_bytes()
    if available is not None and needed > available:
        raise _too_small(layout, f"but {available / 1e6:.0f} MB are available")
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("gluon_resnest batches")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, needed)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, needed)                 # a lack is an error here, not SIGBUS
    except OSError as error:
        os.close(fd)
        raise _too_small(layout, f"but got: {error.strerror}") from error
    return fd


def _too_small(layout, problem):
    return UserError(
        f"the loader needs {layout.total_bytes / 1e6:.0f} MB of shared memory for {layout.slots} "
        f"batches of {layout.batch} samples, {problem}; use a smaller batch or --data-workers 0")


def _bytes(spec, batch):
    sample = int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
    return _aligned(batch * sample)


def _aligned(count):
    return -(-count // _ALIGN) * _ALIGN
