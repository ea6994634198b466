"""models.baselines and their rows of the table: declared, printed and other people's counts."""
import functools

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop import published
from gluon_resnest.interop.analysis import analyze
from gluon_resnest.models.baselines import (
    BasicBlock, ResNet, ResNetArchitecture, SelectiveKernel, SqueezeExcitation)
from gluon_resnest.models.norm import norm_layer
from gluon_resnest.models.resnest import Bottleneck, initialize
from gluon_resnest.models.split_attention import SplitAttention

ONE = (1, 1, 1, 1)
SMALL = {
    "basic": ResNetArchitecture(ONE, basic=True, dropblock=0.1),
    "bottleneck": ResNetArchitecture(ONE, early_stride=True),
    "squeezed": ResNetArchitecture(ONE, cardinality=32, bottleneck_width=4,
                                   gate=SqueezeExcitation),
    "selective": ResNetArchitecture(ONE, cardinality=32, bottleneck_width=4,
                                    transform=SelectiveKernel),
    "split": ResNetArchitecture(ONE, transform=functools.partial(SplitAttention, radix=1)),
}
BASELINES = [name for name in zoo.VARIANTS if not name.startswith("resnest")]
NORM = norm_layer()


@functools.lru_cache(maxsize=None)
def measured(name):
    return analyze(zoo.get_model(name)).total()


@pytest.mark.parametrize("name", BASELINES)
def test_declared_cost_is_measured_cost(name):
    entry = zoo.variant(name)
    assert measured(name).params == entry.params
    assert measured(name).macs / 1e9 == pytest.approx(entry.gmacs,
                                                      abs=0.005 if entry.gmacs > 1 else 5e-4)


@pytest.mark.parametrize("name", published.TIMM)
def test_counts_equal_timm(name):
    assert (measured(name).params, measured(name).macs) == published.TIMM[name][1:]


@pytest.mark.parametrize("row", [row for row in published.TABLE2 + published.TABLE3
                                 if row.crop_px == 224], ids=lambda row: row.label)
def test_counts_are_within_two_per_cent_of_the_paper(row):
    assert measured(row.model).params / 1e6 == pytest.approx(row.params, rel=0.02)
    assert measured(row.model).macs / 1e9 == pytest.approx(row.gmacs, rel=0.02)


@pytest.mark.parametrize("name, millions", [row[1:] for row in published.REPORT])
def test_counts_of_the_cifar_report(name, millions):
    assert analyze(zoo.get_model(name, classes=10), (32, 32)).total().params / 1e6 == \
        pytest.approx(millions, abs=0.01)


def test_every_network_of_the_imagenet_recipes_is_in_the_table():
    from gluon_resnest.recipes.imagenet import RECIPES
    assert {recipe.network for recipe in RECIPES.values()} <= set(zoo.list_models())


def test_resnet_d_is_the_resnest_of_radix_0_without_dropblock():
    assert zoo.variant("resnet50d").arch.dropblock == 0
    assert (measured("resnet50d").params, measured("resnet50d").macs) == (
        measured("resnest50_fast_0s1x64d").params, measured("resnest50_fast_0s1x64d").macs)


def test_the_form_of_detection_strides_in_the_first_convolution():
    def strides(name):
        block = zoo.get_model(name).layer2[0]
        return block.conv1._kwargs["stride"], block.conv2._kwargs["stride"]
    assert strides("resnet50_msra") == ((2, 2), (1, 1))
    assert strides("resnet50") == ((1, 1), (2, 2))


@pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_have_the_declared_channels_and_strides(arch, output_stride):
    net = ResNet(arch, output_stride=output_stride)
    maps = mx.sym.Group(list(net.features(mx.sym.var("data"))))
    _, shapes, _ = maps.infer_shape(data=(2, 3, 65, 97))
    assert [shape[1:] for shape in shapes] == [
        (channels, -(-65 // stride), -(-97 // stride))
        for channels, stride in zip(net.feature_channels, net.feature_strides)]
    assert net.feature_strides == tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))


@pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL)
def test_hybridizing_changes_nothing(arch):
    net = ResNet(arch, classes=5, in_channels=4, prefix="net_")
    initialize(net)
    x = nd.random.normal(shape=(2, 4, 33, 49))
    before = net(x).asnumpy()
    net.hybridize()
    assert before.shape == (2, 5)
    np.testing.assert_allclose(net(x).asnumpy(), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL)
def test_every_parameter_learns(arch):
    net = ResNet(arch, classes=5, dropblock=0.0)
    initialize(net)
    with mx.autograd.record():
        loss = (net(nd.random.normal(shape=(2, 3, 33, 33))) ** 2).sum()
    loss.backward()
    assert not [name for name, param in net.collect_params().items()
                if param.grad_req != "null" and not param.grad().abs().sum().asscalar()]


@pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL)
def test_zero_last_gamma_leaves_the_shortcut(arch):
    net = ResNet(arch, zero_last_gamma=True)
    initialize(net)
    block = net.layer2[0]
    x = nd.random.normal(shape=(1, net.feature_channels[0], 9, 7))
    np.testing.assert_array_equal(block(x).asnumpy(), block.downsample(x).relu().asnumpy())


def test_reset_classifier_and_norm_policy():
    net = ResNet(SMALL["basic"], norm=norm_layer("frozen"))
    initialize(net)
    net.reset_classifier(3)
    assert net(nd.zeros((2, 3, 32, 32))).shape == (2, 3)
    assert all(param.grad_req == "null" for name, param in net.collect_params().items()
               if "gamma" in name)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dense(x, conv):
    """A 1x1 convolution of (N, C) in numpy."""
    bias = 0 if conv.bias is None else conv.bias.data().asnumpy()
    return x @ conv.weight.data().asnumpy()[:, :, 0, 0].T + bias


def randomized(layer):
    layer.initialize()
    for param in layer.collect_params().values():
        positive = param.name.endswith("running_var")
        param.set_data(nd.array(np.random.uniform(0.5 if positive else -1, 1, param.shape)))
    return layer


def test_squeeze_excitation_equals_a_plain_twin(hybridize):
    layer = randomized(SqueezeExcitation(32, 4))
    layer.hybridize(hybridize)
    x = nd.random.normal(shape=(2, 32, 5, 3))
    hidden = np.maximum(dense(x.asnumpy().mean((2, 3)), layer.fc1), 0)
    gate = sigmoid(dense(hidden, layer.fc2))[:, :, None, None]
    np.testing.assert_allclose(layer(x).asnumpy(), x.asnumpy() * gate, rtol=1e-4, atol=1e-5)


def test_selective_kernel_equals_a_softmax_over_its_two_paths(hybridize):
    layer = randomized(SelectiveKernel(16, in_channels=8, norm=NORM, cardinality=2, strides=2))
    layer.hybridize(hybridize)
    x = nd.random.normal(shape=(2, 8, 9, 7))
    paths = [path(x).asnumpy() for path in layer.paths]
    assert paths[0].shape == paths[1].shape == (2, 16, 5, 4)
    # As a map: MXNet 1.9.1 takes a matrix for a map whose oneDNN operator it has kept, and crashes.
    hidden = layer.bn1(nd.array(dense(sum(paths).mean((2, 3)), layer.fc1)[:, :, None, None]))
    logits = dense(hidden.relu().asnumpy()[:, :, 0, 0], layer.fc2).reshape(2, 2, 16)
    gates = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = sum(path * gates[:, i, :, None, None] for i, path in enumerate(paths))
    np.testing.assert_allclose(layer(x).asnumpy(), expected, rtol=1e-3, atol=1e-4)


def test_selective_kernel_has_the_hidden_width_of_its_paper():
    widths = [SelectiveKernel(channels, in_channels=channels, norm=NORM).fc1._channels
              for channels in (128, 512, 1024)]
    assert widths == [32, 32, 64]


@pytest.mark.parametrize("block, width", [(BasicBlock, 8), (Bottleneck, 2)])
def test_a_block_of_zero_gammas_is_relu_of_its_input(block, width, hybridize):
    arguments = (8,) if block is BasicBlock else (width, 8)
    layer = block(*arguments, in_channels=8, norm=NORM, zero_last_gamma=True)
    layer.initialize()
    layer.hybridize(hybridize)
    x = nd.random.normal(shape=(2, 8, 7, 9))
    np.testing.assert_array_equal(layer(x).asnumpy(), x.relu().asnumpy())


def test_an_impossible_output_stride_is_refused():
    with pytest.raises(UserError, match="output_stride must be 8, 16 or 32, got 4"):
        zoo.get_model("resnet18", output_stride=4)
