"""Containers of PyTorch whose pickle, storages and zip contradict each other, or us."""
import os
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest
from torch_bytes import GRID, legacy, tensor_pickle, zipped

from gluon_resnest.errors import UserError
from gluon_resnest.interop.checkpoints import read_weights


@pytest.mark.parametrize("numel, offset, shape, strides, reason", [
    (24, 1, (4, 6), (6, 1), "reaches element 24 of a storage of 24"),
    (24, 0, (4, 6), (7, 1), "reaches element"),
    (24, 0, (100000, 100000), (0, 0), "reaches element"),
    (24, -1, (4, 6), (6, 1), "damaged"), (24, 0, (4, 6), (-6, 1), "damaged"),
    (24, 0, (4, 6), (1,), "damaged"), (25, 0, (4, 6), (6, 1), "should have 100 bytes and has 96"),
])
def test_tensors_stay_inside_their_storage(tmp_path, numel, offset, shape, strides, reason):
    path = tmp_path / "w.pth"
    data = tensor_pickle(numel, offset, shape, strides)
    path.write_bytes(zipped(data, **{"0": GRID.tobytes()}))
    with pytest.raises(UserError, match=reason):
        read_weights(str(path))
    tail = pickle.dumps(["0"], 2) + struct.pack("<q", numel) + GRID.tobytes()
    path.write_bytes(legacy(data, tail))
    with pytest.raises(UserError, match=reason):
        read_weights(str(path))


@pytest.mark.parametrize("offset", [-1, -20, "x", None])
def test_a_view_of_a_legacy_storage_stays_inside_of_it(tmp_path, offset):
    view = pickle.dumps(("k", offset, 24), 2)[2:-1]
    data = tensor_pickle(24, 0, (4, 6), (6, 1)).replace(b"tQ", view + b"tQ", 1)
    path = tmp_path / "w.pth"
    path.write_bytes(legacy(data, pickle.dumps(["0"], 2) + struct.pack("<q", 24) + GRID.tobytes()))
    with pytest.raises(UserError, match="strides or offset of a tensor is damaged"):
        read_weights(str(path))


def test_tensors_that_share_one_storage_too_often_are_refused(tmp_path):
    one = tensor_pickle(24, 0, (4, 6), (6, 1))[3:-2]                    # "w", tensor
    many = b"".join(one.replace(b"\x01\x00\x00\x00w", b"\x04\x00\x00\x00%04d" % i)
                    + b"s" for i in range(2000))
    path = tmp_path / "w.pth"
    path.write_bytes(zipped(b"\x80\x02}" + many + b".", **{"0": GRID.tobytes()}))
    assert len(read_weights(str(path)).tensors) == 2000
    wide = GRID.astype(np.float64).repeat(4000)
    many = many.replace(b"FloatStorage", b"DoubleStorage").replace(
        b"J" + struct.pack("<i", 24), b"J" + struct.pack("<i", wide.size))
    many = many.replace(b"(J" + struct.pack("<i", 4), b"(J" + struct.pack("<i", 16000))
    path.write_bytes(zipped(b"\x80\x02}" + many + b".", **{"0": wide.tobytes()}))
    with pytest.raises(UserError, match="unfold to more than"):
        read_weights(str(path))


def test_dictionaries_of_dictionaries_are_walked_once(tmp_path):
    leaf = b"}q\x000"
    level = b"}" + b"".join(b"M" + struct.pack("<H", i) + b"h%cs" for i in range(5000))
    data = (b"\x80\x02" + leaf + (level.replace(b"h%c", b"h\x00")) + b"q\x010"
            + level.replace(b"h%c", b"h\x01") + b"q\x020" + level.replace(b"h%c", b"h\x02") + b".")
    path = tmp_path / "w.pth"
    path.write_bytes(zipped(data))
    begin = time.monotonic()
    with pytest.raises(UserError, match="holds no tensors"):
        read_weights(str(path))
    assert time.monotonic() - begin < 5


def test_the_hand_made_tensor_loads_when_it_is_right(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(zipped(tensor_pickle(24, 2, (2, 3), (6, 1)), **{"0": GRID.tobytes()}))
    np.testing.assert_array_equal(read_weights(str(path)).tensors["w"], GRID[:2, 2:5])


@pytest.mark.parametrize("keys, numel, reason", [
    (["0"], 23, "should have 24 elements and has 23"), (["0"], -1, "should have 24 elements"),
    (["0"], 2 ** 62, "should have 24 elements"), (["1"], 24, "list of storages does not fit"),
    ([0], 24, "list of storages does not fit"), ([], 24, "list of storages does not fit"),
    (7, 24, "list of storages does not fit"),
])
def test_legacy_storages_of_wrong_size_are_refused(tmp_path, keys, numel, reason):
    path = tmp_path / "w.pth"
    path.write_bytes(legacy(tensor_pickle(24, 0, (4, 6), (6, 1)),
                            pickle.dumps(keys, 2) + struct.pack("<q", numel) + GRID.tobytes()))
    with pytest.raises(UserError, match=reason):
        read_weights(str(path))


def test_a_legacy_storage_of_two_sizes_is_refused(tmp_path):
    first = tensor_pickle(24, 0, (4, 6), (6, 1))[:-1]
    second = tensor_pickle(23, 0, (4, 5), (5, 1))[3:].replace(b"\x00w", b"\x00v", 1)
    path = tmp_path / "w.pth"
    path.write_bytes(legacy(first + second, pickle.dumps(["0"], 2) + struct.pack("<q", 24)
                            + GRID.tobytes()))
    with pytest.raises(UserError, match="storage '0' is declared twice and differently"):
        read_weights(str(path))


def archive_with(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)


GOOD = ("a/data.pkl", tensor_pickle(24, 0, (4, 6), (6, 1)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("members, reason", [
    ([GOOD, ("../../evil", b"x")], "points outside"),
    ([GOOD, ("/etc/evil", b"x")], "points outside"),
    ([GOOD, ("a\\..\\..\\evil", b"x")], "points outside"),
    ([GOOD, ("c:/evil", b"x")], "points outside"),
    ([GOOD, GOOD], "two members"), ([GOOD], "storage '0' is missing"),
    ([GOOD, ("b/data.pkl", b"")], "one data.pkl, and it holds 2"), ([("x", b"")], "it holds 0"),
    ([GOOD, ("a/constants.pkl", b"")], "TorchScript"),
])
def test_odd_archives_are_one_sentence(tmp_path, members, reason):
    path = tmp_path / "w.pth"
    archive_with(path, members)
    with pytest.raises(UserError, match=reason):
        read_weights(str(path))
    assert os.listdir(tmp_path) == ["w.pth"]


def test_a_compression_bomb_is_refused_before_it_unfolds(tmp_path):
    path = tmp_path / "w.pth"
    archive_with(path, [GOOD, ("a/data/0", bytes(50_000_000))], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    begin = time.monotonic()
    with pytest.raises(UserError, match="promises more than its"):
        read_weights(str(path))
    assert time.monotonic() - begin < 1
    archive_with(path, [GOOD, ("a/data/0", os.urandom(96))], zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed|promises more"):
        read_weights(str(path))
