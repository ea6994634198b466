"""The bytes of MXNet's RecordIO, to and fro, every one checked.

A file is a chain of parts, each aligned to 4 bytes: magic number, a word with 3 bits of kind and
29 bits of length, the bytes, padding. A record is one part of kind 0, or, where its bytes contain
the magic number at a multiple of 4, several of kinds 1, 2 ... 2, 3 with the magic number left out
between them. An image record begins with a header (flag, label, id, id2); flag > 0 announces that
many float32 labels behind it.
"""
import os
import struct
from typing import NamedTuple

import numpy as np

from gluon_resnest.errors import UserError

MAGIC = struct.pack("<I", 0xced7230a)
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")                              # flag, label, id, id2
_LENGTH_BITS = 29


class Record(NamedTuple):
    """An image record: label (float, or float32 array), id, and the encoded image."""
    label: object
    id: int
    data: bytes


class Damaged(Exception):
    """What is wrong with the bytes of a record."""


def frame(payload):
    """Returns the parts that store `payload`, bit for bit as MXNet writes them."""
    if len(payload) >= 1 << _LENGTH_BITS:
        raise UserError(f"expected a record of less than {1 << _LENGTH_BITS} bytes, got "
                        f"{len(payload)}; RecordIO cannot hold more")
    cuts, position = [], payload.find(MAGIC)
    while position >= 0:
        if position % 4 == 0:
            cuts.append(position)
        position = payload.find(MAGIC, position + 1)
    starts = [0] + [cut + 4 for cut in cuts]
    parts = []
    for number, (start, stop) in enumerate(zip(starts, cuts + [len(payload)])):
        kind = 0 if not cuts else 1 if number == 0 else 3 if number == len(cuts) else 2
        parts += [MAGIC, struct.pack("<I", kind << _LENGTH_BITS | stop - start),
                  payload[start:stop], bytes(-(stop - start) % 4)]
    return b"".join(parts)


def unframe(block):
    """Returns the payload of the record that `block` holds. Inverse of `frame`.

    Raises:
      Damaged: if `block` is not exactly one record.
    """
    parts, position, expected = [], 0, (0, 1)
    while expected:
        kind, length, end = _part(block[position:position + 8], position)
        if kind not in expected:
            raise Damaged(f"a part of kind {kind} where {' or '.join(map(str, expected))} belongs")
        if end > len(block):
            raise Damaged(f"it needs {end} bytes, of which {len(block)} are there")
        parts.append(block[position + 8:position + 8 + length])
        position, expected = end, (2, 3) if kind in (1, 2) else ()
    if position != len(block):
        raise Damaged(f"it ends after {position} bytes, but the next record begins after "
                      f"{len(block)}")
    return MAGIC.join(parts)


def pack_record(record):
    """Returns the payload of an image record: header, labels, image."""
    if np.ndim(record.label):
        labels = np.asarray(record.label, "<f4")
        return _HEADER.pack(labels.size, 0, record.id, 0) + labels.tobytes() + record.data
    return _HEADER.pack(0, record.label, record.id, 0) + record.data


def unpack_record(payload):
    """Returns the Record in a payload. Inverse of `pack_record`."""
    if len(payload) < _HEADER.size:
        raise Damaged(f"{len(payload)} bytes cannot hold the header of {_HEADER.size}")
    flag, label, number, _ = _HEADER.unpack_from(payload)
    start = _HEADER.size + 4 * flag
    if start > len(payload):
        raise Damaged(f"{len(payload)} bytes cannot hold the {flag} labels its header announces")
    if flag:
        label = np.frombuffer(payload, "<f4", flag, _HEADER.size)
    return Record(label, number, payload[start:])


def record_end(fd, start, size):
    """Returns where the record at byte `start` of an open file of `size` bytes ends.

    Raises:
      Damaged: if no whole record is there.
    """
    position, expected = start, (0, 1)
    while expected:
        kind, _, end = _part(os.pread(fd, 8, position), position)
        if kind not in expected:
            raise Damaged(f"byte {position} has a part of kind {kind}, expected "
                          f"{' or '.join(map(str, expected))}")
        if end > size:
            raise Damaged(f"the record at byte {start} reaches to {end}, and the file to {size}")
        position, expected = end, (2, 3) if kind in (1, 2) else ()
    return position


def _part(head, position):
    """Returns (kind, length, end) of the part whose first 8 bytes are given."""
    if len(head) < 8:
        raise Damaged(f"the file ends in the middle of the header at byte {position}")
    if head[:4] != MAGIC:
        raise Damaged(f"no record begins at byte {position}")
    word = _PART.unpack(head)[1]
    length = word & (1 << _LENGTH_BITS) - 1
    return word >> _LENGTH_BITS, length, position + 8 + length + -length % 4
