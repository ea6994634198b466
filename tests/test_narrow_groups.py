"""Copies around convolutions of narrow groups: the same values in another layout."""
import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from gluon_resnest.models import narrow_groups
from gluon_resnest.models.narrow_groups import free_narrow_groups
from gluon_resnest.models.resnest import initialize
from gluon_resnest.zoo import get_model


@pytest.fixture(autouse=True)
def avx512(monkeypatch):
    monkeypatch.setattr(narrow_groups, "has", lambda extension: extension == "avx512f")


def copies(symbol):
    return sum(node["op"] == "slice_axis" for node in json.loads(symbol.tojson())["nodes"])


def convolution(before, behind, groups, **options):
    """Returns a network and its graph, of so many channels in each group."""
    net = nn.Conv2D(behind * groups, 3, padding=1, groups=groups, in_channels=before * groups,
                    **options)
    return net, net(mx.sym.var("data"))


@pytest.mark.parametrize("bias", [False, True])
def test_copies_compute_the_convolution(bias):
    net, symbol = convolution(8, 4, 2, use_bias=bias)
    rng = np.random.RandomState(0)
    shapes = dict(zip(symbol.list_arguments(), symbol.infer_shape(data=(2, 16, 5, 7))[0]))
    arrays = {name: nd.array(rng.standard_normal(shape)) for name, shape in shapes.items()}
    found = []
    for graph in (symbol, free_narrow_groups(symbol, {"data": (2, 16, 5, 7)})):
        assert graph.list_arguments() == symbol.list_arguments()
        executor = graph.bind(mx.cpu(), arrays, {name: nd.zeros(shape)
                                                 for name, shape in shapes.items()})
        output = executor.forward(is_train=True)[0]
        executor.backward(2 * output)
        found.append([output.asnumpy(), *(executor.grad_dict[name].asnumpy() for name in shapes)])
    assert copies(graph) == 2
    for copied, plain in zip(*found):
        np.testing.assert_allclose(copied, plain, rtol=1e-5, atol=1e-5)


def test_copies_compute_a_block_with_norms_and_activations():
    """What they are for: batch norms whose maps and gradients lie in two orders."""
    net = nn.HybridSequential()
    for channels, groups, before in ((32, 1, 6), (32, 4, 32), (16, 1, 32)):
        net.add(nn.Conv2D(channels, 3, padding=1, groups=groups, in_channels=before,
                          use_bias=False), nn.BatchNorm(in_channels=channels),
                nn.Activation("relu"))
    symbol, shape = net(mx.sym.var("data")), (4, 6, 9, 7)
    copied = free_narrow_groups(symbol, {"data": shape})
    assert copies(copied) == 2
    rng = np.random.RandomState(0)
    names, states = symbol.list_arguments(), symbol.list_auxiliary_states()
    shapes, _, state_shapes = symbol.infer_shape(data=shape)
    values = {name: nd.array(rng.standard_normal(each)) for name, each in zip(names, shapes)}
    towards = nd.array(rng.standard_normal((4, 16, 9, 7)))
    found = []
    for graph in (symbol, copied):
        running = {name: nd.ones(each) for name, each in zip(states, state_shapes)}
        executor = graph.bind(mx.cpu(), values, {name: nd.zeros(each) for name, each in
                                                 zip(names, shapes)}, aux_states=running)
        output = executor.forward(is_train=True)[0]
        executor.backward(towards)
        found.append([output, *(executor.grad_dict[name] for name in names), *running.values()])
    for name, plain, ours in zip(["output", *names, *states], *found):
        scale = max(1, abs(plain.asnumpy()).max())
        np.testing.assert_allclose(ours.asnumpy() / scale, plain.asnumpy() / scale, atol=1e-4,
                                   err_msg=name)


@pytest.mark.parametrize("before, behind, groups, narrow", [
    (4, 4, 8, True), (8, 8, 4, True), (20, 80, 2, True), (40, 40, 2, True), (16, 8, 2, True),
    (10, 40, 2, False),         # in the plain order anyway
    (16, 32, 2, False), (32, 32, 4, False), (1, 1, 16, False), (8, 8, 1, False)])
def test_only_groups_of_which_4_or_8_channels_lie_together(before, behind, groups, narrow):
    _, symbol = convolution(before, behind, groups)
    found = free_narrow_groups(symbol, {"data": (2, before * groups, 5, 7)})
    assert copies(found) == (2 if narrow else 0)


def test_a_processor_without_avx512_keeps_the_graph(monkeypatch):
    monkeypatch.setattr(narrow_groups, "has", lambda extension: False)
    _, symbol = convolution(8, 8, 4)
    assert free_narrow_groups(symbol, {"data": (2, 32, 5, 7)}) is symbol


@pytest.mark.parametrize("name, convolutions", [
    ("resnest50", 0), ("resnest14", 0), ("resnext50_32x4d", 3 + 4),
    ("resnest50_fast_1s4x24d", 3), ("resnest50_fast_4s2x40d", 4 + 6)])
def test_networks(name, convolutions):
    """Blocks of the stages: 3, 4, 6, 3; channels of a group: 4, 8, 16, 32 in ResNeXt, 24, 48, 96,
    192 in 1s4x24d, 10, 20, 40, 80 before those of 4s2x40d."""
    net = get_model(name)
    initialize(net)
    found = free_narrow_groups(net(mx.sym.var("data")), {"data": (2, 3, 64, 64)})
    assert copies(found) == 2 * convolutions + copies(net(mx.sym.var("data")))


def test_the_graph_of_training_has_them_and_holds_for_other_sizes():
    net = get_model("resnext50_32x4d", classes=3)
    initialize(net)
    net.hybridize()
    for size in (64, 96):
        with autograd.record():
            net(nd.zeros((2, 3, size, size))).wait_to_read()
        assert copies(net._training_graph[0][1]) == 14
    assert net._fits is None
