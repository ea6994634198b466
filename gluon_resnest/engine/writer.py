"""Writes checkpoints in a thread, so that training goes on meanwhile."""
import logging
from concurrent.futures import ThreadPoolExecutor

from gluon_resnest.errors import UserError

_log = logging.getLogger(__name__)


class Writer:
    """Stores checkpoints one after the other, at most one at a time.

    Leaving its context waits for the one being written.

    Args:
      checkpoints: the `checkpoints.Checkpoints` of the run.
    """

    def __init__(self, checkpoints):
        self._checkpoints, self._writing = checkpoints, None
        self._thread = ThreadPoolExecutor(1, "checkpoint-writer")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self._thread.shutdown()
        if kind is not None and self._writing is not None:    # what went wrong first is raised
            problem = self._writing.exception()
            if problem is not None:
                _log.error("%s", problem)

    def store(self, checkpoint):
        """Begins to write a checkpoint, when the last one is written.

        Args:
          checkpoint: `checkpoint.Checkpoint`, in host memory; not changed afterwards.

        Raises:
          UserError: if the last one could not be written.
        """
        self.finish()
        self._writing = self._thread.submit(self._checkpoints.store, checkpoint)

    def settle(self):
        """Waits until all is on the disk, or could not be written, which is only logged: for where
        the next checkpoint is of the same step."""
        try:
            self.finish()
        except UserError as error:
            _log.warning("%s; it is tried once more", error)

    def finish(self):
        """Waits until all is on the disk.

        Raises:
          UserError: if the last one could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
