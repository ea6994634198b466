"""A loader process: takes tasks from a socket, fills rows of the shared ring, reports.

Started by `loader.Loader` as `python -m gluon_resnest.data.worker NUMBER TASKS REPORTS RING`, the
last three being inherited descriptors. It imports neither mxnet nor the user's main script, and
ends when the loader's end of the sockets closes, however the loader's process died.
"""
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from multiprocessing.connection import Connection

import numpy as np

from gluon_resnest.data.ring import Ring
from gluon_resnest.data.sampling import random_for
from gluon_resnest.errors import UserError

TASK = struct.Struct("<5q")                                   # number, slot, start, stop, epoch


def fill(dataset, seed, epoch, indices, arrays):
    """Reads samples into the rows of a batch.

    Args:
      dataset: see docs/architecture.md.
      seed, epoch: decide, with each sample's index, what its transform draws.
      indices: the samples, int64 (N,).
      arrays: one array (N, ...) for each part of a sample; row n receives sample indices[n].

    Raises:
      UserError: from the dataset, passed on.
      RuntimeError: if anything else goes wrong with a sample; names it.
    """
    for row, index in enumerate(indices.tolist()):
        try:
            sample = dataset[index, random_for(seed, epoch, index)]
            for array, value in zip(arrays, sample):
                if np.shape(value) != array.shape[1:]:
                    raise ValueError(f"expected an array of shape {array.shape[1:]}, as in the "
                                     f"first sample, got {np.shape(value)}")
                array[row] = value
        except UserError:
            raise
        except Exception as error:
            raise RuntimeError(f"reading {dataset.name(index)} failed: {error}") from error


def serve(number, tasks, reports, ring, dataset, seed):
    """Works on tasks until the loader closes the socket.

    Args:
      number: this worker's number.
      tasks: socket that all workers read; one message is one task.
      reports: Connection to the loader; gets (task number, None or an exception's description).
      ring: the shared Ring.
      dataset: what to read from.
      seed: the run's seed.
    """
    while True:
        message = tasks.recv(TASK.size)
        if not message:
            return
        task, slot, start, stop, epoch = TASK.unpack(message)
        problem = None
        if task > ring.cancelled[0]:
            ring.taken[number] = task
            indices, arrays, _ = ring.slot(slot)
            try:
                rows = [part[start:stop] for part in arrays]
                fill(dataset, seed, epoch, indices[start:stop], rows)
            except UserError as error:
                problem = ("UserError", str(error))
            except RuntimeError:
                problem = ("RuntimeError", traceback.format_exc())
        reports.send((task, problem))
        ring.taken[number] = 0


def main(number, tasks_fd, reports_fd, ring_fd):
    """Runs a worker whose loader has handed over the descriptors."""
    for number_of_signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number_of_signal, signal.SIG_IGN)       # the loader decides when to stop
    tasks = socket.socket(fileno=tasks_fd)
    reports = Connection(reports_fd)
    try:
        path, layout, seed, dataset = reports.recv()
        sys.path[:] = path
        try:
            dataset = pickle.loads(dataset)                   # from our own parent, by our own pipe
        except Exception as error:
            reports.send((0, ("UserError", f"{type(error).__name__}: {error}")))
            return
        reports.send((0, None))
        serve(number, tasks, reports, Ring(layout, ring_fd), dataset, seed)
    except (EOFError, ConnectionError):
        return                                                # the loader is gone


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
    os._exit(0)                                               # nothing to clean up; saves 50 ms
