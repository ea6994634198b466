"""Laws of recomputed batch norm statistics: alone, and as several workers would sum them."""
import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon, nd

from gluon_resnest.engine.comm import Comm
from gluon_resnest.engine.precise_bn import recompute_statistics
from gluon_resnest.errors import UserError
from gluon_resnest.models.norm import norm_layer
from gluon_resnest.zoo import get_model


def batches(sizes=(4, 1, 7), channels=3):
    random = np.random.RandomState(len(sizes))
    return [random.normal(30 * turn, 1 + turn, (size, channels, 5, 4)).astype("float32")
            for turn, size in enumerate(sizes)]


def test_statistics_of_a_first_layer_are_those_of_the_images(hybridize):
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.BatchNorm(in_channels=3), gluon.nn.Dense(2))
    net.initialize()
    if hybridize:
        net.hybridize(static_alloc=True)
        net(nd.array(batches()[0]))
    assert recompute_statistics(net, map(nd.array, batches()), Comm()) == 1
    whole = np.concatenate(batches()).astype("float64")
    np.testing.assert_allclose(net[0].running_mean.data().asnumpy(), whole.mean((0, 2, 3)),
                               rtol=1e-6)
    np.testing.assert_allclose(net[0].running_var.data().asnumpy(), whole.var((0, 2, 3)),
                               rtol=1e-6)
    assert net._active == hybridize


def test_deeper_layers_see_what_training_shows_them(hybridize):
    """One batch: with momentum 0, a training step leaves the same statistics."""
    def make():
        mx.random.seed(3)
        net = get_model("resnest_tiny", classes=3, dropblock=0.0,
                        norm_kwargs={"momentum": 0.0})
        net.initialize(mx.init.Normal(0.2))
        if hybridize:
            net.hybridize()
        return net
    x = nd.random.normal(shape=(6, 3, 48, 32))
    stepped, recomputed = make(), make()
    with autograd.record():
        y = stepped(x).sum()
    y.backward()
    nd.waitall()
    layers = recompute_statistics(recomputed, [x], Comm())
    pairs = [(a, b) for a, b in zip(stepped.collect_params().values(),
                                    recomputed.collect_params().values()) if "running" in a.name]
    assert len(pairs) == 2 * layers > 20
    for ours, theirs in pairs:
        expected = ours.data().asnumpy()
        np.testing.assert_allclose(theirs.data().asnumpy(), expected, rtol=1e-4,
                                   atol=1e-5 * np.abs(expected).max())


class TwoOfThem(Comm):
    """A worker whose sums with another one were written down when that one ran alone."""

    size = 2

    def __init__(self, other=None):
        self.other, self.said = iter(other or []), []

    def total(self, values):
        self.said.append(values)
        return values + next(self.other, 0)


def test_workers_together_equal_one_with_all_batches():
    """Each worker's terms, added: needs no processes, since `total` is tested with them."""
    parts = batches()[:1], batches()[1:]
    nets = [gluon.nn.BatchNorm(in_channels=3) for _ in range(3)]
    for net in nets:
        net.initialize()
    recompute_statistics(nets[2], map(nd.array, batches()), Comm())
    # The deviations from the common mean need the common mean: two rounds settle both sums.
    first = TwoOfThem()
    recompute_statistics(nets[0], map(nd.array, parts[0]), first)
    second = TwoOfThem(first.said)
    recompute_statistics(nets[1], map(nd.array, parts[1]), second)
    first = TwoOfThem(second.said)
    recompute_statistics(nets[0], map(nd.array, parts[0]), first)
    second = TwoOfThem(first.said)
    recompute_statistics(nets[1], map(nd.array, parts[1]), second)
    for net in nets[:2]:
        for name in ("running_mean", "running_var"):
            np.testing.assert_allclose(getattr(net, name).data().asnumpy(),
                                       getattr(nets[2], name).data().asnumpy(), rtol=1e-6)


def test_shared_layer_sees_all_its_calls():
    layer = gluon.nn.BatchNorm(in_channels=3)
    layer.initialize()
    recompute_statistics(layer, [nd.array(batches()[0])], Comm(),
                         forward=lambda x: (layer(x), layer(-x)))
    assert layer.running_mean.data().asnumpy() == pytest.approx(0, abs=1e-6)


def test_frozen_and_unreached_layers_and_weights_stay(hybridize):
    net = gluon.nn.HybridSequential()
    net.add(norm_layer("frozen")(in_channels=3), gluon.nn.Conv2D(3, 1, in_channels=3),
            gluon.nn.BatchNorm(in_channels=3), gluon.nn.BatchNorm(in_channels=3))
    net.initialize()
    if hybridize:
        net.hybridize()
    before = {name: p.data().asnumpy() for name, p in net.collect_params().items()}
    frozen, conv, reached, _ = net
    assert recompute_statistics(net, [nd.array(batches()[1])], Comm(),
                                forward=lambda x: reached(conv(frozen(x)))) == 1
    changed = {name for name, p in net.collect_params().items()
               if (p.data().asnumpy() != before[name]).any()}
    assert changed == {reached.running_mean.name, reached.running_var.name}


def test_an_error_leaves_everything_as_it_was():
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.BatchNorm(in_channels=3))
    net.initialize()
    net.hybridize()

    def broken():
        yield nd.array(batches()[0])
        raise OSError("no such image")
    with pytest.raises(OSError):
        recompute_statistics(net, broken(), Comm())
    assert net[0].running_mean.data().asnumpy().tolist() == [0, 0, 0]
    assert net._active and not net[0]._forward_pre_hooks


def test_no_batch_is_a_sentence():
    layer = gluon.nn.BatchNorm(in_channels=3)
    layer.initialize()
    with pytest.raises(UserError, match="no batch to recompute .* give at least one"):
        recompute_statistics(layer, [], Comm())
