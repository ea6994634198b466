"""Weight files of every neighbouring system as {name: numpy array}; nothing in them is executed.

Containers are told apart by their first bytes, not by their suffix:

=========== ==================================================================================
torch       PyTorch's zip container
torch-old   PyTorch's container before 1.6
pickle      a pickled dictionary of numpy arrays (detectron2's .pkl)
safetensors safetensors
params      MXNet's .params (structural names of Gluon, or `arg:`/`aux:` names of an export)
=========== ==================================================================================
"""
import contextlib
import io
import os
import struct
import tempfile
import zipfile
from typing import Dict, NamedTuple, Tuple

import numpy as np

from gluon_resnest import params_file
from gluon_resnest.data import inert_pickle
from gluon_resnest.data.pickled_numpy import ArrayShell
from gluon_resnest.errors import UserError
from gluon_resnest.interop import safetensors_file, torch_file
from gluon_resnest.interop.pickled_arrays import CONSTRUCTORS
from gluon_resnest.interop.weights import read_params

MAX_BYTES = 8 << 30
MAX_GROWTH = 16             # bytes in memory per byte of the file; bool to int64 needs 8
WRAPPERS = ("state_dict", "model")
EMA_WRAPPERS = ("state_dict_ema", "model_ema")
_SWAPPED = "ema_state_dict"     # MMEngine: the raw weights, `state_dict` being their average

_LEGACY_HEAD = b"\x80\x02\x8a\x0a" + torch_file.LEGACY_MAGIC.to_bytes(10, "little")
_PARAMS_HEAD = struct.pack("<Q", params_file.LIST_MAGIC)
_DAMAGE = (struct.error, zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, EOFError,
           OverflowError, MemoryError, NotImplementedError, RecursionError)


class WeightFile(NamedTuple):
    """What a file holds: float32 (or int64) arrays by name, its container, remarks for the user."""

    tensors: Dict[str, np.ndarray]
    container: str
    notes: Tuple[str, ...]


def read_weights(path: str, *, ema: bool = False) -> WeightFile:
    """Reads a weight file of any container; nothing in it is executed.

    Args:
      path: the file.
      ema: take the moving average of the weights (`state_dict_ema`, `model_ema`, or `state_dict`
        of MMEngine's files that have an `ema_state_dict`) instead of the weights.

    Raises:
      UserError: the file is missing, no weight file, damaged, hostile, or holds no EMA weights.
    """
    try:
        size = os.path.getsize(path)
        if size > MAX_BYTES:
            raise UserError(f"it has {size} bytes, expected at most {MAX_BYTES}; save weights only")
        with open(path, "rb") as stream:
            container = _container(stream.read(16), size)
            stream.seek(0)
            tree = read_params(path) if container == "params" else (
                _READERS[container](stream, size))
        if not isinstance(tree, dict):
            raise UserError(f"it holds a {type(tree).__name__} where a dictionary of tensors is "
                            "expected; save the model's state_dict()")
        chosen, notes = _unwrap(tree, ema)
        tensors, more = _as_float32(chosen, MAX_GROWTH * size)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a weight file")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); get it again and "
                        "compare its sha256") from error
    return WeightFile(tensors, container, notes + more)


def _container(head, size):
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if head.startswith(_LEGACY_HEAD):
        return "torch-old"
    if head.startswith(_PARAMS_HEAD):
        return "params"
    if head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80":
        return "pickle"
    raise UserError("it begins like none of PyTorch, safetensors, MXNet .params or a pickle; "
                    "give a weight file" if size else "it is empty; get it again")


def _read_pickle(stream, size):
    return inert_pickle.load(io.BytesIO(stream.read(size)), CONSTRUCTORS)


_READERS = {"torch": torch_file.read_zip, "torch-old": torch_file.read_legacy,
            "pickle": _read_pickle, "safetensors": safetensors_file.read}


def _unwrap(tree, ema):
    """Chooses the dictionary of weights inside training checkpoints; returns it and remarks."""
    if all(isinstance(tree.get(key), dict) for key in ("state_dict", _SWAPPED)):
        return tree["state_dict"], (f"weights taken from 'state_dict', their moving average: "
                                    f"MMEngine keeps the raw ones in {_SWAPPED!r}",)
    averages = [key for key in EMA_WRAPPERS if isinstance(tree.get(key), dict)]
    if ema:
        if not averages:
            raise UserError(f"it holds no moving average ({', '.join(EMA_WRAPPERS)}); "
                            "leave out --ema")
        return tree[averages[0]], (f"moving average taken from {averages[0]!r}",)
    for key in WRAPPERS:
        if isinstance(tree.get(key), dict):
            also = f"; {averages[0]!r} is there too (--ema)" if averages else ""
            return tree[key], (f"weights taken from {key!r}{also}",)
    return tree, ()


def _as_float32(chosen, limit):
    """Keeps the arrays of a dictionary; floats become float32, integers int64.

    Many tensors may share one storage, so their sum is held below a limit of bytes.
    """
    tensors, converted, total = {}, {}, 0
    for name, value in chosen.items():
        value = value.value if isinstance(value, ArrayShell) else value
        if not isinstance(value, np.ndarray):
            continue
        name = str(name)
        if not name.isprintable() or len(name) > 500:
            raise UserError(f"a tensor has the name {name[:100]!r}; names are short and printable")
        total += value.size * (4 if value.dtype.kind == "f" else 8)
        if total > limit:
            raise UserError(f"its tensors unfold to more than {limit} bytes; it was not read")
        target = np.float32 if value.dtype.kind == "f" else np.int64
        if value.dtype.kind == "f" and value.dtype.itemsize != 4:
            converted[value.dtype.name] = converted.get(value.dtype.name, 0) + 1
        with np.errstate(over="ignore"):
            tensors[name] = value = value.astype(target, copy=False)
        if not np.isfinite(value).all():
            raise UserError(f"{name!r} holds NaN or infinity in float32; the weights are unusable")
    if not tensors:
        found = ", ".join(map(str, list(chosen)[:10])) or "nothing"
        raise UserError(f"it holds no tensors, only {found}; save the model's state_dict()")
    return tensors, tuple(f"{count} tensors of {name} became float32"
                          for name, count in sorted(converted.items()))


def write_weights(path: str, tensors: Dict[str, np.ndarray], container: str,
                  metadata: Dict[str, str]) -> None:
    """Writes {name: float32 array} atomically: the file is complete or not there.

    Args:
      path: file to create or replace.
      tensors: arrays in the order in which they are written.
      container: "params", "torch" or "safetensors".
      metadata: text facts; only safetensors has a place for them.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        with _replacing(path) as temporary:
            _WRITERS[container](temporary, tensors, metadata)
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); choose a folder "
                        "that exists, is writable and has space") from error


def _write_params(path, tensors, _metadata):
    params_file.write(path, tensors)


def _write_torch(path, tensors, _metadata):
    with open(path, "wb") as stream:
        torch_file.write_zip(stream, tensors)


def _write_safetensors(path, tensors, metadata):
    with open(path, "wb") as stream:
        safetensors_file.write(stream, tensors, metadata)


_WRITERS = {"params": _write_params, "torch": _write_torch, "safetensors": _write_safetensors}


@contextlib.contextmanager
def _replacing(path):
    """Yields a path in a new folder beside `path`; moves what was written there into place."""
    path = os.path.abspath(path)
    with tempfile.TemporaryDirectory(prefix=f".{os.path.basename(path)}.",
                                     dir=os.path.dirname(path)) as folder:
        temporary = os.path.join(folder, os.path.basename(path))
        yield temporary
        os.replace(temporary, path)
