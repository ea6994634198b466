"""The bytes of a `.params` file, the list format of `mxnet.nd.save` (NDArray::Save).

They are made here, because MXNet's own writer does not notice a disk that fills up with the last
bytes, and because bytes can be hashed on their way.
"""
import os
import struct

import mxnet as mx

# A list header, arrays, then as many names. Arrays are V2 here; V3 is that of NumPy's semantics.
LIST_MAGIC, ARRAY_V2, ARRAY_V3 = 0x112, 0xF993FAC9, 0xF993FACA
DENSE, _CPU = 0, 1
DTYPES = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool")   # by code


def write(path, arrays):
    """Writes {name: numpy array} as a `.params` file, through to the disk."""
    with open(path, "wb") as file:
        for chunk in pack(arrays):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def pack(arrays):
    """Yields the bytes of a `.params` file of {name: numpy array}."""
    yield struct.pack("<QQQ", LIST_MAGIC, 0, len(arrays))
    for array in arrays.values():
        yield struct.pack(f"<Iii{array.ndim}qiii", ARRAY_V2, DENSE, array.ndim, *array.shape,
                          _CPU, 0, DTYPES.index(array.dtype.name))
        yield array.tobytes()
    yield struct.pack("<Q", len(arrays))
    for name in arrays:
        encoded = name.encode()
        yield struct.pack("<Q", len(encoded)) + encoded


def unpack(content):
    """Returns {name: numpy array} of the bytes of a `.params` file; MXNetError if they are not."""
    arrays = mx.nd.load_frombuffer(content)
    if not isinstance(arrays, dict):        # MXNet forgets that an empty list had names
        return {}
    return {name: array.asnumpy() for name, array in arrays.items()}
