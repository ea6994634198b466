"""Laws of a checkpoint: nothing but what was written is read, and nothing of it is executed."""
import dataclasses
import json
import os
import pickle

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon, nd

from gluon_resnest.engine import checkpoint as module
from gluon_resnest.engine.checkpoint import Checkpoint, State, load, read, snapshot
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import Comm
from gluon_resnest.engine.optim import optimizer
from gluon_resnest.engine.update import Update
from gluon_resnest.errors import UserError

NAMES = ["manifest.json", "model.params", "optimizer.params", "state.json"]


def example(step, best_step=None, seed=0, unevaluated=False):
    rng = np.random.RandomState(1000 * seed + step)
    return Checkpoint(
        State(step=step, seed=3, workers=2, steps_per_epoch=10, best=0.5, best_step=best_step,
              metrics={"top1": 0.5, "images": 7}, unevaluated=unevaluated, seconds=1.5),
        {"a.weight": rng.standard_normal((3, 1, 2)).astype("float32"),
         "a.count": rng.randint(0, 9, 4), "half": rng.standard_normal(5).astype("float16")},
        {"a.weight:0": rng.standard_normal((3, 1, 2)).astype("float32")},
        {"optimizer": "nag", "num_update": step, "counts": {"a.weight": step}})


def assert_same(left, right):
    assert left.state == right.state and left.numbers == right.numbers
    for ours, theirs in ((left.model, right.model), (left.arrays, right.arrays)):
        assert list(ours) == list(theirs)
        for name, array in ours.items():
            assert array.dtype == theirs[name].dtype
            np.testing.assert_array_equal(array, theirs[name])


def test_read_inverts_store(tmp_path):
    path = Checkpoints(tmp_path / "new" / "folder").store(example(12))
    assert path.name == "step-00000012" and sorted(os.listdir(path)) == NAMES
    assert_same(read(path), example(12))
    assert os.listdir(path.parent) == [path.name]


def test_a_checkpoint_without_arrays_is_one(tmp_path):
    bare = dataclasses.replace(example(1), arrays={})
    assert_same(read(Checkpoints(tmp_path).store(bare)), bare)


def test_files_equal_mxnets_own(tmp_path):
    """The written list format is that of mx.nd.save, byte for byte."""
    path = Checkpoints(tmp_path).store(example(1))
    mx.nd.save(str(tmp_path / "theirs"), {name: nd.array(array, dtype=array.dtype)
                                          for name, array in example(1).model.items()})
    assert (path / "model.params").read_bytes() == (tmp_path / "theirs").read_bytes()


def net_of(units=3, prefix="net_"):
    net = gluon.nn.HybridSequential(prefix=prefix)
    with net.name_scope():
        net.add(gluon.nn.Dense(units, in_units=2), gluon.nn.BatchNorm(in_channels=units))
    net.initialize(mx.init.Normal(1))
    return net


def update_of(net):
    return Update(Comm().trainer(net.collect_params(), optimizer("nag", wd=0)), net)


def stepped(net, update):
    update.step(lambda batch: {"loss": (net(batch[0]) ** 2).mean()},
                (nd.array([[1, 2], [3, 5], [0, 1]]),), 0.1)


def test_gluon_loads_the_model_file(tmp_path):
    net, other = net_of(), net_of(prefix="other_")
    path = Checkpoints(tmp_path).save(net, update_of(net), State(step=1))
    other.load_parameters(str(path / "model.params"))
    x = nd.ones((2, 2))
    np.testing.assert_array_equal(net(x).asnumpy(), other(x).asnumpy())


def test_states_of_older_versions_are_evaluated(tmp_path):
    path = Checkpoints(tmp_path).store(example(12))
    record = json.loads((path / "state.json").read_text())
    del record["state"]["unevaluated"]
    rewrite(path, "state.json", json.dumps(record).encode())
    assert_same(read(path), example(12))


def rewrite(path, name, content):
    """Replaces a file of a checkpoint, and what the manifest says of it."""
    entry = module._write_file(path / name, [content])
    if name != "manifest.json":
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"][name] = entry
        (path / "manifest.json").write_text(json.dumps(manifest))


class Payload:
    """Unpickling it leaves a file behind."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("content", [
    pickle.dumps(Payload()), b"\x80", b"[" * 100000, b'{"format": 1}', b'{"format": 2}', b"null",
    json.dumps({"format": 1, "state": dict(vars(State()), step="7"), "update": {}}).encode(),
    json.dumps({"format": 1, "state": dict(vars(State()), step=-7), "update": {}}).encode(),
    json.dumps({"format": 1, "state": dict(vars(State()), unevaluated=1), "update": {}}).encode(),
], ids=["pickle", "bytes", "nested", "short", "format", "null", "text", "negative", "number"])
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.params"])
def test_hostile_files_execute_nothing_and_are_refused(name, content, tmp_path, monkeypatch):
    """Also with a manifest that vouches for them."""
    monkeypatch.chdir(tmp_path)
    path = Checkpoints(tmp_path / "checkpoints").store(example(3))
    rewrite(path, name, content)
    with pytest.raises(UserError, match=r"step-00000003 is damaged \(.+\)"):
        read(path)
    assert not (tmp_path / "executed").exists()


def test_a_really_full_file_is_noticed(tmp_path):
    """MXNet's own writer loses the last bytes of a full disk without a word."""
    with pytest.raises(OSError, match="No space left on device"):
        module._write_file(module.Path("/dev/full"), [b"a few bytes"])


def test_a_foreign_network_is_a_sentence_and_stays_as_it_was(tmp_path):
    net = net_of()
    arrays = snapshot(net, update_of(net), State()).model
    other = net_of(units=4)
    before = other[0].weight.data().asnumpy()
    arrays["2.weight"] = arrays.pop("1.gamma")
    with pytest.raises(UserError, match=r"FILE does not fit this network \(missing: 1.gamma; "
                       r"unexpected: 2.weight; of another shape: 0.weight float32\(3, 2\) instead "
                       r"of float32\(4, 2\), .*\); use the network it was made with"):
        load(other, arrays, source="FILE")
    np.testing.assert_array_equal(other[0].weight.data().asnumpy(), before)


def test_another_type_does_not_fit():
    net = net_of()
    arrays = snapshot(net, update_of(net), State()).model
    arrays["0.weight"] = arrays["0.weight"].astype("float64")
    with pytest.raises(UserError, match="0.weight float64"):
        load(net, arrays, source="FILE")


def test_long_lists_of_names_are_cut(tmp_path):
    with pytest.raises(UserError, match="unexpected: x0, x1, x2, x3, x4, ...[;)]"):
        load(net_of(), {f"x{k}": np.ones(1) for k in range(9)}, source="FILE")
