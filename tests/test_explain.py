"""Explanations add up: activation maps to the logits, the weights of the splits to the output."""
import mxnet as mx
import numpy as np
import pytest
from mxnet import nd

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop.explain import explain
from gluon_resnest.interop.explanation_drawing import draw_explanations
from gluon_resnest.models.norm import norm_layer
from gluon_resnest.models.split_attention import SplitAttention

IMAGES = np.random.RandomState(0).standard_normal((2, 3, 40, 56)).astype("float32")


def build(name):
    net = zoo.get_model(name, classes=4)
    net.initialize(mx.init.Normal(0.1))
    return net


@pytest.mark.parametrize("name", ["resnest_tiny", "efficientnet_b0"])
def test_the_mean_of_an_activation_map_is_the_logit(name):
    net = build(name)
    net.fc.bias.set_data(nd.arange(4))
    found = explain(net, nd.array(IMAGES))
    assert found.activation.shape[:2] == (2, 4) and found.activation.shape[2:] == (2, 2)
    np.testing.assert_allclose(found.activation.mean((2, 3)) + np.arange(4), found.logits,
                               rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.logits, net(nd.array(IMAGES)).asnumpy(), rtol=1e-5, atol=1e-6)


def test_there_are_weights_for_each_block_and_they_add_up_to_one():
    attention = explain(build("resnest_tiny"), nd.array(IMAGES)).attention
    assert list(attention) == [f"layer{stage}.0.conv2" for stage in range(1, 5)]
    for stage, weights in enumerate(attention.values()):
        assert weights.shape == (2, 2, 8 << stage)
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("radix, cardinality", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)])
def test_the_weighted_splits_are_the_output_of_the_block(radix, cardinality):
    """The slow twin: convolve, weight each split by what `explain` reads, add up."""
    from gluon_resnest.interop.explain import _weights
    block = SplitAttention(12, in_channels=12, norm=norm_layer(), radix=radix,
                           cardinality=cardinality)
    block.initialize(mx.init.Normal(0.5))
    x = nd.array(np.random.RandomState(1).standard_normal((2, 12, 5, 4)))
    kept = []
    block.fc2.register_forward_hook(lambda _, __, output: kept.append(output.asnumpy()))
    output = block(x).asnumpy()
    splits = nd.relu(block.bn(block.conv(x))).asnumpy().reshape(2, radix, 12, 5, 4)
    weights = _weights(block, kept[0])
    np.testing.assert_allclose((splits * weights[..., None, None]).sum(1), output, rtol=1e-4,
                               atol=1e-5)


def test_a_hybridized_network_is_explained_and_works_on():
    net = build("resnest_tiny")
    net.hybridize(static_alloc=True)
    before = net(nd.array(IMAGES)).asnumpy()
    np.testing.assert_allclose(explain(net, nd.array(IMAGES)).logits, before, rtol=1e-5, atol=1e-6)
    assert net._active and ("static_alloc", True) in net._flags
    np.testing.assert_allclose(net(nd.array(IMAGES)).asnumpy(), before, rtol=1e-5, atol=1e-6)


def test_other_networks_are_refused():
    with pytest.raises(UserError, match="a network of our zoo to explain, got Dense"):
        explain(mx.gluon.nn.Dense(3), nd.ones((1, 4)))


def test_a_picture_is_drawn(tmp_path):
    row = ("a title", np.zeros((32, 32, 3), "uint8"), np.array([[1.0, -1.0], [0.0, 2.0]]),
           {"layer1": np.array([[0.2, 0.8], [0.8, 0.2]])})
    draw_explanations(tmp_path / "a.png", [row, (*row[:3], {})])
    assert (tmp_path / "a.png").stat().st_size > 10000
