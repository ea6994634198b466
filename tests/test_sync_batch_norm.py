"""Laws of batch norm over workers: with 1, 2 and 3 of them, against one that has all images.

Started by horovodrun, this file is the worker: it does everything once and writes down what it saw.
"""
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from horovod_job import launch
from mxnet import autograd, gluon, nd
from sync_norm_trials import MODES, difference, train

from gluon_resnest.engine.comm import Comm, connect
from gluon_resnest.errors import UserError
from gluon_resnest.models.norm import norm_layer
from gluon_resnest.models.sync_batch_norm import SyncBatchNorm, merge, plain_batch_norm
from gluon_resnest.zoo import get_model

CHANNELS = 6
EDGES = {1: (0, 8), 2: (0, 3, 8), 3: (0, 1, 6, 8)}     # images of each worker: uneven, even one
MAPS = {"maps": (8, CHANNELS, 5, 7), "pixels": (8, CHANNELS, 1, 1), "vectors": (8, CHANNELS),
        "far": (8, CHANNELS, 5, 7)}
bfloat16 = np.dtype([("bfloat16", np.uint16)])


class Twins:
    """Several workers in one process that all have the same images."""

    def __init__(self, size, rank=0):
        self.size, self.rank, self.names = size, rank, []

    def sum_later(self, array, name):
        self.names.append(name)
        if name.endswith("gradients"):
            return array * self.size
        rows = nd.zeros(array.shape)
        for rank in range(self.size):
            rows[rank] = array[self.rank]
        return rows


class SharedHead(gluon.nn.HybridBlock):
    """One norm called on two inputs, in a block that is called twice itself."""

    def __init__(self, norm):
        super().__init__(prefix="shared_")
        with self.name_scope():
            self.head = gluon.nn.HybridSequential()
            with self.head.name_scope():
                self.head.add(norm(in_channels=CHANNELS), gluon.nn.Activation("tanh"))

    def hybrid_forward(self, F, x):
        return self.head(x) + 2 * self.head(F.square(x))


def images(kind):
    """Returns (input, weights of the loss) of all workers together."""
    random = np.random.RandomState(len(kind))
    x = random.standard_normal(MAPS[kind])
    return x * 2 + 100 if kind == "far" else x + 0.5, random.standard_normal(MAPS[kind])


def once(net, x, weights):
    """Runs forward and backward with the loss (net(x) * weights).sum(); returns what came out."""
    x = nd.array(x)
    x.attach_grad()
    with autograd.record():
        y = net(x)
        loss = (y * nd.array(weights)).sum()
    loss.backward()
    params = net.collect_params()
    seen = {"y": y, "dx": x.grad}
    seen.update({f"d {name}": parameter.grad() for name, parameter in params.items()
                 if parameter.grad_req != "null"})
    seen.update({name: parameter.data() for name, parameter in params.items()
                 if "running" in name})
    seen["inference"] = net(x)
    return {name: value.asnumpy().tolist() for name, value in seen.items()}


def layer_of(norm, hybridize):
    layer = norm(in_channels=CHANNELS, prefix="bn_", momentum=0.7)
    layer.initialize()
    layer.gamma.set_data(nd.arange(CHANNELS) - 2.5)
    layer.beta.set_data(nd.arange(CHANNELS) / 3)
    if hybridize:
        layer.hybridize(static_alloc=True)
    return layer


def shared_of(norm, hybridize):
    net = SharedHead(norm)
    net.initialize()
    if hybridize:
        net.hybridize(static_alloc=True)
    return net


def observe(comm):
    """Runs every case on this worker's images."""
    norm = norm_layer("sync", {"workers": comm})
    begin, end = EDGES[comm.size][comm.rank:comm.rank + 2]
    seen = {}
    for hybridize in (False, True):
        for kind in MAPS:
            x, weights = images(kind)
            seen[f"{kind} {hybridize}"] = once(layer_of(norm, hybridize), x[begin:end],
                                               weights[begin:end])
        x, weights = images("maps")
        seen[f"shared {hybridize}"] = once(shared_of(norm, hybridize), x[begin:end],
                                           weights[begin:end])
    seen["branches"] = [train(comm, mode, steps=2)
                        for mode in (MODES if comm.size < 3 else ("static",))]
    try:
        comm.broadcast({f"weight{min(comm.rank, 1)}": nd.zeros(1)})
        seen["refusal"] = None
    except UserError as error:
        seen["refusal"] = str(error)
    return seen


def work(folder):
    comm = connect()
    with open(Path(folder) / f"{comm.rank}.json", "w") as file:
        json.dump(observe(comm), file)
    comm.shutdown()


@pytest.fixture(scope="module", params=[
    1, pytest.param(2, marks=pytest.mark.horovod), pytest.param(3, marks=pytest.mark.horovod)])
def seen(request, tmp_path_factory):
    """What each of 1 (in this process), 2 or 3 workers saw."""
    if request.param == 1:
        return [json.loads(json.dumps(observe(connect({}))))]
    code, text, seen = launch(request.param, __file__, tmp_path_factory.mktemp("job"))
    assert code == 0, text
    return seen


def close(actual, expected, tolerance):
    """Compares with a tolerance relative to the largest expected value."""
    expected = np.array(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("kind", [*MAPS, "shared"])
def test_workers_together_equal_batch_norm_of_all_images(seen, kind, hybridize):
    x, weights = images("maps" if kind == "shared" else kind)
    make = shared_of if kind == "shared" else layer_of
    expected = once(make(norm_layer("batch"), hybridize), x, weights)
    ours = [worker[f"{kind} {hybridize}"] for worker in seen]
    # At mean 100 and standard deviation 2 the input itself is rounded 50 times as coarsely.
    tolerance = 3e-5 if kind == "far" else 3e-6
    for name, whole in expected.items():
        parts = [worker[name] for worker in ours]
        if kind == "shared" and (name == "inference" or "running" in name):
            continue      # two calls update these, see below
        if name in ("y", "dx", "inference"):
            close(np.concatenate(parts), whole, tolerance)
        elif name.startswith("d "):
            close(np.sum(parts, axis=0), whole, tolerance)
        else:
            assert all(part == parts[0] for part in parts), f"{name} differs between workers"
            close(parts[0], whole, tolerance)


def test_shared_layer_averages_its_calls_in_their_order(seen, hybridize):
    """`nn.BatchNorm` on the CPU averages in the backward pass, hence in the opposite order."""
    x, _ = images("maps")
    mean, var = np.zeros(CHANNELS), np.ones(CHANNELS)
    for call in (x ** 2, x) if len(seen) == 1 else (x, x ** 2):
        mean = 0.9 * mean + 0.1 * call.mean((0, 2, 3))
        var = 0.9 * var + 0.1 * call.var((0, 2, 3))
    for worker in seen:
        ours = worker[f"shared {hybridize}"]
        prefix, = {name[:-len("running_var")] for name in ours if name.endswith("running_var")}
        close(ours[f"{prefix}running_mean"], mean, 1e-6)
        close(ours[f"{prefix}running_var"], var, 1e-6)


def test_branches_train_as_one_worker_does_and_never_hang(seen):
    """The short form of `sync_norm_trials.py hang`."""
    expected = train(Comm(), "hybrid", steps=2)
    for worker in seen:
        for trained, same in zip(worker["branches"], seen[0]["branches"]):
            assert trained == same
            assert difference(trained, expected) < 1e-4


def test_different_networks_are_a_sentence(seen):
    expected = None if len(seen) == 1 else \
        "worker 0 has a parameter 'weight0' and worker 1 has not; build the same blocks"
    for worker in seen:
        assert worker["refusal"] == expected or expected in worker["refusal"]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 64])
def test_merge_is_mean_and_variance_of_the_union(rows):
    """Against float64 over all values; sets of 1 to 9 values, mean 3000, standard deviation 1."""
    random = np.random.RandomState(rows)
    sets = [random.normal(3000, 1, (random.randint(1, 10), 4)).astype("float32")
            for _ in range(rows)]
    union = np.concatenate(sets).astype("float64")
    mean, var, count = merge(nd, nd.array([
        [part.mean(0), part.astype("float64").var(0), np.full(4, len(part))] for part in sets]),
        rows)
    np.testing.assert_allclose(mean.asnumpy(), union.mean(0), rtol=2e-7)
    np.testing.assert_allclose(var.asnumpy(), union.var(0), rtol=2e-3)
    assert count.asnumpy().tolist() == [len(union)] * 4


def test_merge_by_hand():
    """{0, 2} and {4}: means 1 and 4, variances 1 and 0; the union has mean 2, variance 8 / 3."""
    mean, var, count = merge(nd, nd.array([[[1], [1], [2]], [[4], [0], [1]]]), 2)
    assert mean.asscalar() == 2 and count.asscalar() == 3
    assert var.asscalar() == pytest.approx(8 / 3, rel=1e-6)


@pytest.mark.parametrize("size, rank", [(2, 0), (3, 2), (8, 5)])
def test_twins_equal_one_of_them(size, rank, hybridize):
    x, weights = images("maps")
    workers = Twins(size, rank)
    expected = once(layer_of(norm_layer("batch"), hybridize), x, weights)
    ours = once(layer_of(norm_layer("sync", {"workers": workers}), hybridize), x, weights)
    for name, value in expected.items():
        close(ours[name], value, 3e-6)
    assert len(workers.names) == 2      # inference asks nobody


@pytest.mark.parametrize("offset, spread", [(3000, 1), (0, 1e-3), (1e4, 10)])
def test_statistics_far_from_zero_keep_their_digits(offset, spread):
    x = np.random.RandomState(0).normal(offset, spread, (4, CHANNELS, 9, 9)).astype("float32")
    layer = SyncBatchNorm(workers=Twins(2), in_channels=CHANNELS, momentum=0.0)
    layer.initialize()
    with autograd.record():
        layer(nd.array(x))
    wide = x.astype("float64")
    np.testing.assert_allclose(layer.running_var.data().asnumpy(), wide.var((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(layer.running_mean.data().asnumpy(), wide.mean((0, 2, 3)),
                               rtol=1e-6, atol=1e-6 * spread)


def test_half_precision_keeps_float32_statistics(hybridize):
    x, weights = images("maps")
    layer = layer_of(norm_layer("sync", {"workers": Twins(2)}), hybridize)
    layer.cast("bfloat16")
    half = nd.amp_cast(nd.array(x), dtype=bfloat16)
    with autograd.record():
        y = layer(half)
    assert y.dtype == bfloat16 and layer.running_mean.data().dtype == np.float32
    whole = layer_of(norm_layer("batch"), hybridize)
    expected = once(whole, nd.cast(half, dtype="float32").asnumpy(), weights)
    close(nd.cast(y, dtype="float32").asnumpy(), expected["y"], 2 ** -8)
    close(layer.running_var.data().asnumpy(), expected["bn_running_var"], 1e-6)


def test_amp_leaves_statistics_in_float32():
    """In a process of its own, because AMP changes every operator for good.

    No convolution: those in bfloat16 need AVX-512.
    """
    program = textwrap.dedent("""
        import numpy as np
        from mxnet import autograd, gluon, nd
        from mxnet.contrib import amp
        from test_sync_batch_norm import Twins, bfloat16
        from gluon_resnest.models.sync_batch_norm import SyncBatchNorm
        amp.init("bfloat16")
        net = gluon.nn.HybridSequential()
        net.add(SyncBatchNorm(workers=Twins(2), in_channels=3, momentum=0.0),
                gluon.nn.Activation("tanh"), SyncBatchNorm(workers=Twins(2), in_channels=3))
        net.initialize()
        net.hybridize(static_alloc=True)
        x = nd.random.normal(300, 2, shape=(8, 3, 9, 9))
        x.attach_grad()
        with autograd.record():
            half = nd.amp_cast(x, dtype=bfloat16)
            y = net(half)
            loss = (nd.cast(y, dtype="float32") * x).sum()
        loss.backward()
        seen = nd.cast(half, dtype="float32").asnumpy().astype("float64")
        assert half.dtype == bfloat16
        assert {p.data().dtype for p in net.collect_params().values()} == {np.float32}
        np.testing.assert_allclose(net[0].running_mean.data().asnumpy(), seen.mean((0, 2, 3)),
                                   rtol=1e-6)
        np.testing.assert_allclose(net[0].running_var.data().asnumpy(), seen.var((0, 2, 3)),
                                   rtol=1e-4)
        assert np.isfinite(x.grad.asnumpy()).all()
        """)
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120,
                   cwd=str(Path(__file__).parent))


def test_files_interchange_with_batch_norm(tmp_path):
    sync = get_model("resnest_tiny", classes=3, norm_layer="sync",
                     norm_kwargs={"workers": Twins(2)})
    plain = get_model("resnest_tiny", classes=3)
    mx.random.seed(1)
    sync.initialize(mx.init.Normal(0.1))
    assert list(sync.collect_params()) == list(plain.collect_params())
    x = nd.random.normal(shape=(2, 3, 32, 48))
    sync.save_parameters(str(tmp_path / "sync.params"))
    plain.load_parameters(str(tmp_path / "sync.params"))
    np.testing.assert_allclose(plain(x).asnumpy(), sync(x).asnumpy(), rtol=1e-4, atol=1e-6)
    plain.save_parameters(str(tmp_path / "plain.params"))
    sync.load_parameters(str(tmp_path / "plain.params"))


def test_exports_hold_plain_batch_norm_only(tmp_path):
    """Even after a training graph was traced; MXNet's own export is what users call."""
    net = get_model("resnest_tiny", classes=3, norm_layer="sync",
                    norm_kwargs={"workers": Twins(2)})
    net.initialize()
    net.hybridize()
    x = nd.random.normal(shape=(2, 3, 32, 32))
    with autograd.record():
        net(x)
    expected = net(x)
    net.export(str(tmp_path / "net"))
    graph = json.loads((tmp_path / "net-symbol.json").read_text())
    operators = [node["op"] for node in graph["nodes"]]
    assert "Custom" not in operators and "BatchNorm" in operators
    again = gluon.SymbolBlock.imports(str(tmp_path / "net-symbol.json"), ["data"],
                                      str(tmp_path / "net-0000.params"))
    np.testing.assert_allclose(again(x).asnumpy(), expected.asnumpy(), rtol=1e-5, atol=1e-6)


def test_plain_batch_norm_ends_with_its_context():
    layer = SyncBatchNorm(workers=Twins(2), in_channels=CHANNELS)
    data = mx.sym.var("data")
    with plain_batch_norm(layer):
        assert [node["op"] for node in json.loads(layer(data).tojson())["nodes"]][-1] == \
            "BatchNorm"
    assert "Custom" in layer(data).tojson()


def test_frozen_and_global_statistics_ask_nobody():
    workers = Twins(2)
    layer = SyncBatchNorm(workers=workers, in_channels=CHANNELS, use_global_stats=True)
    frozen = norm_layer("frozen")(in_channels=CHANNELS)
    for norm in (layer, frozen):
        norm.initialize()
        with autograd.record():
            y = norm(nd.ones((2, CHANNELS, 3, 3)))
        assert y.asnumpy().ravel() == pytest.approx(1, rel=1e-4)
    assert workers.names == []


def test_names_of_sums_do_not_depend_on_other_traces():
    workers = Twins(2)
    net = shared_of(norm_layer("sync", {"workers": workers}), True)
    for _ in range(3):
        net(mx.sym.var("looked_at"))      # on one worker only, say
    x, weights = images("maps")
    once(net, x, weights)
    once(net, x, weights)
    layer = "shared_hybridsequential0_batchnorm0_"
    assert sorted(set(workers.names)) == [
        f"{layer}{call}.{what}" for call in (0, 1) for what in ("gradients", "statistics")]
    assert len(workers.names) == 8


def test_names_of_sums_without_a_graph_count_training_only():
    workers = Twins(2)
    layer = layer_of(norm_layer("sync", {"workers": workers}), False)
    x, _ = images("maps")
    for _ in range(2):
        layer(nd.array(x))
        with autograd.record():
            layer(nd.array(x)).wait_to_read()
    assert workers.names == ["bn_1.statistics", "bn_2.statistics"]


def test_several_devices_in_one_process_are_a_sentence():
    layer = SyncBatchNorm(workers=Comm(), in_channels=CHANNELS)
    layer.initialize(ctx=[mx.cpu(0), mx.cpu(1)])
    with pytest.raises(UserError, match="lie on 2 devices of this process; start one worker"):
        layer(nd.ones((2, CHANNELS, 3, 3)))


def test_channels_last_is_a_sentence():
    with pytest.raises(UserError, match="channels on axis 1, got axis=3; use layout NCHW"):
        SyncBatchNorm(workers=Comm(), axis=3)


def test_an_error_inside_the_operator_ends_the_worker():
    """It would hang instead, at the latest when the process ends."""
    program = textwrap.dedent("""
        from mxnet import autograd, nd
        from gluon_resnest.models.sync_batch_norm import SyncBatchNorm
        class Broken:
            size, rank = 2, 0
            def sum_later(self, array, name):
                raise OSError("no such network")
        layer = SyncBatchNorm(workers=Broken(), in_channels=2)
        layer.initialize()
        with autograd.record():
            layer(nd.ones((2, 2, 3, 3))).wait_to_read()
        """)
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=60,
                         stderr=subprocess.PIPE)
    assert run.returncode == 1 and b"no such network" in run.stderr


if __name__ == "__main__":
    work(sys.argv[1])
