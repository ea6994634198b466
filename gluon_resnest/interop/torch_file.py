"""PyTorch's `.pth` containers, read and written without torch.

Read: the zip container (torch >= 1.6) and the older one, a row of pickles followed by raw storages.
Written: the zip container, readable by `torch.load(file, weights_only=True)`.
"""
import io
import struct
import zipfile
from typing import Any, Dict

import numpy as np

from gluon_resnest.data import inert_pickle
from gluon_resnest.errors import UserError
from gluon_resnest.interop.pickled_arrays import (
    CONSTRUCTORS, TensorRef, decode, item_size, storage_from)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_MEMBERS = 200_000
_ALIGNMENT = 64


def read_zip(stream, size: int) -> Any:
    """Reads the zip container; tensors are numpy arrays, everything else is inert.

    Args:
      stream: seekable binary stream.
      size: its length in bytes.

    Raises:
      UserError: compressed, oversized or oddly named members, or a damaged pickle.
    """
    with zipfile.ZipFile(stream) as archive:
        members = _checked_members(archive, size)
        roots = [name[:-len("data.pkl")] for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise UserError("the zip is no PyTorch file: it should hold one data.pkl, and it holds "
                            f"{len(roots)}")
        root = roots[0]
        if root + "constants.pkl" in members:
            raise UserError("the file is a TorchScript program; save the model's state_dict()")
        order = ">" if members.get(root + "byteorder") and (
            archive.read(root + "byteorder").strip() == b"big") else "<"
        tree = inert_pickle.load(io.BytesIO(archive.read(root + "data.pkl")), CONSTRUCTORS,
                                 storage_from)

        def read(storage):
            name = f"{root}data/{storage.key}"
            if name not in members:
                raise UserError(f"the storage {storage.key!r} is missing; get the file again")
            _check_length(storage, members[name].file_size)
            return decode(archive.read(name), storage.dtype, order)

        return _resolve(tree, read)


def _checked_members(archive, size):
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS or sum(info.file_size for info in infos) > size:
        raise UserError(f"the zip promises more than its {size} bytes hold; it was not read")
    members = {}
    for info in infos:
        parts = info.filename.replace("\\", "/").split("/")
        if info.filename.startswith("/") or ".." in parts or ":" in parts[0]:
            raise UserError(f"the zip has a member {info.filename!r} that points outside of it; "
                            "it was not read")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise UserError(f"the zip member {info.filename!r} is compressed or encrypted, which "
                            "torch.save never does; it was not read")
        if info.filename in members:
            raise UserError(f"the zip has two members {info.filename!r}; it was not read")
        members[info.filename] = info
    return members


def read_legacy(stream, size: int) -> Any:
    """Reads the non-zip container of torch < 1.6; arguments and result as `read_zip`."""
    head = io.BytesIO(stream.read(size))
    magic, protocol = inert_pickle.load(head, {}), inert_pickle.load(head, {})
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise UserError("the file does not begin like one of torch.save")
    system = inert_pickle.load(head, CONSTRUCTORS)
    order = "<" if not isinstance(system, dict) or system.get("little_endian", True) else ">"
    wanted = {}

    def persistent(identity):
        storage = storage_from(identity)
        known = wanted.setdefault(storage.key, storage)
        if (known.dtype, known.numel) != (storage.dtype, storage.numel):
            raise UserError(f"the storage {storage.key!r} is declared twice and differently")
        return storage

    tree = inert_pickle.load(head, CONSTRUCTORS, persistent)
    keys = inert_pickle.load(head, {})
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or (
            sorted(keys) != sorted(wanted)):
        raise UserError("the list of storages does not fit the tensors; get the file again")
    flats = {}
    for key in keys:
        storage = wanted[key]
        header = head.read(8)
        if len(header) < 8:
            raise UserError("the file ends before its storages do; get it again")
        numel, = struct.unpack(order + "q", header)
        if numel != storage.numel:
            raise UserError(f"the storage {key!r} should have {storage.numel} elements and has "
                            f"{numel}; get the file again")
        data = head.read(numel * item_size(storage.dtype))
        _check_length(storage, len(data))
        flats[key] = decode(data, storage.dtype, order)
    return _resolve(tree, lambda storage: flats[storage.key])


def _check_length(storage, length):
    expected = storage.numel * item_size(storage.dtype)
    if length != expected:
        raise UserError(f"the storage {storage.key!r} should have {expected} bytes and has "
                        f"{length}; get the file again")


def _resolve(tree, read):
    """Replaces TensorRefs by arrays in nested dictionaries of at most three levels."""
    flats, walked = {}, {}

    def flat(storage):
        whole = storage._replace(offset=0)
        if whole not in flats:
            flats[whole] = read(whole)
        return flats[whole]

    def walk(node, depth):
        if isinstance(node, TensorRef):
            return node.view(flat(node.storage))
        if isinstance(node, dict) and depth < 3:
            if id(node) not in walked:      # a dictionary full of one other is not walked twice
                walked[id(node)] = {key: walk(value, depth + 1) for key, value in node.items()}
            return walked[id(node)]
        return node

    return walk(tree, 0)


_STORAGE_NAMES = {"f4": "FloatStorage", "i8": "LongStorage"}


def write_zip(stream, tensors: Dict[str, np.ndarray]) -> None:
    """Writes {name: float32 or int64 array} as an OrderedDict of tensors, bit for bit."""
    arrays = {name: np.ascontiguousarray(value).reshape(value.shape)
              for name, value in tensors.items()}
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        _write_member(archive, "weights/data.pkl", _state_dict_pickle(arrays))
        _write_member(archive, "weights/byteorder", b"little")
        for index, value in enumerate(arrays.values()):
            _write_member(archive, f"weights/data/{index}",
                          value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
        _write_member(archive, "weights/version", b"3\n")


def _write_member(archive, name, data):
    """Stores a member at a multiple of 64 bytes; dated 1980: equal weights, equal files."""
    info = zipfile.ZipInfo(name)
    start = archive.fp.tell() + 30 + len(name.encode()) + 4
    padding = -start % _ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding     # torch's own padding tag
    archive.writestr(info, data)


def _state_dict_pickle(arrays):
    """Spells the pickle (protocol 2) torch.save would write for an OrderedDict of tensors."""
    out = [b"\x80\x02ccollections\nOrderedDict\n)R("]
    for index, (name, value) in enumerate(arrays.items()):
        code = value.dtype.str[1:]
        if code not in _STORAGE_NAMES:
            raise UserError(f"{name} is {value.dtype}; a .pth file takes float32 and int64")
        strides = [stride // value.itemsize for stride in value.strides]
        out += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n((", _text("storage"),
                f"ctorch\n{_STORAGE_NAMES[code]}\n".encode(), _text(str(index)), _text("cpu"),
                _int(value.size), b"tQ", _int(0), _ints(value.shape), _ints(strides),
                b"\x89ccollections\nOrderedDict\n)RtR"]
    return b"".join(out) + b"u."


def _text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value):
    if value < 2 ** 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _ints(values):
    return b"(" + b"".join(map(_int, values)) + b"t"
