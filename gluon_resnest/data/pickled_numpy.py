"""Our stand-ins for the numpy arrays inside a pickle; `CONSTRUCTORS` is for `inert_pickle.load`."""
from typing import Optional

import numpy as np

from gluon_resnest.data.inert_pickle import Shell
from gluon_resnest.errors import UserError

_CODES = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))


class _DType(Shell):
    """numpy.dtype: a code of `_CODES`, then a state with the byte order."""

    def __init__(self, code, *unused):
        if not isinstance(code, str):       # a shared nested tuple takes exponential time to hash
            raise TypeError("a numpy dtype that is no text")
        if code not in _CODES:
            raise UserError(f"an array has numpy dtype {code[:20]!r}; only plain numbers are read")
        self.code, self.byteorder = code, "="

    def build(self, state):
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("a byte order")
        self.byteorder = state[1]

    def decode(self, data, shape, order):
        if isinstance(data, str):                       # Python 2 wrote bytes as str
            data = data.encode("latin-1")
        flat = np.frombuffer(data, np.dtype(self.byteorder + self.code))
        if not isinstance(shape, tuple) or any(not isinstance(n, int) or n < 0 for n in shape):
            raise ValueError("an array shape")
        return flat.reshape(shape, order=order)


class ArrayShell(Shell):
    """numpy.ndarray: empty, then a state (version, shape, dtype, fortran order, bytes)."""

    value: Optional[np.ndarray] = None

    def __init__(self, *unused):
        pass

    def build(self, state):
        _, shape, dtype, fortran, data = state
        self.value = dtype.decode(data, shape, "F" if fortran else "C")


def _array_from_buffer(data, dtype, shape, order):
    shell = ArrayShell()
    shell.value = dtype.decode(data, shape, "F" if order == "F" else "C")
    return shell


def _scalar(dtype, data):
    return dtype.decode(data, (), "C").item()


def _encode(text, codec):
    if codec not in ("latin1", "latin-1"):
        raise ValueError("a codec other than latin1")
    return text.encode("latin-1")


def no_call(*unused):
    """Stands for a type that a pickle may name but not call."""
    raise TypeError("a call of a type")


CONSTRUCTORS = {"numpy.ndarray": no_call, "numpy.dtype": _DType, "_codecs.encode": _encode}
for _core in ("numpy.core", "numpy._core"):
    CONSTRUCTORS[_core + ".multiarray._reconstruct"] = ArrayShell
    CONSTRUCTORS[_core + ".multiarray.scalar"] = _scalar
    CONSTRUCTORS[_core + ".numeric._frombuffer"] = _array_from_buffer
