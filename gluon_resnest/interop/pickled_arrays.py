"""Our stand-ins for what pickled weight files are made of: torch tensors and numpy arrays.

`CONSTRUCTORS` is the allow-list of `inert_pickle`: whatever a PyTorch, OpenMMLab, detectron2 or
Chainer weight file needs, and nothing that acts.
"""
from typing import Any, Callable, Dict, NamedTuple, Tuple

import numpy as np

from gluon_resnest.data import pickled_numpy
from gluon_resnest.data.inert_pickle import Global, Inert
from gluon_resnest.data.pickled_numpy import no_call
from gluon_resnest.errors import UserError

BFLOAT16 = "bfloat16"
_STORAGES = {
    "FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BFloat16Storage": BFLOAT16,
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "?"}


def item_size(dtype: str) -> int:
    """Bytes per element of a dtype of this module (numpy's codes and BFLOAT16)."""
    return 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize


def decode(data, dtype: str, byteorder: str = "<") -> np.ndarray:
    """Views raw bytes as a flat array; bfloat16 becomes float32 exactly."""
    if dtype == BFLOAT16:
        return (np.frombuffer(data, byteorder + "u2").astype("u4") << 16).view("f4")
    return np.frombuffer(data, byteorder + dtype)


class Storage(NamedTuple):
    """A torch storage the file refers to; `offset` counts elements of a view into it."""

    key: str
    dtype: str
    numel: int
    offset: int = 0


class TensorRef(NamedTuple):
    """A torch tensor before its storage is read; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: Tuple[int, ...]
    strides: Tuple[int, ...]

    def view(self, flat: np.ndarray) -> np.ndarray:
        """Views the flat storage as this tensor, without a copy.

        Raises:
          UserError: if the tensor reaches beyond the storage or has more elements than it.
        """
        numbers = (self.storage.offset, self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or len(self.shape) > 32 or any(
                not isinstance(n, int) or n < 0 for n in numbers):
            raise UserError("the shape, strides or offset of a tensor is damaged; "
                            "get the file again")
        count = 1
        for size in self.shape:
            count *= size
        start = self.storage.offset + self.offset
        last = start + sum((n - 1) * s for n, s in zip(self.shape, self.strides))
        if count > flat.size or (count and last >= flat.size):
            raise UserError(f"a tensor of shape {self.shape} reaches element {last} of a storage "
                            f"of {flat.size}; the file is damaged, get it again")
        if not count:
            return np.zeros(self.shape, flat.dtype)
        strides = tuple(s * flat.itemsize for s in self.strides)
        return np.lib.stride_tricks.as_strided(flat[start:], self.shape, strides, writeable=False)


def storage_from(identity: Any) -> Storage:
    """Reads torch's persistent id ("storage", type, key, location, numel[, view])."""
    fields = identity if isinstance(identity, tuple) else ()
    if len(fields) not in (5, 6) or fields[0] != "storage":
        raise UserError("the file holds a pickled module, not weights; save its state_dict()")
    kind, key, numel = fields[1], fields[2], fields[4]
    if not isinstance(kind, Global) or kind.name.rpartition(".")[2] not in _STORAGES:
        raise UserError("a tensor's storage type is none of " + ", ".join(sorted(_STORAGES)))
    if not isinstance(key, str) or not isinstance(numel, int) or numel < 0:
        raise UserError("a tensor's storage is damaged; get the file again")
    offset = fields[5][1] if len(fields) == 6 and fields[5] is not None else 0
    return Storage(key, _STORAGES[kind.name.rpartition(".")[2]], numel, offset)


def _tensor(storage, offset, size, stride, *unused):
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    if not isinstance(size, (tuple, list)) or not isinstance(stride, (tuple, list)):
        raise TypeError("a tensor without size or stride")
    return TensorRef(storage, offset, tuple(size), tuple(stride))


def _ordered_dict(pairs=()):
    result = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise TypeError("an OrderedDict key that is no text")
        result[key] = value
    return result


def _forgetful_dict(*unused):
    return {}


def _constructors() -> Dict[str, Callable]:
    table = {
        "collections.OrderedDict": _ordered_dict,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda data, *unused: data,
        "torch.Size": tuple,
        "torch.device": Inert,
        "torch.serialization._get_layout": Inert,
        **pickled_numpy.CONSTRUCTORS,
    }
    for storage in _STORAGES:
        table["torch." + storage] = no_call
    for dtype in ("float16", "bfloat16", "float32", "float64", "int64"):
        table["torch." + dtype] = no_call
    # Settings and records of training runs that lie beside the weights; forgotten.
    for name in ("argparse.Namespace", "types.SimpleNamespace", "pathlib.PosixPath",
                 "datetime.datetime", "mmengine.logging.history_buffer.HistoryBuffer"):
        table[name] = Inert
    for name in ("yacs.config.CfgNode", "fvcore.common.config.CfgNode",
                 "detectron2.config.config.CfgNode", "mmengine.config.config.ConfigDict",
                 "mmcv.utils.config.ConfigDict"):
        table[name] = _forgetful_dict
    return table


CONSTRUCTORS = _constructors()
