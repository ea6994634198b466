"""One checkpoint: the state of a run in memory and in a directory, checked by checksum, and never
pickled. `engine.checkpoints` is about all those of a run.

    step-00001250/
      model.params       what was evaluated, the weights or their moving average, under structural
                         Gluon names: net.load_parameters reads it
      optimizer.params   arrays of the update, such as "conv1.weight:0" (momentum)
      state.json         where the run stood: step, best value, seed, numbers of the update
      manifest.json      size and sha256 of the three others
"""
import dataclasses
import hashlib
import json
import os
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


def write(directory, checkpoint):
    """Writes the files of a Checkpoint, the manifest last, through to the disk.

    Args:
      directory: pathlib.Path of a directory that is there.
    """
    record = {"format": FORMAT, "state": dataclasses.asdict(checkpoint.state),
              "update": checkpoint.numbers}
    contents = {MODEL: params_file.pack(checkpoint.model),
                OPTIMIZER: params_file.pack(checkpoint.arrays), STATE: [_json(record)]}
    files = {name: _write_file(directory / name, chunks) for name, chunks in contents.items()}
    _write_file(directory / MANIFEST, [_json({"format": FORMAT, "files": files})])
    make_durable(directory)


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


def make_durable(directory):
    """Brings the names in a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
