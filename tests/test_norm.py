"""Normalisation policies."""
import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from gluon_resnest.engine.comm import Comm
from gluon_resnest.errors import UserError
from gluon_resnest.models.norm import STAGES, few_values, freeze_stages, norm_layer, with_defaults
from gluon_resnest.zoo import get_model


def test_policies_do_not_change_the_callers_dict():
    given = {"momentum": 0.5}
    norm_layer("frozen", given)(in_channels=3, gamma_initializer="zeros")
    assert given == {"momentum": 0.5}


@pytest.mark.parametrize("policy", [None, "batch", nn.BatchNorm])
def test_batch_policy_is_batch_norm(policy):
    layer = norm_layer(policy, {"momentum": 0.5})(in_channels=3)
    assert type(layer) is nn.BatchNorm and layer._kwargs["momentum"] == 0.5
    assert layer.gamma.grad_req == "write"


@pytest.mark.parametrize("policy", ["batch", "frozen", nn.BatchNorm])
def test_what_the_user_says_of_norms_beats_the_networks_defaults(policy):
    layer = with_defaults(norm_layer(policy, {"momentum": 0.5}), epsilon=0.1, momentum=0.7)()
    assert (layer._kwargs["eps"], layer._kwargs["momentum"]) == (0.1, 0.5)


def test_defaults_of_batch_norms_are_for_batch_norms_only():
    norm = norm_layer(nn.InstanceNorm, {"epsilon": 0.2})
    assert with_defaults(norm, epsilon=0.1, momentum=0.7)(in_channels=3)._epsilon == 0.2


def test_frozen_policy_is_affine_in_training_and_learns_nothing(hybridize):
    layer = norm_layer("frozen")(in_channels=2)
    layer.initialize()
    layer.running_mean.set_data(nd.array([1.0, -2.0]))
    layer.running_var.set_data(nd.array([4.0, 0.25]))
    layer.hybridize(hybridize)
    x = nd.random.normal(shape=(3, 2, 4, 5))
    x.attach_grad()
    with autograd.record():
        y = layer(x)
    y.backward()
    mx.nd.waitall()
    mean, std = nd.array([1.0, -2.0]).reshape((1, 2, 1, 1)), nd.array([2.0, 0.5])
    expected = (x - mean) / std.reshape((1, 2, 1, 1))
    np.testing.assert_allclose(y.asnumpy(), expected.asnumpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(x.grad.asnumpy()[:, 0], 0.5, rtol=1e-4)
    assert layer.running_mean.data().asnumpy().tolist() == [1.0, -2.0]
    assert layer.gamma.grad_req == layer.beta.grad_req == "null"


def test_frozen_layers_keep_the_names_of_batch_norm():
    with mx.name.Prefix(""):
        frozen = norm_layer("frozen")(in_channels=1, prefix="bn_")
    assert list(frozen.collect_params()) == [
        "bn_gamma", "bn_beta", "bn_running_mean", "bn_running_var"]


@pytest.mark.parametrize("count", range(6))
def test_as_many_stages_as_said_are_frozen(count):
    net = get_model("resnest_tiny", classes=3)
    freeze_stages(net, count)
    frozen = {part for parts in STAGES[:count] for part in parts}
    for name, param in net._collect_params_with_prefix().items():
        if "running" not in name:
            assert (param.grad_req == "null") is (name.split(".")[0] in frozen), name


def test_stages_of_a_net_that_was_called_are_frozen_too(hybridize):
    net = get_model("resnest_tiny", classes=3, dropblock=0.0)
    net.initialize()
    net.hybridize(hybridize)
    x = nd.random.normal(shape=(2, 3, 32, 48))
    with autograd.train_mode():
        before = net(x).asnumpy()
    freeze_stages(net, 5)
    with autograd.train_mode():
        training = net(x).asnumpy()
    np.testing.assert_allclose(training, net(x).asnumpy(), rtol=1e-4, atol=1e-5)
    assert abs(training - before).max() > 1e-3


@pytest.mark.parametrize("network", ["resnest_tiny", "resnet18", "efficientnet_b0"])
def test_all_stages_are_all_but_the_classifier(network):
    net = get_model(network, classes=3)
    freeze_stages(net, 5)
    assert {name for name, param in net._collect_params_with_prefix().items()
            if param.grad_req != "null"} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("count", [-1, 6, 1.0, None, True])
def test_other_counts_of_frozen_stages_are_refused(count):
    net = get_model("resnest_tiny", classes=3)
    with pytest.raises(UserError, match=f"0 to 5 frozen stages .the stem is .*, got {count!r}"):
        freeze_stages(net, count)
    assert net.fc.weight.grad_req == net.conv1[0].weight.grad_req == "write"


def test_unknown_policy_names_the_nearest():
    with pytest.raises(UserError, match="unknown norm policy 'frozn'.*did you mean 'frozen'"):
        norm_layer("frozn")


def test_sync_policy_without_workers_says_what_it_needs():
    with pytest.raises(UserError, match="norm policy .sync. needs"):
        norm_layer("sync")


def test_few_values_are_those_of_the_attention_norms():
    net = get_model("resnest_tiny", classes=3)
    attention = [f"layer{stage}.0.conv2.bn1" for stage in (1, 2, 3, 4)]
    assert few_values(net, (7, 3, 64, 96)) == dict.fromkeys(attention, 7)
    assert few_values(net, (8, 3, 64, 96)) == {}


def test_few_values_by_hand():
    """One image of 32 x 64: 1 x 2 pixels after stage 4, 2 x 4 after stage 3, 1 x 1 in attention."""
    few = few_values(get_model("resnest_tiny", classes=3), (1, 3, 32, 64))
    assert few["layer4.0.bn3"] == 2 and few["layer3.0.conv2.bn1"] == 1
    assert "layer3.0.bn3" not in few


def test_few_values_counts_all_workers_where_they_share():
    comm = Comm()
    comm.size = 2
    sync = get_model("resnest_tiny", norm_layer="sync", norm_kwargs={"workers": comm})
    assert few_values(sync, (4, 3, 64, 64), workers=2) == {}
    assert few_values(get_model("resnest_tiny"), (4, 3, 64, 64), workers=2)


def test_few_values_leaves_frozen_layers_alone():
    assert few_values(get_model("resnest_tiny", norm_layer="frozen"), (1, 3, 64, 64)) == {}
