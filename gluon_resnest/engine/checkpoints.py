"""The checkpoints of a run: the newest and the best, each whole or absent.

    checkpoints/step-00001250/           see `engine.checkpoint`
    checkpoints/unevaluated-00001250/    the same, for as long as the evaluation after it runs

A checkpoint is written under another name and renamed when all of it is on the disk, so that a
kill at any moment leaves the older ones. The state of the newest says which one is the best.
"""
import contextlib
import logging
import os
import re
import shutil
from pathlib import Path

from gluon_resnest.engine.checkpoint import (
    Checkpoint, State, load, make_durable, read, snapshot, write)
from gluon_resnest.errors import UserError

_log = logging.getLogger(__name__)
_STEP, _UNEVALUATED = "step", "unevaluated"
_NAME = re.compile(rf"({_STEP}|{_UNEVALUATED})-(\d{{8,}})")
_UNFINISHED = "unfinished-"                       # being written or being removed


class Checkpoints:
    """The checkpoints of a run directory.

    Args:
      directory: where they lie; made at the first save.
      keep: how many of the newest are kept, besides the best.
    """

    def __init__(self, directory, keep=3):
        if keep < 1:
            raise UserError(f"at least 1 checkpoint must be kept, got {keep!r}")
        self.directory, self._keep = Path(directory), keep

    def save(self, net, update, state):
        """Stores a snapshot of `net` and `update`; see `store`."""
        return self.store(snapshot(net, update, state))

    def store(self, checkpoint):
        """Writes a checkpoint, then removes what is neither among the newest nor the best.

        One that is unevaluated is removed by the next, which is of the same step as a rule.

        Returns:
          Its path.

        Raises:
          UserError: if the directory cannot be written or the disk is full; what was saved
            before is still there, and no part of this one.
        """
        target = self.path(checkpoint.state.step, checkpoint.state.unevaluated)
        building = self.directory / (_UNFINISHED + target.name)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clean()
            try:
                building.mkdir()
                write(building, checkpoint)
                if target.exists():        # a damaged one: a run starts from the newest whole one
                    self._remove(target)
                os.rename(building, target)
                make_durable(self.directory)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
            self._prune(target, checkpoint.state)
        except OSError as error:
            raise UserError(
                f"cannot save {target.name} in {self.directory}: {error.strerror or error}; what "
                "was saved before is whole: make room or give a writable --workdir, and run the "
                "same command again") from error
        return target

    def latest(self):
        """Returns the newest whole Checkpoint, or None if there is none at all.

        Each damaged one it passes is reported in a logged sentence.

        Raises:
          UserError: if there are checkpoints and none is whole; starting anew must be a decision.
        """
        newest = next(self.whole(), None)
        paths = self._paths()
        if newest is None and paths:
            raise UserError(f"none of the {len(paths)} checkpoints in {self.directory} is whole; "
                            "move them away to start anew, or give another workdir")
        return newest

    def whole(self):
        """Yields the whole Checkpoints, newest first; a damaged one is a logged sentence.

        Of a step it is one: a kill may leave an unevaluated one beside that with the values.
        """
        last = None
        for found in filter(None, map(self._read, reversed(self._paths()))):
            if found.state.step != last:
                yield found
            last = found.state.step

    def best(self):
        """Returns the Checkpoint with the highest main metric; None if it is not there, or none."""
        newest = self.latest()
        if newest is None or newest.state.best_step is None:
            return None
        if newest.state.best_step == newest.state.step:
            return newest
        return self._read(self.path(newest.state.best_step))

    def path(self, step, unevaluated=False):
        """Returns where the checkpoint of a step lies, or is to lie."""
        return self.directory / f"{_UNEVALUATED if unevaluated else _STEP}-{step:08d}"

    def path_of(self, found):
        """Returns where a Checkpoint that was read lies."""
        return self.path(found.state.step, found.state.unevaluated)

    def steps(self):
        """Returns the steps of the checkpoints that are there, ascending, whole or not; without
        one that is unevaluated."""
        return [step for step, unevaluated in self._found() if not unevaluated]

    def _found(self):
        """Returns [(step, unevaluated)] of what is there, oldest first: an evaluated one is newer
        than another of its step."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            names = (_NAME.fullmatch(name) for name in os.listdir(self.directory))
            return sorted(((int(name[2]), name[1] == _UNEVALUATED) for name in names if name),
                          key=lambda found: (found[0], not found[1]))
        return []

    def _paths(self):
        return [self.path(*found) for found in self._found()]

    def restore(self, net, update, comm):
        """Brings every worker's network and update to the newest whole checkpoint.

        Only the main worker reads files; a shared file system is not needed.

        Returns:
          Its State, or a fresh State if there is none.

        Raises:
          UserError: if it belongs to another network or optimizer.
        """
        found = self._shared(self.latest, comm)
        if found is None:
            return State()
        load(net, found.model, source=self.path_of(found))
        update.restore(found.arrays, found.numbers)
        return found.state

    def restore_best(self, net, comm):
        """Brings every worker's network to the best whole checkpoint, else to the newest.

        Returns:
          Its State, or None if there is no checkpoint.

        Raises:
          UserError: if it belongs to another network.
        """
        found = self._shared(lambda: self.best() or self.latest(), comm)
        if found is None:
            return None
        load(net, found.model, source=self.path_of(found))
        return found.state

    def _shared(self, find, comm):
        """Returns the main worker's `find()`, a Checkpoint or None, on every worker."""
        found = None

        def header():
            nonlocal found
            found = find()
            return found and (found.state, found.numbers)

        known = comm.on_main(header)
        if known is None:
            return None
        state, numbers = known
        return Checkpoint(state, comm.share_arrays(found and found.model),
                          comm.share_arrays(found and found.arrays), numbers)

    def _read(self, path):
        """Returns the Checkpoint at `path`, or None, with a logged sentence, if it is not whole."""
        try:
            return read(path)
        except UserError as error:
            _log.warning("%s; it is passed over", error)
            return None

    def _prune(self, newest, state):
        for step, unevaluated in self._found():     # another of this step is damaged, or was due
            path = self.path(step, unevaluated)
            if path != newest and (unevaluated or step == state.step):
                self._remove(path)
        older = [found for found in self._found() if found[0] <= state.step]
        for step, unevaluated in older[:-self._keep]:
            if step != state.best_step:
                self._remove(self.path(step, unevaluated))

    def _remove(self, path):
        """Removes a checkpoint so that a kill in between leaves none that looks whole."""
        doomed = path.with_name(f"{_UNFINISHED}{path.name}-old")
        os.rename(path, doomed)
        shutil.rmtree(doomed)

    def _clean(self):
        """Removes what a killed process left behind."""
        for left in self.directory.glob(_UNFINISHED + "*"):
            shutil.rmtree(left)
