"""The graph of training: equal to the imperative network, and a floor below its formulation.

The floor counts operators in traced graphs. It is not a timing: it fails in any load, on any
machine, when a formulation comes back that was measured to be slow (docs/performance.md).
"""
import collections
import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd

from gluon_resnest.models.dropblock import without_dropblock
from gluon_resnest.models.resnest import initialize
from gluon_resnest.models.training_graph import training_form, wants_training_form
from gluon_resnest.zoo import VARIANTS, get_model

# Radix 1, 2 and 4, cardinality 1 and 2, pooling before and after.
REPRESENTATIVE = ["resnest14", "resnest50", "resnest50_fast_1s1x64d", "resnest50_fast_4s2x40d"]
# Reshapes and cuts to a single row or number; they pass over nothing.
FREE = {"null", "Reshape", "reshape_like", "BlockGrad", "Flatten", "slice_axis", "ones_like"}


def operators(symbol):
    """Counts the operators of a graph, those that cost nothing left out."""
    counted = collections.Counter(node["op"] for node in json.loads(symbol.tojson())["nodes"])
    return {name: count for name, count in counted.items() if name not in FREE}


def floor(name, *, training):
    """Returns {operator: how often} of a ResNeSt without DropBlock: what each block needs.

    One split and one sum of the splits, one pass each for difference, product and sum with the
    gate, one for the gate at every pixel; no transposition of a map, no sum over a fifth axis.
    """
    arch = VARIANTS[name].arch
    blocks, r = sum(arch.depths), arch.radix
    pools = 3 + arch.pool_first + 4 + 2             # 3x3, shortcuts, stem and the end
    activations = 3 + 4 * blocks                    # each behind a norm or a sum
    products = max(r - 1, 1) * blocks
    counted = {
        "Convolution": 3 + 5 * blocks + 4, "Pooling": pools, "FullyConnected": 1,
        "Activation": activations, "BatchNorm": activations + 4,    # of shortcuts
        "elemwise_add": blocks, "elemwise_mul": products,
        "_contrib_AdaptiveAvgPooling2D": blocks,
        "dot" if training else "broadcast_like": products,
        "softmax" if r > 1 else "sigmoid": blocks}
    if r > 1:
        counted.update(SliceChannel=2 * blocks, add_n=2 * blocks, elemwise_sub=products)
    if r > 1 and arch.cardinality > 1:
        counted["SwapAxis"] = blocks                # of the logits, one number for each channel
    return counted


def training_symbol(net):
    """Returns the graph of training on a CPU, without computing anything."""
    with training_form(net):
        return net(mx.sym.var("data"))


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_training_graph_has_no_more_passes_than_the_floor(name):
    net = get_model(name)
    with without_dropblock(net):
        assert operators(training_symbol(net)) == floor(name, training=True)


@pytest.mark.parametrize("name", ["senet50", "sknet50", "efficientnet_b0"])
def test_other_gates_reach_the_pixels_in_the_same_way(name):
    net = get_model(name)
    training, inference = operators(training_symbol(net)), operators(net(mx.sym.var("data")))
    assert training["dot"] == inference["broadcast_like"] == 16
    assert "broadcast_like" not in training and "dot" not in inference


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_inference_graph_has_no_more_passes_than_the_floor(name):
    net = get_model(name)
    with without_dropblock(net):
        assert operators(net(mx.sym.var("data"))) == floor(name, training=False)


def test_the_floor_finds_another_formulation():
    """GluonCV's sums over a fifth axis."""
    gluoncv = pytest.importorskip("gluoncv.model_zoo")
    theirs = operators(gluoncv.get_model("resnest14")(mx.sym.var("data")))
    assert theirs["sum"] == 8 and "sum" not in floor("resnest14", training=False)


def test_a_dropblock_passes_over_the_map_twice():
    """Its mask is copied for each sample (`take`) and multiplied; the rest is for one sample."""
    net = get_model("resnest14_2s1x64d", dropblock=0.1)
    with without_dropblock(net):
        without = operators(training_symbol(net))
    found = operators(training_symbol(net))
    blocks = 2 * 3                                  # three in each block of the last two stages
    assert found["take"] == found["_random_uniform_like"] == blocks
    assert found["Convolution"] == without["Convolution"] + blocks
    assert not {"broadcast_mul", "max", "transpose"} & set(found)


@pytest.mark.parametrize("name", ["resnest14", "resnest14_1s1x64d", "resnest14_4s2x40d"])
def test_training_graph_computes_what_the_imperative_network_does(name, monkeypatch):
    # Copies (tests/test_narrow_groups.py) change the rounding, and with it sides of ReLUs.
    monkeypatch.setattr("gluon_resnest.models.narrow_groups.has", lambda extension: False)
    net = get_model(name, classes=7, dropblock=0.0)
    initialize(net)
    x = nd.random.normal(shape=(3, 3, 64, 48))
    found = []
    for hybrid in (False, True):
        net.hybridize(hybrid)
        x.attach_grad()
        with autograd.record():
            loss = (net(x) ** 2).sum()
        loss.backward()
        weights = {key: value.grad().asnumpy() for key, value in net.collect_params().items()
                   if value.grad_req != "null" and key.endswith(("weight", "gamma", "beta"))}
        found.append([loss.asnumpy(), x.grad.asnumpy(), weights])
    assert "broadcast_like" not in operators(net._training_graph[0][1])
    assert net._fits is None            # tests/test_small_maps.py is about graphs for one size
    (loss, gradient, weights), (fast_loss, fast_gradient, fast_weights) = found
    np.testing.assert_allclose(fast_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(fast_gradient, gradient, atol=1e-4 * abs(gradient).max())
    for key, expected in weights.items():
        np.testing.assert_allclose(fast_weights[key], expected, err_msg=key,
                                   atol=1e-3 * abs(expected).max())


@pytest.mark.parametrize("name, size, options", [
    ("resnet50d", 32, {}), ("resnest14_0s1x64d", 32, {"dropblock": 0.0}),
    ("resnest14_1s2x64d", 32, {"dropblock": 0.0}), ("resnest_tiny", 64, {"dropblock": 0.0}),
    ("resnest50_fast_1s2x40d", 64, {"dropblock": 0.0}),
    ("resnest50_fast_1s4x24d", 64, {"dropblock": 0.0}), ("resnext50_32x4d", 64, {}),
    ("senet50", 64, {}), ("sknet50", 64, {}), ("resnet50", 64, {"output_stride": 8})])
def test_gradients_do_not_depend_on_oneDNNs_layouts(name, size, options):
    """Where convolutions beside each other choose different ones (decision 0145)."""
    net = get_model(name, classes=5, **options)
    initialize(net)
    x = nd.random.normal(shape=(32 if size == 32 else 4, 3, size, size))
    found = []
    for hybrid in (False, True):
        net.hybridize(hybrid)
        with autograd.record():
            loss = (net(x) ** 2).sum()
        loss.backward()
        found.append({key: value.grad().asnumpy() for key, value in net.collect_params().items()
                      if value.grad_req != "null" and key.endswith(("weight", "gamma", "beta"))})
    plain, fast = found
    # In the norm of all: a few values round to the other side of a ReLU's zero, 0.08 at most over
    # ten seeds; graphs that were wrong came to 0.66 and more.
    error = sum(((fast[key] - plain[key]) ** 2).sum() for key in plain) ** 0.5
    assert error < 0.3 * sum((plain[key] ** 2).sum() for key in plain) ** 0.5


def test_running_statistics_follow_as_without_the_graph():
    statistics = []
    for hybrid in (False, True):
        mx.random.seed(3)
        net = get_model("resnest14", classes=5, dropblock=0.0)
        initialize(net)
        net.hybridize(hybrid)
        with autograd.record():
            loss = net(nd.random.normal(shape=(4, 3, 32, 40))).sum()
        loss.backward()
        nd.waitall()
        statistics.append([value.data().asnumpy() for key, value in net.collect_params().items()
                           if "running" in key])
    for before, after in zip(*statistics):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-6)


def test_other_types_and_a_switched_off_library_keep_the_plain_graph(monkeypatch):
    monkeypatch.delenv("MXNET_MKLDNN_ENABLED", raising=False)
    assert wants_training_form([nd.zeros((1, 3))])
    assert not wants_training_form([nd.zeros((1, 3), dtype="float16")])
    monkeypatch.setenv("MXNET_MKLDNN_ENABLED", "0")
    assert not wants_training_form([nd.zeros((1, 3))])


def test_inference_and_export_never_see_it(tmp_path):
    net = get_model("resnest14", classes=4)
    initialize(net)
    net.hybridize()
    with autograd.record():
        net(nd.zeros((2, 3, 32, 32))).wait_to_read()
    net(nd.zeros((1, 3, 32, 32))).wait_to_read()
    net.export(str(tmp_path / "net"))
    exported = operators(mx.sym.load(str(tmp_path / "net-symbol.json")))
    assert exported == floor("resnest14", training=False)
