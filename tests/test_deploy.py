"""interop.deploy: the deploy graph computes what the network does, and its formulation stays."""
import math

import mxnet as mx
import pytest
from deploy_case import CARD, FAMILY, assert_equal, noise, randomized, tiny_network
from mxnet import nd
from mxnet.gluon import nn

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop import export as plain_export
from gluon_resnest.interop.deploy import lowering
from gluon_resnest.interop.deploy.draft import Draft
from gluon_resnest.interop.deploy.export import Plan, export_deployment
from gluon_resnest.interop.deploy.folding import fold_batch_norms
from gluon_resnest.interop.deploy.rewriting import deploy_graph

SHAPES = [(1, 3, 32, 32), (2, 3, 64, 40), (3, 3, 33, 77)]
BASELINES = ["resnet18_v1b", "resnet50_v1b", "resnext50_32x4d", "se_resnet50", "sknet50",
             "efficientnet_b0"]


def block_of(graph, arrays):
    """Runs a graph as it is."""
    block = mx.gluon.SymbolBlock(mx.sym.load_json(graph.to_json()), [mx.sym.var("data")])
    block.collect_params().load_dict({name: nd.array(array) for name, array in arrays.items()},
                                     ctx=mx.cpu())
    return block


def zoo_names(wanted):
    known = set(zoo.list_models())
    return [name for name in wanted if name in known or name.startswith("resnest")]


@pytest.fixture(scope="module")
def tiny():
    return tiny_network()


# The graph


@pytest.mark.parametrize("name", FAMILY + zoo_names(BASELINES))
def test_the_deploy_graph_equals_the_network(name):
    net = randomized(zoo.get_model(name, classes=3))
    graph, arrays = deploy_graph(*plain_export.trace(net))
    assert "BatchNorm" not in graph.operators()
    block, x = block_of(graph, arrays), noise((2, 3, 64, 40))
    assert_equal(block(nd.array(x)).asnumpy(), net(nd.array(x)).asnumpy())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_and_size_stay_free(tiny, shape, hybridize):
    block = block_of(*deploy_graph(*plain_export.trace(tiny)))
    if hybridize:
        block.hybridize(static_alloc=True, static_shape=True)
    x = nd.array(noise(shape))
    assert_equal(block(x).asnumpy(), tiny(x).asnumpy())


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_networks_are_rewritten_too(output_stride):
    net = randomized(zoo.get_model("resnest_tiny", classes=3, output_stride=output_stride))
    x = nd.array(noise((1, 3, 48, 64)))
    assert_equal(block_of(*deploy_graph(*plain_export.trace(net)))(x).asnumpy(), net(x).asnumpy())


@pytest.mark.parametrize("make", [
    lambda: nn.Conv2D(8, 3, in_channels=6, use_bias=False),
    lambda: nn.Conv2D(8, 3, in_channels=6),
    lambda: nn.Conv2D(6, 3, in_channels=6, groups=6, use_bias=False),
    lambda: nn.Conv2D(8, 3, in_channels=6, groups=2, dilation=2),
    lambda: nn.Conv2DTranspose(8, 4, 2, 1, in_channels=6, use_bias=False),
    lambda: nn.Conv2DTranspose(8, 4, 2, 1, in_channels=6, groups=2, use_bias=False)],
    ids=["plain", "biased", "depthwise", "grouped", "transposed", "grouped-transposed"])
@pytest.mark.parametrize("scale", [True, False])
def test_a_batch_norm_is_folded_into_what_is_before_it(make, scale):
    net, layer = nn.HybridSequential(), make()
    net.add(layer, nn.BatchNorm(in_channels=layer._channels, scale=scale), nn.Activation("relu"))
    net = randomized(net)
    draft = Draft(*plain_export.trace(net))
    fold_batch_norms(draft)
    graph, arrays = draft.finish()
    assert "BatchNorm" not in graph.operators()
    x = nd.array(noise((2, 6, 9, 11)))
    assert_equal(block_of(graph, arrays)(x).asnumpy(), net(x).asnumpy(), 1e-5)


def test_a_convolution_that_others_read_keeps_its_batch_norm():
    class Fork(nn.HybridBlock):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(4, 1, in_channels=3)
            self.bn = nn.BatchNorm(in_channels=4)

        def hybrid_forward(self, F, x):
            y = self.conv(x)
            return y + self.bn(y)

    net = randomized(Fork())
    graph, arrays = deploy_graph(*plain_export.trace(net))
    assert graph.operators()["BatchNorm"] == 1
    x = nd.array(noise((2, 3, 5, 7)))
    assert_equal(block_of(graph, arrays)(x).asnumpy(), net(x).asnumpy(), 1e-5)


# The floor: a regression of the formulation fails here, without a clock


def full_size_passes(graph, arrays, shape):
    """Returns {operator: outputs} of operators whose output has more than one pixel."""
    symbol = mx.sym.load_json(graph.to_json()).get_internals()
    shapes = {name[4:]: array.shape for name, array in arrays.items()}
    _, outputs, _ = symbol.infer_shape(data=shape, **shapes)
    known = dict(zip(symbol.list_outputs(), outputs))
    count = {}
    for node in graph.nodes:
        size = known.get(f"{node.name}_output", ())
        if node.op != "null" and len(size) > 2 and math.prod(size[-2:]) > 1:
            count[node.op] = count.get(node.op, 0) + 1
    return count


@pytest.mark.parametrize("name, blocks", [("resnest_tiny", 4), ("resnest50", 16)])
def test_passes_over_full_size_maps_in_a_block(name, blocks):
    """A block of radix 2: the splits' difference, its product with the gate, one sum; nothing
    else of its own. The residual sum and the ReLUs are the bottleneck's, and fuse."""
    net = zoo.get_model(name, classes=3)
    net.initialize()
    graph, arrays = deploy_graph(*plain_export.trace(net))
    passes = full_size_passes(graph, arrays, (1, 3, 64, 64))
    assert {op: passes.get(op, 0) for op in (
        "elemwise_sub", "broadcast_mul", "add_n", "elemwise_add")} == {
        op: blocks for op in ("elemwise_sub", "broadcast_mul", "add_n", "elemwise_add")}
    assert set(passes) == {"Convolution", "Activation", "Pooling", "elemwise_sub",
                           "broadcast_mul", "add_n", "elemwise_add"}
    # conv1's and conv2's halves, conv3; stem; shortcuts of four stages
    assert passes["Convolution"] == 5 * blocks + 3 + 4


@pytest.mark.parametrize("name", FAMILY)
def test_no_transposition_no_split_of_maps_no_large_array_of_five_dimensions(name):
    net = zoo.get_model(name, classes=3)
    net.initialize()
    graph, arrays = deploy_graph(*plain_export.trace(net))
    forbidden = {"SwapAxis", "transpose", "sum", "broadcast_like", "_plus_scalar", "BatchNorm",
                 "_contrib_AdaptiveAvgPooling2D"}
    assert not forbidden & set(graph.operators())
    passes = full_size_passes(graph, arrays, (1, 3, 64, 64))
    assert not {"SliceChannel", "Reshape", "softmax", "Concat"} & set(passes)
    if "2s" in name:
        assert "softmax" not in graph.operators()


def test_every_convolution_is_fused_and_takes_its_sum_and_relu_along(tiny):
    graph, arrays = deploy_graph(*plain_export.trace(tiny))
    symbol = lowering.fused(mx.sym.load_json(graph.to_json()))
    kinds = [op for _, op in lowering._operators(symbol)]
    assert not {"Convolution", "Activation", "elemwise_add"} & set(kinds)
    assert kinds.count("_sg_mkldnn_conv") == graph.operators()["Convolution"]


def test_pooling_comes_before_the_weighting(tiny):
    graph, arrays = deploy_graph(*plain_export.trace(tiny))
    sources = {graph.nodes[source].op for node in graph.nodes if node.op == "Pooling"
               for source, _ in node.inputs}
    assert sources == {"Activation", "Pooling"}         # never a weighted sum


# Traps of MXNet that must be errors


def test_a_back_end_that_fuses_nothing_is_an_error(tiny, monkeypatch):
    graph, _ = deploy_graph(*plain_export.trace(tiny))
    symbol = mx.sym.load_json(graph.to_json())
    monkeypatch.setattr(mx.sym.Symbol, "get_backend_symbol", lambda self, backend: self)
    with pytest.raises(RuntimeError, match="'MKLDNN' left 35 convolutions unfused, first"):
        lowering.fused(symbol)


def test_an_unknown_back_end_is_an_error(tiny):
    graph, _ = deploy_graph(*plain_export.trace(tiny))
    with pytest.raises((RuntimeError, mx.MXNetError)):
        lowering.fused(mx.sym.load_json(graph.to_json()), "ONEDNN")


def test_an_mxnet_without_onednn_is_one_sentence(monkeypatch):
    monkeypatch.setattr(mx.runtime.Features, "is_enabled", lambda self, name: False)
    with pytest.raises(UserError, match="built without oneDNN.*install mxnet 1.9.1"):
        lowering.fused(mx.sym.var("data"))


def test_bf16_is_refused_where_the_cpu_has_none(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(lowering, "has", lambda flag: False)
    with pytest.raises(UserError, match="bf16 on MXNet needs a CPU with AVX-512 BF16"):
        export_deployment(tiny, tmp_path / "x", CARD, Plan("mxnet", "bf16"))
    assert list(tmp_path.iterdir()) == []
