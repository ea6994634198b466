"""Readers and writers of weight files: what the real libraries wrote, and what damage does."""
import argparse
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from full_disk import room_for
from torch_bytes import GRID

from gluon_resnest.errors import UserError
from gluon_resnest.interop.checkpoints import read_weights, write_weights
from gluon_resnest.provenance import sha256

GOLDEN = Path(__file__).parent / "golden"


def expected_tensors():
    return {"grid": GRID, "transposed": GRID.T, "window": GRID[1:3, 2:5], "half": GRID / 4,
            "brain": GRID, "double": (GRID.astype(np.float64) / 3).astype(np.float32),
            "count": np.int64(7), "parameter": GRID + 1}


@pytest.fixture
def small(tmp_path):
    """Returns {container: path} of one small valid file of each."""
    tensors = {"a.weight": GRID, "a.bias": GRID[0]}
    paths = {container: str(tmp_path / f"small.{container}")
             for container in ("torch", "safetensors", "params")}
    for container, path in paths.items():
        write_weights(path, tensors, container, {})
    paths["pickle"] = str(tmp_path / "small.pkl")
    Path(paths["pickle"]).write_bytes(pickle.dumps({"model": tensors}, protocol=2))
    paths["torch-old"] = str(GOLDEN / "torch_old.pth")
    return paths


# --- what the real libraries write ------------------------------------------------------------


@pytest.mark.parametrize("file, container", [
    ("torch_zip.pth", "torch"), ("torch_old.pth", "torch-old"), ("torch.safetensors", "safetensors")
])
def test_files_of_pytorch_are_read_without_it(file, container):
    found = read_weights(str(GOLDEN / file))
    assert found.container == container
    assert "torch" not in sys.modules
    for name, value in expected_tensors().items():
        np.testing.assert_array_equal(found.tensors.pop(name), value, err_msg=name)
    assert not found.tensors
    assert {"1 tensors of float16 became float32", "1 tensors of float64 became float32"} <= set(
        found.notes)


@pytest.mark.parametrize("file", ["torch_zip.pth", "torch_old.pth"])
def test_the_moving_average_is_taken_only_when_asked_for(file):
    assert any("--ema" in note for note in read_weights(str(GOLDEN / file)).notes)
    averaged = read_weights(str(GOLDEN / file), ema=True)
    np.testing.assert_array_equal(averaged.tensors["grid"], GRID * 2)
    assert set(averaged.tensors) == {"grid"}


@pytest.mark.parametrize("ema", [False, True])
def test_the_weights_of_mmengine_are_their_moving_average(tmp_path, ema):
    """MMEngine's EMAHook exchanges the two when it saves."""
    average, raw = np.float32([1, 2]), np.float32([3, 4])
    (tmp_path / "epoch.pkl").write_bytes(pickle.dumps(
        {"state_dict": {"a": average}, "ema_state_dict": {"module.a": raw}}, protocol=2))
    found = read_weights(str(tmp_path / "epoch.pkl"), ema=ema)
    assert list(found.tensors) == ["a"]
    np.testing.assert_array_equal(found.tensors["a"], average)
    assert any("their moving average" in note for note in found.notes)


def test_asking_for_an_absent_moving_average_is_refused(small):
    with pytest.raises(UserError, match="no moving average"):
        read_weights(small["torch"], ema=True)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_arrays_are_read_from_every_binary_protocol(tmp_path, protocol):
    path = tmp_path / "d2.pkl"
    path.write_bytes(pickle.dumps(
        {"model": {"c": GRID, "fortran": np.asfortranarray(GRID), "big": GRID.astype(">f4")},
         "best": np.float32(0.5), "args": argparse.Namespace(lr=1), "__author__": "x"}, protocol))
    found = read_weights(str(path)).tensors
    assert set(found) == {"c", "fortran", "big"}
    for value in found.values():
        np.testing.assert_array_equal(value, GRID)


def test_an_array_pickled_by_python_2_is_read(tmp_path):
    data = GRID.tobytes()
    path = tmp_path / "py2.pkl"
    path.write_bytes(
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        b"U\x01b\x87R(K\x01K\x04K\x06\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(data)) + data + b"tbs.")
    np.testing.assert_array_equal(read_weights(str(path)).tensors["w"], GRID)


@pytest.mark.parametrize("container", ["torch", "safetensors", "params"])
def test_reading_inverts_writing(small, container):
    found = read_weights(small[container])
    assert found.container == container
    assert list(found.tensors) == ["a.weight", "a.bias"]
    assert found.tensors["a.weight"].tobytes() == GRID.tobytes()
    assert found.tensors["a.bias"].tobytes() == GRID[0].tobytes()


@pytest.mark.parametrize("container", ["torch", "safetensors", "params"])
def test_equal_weights_give_equal_files(small, tmp_path, container):
    again = str(tmp_path / "again")
    write_weights(again, read_weights(small[container]).tensors, container, {})
    assert sha256(again) == sha256(small[container])


def test_written_params_are_those_of_mxnet(small):
    loaded = mx.nd.load(small["params"])
    np.testing.assert_array_equal(loaded["a.weight"].asnumpy(), GRID)


def test_a_failed_write_leaves_the_old_file(small):
    before = sha256(small["torch"])
    with pytest.raises(UserError, match="takes float32 and int64"):
        write_weights(small["torch"], {"x": GRID.astype(np.float64)}, "torch", {})
    assert sha256(small["torch"]) == before
    assert not [name for name in os.listdir(os.path.dirname(small["torch"])) if name[0] == "."]


@pytest.mark.parametrize("container", ["torch", "safetensors", "params"])
@pytest.mark.parametrize("lacking", [1, 9, 200])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(small, container, lacking):
    """MXNet's own writer would lose the last bytes without a word."""
    before = Path(small[container]).read_bytes()
    with room_for(len(before) - lacking), pytest.raises(
            UserError, match=r"cannot be written \(File too large\); choose a folder .* has space"):
        write_weights(small[container], {"a.weight": GRID, "a.bias": GRID[0]}, container, {})
    assert Path(small[container]).read_bytes() == before
    assert not [name for name in os.listdir(os.path.dirname(small[container])) if name[0] == "."]


def test_an_unwritable_place_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write_weights(str(tmp_path / "none" / "x.pth"), {"x": GRID}, "torch", {})


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["torch", "torch-old", "safetensors", "pickle", "params"])
def test_every_truncation_is_one_sentence(small, tmp_path, container):
    data = Path(small[container]).read_bytes()
    path = tmp_path / "cut"
    for length in [*range(0, 64), *range(64, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(UserError):
            read_weights(str(path))


FLIP = """
import resource, sys
import numpy as np
from gluon_resnest.errors import UserError
from gluon_resnest.interop.checkpoints import read_weights
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
random, refused, loaded = np.random.RandomState(1), 0, 0
for source in sys.argv[2:]:
    data = open(source, "rb").read()
    for _ in range(150):
        damaged = bytearray(data)
        damaged[random.randint(len(data))] ^= 1 << random.randint(8)
        with open(sys.argv[1], "wb") as stream:
            stream.write(damaged)
        try:
            read_weights(sys.argv[1])
            loaded += 1
        except UserError as error:
            assert len(str(error)) > 20
            refused += 1
print(refused, loaded)
"""


def test_a_flipped_bit_is_refused_or_harmless(small, tmp_path):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    child = subprocess.run([sys.executable, "-c", FLIP, str(tmp_path / "flip"), *small.values()],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, timeout=300)
    assert child.returncode == 0, child.stderr.decode()[-2000:]
    refused, loaded = map(int, child.stdout.split())
    assert refused + loaded == 150 * len(small)
    assert refused > 200


@pytest.mark.parametrize("content, reason", [
    (b"", "it is empty"), (b"hello, I am no weight file", "begins like none of"),
    (pickle.dumps([1, 2]), "it holds a list"), (pickle.dumps({"a": 1}), "holds no tensors, only a"),
    (pickle.dumps({"x": np.float32([np.nan])}, 2), "'x' holds NaN or infinity"),
    (pickle.dumps({"x": np.float64([1e300])}, 2), "'x' holds NaN or infinity"),
    (pickle.dumps({"x": np.array([None, {}])}, 2), "numpy dtype 'O8'"),
])
def test_what_is_no_weight_file_is_one_sentence(tmp_path, content, reason):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_weights(str(path))


def test_an_absent_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be read.*No such file"):
        read_weights(str(tmp_path / "none.pth"))


# --- safetensors ------------------------------------------------------------------------------


def safetensors(header, data=GRID.tobytes()):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin=0, end=96, dtype="F32", shape=(4, 6)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize("content, reason", [
    (struct.pack("<Q", 1 << 62) + b'{"a":', "header should fit"),
    (struct.pack("<Q", 1000) + b'{"a":', "header should fit"),
    (safetensors({"a": entry(4, 100)}), "expected from 0"),
    (safetensors({"a": entry(shape=(4, 12), end=192)}), "within 96 bytes"),
    (safetensors({"a": entry(), "b": entry()}), "'b' lies at 0..96, expected from 96"),
    (safetensors({"a": entry(end=48, shape=(2, 6))}), "cover 48 of 96 bytes"),
    (safetensors({"a": entry(shape=(4, 7))}), "needs 112 bytes and has 96"),
    (safetensors({"a": entry(shape=(4, 5))}), "needs 80 bytes and has 96"),
    (safetensors({"a": entry(shape=(-4, -6))}), "damaged"),
    (safetensors({"a": entry(shape=(4.0, 6))}), "damaged"),
    (safetensors({"a": entry(shape=(True, 24))}), "damaged"),
    (safetensors({"a": entry(dtype="F8")}), "damaged"),
    (safetensors({"a": {"dtype": "F32"}}), "damaged"), (safetensors({"a": 3}), "damaged"),
    (safetensors(b'{"a":1,"a":2}'), "names a tensor twice"),
    (safetensors(b'{"a":' + b"9" * 3000000 + b"}"), "a number of 3000000 digits"),
    (safetensors({"\x1b[31m": entry()}), "names are short and printable"),
    (safetensors(b'{"a":}'), "is damaged"), (safetensors(b"{" * 50000), "is damaged"),
    (safetensors({"__metadata__": {}}, b""), "holds no tensors"),
])
def test_odd_safetensors_are_one_sentence(tmp_path, content, reason):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_weights(str(path))
