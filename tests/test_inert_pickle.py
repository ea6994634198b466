"""Pickles that would act, bomb or confuse; none of them does."""
import argparse
import os
import pickle
import struct
import subprocess
import time

import pytest
from torch_bytes import legacy, zipped

from gluon_resnest.data import inert_pickle
from gluon_resnest.errors import UserError
from gluon_resnest.interop.checkpoints import read_weights


class Bomb:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("container", [zipped, legacy, lambda data: data],
                         ids=["zip", "legacy", "pkl"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("nest", [lambda bomb: bomb, lambda bomb: {"state_dict": {"w": [[bomb]]}},
                                  lambda bomb: argparse.Namespace(x=(bomb,))],
                         ids=["bare", "nested", "in a state"])
def test_a_bomb_is_refused_by_name_and_never_goes_off(tmp_path, container, protocol, nest):
    canary = tmp_path / "canary"
    for bomb, name in [(Bomb(os.system, f"touch {canary}"), "system"),
                       (Bomb(eval, f"open({str(canary)!r}, 'w')"), "eval"),
                       (Bomb(subprocess.Popen, ["touch", str(canary)]), "Popen")]:
        path = tmp_path / "bomb.pth"
        path.write_bytes(container(pickle.dumps(nest(bomb), protocol)))
        with pytest.raises(UserError, match=rf"wants the global '\w+\.{name}'"):
            read_weights(str(path))
    time.sleep(0.05)
    assert not canary.exists()


@pytest.mark.parametrize("data, reason", [
    (b"\x80\x02ccollections\nOrderedDict\nK\x01R.", "call of something that is no global"),
    (b"\x80\x02X\x01\x00\x00\x00aX\x01\x00\x00\x00b\x86R.", "damaged"),
    (b"\x80\x02K\x01)R.", "call of something that is no global"),
    (b"\x80\x02j\xff\xff\xff\xff.", "damaged"),
    (b"\x80\x02ccollections\nOrderedDict\n(K\x01K\x02tR.", "damaged"),
    (b"\x80\x02\x82\x01.", "opcode EXT1"), (b"\x80\x02\xff.", "damaged"),
    (b"\x80\x02I" + b"9" * 3000000 + b"\n.", "opcode INT"),
    (b"\x80\x02}(K\x01K\x02", "damaged"),
    (b"\x80\x02.", "damaged"),
    (b"\x80\x02(.", "mark where a value"),
    (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.", "holds no tensors"),
    (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f}.", "damaged"),
    (b"\x80\x02X\x01\x00\x00\x00aQ.", "refers to data outside"),
])
def test_odd_pickles_are_one_sentence(tmp_path, data, reason):
    path = tmp_path / "odd.pkl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=reason):
        read_weights(str(path))


# t = (t, t), fifty times over: 2^50 leaves for hash(), str() and repr(). It is memo 0.
DOUBLED = b")q\x000" + b"h\x00h\x00\x86q\x000" * 50


@pytest.mark.parametrize("data, reason", [
    (b"}" + DOUBLED + b"h\x00K\x01s.", "dictionary key of type tuple"),
    (DOUBLED + b"h\x00h\x00\x93.", "a global whose name is no text"),
    (DOUBLED + b"X\x05\x00\x00\x00torchh\x00\x93.", "a global whose name is no text"),
    (DOUBLED + b"cnumpy\ndtype\n(h\x00K\x00K\x01tR.", "a numpy dtype that is no text")])
def test_what_takes_for_ever_to_hash_or_to_write_is_refused(tmp_path, data, reason):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(b"\x80\x02" + data)
    with pytest.raises(UserError, match=reason):
        read_weights(str(path))


def test_storages_that_take_for_ever_to_write_are_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    path.write_bytes(legacy(pickle.dumps({}, 2), b"\x80\x02]" + DOUBLED + b"h\x00a."))
    with pytest.raises(UserError, match="list of storages does not fit"):
        read_weights(str(path))


@pytest.mark.parametrize("key", [b"G" + struct.pack(">d", float("nan")), b"\x8a\x09" + b"\x01" * 9],
                         ids=["NaN", "large"])
def test_keys_whose_hashes_can_be_made_to_collide_are_refused(tmp_path, key):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(b"\x80\x02}" + key + b"K\x01s.")
    with pytest.raises(UserError, match="dictionary key that is NaN or a huge number"):
        read_weights(str(path))


TEXT = b"X" + struct.pack("<I", 1 << 17) + b"a" * (1 << 17)
MANY = b"(" + b"N" * (1 << 17)
PAIRS = b"](" + b"h\x07" * (1 << 16) + b"e"
STATE = b"(K\x01J\x00\x00\x02\x00\x85cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R\x89"


@pytest.mark.parametrize("name, arguments", [
    ("_codecs\nencode", TEXT + b"X\x06\x00\x00\x00latin1\x86"),
    ("torch\nSize", b"]" + MANY + b"e\x85"), ("torch\nSize", TEXT + b"\x85"),
    ("collections\nOrderedDict", b"X\x01\x00\x00\x00a\x89\x86q\x070" + PAIRS + b"\x85"),
    ("argparse\nNamespace", MANY + b"t"),
], ids=["encode", "Size of list", "Size of text", "OrderedDict", "any"])
def test_constructors_may_not_copy_what_the_pickle_holds_once(tmp_path, name, arguments):
    path, calls = tmp_path / "bomb.pkl", 2000
    path.write_bytes(b"\x80\x02" + arguments + b"q\x01" + f"0c{name}\nq\x020](".encode()
                     + b"h\x02h\x01R" * calls + b"e.")
    with pytest.raises(UserError, match="unfolds to far more than it holds"):
        read_weights(str(path))


def test_states_may_not_copy_what_the_pickle_holds_once(tmp_path):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(b"\x80\x02" + STATE + TEXT + b"tq\x010cnumpy\nndarray\n0"
                     + b"cnumpy.core.multiarray\n_reconstruct\nq\x020]("
                     + b"h\x02)Rh\x01b" * 2000 + b"e.")
    with pytest.raises(UserError, match="unfolds to far more than it holds"):
        read_weights(str(path))


def test_a_pickle_of_endless_opcodes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(inert_pickle, "MAX_OPCODES", 1000)
    path = tmp_path / "long.pkl"
    path.write_bytes(b"\x80\x02" + b"N0" * 600 + b"}.")
    with pytest.raises(UserError, match="more than 1000 opcodes"):
        read_weights(str(path))
