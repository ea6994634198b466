"""Speed of the input alone."""
import time

import mxnet as mx


def input_speed(task, comm, *, batch, steps, skip=5):
    """Draws training batches to the device and does nothing with them.

    Args:
      task: see docs/architecture.md; its network is not touched.
      comm: this worker's Comm; all workers draw at the same time.
      batch: images per step over all workers.
      steps: how many are timed; skip: how many before, while the loader starts.

    Returns:
      Images per second over all workers, as fast as the slowest.
    """
    batches = task.batches(0)
    for _ in range(skip):
        next(batches)
    mx.nd.waitall()
    comm.barrier()
    began = time.monotonic()
    for _ in range(steps):
        next(batches)
        mx.nd.waitall()
    return batch * steps / max(comm.gather(time.monotonic() - began))
