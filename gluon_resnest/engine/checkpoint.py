"""Checkpoints that are whole or absent, checked by checksum, and never pickled.

    checkpoints/step-00001250/
      model.params       what was evaluated, the weights or their moving average, under structural
                         Gluon names: net.load_parameters reads it
      optimizer.params   arrays of the update, such as "conv1.weight:0" (momentum)
      state.json         where the run stood: step, best value, seed, numbers of the update
      manifest.json      size and sha256 of the three others
    checkpoints/unevaluated-00001250/    the same, for as long as the evaluation after it runs

A checkpoint is written under another name and renamed when all of it is on the disk, so that a
kill at any moment leaves the older ones. The state of the newest says which one is the best.
"""
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import mxnet as mx
import numpy as np

from gluon_resnest import params_file
from gluon_resnest.errors import UserError

FORMAT = 1
MODEL, OPTIMIZER = "model.params", "optimizer.params"
STATE, MANIFEST = "state.json", "manifest.json"

_log = logging.getLogger(__name__)
_STEP, _UNEVALUATED = "step", "unevaluated"
_NAME = re.compile(rf"({_STEP}|{_UNEVALUATED})-(\d{{8,}})")
_UNFINISHED = "unfinished-"                       # being written or being removed
# What the readers below raise on damaged or hostile files.
_DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError,
           mx.base.MXNetError)


@dataclass(frozen=True)
class State:
    """Where a run stands after `step` updates; what the next step needs besides the arrays.

    Attributes:
      step: updates done.
      seed: of every random choice.
      workers: number of workers that made it.
      steps_per_epoch: length of an epoch.
      best, best_step: highest value of the main metric so far, and where; None before the first.
      metrics: values of the last evaluation.
      unevaluated: whether the evaluation that is due after this step is still to come.
      seconds: wall time spent in all runs so far.
    """

    step: int = 0
    seed: int = 0
    workers: int = 1
    steps_per_epoch: int = 1
    best: Optional[float] = None
    best_step: Optional[int] = None
    metrics: dict = dataclasses.field(default_factory=dict)
    unevaluated: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
      state: where the run stands.
      model: {structural name: numpy array} of the network.
      arrays, numbers: from `update.Update.state`, arrays as numpy.
    """

    state: State
    model: dict
    arrays: dict
    numbers: dict


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
                _write(building, checkpoint)
                if target.exists():        # a damaged one: a run starts from the newest whole one
                    self._remove(target)
                os.rename(building, target)
                _sync(self.directory)
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


def snapshot(net, update, state):
    """Copies what a checkpoint holds to host memory.

    Args:
      net: Block; update: `update.Update`; state: State.
    """
    mx.nd.waitall()            # running statistics may lag behind the step (hybridized nets)
    arrays, numbers = update.state()
    with update.averaged():
        model = {name: parameter.data().asnumpy()
                 for name, parameter in net._collect_params_with_prefix().items()}
    return Checkpoint(state, model, {name: array.asnumpy() for name, array in arrays.items()},
                      numbers)


def read(path):
    """Reads one checkpoint directory and checks it against its manifest.

    Raises:
      UserError: if it is damaged or of another format.
    """
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}, this version reads {FORMAT}")
        contents = {name: _checked(path / name, manifest["files"][name])
                    for name in (MODEL, OPTIMIZER, STATE)}
        record = json.loads(contents[STATE])
        return Checkpoint(_state(record["state"]), params_file.unpack(contents[MODEL]),
                          params_file.unpack(contents[OPTIMIZER]), dict(record["update"]))
    except _DAMAGE as error:
        reason = f"no {error}" if isinstance(error, KeyError) else \
            (str(error).splitlines() or [type(error).__name__])[-1]
        raise UserError(f"checkpoint {path} is damaged ({reason})") from error


def load(net, arrays, *, source):
    """Sets all parameters of `net`.

    Args:
      net: initialised Block.
      arrays: {structural name: numpy array}.
      source: where they come from, for messages.

    Raises:
      UserError: listing missing, unexpected and mis-shaped names; nothing is changed then.
    """
    params = net._collect_params_with_prefix()
    missing = [name for name in params if name not in arrays]
    unexpected = [name for name in arrays if name not in params]
    misshaped = [f"{name} {arrays[name].dtype}{arrays[name].shape} instead of "
                 f"{np.dtype(params[name].dtype)}{params[name].shape}"
                 for name in params if name in arrays and not _fits(params[name], arrays[name])]
    faults = [f"{what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
              for what, names in (("missing", missing), ("unexpected", unexpected),
                                  ("of another shape", misshaped)) if names]
    if faults:
        raise UserError(f"{source} does not fit this network ({'; '.join(faults)}); use the "
                        "network it was made with, or another workdir")
    for name, array in arrays.items():
        params[name]._load_init(mx.nd.array(array, dtype=array.dtype), None)


def _fits(parameter, array):
    """Returns whether type and shape agree; 0 in a parameter's shape is not known yet."""
    known = parameter.shape
    return array.dtype == np.dtype(parameter.dtype) and (
        known is None or (len(known) == array.ndim and
                          all(want in (0, got) for want, got in zip(known, array.shape))))


def _state(values):
    values = {"unevaluated": False, **values}       # older versions saved after evaluations only
    state = State(**{field.name: values[field.name] for field in dataclasses.fields(State)})
    whole = (state.step, state.seed, state.workers, state.steps_per_epoch)
    if not all(type(value) is int for value in whole) or min(whole) < 0:
        raise ValueError(f"{STATE} holds no counts")
    if type(state.unevaluated) is not bool:
        raise ValueError(f"{STATE} does not say whether it is evaluated")
    return state


def _write(directory, checkpoint):
    """Writes the files of a checkpoint, the manifest last, through to the disk."""
    record = {"format": FORMAT, "state": dataclasses.asdict(checkpoint.state),
              "update": checkpoint.numbers}
    contents = {MODEL: params_file.pack(checkpoint.model),
                OPTIMIZER: params_file.pack(checkpoint.arrays), STATE: [_json(record)]}
    files = {name: _write_file(directory / name, chunks) for name, chunks in contents.items()}
    _write_file(directory / MANIFEST, [_json({"format": FORMAT, "files": files})])
    _sync(directory)


def _write_file(path, chunks):
    """Writes `chunks` of bytes through to the disk; returns the manifest's entry."""
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _json(values):
    return json.dumps(values, indent=1).encode()


def _checked(path, entry):
    """Returns the bytes of a file if they are those that were written."""
    content = path.read_bytes()
    if len(content) != entry["bytes"]:
        raise ValueError(f"{path.name} has {len(content)} bytes of {entry['bytes']}")
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ValueError(f"{path.name} does not match its checksum")
    return content


def _sync(directory):
    """Makes the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
