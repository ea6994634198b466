"""Files like those of torch.save, byte by byte, for the tests of their readers."""
import io
import pickle
import struct
import zipfile

import numpy as np

GRID = np.arange(24, dtype=np.float32).reshape(4, 6) / 8


def zipped(data, **members):
    """Wraps data.pkl and storages into the new container."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"a/data/{name}", content)
    return buffer.getvalue()


def legacy(data, tail=b""):
    """Puts the heads of the old container before a pickle and a tail of storages."""
    return b"".join(pickle.dumps(part, 2) for part in (
        0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})) + data + tail


def tensor_pickle(numel, offset, shape, strides):
    """Pickles {"w": tensor} with a storage "0" of float32."""
    def ints(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"
    return (b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00"
            b"storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ"
            + struct.pack("<i", numel) + b"tQJ" + struct.pack("<i", offset) + ints(shape)
            + ints(strides) + b"\x89}tRs.")
