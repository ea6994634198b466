"""Pickles that would act, bomb or confuse; none of them does."""
import argparse
import os
import pickle
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


def test_a_key_that_takes_for_ever_to_hash_is_refused(tmp_path):
    # t = (t, t), fifty times over: 2^50 leaves for hash().
    data = b"\x80\x02})q\x000" + b"h\x00h\x00\x86q\x000" * 50 + b"h\x00K\x01s."
    path = tmp_path / "bomb.pkl"
    path.write_bytes(data)
    with pytest.raises(UserError, match="dictionary key of type tuple"):
        read_weights(str(path))


def test_a_pickle_of_endless_opcodes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(inert_pickle, "MAX_OPCODES", 1000)
    path = tmp_path / "long.pkl"
    path.write_bytes(b"\x80\x02" + b"N0" * 600 + b"}.")
    with pytest.raises(UserError, match="more than 1000 opcodes"):
        read_weights(str(path))
