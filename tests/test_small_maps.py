"""Convolutions over maps of a few pixels: cheaper forms that compute the same."""
import collections
import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from gluon_resnest.models.efficientnet import EfficientNet, EfficientNetArchitecture
from gluon_resnest.models.graphs import TwoGraphs
from gluon_resnest.models.resnest import initialize
from gluon_resnest.models.small_maps import fit_small_maps
from gluon_resnest.zoo import get_model


def operators(symbol):
    return collections.Counter(node["op"] for node in json.loads(symbol.tojson())["nodes"])


def computed(symbol, arrays):
    """Returns outputs and gradients of a graph whose head is squared and summed up."""
    executor = symbol.bind(mx.cpu(), arrays, {name: nd.zeros_like(array)
                                              for name, array in arrays.items()})
    output = executor.forward(is_train=True)[0]
    executor.backward(2 * output)
    return [output.asnumpy(), *(executor.grad_dict[name].asnumpy() for name in sorted(arrays))]


def fitted_equal(layer, shape):
    """Returns the fitted graph of a layer, whose values and gradients equal those of its own."""
    symbol = layer(mx.sym.var("data"))
    rng = np.random.RandomState(0)
    arrays = {"data": nd.array(rng.standard_normal(shape))}
    for name, param in layer.collect_params().items():
        arrays[name] = nd.array(rng.standard_normal(param.shape))
    fitted = fit_small_maps(symbol, {"data": shape})
    assert sorted(fitted.list_inputs()) == sorted(symbol.list_inputs())
    for found, expected in zip(computed(fitted, arrays), computed(symbol, arrays)):
        np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())
    return fitted


# (height, width), kernel, stride, pad, groups
CASES = [((1, 1), (1, 1), 1, 0, 1), ((1, 1), (1, 1), 1, 0, 2), ((1, 1), (3, 3), 1, 1, 1),
         ((2, 2), (3, 3), 1, 1, 1), ((2, 2), (3, 3), 1, 1, 2), ((2, 1), (3, 3), 1, 1, 1),
         ((1, 3), (3, 3), 1, 1, 2), ((2, 2), (3, 3), 2, 1, 1), ((1, 4), (3, 3), 2, 1, 1),
         ((3, 4), (5, 5), 1, 2, 1), ((3, 4), (5, 5), 2, 2, 4), ((2, 2), (3, 3), 1, 2, 1),
         ((4, 1), (3, 3), (2, 1), (0, 1), 1)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size, kernel, stride, pad, groups", CASES)
def test_products_compute_the_convolution(size, kernel, stride, pad, groups, bias):
    layer = nn.Conv2D(12, kernel, stride, pad, groups=groups, in_channels=8, use_bias=bias,
                      prefix="layer_")
    assert "Convolution" not in operators(fitted_equal(layer, (32, 8, *size)))


# (height, width), kernel, stride, pad, the taps that are left, the padding of their convolution
DEPTHWISE = [((1, 1), (5, 5), 1, 2, (1, 1), (0, 0)), ((1, 1), (3, 3), 2, 1, (1, 1), (0, 0)),
             ((2, 2), (5, 5), 2, 2, (2, 2), (0, 0)), ((2, 2), (5, 5), 1, 2, (3, 3), None),
             ((2, 2), (3, 3), 1, 1, (3, 3), None), ((3, 2), (3, 3), 1, 1, (3, 3), None),
             ((1, 4), (3, 3), 2, 1, (1, 3), (0, 1)),
             ((7, 2), (5, 3), (3, 2), (0, 1), (5, 2), (0, 0)),
             ((4, 3), (5, 3), 1, (2, 1), (5, 3), None), ((1, 3), (5, 4), 1, (2, 3), (1, 4), (0, 3)),
             ((3, 2), (5, 5), 1, 2, (5, 3), None), ((2, 3), (5, 5), 1, 2, (3, 5), (1, 2)),
             ((1, 2), (1, 7), 1, (0, 3), (1, 3), None)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size, kernel, stride, pad, taps, around", DEPTHWISE)
def test_a_depthwise_convolution_keeps_the_taps_that_meet_a_pixel(size, kernel, stride, pad, taps,
                                                                  around, bias):
    """`around`: None where the zeros become pixels."""
    layer = nn.Conv2D(6, kernel, stride, pad, groups=6, in_channels=6, use_bias=bias,
                      prefix="layer_")
    fitted = fitted_equal(layer, (2, 6, *size))
    nodes = json.loads(fitted.tojson())["nodes"]
    conv, = (node["attrs"] for node in nodes if node["op"] == "Convolution")
    assert conv["kernel"] == str(taps)
    assert conv["pad"] == str(around or (0, 0))
    assert operators(fitted)["Pad"] == (around is None)


@pytest.mark.parametrize("size, kernel, options", [
    ((5, 1), (3, 3), {"padding": 1}), ((2, 2), (1, 1), {}), ((3, 3), (3, 3), {"padding": 1}),
    ((3, 3), (3, 3), {"padding": 1, "groups": 8}), ((4, 3), (5, 5), {"padding": 2, "groups": 8}),
    ((2, 2), (3, 3), {"padding": 2, "dilation": 2}), ((2, 1), (1, 2), {"padding": 2, "groups": 8})])
def test_other_convolutions_stay(size, kernel, options):
    symbol = nn.Conv2D(8, kernel, in_channels=8, **options)(mx.sym.var("data"))
    assert fit_small_maps(symbol, {"data": (32, 8, *size)}) is None


@pytest.mark.parametrize("size, least", [((1, 1), 8), ((2, 2), 32)])
def test_small_batches_are_not_worth_the_making_of_a_matrix(size, least):
    symbol = nn.Conv2D(8, 3, padding=1, in_channels=8)(mx.sym.var("data"))
    assert fit_small_maps(symbol, {"data": (least - 1, 8, *size)}) is None
    assert fit_small_maps(symbol, {"data": (least, 8, *size)}) is not None


def test_maps_that_are_small_at_every_size_bind_no_graph():
    net = nn.HybridSequential()
    net.add(nn.GlobalAvgPool2D(), nn.Conv2D(4, 1, in_channels=8))
    assert fit_small_maps(net(mx.sym.var("data")), {"data": (32, 8, 16, 12)}) is None
    assert fit_small_maps(net(mx.sym.var("data")), {"data": (32, 8, 1, 1)}) is None


def test_graphs_of_mixed_precision_stay():
    x = mx.sym.amp_cast(mx.sym.var("data"), dtype="float16")
    symbol = nn.Conv2D(8, 3, 1, 1, in_channels=8)(x)
    assert fit_small_maps(symbol, {"data": (32, 8, 2, 2)}) is None


def step(net, x):
    """Returns the loss of a batch and the gradients of the weights.

    Inference before it leaves the weights in layouts of oneDNN.
    """
    net(x[:2]).wait_to_read()
    with autograd.record():
        loss = (net(x) ** 2).sum()
    loss.backward()
    return loss.asscalar(), {
        name: param.grad().asnumpy() for name, param in net.collect_params().items()
        if param.grad_req != "null" and name.endswith(("weight", "gamma", "beta"))}


def made(name):
    """Returns a network without chance; `efficientnet` is b0, a quarter as wide."""
    if name != "efficientnet":
        return get_model(name, classes=5, dropblock=0.0)
    arch = EfficientNetArchitecture(0.25, 1.0, 32, final_drop=0.0, drop_path=0.0)
    return EfficientNet(arch, classes=5)


@pytest.mark.parametrize("name", ["resnest14", "resnest14_2s1x64d", "resnest14_1s2x64d",
                                  "resnet14_1s1x64d", "efficientnet"])
def test_a_network_learns_the_same_at_small_and_at_other_sizes(name, tmp_path):
    net, twin = (made(name) for _ in range(2))
    initialize(net)
    net.save_parameters(str(tmp_path / "net.params"))
    twin.load_parameters(str(tmp_path / "net.params"))
    net.hybridize()
    for size, fits in (((32, 32), True), ((64, 48), False), ((32, 32), False)):
        x = nd.random.normal(shape=(32, 3, *size))
        (loss, gradients), (expected_loss, expected) = step(net, x), step(twin, x)
        assert (net._fits is not None) is fits
        assert loss == pytest.approx(expected_loss, rel=1e-4)
        whole = max(np.linalg.norm(value) for value in expected.values())
        for key, value, found in zip(expected, expected.values(), gradients.values()):
            # A ReLU may be on its other side by rounding; a wrong tap changes everything. A bias
            # before a convolution and its norm has no gradient at all.
            error = np.linalg.norm(found - value)
            assert error < 0.05 * np.linalg.norm(value) + 1e-5 * whole, key


def test_another_size_brings_a_graph_for_all_sizes():
    net = get_model("resnest14", classes=5)
    initialize(net)
    net.hybridize()
    seen = []
    for side in (32, 32, 64, 32, 48):
        step(net, nd.random.normal(shape=(32, 3, side, side)))
        seen.append(net._training_graph[1])
    assert seen[0] is seen[1] and seen[1] is not seen[2] and seen[2] is seen[3] is seen[4]
    assert operators(net._training_graph[0][1])["FullyConnected"] == 1
    net.hybridize()
    step(net, nd.random.normal(shape=(32, 3, 32, 32)))
    assert operators(net._training_graph[0][1])["FullyConnected"] > 1


def test_inference_has_convolutions_only():
    net = get_model("resnest14", classes=5)
    initialize(net)
    net.hybridize()
    step(net, nd.random.normal(shape=(32, 3, 32, 32)))
    net(nd.zeros((1, 3, 32, 32))).wait_to_read()
    assert operators(net._cached_graph[1])["FullyConnected"] == 1


class Deferred(TwoGraphs):
    def __init__(self):
        super().__init__()
        with self.name_scope():
            self.conv = nn.Conv2D(4, 3, 1, 1)           # the input's channels are not said

    def hybrid_forward(self, F, x):
        return self.conv(x)


def test_a_network_that_does_not_know_its_shapes_yet_trains():
    net = Deferred()
    net.initialize()
    net.hybridize()
    x = nd.random.normal(shape=(32, 3, 2, 2))
    with autograd.record():
        loss = (net(x) ** 2).sum()
    loss.backward()
    assert loss.asscalar() == pytest.approx(float((net(x) ** 2).sum().asscalar()), rel=1e-5)


def test_a_layer_called_twice_at_two_sizes():
    """A head over the levels of a pyramid: its nodes share their names."""
    layer = nn.Conv2D(4, 3, padding=1, in_channels=3, prefix="layer_")
    large, small = mx.sym.var("large"), mx.sym.var("small")
    symbol = mx.sym.concat(*(layer(map_).reshape((-1,)) for map_ in (large, small)), dim=0)
    fitted = fit_small_maps(symbol, {"large": (32, 3, 8, 6), "small": (32, 3, 2, 1)})
    assert operators(fitted)["Convolution"] == operators(fitted)["FullyConnected"] // 2 == 1
    rng = np.random.RandomState(0)
    arrays = {name: nd.array(rng.standard_normal(shape)) for name, shape in {
        "large": (32, 3, 8, 6), "small": (32, 3, 2, 1), "layer_weight": (4, 3, 3, 3),
        "layer_bias": (4,)}.items()}
    for found, expected in zip(computed(fitted, arrays), computed(symbol, arrays)):
        np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())
