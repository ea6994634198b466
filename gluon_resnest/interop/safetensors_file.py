"""The safetensors container: 8 bytes of header length, a JSON header, raw little-endian data."""
import json
import struct
from typing import Dict

import numpy as np

from gluon_resnest.errors import UserError
from gluon_resnest.interop.pickled_arrays import BFLOAT16, decode, item_size

MAX_HEADER = 100_000_000                                   # the format's own limit
_DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": BFLOAT16, "I64": "i8", "I32": "i4",
           "I16": "i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
_CODES = {"f4": "F32", "i8": "I64"}


def read(stream, size: int) -> Dict[str, np.ndarray]:
    """Reads {name: array}; the data must be covered exactly, without overlaps or gaps.

    Raises:
      UserError: any header field that does not fit the file.
    """
    length, = struct.unpack("<Q", stream.read(8))
    if length > min(MAX_HEADER, size - 8):
        raise UserError(f"the safetensors header should fit {min(MAX_HEADER, size - 8)} bytes and "
                        f"claims {length}; get the file again")
    header = json.loads(stream.read(length).decode("utf-8"), object_pairs_hook=_unique,
                        parse_int=_short_int)
    if not isinstance(header, dict):
        raise UserError("the safetensors header is no JSON object; get the file again")
    header.pop("__metadata__", None)
    entries = sorted((_entry(name, fields) for name, fields in header.items()),
                     key=lambda entry: entry[1:3])
    total, position = size - 8 - length, 0
    for name, begin, end, _, _ in entries:
        if begin != position or end > total:
            raise UserError(f"the data of {name!r} lies at {begin}..{end}, expected from "
                            f"{position} and within {total} bytes; get the file again")
        position = end
    if position != total:
        raise UserError(f"the tensors cover {position} of {total} bytes; get the file again")
    return {name: decode(stream.read(end - begin), dtype).reshape(shape)
            for name, begin, end, dtype, shape in entries}


def _unique(pairs):
    result = dict(pairs)
    if len(result) != len(pairs):
        raise UserError("the safetensors header names a tensor twice; get the file again")
    return result


def _short_int(text):
    if len(text) > 20:                                     # parsing takes quadratic time
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _entry(name, fields):
    """Checks one header entry; returns (name, begin, end, dtype, shape)."""
    try:
        code, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
        numbers = [begin, end, *shape]
        if any(type(n) is not int or n < 0 for n in numbers) or len(shape) > 32:
            raise ValueError("sizes are not natural numbers")
        dtype = _DTYPES[code]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the header entry of {name!r} is damaged ({error!r}); "
                        "get the file again") from error
    count = 1
    for n in shape:
        count *= n
    if count * item_size(dtype) != end - begin:
        raise UserError(f"{name!r} of shape {tuple(shape)} and {code} needs "
                        f"{count * item_size(dtype)} bytes and has {end - begin}; "
                        "get the file again")
    return name, begin, end, dtype, tuple(shape)


def write(stream, tensors: Dict[str, np.ndarray], metadata: Dict[str, str]) -> None:
    """Writes {name: float32 or int64 array} with text metadata, bit for bit."""
    header, position = {"__metadata__": metadata}, 0
    for name, value in tensors.items():
        code = value.dtype.str[1:]
        if code not in _CODES:
            raise UserError(f"{name} is {value.dtype}; a .safetensors file takes float32 and int64")
        header[name] = {"dtype": _CODES[code], "shape": list(value.shape),
                        "data_offsets": [position, position + value.nbytes]}
        position += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    for value in tensors.values():
        stream.write(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
