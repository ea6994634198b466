"""models.efficientnet: scaling, stochastic depth, and what a backbone offers."""
import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop.deployed import Card
from gluon_resnest.interop.export import export_classifier
from gluon_resnest.interop.graph import read_graph
from gluon_resnest.models.baselines import SqueezeExcitation
from gluon_resnest.models.efficientnet import (
    EfficientNet, EfficientNetArchitecture, InvertedBottleneck, Swish, _Block, _plan, scaled)
from gluon_resnest.models.norm import norm_layer
from gluon_resnest.models.resnest import initialize

TINY = EfficientNetArchitecture(0.25, 0.3, 64, 0.2)
NORM = norm_layer()


@pytest.mark.parametrize("channels, factor, expected", [
    (32, 1.0, 32), (16, 1.1, 16), (24, 1.1, 24), (112, 1.2, 136), (320, 2.0, 640),
    (1280, 1.4, 1792), (16, 0.25, 8), (12, 1.0, 16), (8, 1.18, 16)])
def test_channels_are_scaled_to_multiples_of_eight(channels, factor, expected):
    assert scaled(channels, factor) == expected


@pytest.mark.parametrize("name, blocks, crop_px", [
    ("efficientnet_b0", 16, 224), ("efficientnet_b1", 23, 240), ("efficientnet_b2", 23, 260),
    ("efficientnet_b3", 26, 300), ("efficientnet_b4", 32, 380), ("efficientnet_b5", 39, 456),
    ("efficientnet_b6", 45, 528), ("efficientnet_b7", 55, 600)])
def test_depths_and_crops_are_the_published_ones(name, blocks, crop_px):
    arch = zoo.variant(name).arch
    assert sum(map(len, _plan(arch, 32))) == blocks
    assert arch.crop_px == crop_px


@pytest.mark.parametrize("output_stride, strides, dilations", [
    (32, [2, 2, 2], [1, 1, 1]), (16, [2, 2, 1], [1, 1, 1]), (8, [2, 1, 1], [1, 1, 2])])
def test_once_the_stride_is_reached_stages_dilate(output_stride, strides, dilations):
    stages = _plan(zoo.variant("efficientnet_b0").arch, output_stride)
    assert [stage[0].strides for stage in stages[1:]] == strides
    assert [stage[0].dilation for stage in stages[1:]] == dilations
    last = [stage[-1].dilation for stage in stages[1:]]
    assert last == {32: [1, 1, 1], 16: [1, 1, 2], 8: [1, 2, 4]}[output_stride]


def test_norms_are_the_published_ones_unless_told_otherwise():
    norm = EfficientNet(TINY).bn1._kwargs
    assert (norm["eps"], norm["momentum"]) == (1e-3, 0.99)
    norm = EfficientNet(TINY, norm=norm_layer("batch", {"momentum": 0.5})).bn1._kwargs
    assert (norm["eps"], norm["momentum"]) == (1e-3, 0.5)
    assert EfficientNet(TINY, norm=norm_layer(nn.InstanceNorm)).bn1._epsilon == 1e-5


def test_stochastic_depth_rises_from_zero():
    drops = [block.drop_path for stage in _plan(zoo.variant("efficientnet_b0").arch, 32)
             for block in stage]
    np.testing.assert_allclose(drops, [0.2 * i / 16 for i in range(16)])


def block(**changes):
    spec = _Block(expansion=6, channels=8, kernel=3, strides=1, dilation=1, drop_path=0.0)
    layer = InvertedBottleneck(spec._replace(**changes), in_channels=8, norm=NORM)
    layer.initialize(mx.init.Xavier())
    return layer


def test_stochastic_depth_drops_whole_samples_and_scales_the_others(hybridize):
    layer = block(drop_path=0.5)
    layer.hybridize(hybridize)
    x = nd.random.normal(shape=(16, 8, 5, 7))
    with autograd.train_mode():
        added = layer(x).asnumpy() - x.asnumpy()
    sizes = np.abs(added).reshape(16, -1).max(axis=1)
    assert 0 < (sizes < 1e-6).sum() < 16
    assert (np.abs(added[sizes > 1e-6]) > 1e-6).mean() > 0.99
    first, second = layer(x).asnumpy(), layer(x).asnumpy()
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("changes, adds", [
    ({}, True), ({"channels": 16}, False), ({"strides": 2}, False)])
def test_a_block_adds_its_input_only_where_shapes_agree(changes, adds):
    layer = block(**changes)
    layer.bn3.gamma.set_data(nd.zeros_like(layer.bn3.gamma.data()))
    x = nd.random.normal(shape=(1, 8, 5, 7))
    out = layer(x).asnumpy()
    np.testing.assert_array_equal(out, x.asnumpy() if adds else np.zeros_like(out))


def test_zero_last_gamma_spares_blocks_without_a_shortcut():
    net = EfficientNet(zoo.variant("efficientnet_b0").arch, zero_last_gamma=True)
    net.initialize()
    gammas = [[child.bn3.gamma.data().sum().asscalar() for child in stage]
              for stage in (net.layer1, net.layer2)]
    assert gammas == [[16, 24, 0], [40, 0]]


def test_the_squeeze_is_a_quarter_of_the_blocks_input():
    gate = block().gate
    assert isinstance(gate, SqueezeExcitation)
    assert (gate.fc1._channels, gate.fc2._channels) == (2, 48)


def test_swish_is_x_times_sigmoid_of_x(hybridize):
    layer = Swish()
    layer.hybridize(hybridize)
    x = np.linspace(-4, 4, 9, dtype="float32")
    np.testing.assert_allclose(layer(nd.array(x)).asnumpy(), x / (1 + np.exp(-x)), rtol=1e-5)


def test_batch_norms_have_the_original_epsilon_unless_the_policy_says_otherwise():
    assert EfficientNet(TINY).bn1._kwargs["eps"] == 1e-3
    net = EfficientNet(TINY, norm=norm_layer("frozen"))
    assert net.bn1._kwargs == {**net.bn1._kwargs, "eps": 1e-3, "use_global_stats": True}


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_have_the_declared_channels_and_strides(output_stride):
    net = EfficientNet(TINY, output_stride=output_stride)
    maps = mx.sym.Group(list(net.features(mx.sym.var("data"))))
    _, shapes, _ = maps.infer_shape(data=(2, 3, 65, 97))
    assert [shape[1:] for shape in shapes] == [
        (channels, -(-65 // stride), -(-97 // stride))
        for channels, stride in zip(net.feature_channels, net.feature_strides)]


def test_hybridizing_and_a_new_classifier():
    net = EfficientNet(TINY, in_channels=1)
    initialize(net)
    net.reset_classifier(5)
    x = nd.random.normal(shape=(2, 1, 33, 49))
    before = net(x).asnumpy()
    net.hybridize()
    assert before.shape == (2, 5)
    np.testing.assert_allclose(net(x).asnumpy(), before, rtol=1e-4, atol=1e-5)


def test_an_exported_network_has_no_stochastic_depth(tmp_path):
    net = EfficientNet(TINY, classes=3)
    initialize(net)
    export_classifier(net, tmp_path / "net", Card("efficientnet", 3, 64))
    assert "Dropout" not in read_graph(tmp_path / "net-symbol.json").operators()


def test_dropblock_and_impossible_strides_are_refused():
    with pytest.raises(UserError, match="stochastic depth instead of DropBlock, got dropblock=0.1"):
        zoo.get_model("efficientnet_b0", dropblock=0.1)
    with pytest.raises(UserError, match="output_stride must be 8, 16 or 32, got 12"):
        zoo.get_model("efficientnet_b0", output_stride=12)
