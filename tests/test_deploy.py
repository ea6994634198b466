"""interop.deploy: the deploy graph computes what the network does, and its formulation stays."""
import dataclasses
import json
import math

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from mxnet.gluon import nn

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop import deployed
from gluon_resnest.interop import export as plain_export
from gluon_resnest.interop.deploy import export, judging, loading, lowering
from gluon_resnest.interop.deploy.draft import Draft
from gluon_resnest.interop.deploy.export import Plan, export_deployment
from gluon_resnest.interop.deploy.folding import fold_batch_norms
from gluon_resnest.interop.deploy.onnx_file import to_onnx
from gluon_resnest.interop.deploy.rewriting import deploy_graph
from gluon_resnest.interop.deployed import Card
from gluon_resnest.interop.predictor import Predictor
from gluon_resnest.interop.segmentation import SegmentationCard
from gluon_resnest.models.resnest import initialize

CARD = Card("resnest_tiny", 3, 32)
SHAPES = [(1, 3, 32, 32), (2, 3, 64, 40), (3, 3, 33, 77)]
# A deep network of random values magnifies rounding: trials gave up to 2e-6.
CLOSE = 2e-5
FAMILY = ["resnest14_0s1x64d", "resnest14_1s1x64d", "resnest14_2s1x64d", "resnest14_4s1x64d",
          "resnest14_2s2x40d", "resnest14_fast_1s2x40d", "resnest14_fast_2s1x64d",
          "resnest14_fast_4s2x40d"]
BASELINES = ["resnet18_v1b", "resnet50_v1b", "resnext50_32x4d", "se_resnet50", "sknet50",
             "efficientnet_b0"]


def randomized(net):
    """Gives a network random values everywhere, running statistics included.

    Residuals are kept small: a deep random network would magnify rounding by many thousands.
    """
    initialize(net)
    for key, param in net._collect_params_with_prefix().items():
        if key.endswith("bn3.gamma"):
            param.set_data(nd.random.uniform(0.1, 0.3, shape=param.shape))
        elif key.endswith(("gamma", "running_var")):
            param.set_data(nd.random.uniform(0.5, 1.5, shape=param.shape))
        elif key.endswith(("beta", "bias", "running_mean")):
            param.set_data(nd.random.normal(0, 0.1, shape=param.shape))
    return net


def noise(shape, seed=5):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def block_of(graph, arrays):
    """Runs a graph as it is."""
    block = mx.gluon.SymbolBlock(mx.sym.load_json(graph.to_json()), [mx.sym.var("data")])
    block.collect_params().load_dict({name: nd.array(array) for name, array in arrays.items()},
                                     ctx=mx.cpu())
    return block


def assert_equal(actual, expected, tolerance=CLOSE):
    assert actual.shape == expected.shape
    assert abs(actual - expected).max() <= tolerance * abs(expected).max()


def zoo_names(wanted):
    known = set(zoo.list_models())
    return [name for name in wanted if name in known or name.startswith("resnest")]


@pytest.fixture(scope="module")
def tiny():
    mx.random.seed(3)
    return randomized(zoo.get_model("resnest_tiny", classes=3, dropblock=0.3, final_drop=0.5))


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
    monkeypatch.setattr(lowering, "_cpu_has", lambda flag: False)
    with pytest.raises(UserError, match="bf16 on MXNet needs a CPU with AVX-512 BF16"):
        export_deployment(tiny, tmp_path / "x", CARD, Plan("mxnet", "bf16"))
    assert list(tmp_path.iterdir()) == []


# Files


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deploy")
    for target in ("mxnet", "onnx"):
        if target == "onnx":
            pytest.importorskip("onnxruntime")
        export_deployment(tiny, folder / target, CARD, Plan(target))
    return folder


@pytest.mark.parametrize("target, engine", loading.ENGINE_OF.items())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_loaded_network_computes_what_the_net_does(tiny, files, target, engine, shape):
    network = deployed.load(files / target)
    assert (network.engine, network.precision) == (engine, "fp32")
    x = noise(shape)
    assert_equal(network(x), tiny(nd.array(x)).asnumpy())


@pytest.mark.parametrize("head", ["deeplab", "deeplabplus", "fcn"])
def test_every_segmentation_head_but_psp_is_onnx_of_any_size(head, tmp_path):
    pytest.importorskip("onnxruntime")
    net = randomized(zoo.segmentation_model(f"{head}_resnest_tiny", 4).without_auxiliary())
    card = SegmentationCard(f"{head}_resnest_tiny", 4, 64)
    export_deployment(net, tmp_path / "x", card, Plan("onnx"))
    network = deployed.load(tmp_path / "x", card=card)
    for shape in ((1, 3, 64, 64), (2, 3, 56, 72)):
        x = noise(shape)
        assert_equal(network(x), net(nd.array(x)).asnumpy())


def test_psp_is_no_onnx_and_says_so(tmp_path):
    pytest.importorskip("onnx")
    net = randomized(zoo.segmentation_model("psp_resnest_tiny", 4).without_auxiliary())
    with pytest.raises(UserError, match="pooling .* to 2 has no ONNX form; export for --target mx"):
        export_deployment(net, tmp_path / "x", SegmentationCard("psp", 4, 64), Plan("onnx"))


def test_the_cards_size_has_a_session_of_its_own_in_onnxruntime(tiny, files):
    from gluon_resnest.interop.deploy.onnx_engine import OnnxNetwork, open_session
    file = deployed.onnx_path(files / "onnx")
    assert open_session(file).get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert open_session(file, size=(64, 40)).get_inputs()[0].shape == ["batch", 3, 64, 40]
    network = OnnxNetwork(file, (64, 40))
    for shape in ((1, 3, 64, 40), (2, 3, 33, 77), (3, 3, 64, 40)):
        x = noise(shape)
        assert_equal(network(x)[0], tiny(nd.array(x)).asnumpy())


@pytest.mark.parametrize("name", FAMILY[1:])
def test_every_form_of_the_family_is_valid_onnx_and_equal(name):
    runtime = pytest.importorskip("onnxruntime")
    net = randomized(zoo.get_model(name, classes=3))
    model = to_onnx(*deploy_graph(*plain_export.trace(net)), inputs=("data", 3), output_rank=2)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 13)]
    assert [each.name for each in model.graph.input] == ["data"]    # parameters are constants
    assert "Transpose" not in {node.op_type for node in model.graph.node}
    session = runtime.InferenceSession(model.SerializeToString(),
                                       providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 64, 40), (2, 3, 33, 77)):
        x = noise(shape)
        assert_equal(session.run(None, {"data": x})[0], net(nd.array(x)).asnumpy())


def test_a_predictor_runs_by_either_engine(files):
    image = np.random.RandomState(1).randint(0, 256, (40, 50, 3)).astype(np.uint8)
    answers = [Predictor.load(files / name, engine=engine).probabilities([image])
               for name, engine in (("mxnet", None), ("mxnet", "mxnet"), ("onnx", "onnxruntime"))]
    for answer in answers[1:]:
        assert_equal(answer, answers[0])


def test_a_plain_pair_loads_fused_as_well(tiny, tmp_path):
    plain_export.export_classifier(tiny, tmp_path / "x", CARD)
    x = noise(SHAPES[1])
    assert_equal(deployed.load(tmp_path / "x-symbol.json")(x), tiny(nd.array(x)).asnumpy())


def test_a_deploy_pair_is_an_ordinary_pair(tiny, files):
    symbol_file, params_file, _ = map(str, deployed.paths(files / "mxnet"))
    block = mx.gluon.SymbolBlock.imports(symbol_file, ["data"], params_file)
    x = nd.array(noise(SHAPES[1]))
    assert_equal(block(x).asnumpy(), tiny(x).asnumpy())


@pytest.mark.parametrize("target, engine, message", [
    ("mxnet", "onnxruntime", "there is no .*mxnet.onnx.* for the engine onnxruntime; export"),
    ("onnx", "mxnet", "onnx.onnx.* is for the engine onnxruntime, not for mxnet; export"),
    ("mxnet", "tensorrt", "engine must be one of mxnet, onnxruntime, got 'tensorrt'")])
def test_files_of_the_other_engine_are_refused(files, target, engine, message):
    with pytest.raises(UserError, match=message):
        deployed.load(files / target, engine=engine)


def logistic_map(F, x):
    """Doubles any error of values in 0..1, thirty times."""
    for _ in range(30):
        x = 4 * (x - x * x)
    return x


def test_a_network_that_magnifies_rounding_is_refused_by_a_sentence(tmp_path):
    net = nn.HybridSequential()
    net.add(nn.Conv2D(64, 3, use_bias=False, in_channels=3), nn.BatchNorm(in_channels=64),
            nn.GlobalMaxPool2D(), nn.Flatten(), nn.Activation("sigmoid"),
            nn.HybridLambda(logistic_map))
    randomized(net)
    with pytest.raises(UserError, match="own output moves by .* its input moves by 1e-06.*trained"):
        export_deployment(net, tmp_path / "x", dataclasses.replace(CARD, classes=64), Plan("mxnet"))
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_deploy_graph_is_never_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "TOLERANCE", 0)
    for target in ("mxnet", "onnx"):
        with pytest.raises(RuntimeError, match="differs from the network by .*nothing was written"):
            export_deployment(tiny, tmp_path / "x", CARD, Plan(target))
    assert list(tmp_path.iterdir()) == []


# int8


@pytest.fixture(scope="module")
def images():
    """Stands for the user's images: noise, labelled by nobody."""
    def batches(seed):
        return tuple((noise((16, 3, 32, 32), seed + i), np.zeros(16, np.int64)) for i in range(2))
    return export_images(batches(0), batches(10))


def export_images(calibration, judging_batches):
    from gluon_resnest.interop.deploy.calibration import Images
    return Images(calibration, judging_batches)


@pytest.mark.parametrize("target", ["mxnet", "onnx"])
def test_int8_is_close_and_its_judgement_is_in_the_card(tiny, images, tmp_path, target):
    if target == "onnx":
        pytest.importorskip("onnxruntime.quantization")
    prefix = tmp_path / target
    export_deployment(tiny, prefix, CARD, Plan(target, "int8", force=True), images)
    network = deployed.load(prefix)
    assert network.precision == "int8"
    x = images.judging[0][0]
    expected = tiny(nd.array(x)).asnumpy()
    centred = network(x) - expected
    # A random network magnifies rounding; a range or a scale that is wrong gives 1 and more.
    assert 0 < np.linalg.norm(centred) < 0.75 * np.linalg.norm(expected)
    checks = json.loads(deployed.paths(prefix)[2].read_text())["deploy"]["checks"]
    assert checks["images"] == 32 and 0 < checks["logit_error"] < 0.7


def test_too_little_agreement_is_refused_unless_forced(tiny, images, tmp_path, monkeypatch):
    wrong = judging.Comparison(32, 0.5, 0.9)
    monkeypatch.setattr(judging, "compare", lambda *args: wrong)
    with pytest.raises(UserError, match="too far from the float32 one: 50.00 % of 32 images.*97 %"):
        export_deployment(tiny, tmp_path / "x", CARD, Plan("mxnet", "int8"), images)
    assert list(tmp_path.iterdir()) == []
    export_deployment(tiny, tmp_path / "x", CARD, Plan("mxnet", "int8", force=True), images)
    assert deployed.is_exported(tmp_path / "x")


def test_first_and_last_layer_stay_float32(tiny, images):
    graph, arrays = deploy_graph(*plain_export.trace(tiny))
    symbol = mx.sym.load_json(graph.to_json())
    args = {name[4:]: nd.array(array) for name, array in arrays.items()}
    batches = [images.calibration[0][0]]
    sizes = {layers: len(lowering.calibrate(symbol, args, {}, batches, float_layers=layers))
             for layers in ((), (0, -1))}
    assert sizes[0, -1] < sizes[()]


def test_comparison_by_hand():
    logits = np.array([[1, 0], [0, 1], [3, 0], [0, 2]], np.float32)
    other = logits.copy()
    other[3] = [2, 0]
    found = judging.compare(lambda x: other, lambda x: logits, [(None, np.array([0, 1, 0, 1]))])
    assert (found.images, found.agreement, found.top1, found.float_top1) == (4, 0.75, 0.75, 1.0)
    assert found.logit_error == pytest.approx(math.sqrt(8 / 7.5))   # mean of each row taken off


@pytest.mark.parametrize("plan, message", [
    (Plan("onnx", "bf16"), "onnxruntime has no bf16 convolutions"),
    (Plan("mxnet", "int8"), "needs images to calibrate with.*--calibration")])
def test_plans_that_cannot_be_are_one_sentence(tiny, tmp_path, plan, message):
    with pytest.raises(UserError, match=message):
        export_deployment(tiny, tmp_path / "x", CARD, plan)


@pytest.mark.parametrize("values, message", [
    ({"target": "tensorrt"}, "target must be one of mxnet, onnx"),
    ({"target": "onnx", "precision": "int4"}, "precision must be one of fp32, bf16, int8"),
    ({"target": "onnx", "mode": "best"}, "calibration mode must be one of naive, entropy"),
    ({"target": "onnx", "min_agreement": 2}, "least agreement must be from 0 to 1, got 2")])
def test_impossible_plans_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        Plan(**values)


# Files of others


def change(prefix, **changes):
    file = deployed.paths(prefix)[2]
    values = json.loads(file.read_text())
    values["deploy"].update(changes)
    file.write_text(json.dumps(values))


@pytest.fixture
def copies(files, tmp_path):
    for file in files.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("changes", [
    {"precision": "int4"}, {"target": 3}, {"ranges": {"a": [0.0, 1.0]}}, {"ranges": []},
    {"precision": "int8"}, {"precision": "int8", "ranges": {"a": [1.0, float("nan")]}},
    {"precision": "int8", "ranges": {"a": [2.0, 1.0]}}, {"float_layers": ["a"]}, {"sha256": 5},
    {"checks": "fine"}, {"more": 1}], ids=str)
def test_a_record_that_cannot_be_is_refused(copies, changes):
    change(copies / "mxnet", **changes)
    with pytest.raises(UserError, match="mxnet.json.*which cannot be; export the network again"):
        deployed.load(copies / "mxnet")


def test_ranges_of_another_network_are_refused(copies):
    change(copies / "mxnet", precision="int8", ranges={"a": [0.0, 1.0]})
    with pytest.raises(UserError, match="ranges are those of another network: 1 layers"):
        deployed.load(copies / "mxnet")


def test_a_changed_onnx_file_is_noticed(copies):
    file = deployed.onnx_path(copies / "onnx")
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match="onnx.onnx.* is not the file that was exported"):
        deployed.load(copies / "onnx")


@pytest.mark.parametrize("data", [b"", b"junk" * 100, b"\x08\x07" * 1000], ids=len)
def test_damaged_onnx_is_one_sentence(copies, data):
    deployed.onnx_path(copies / "onnx").write_bytes(data)
    change(copies / "onnx", sha256=None)
    with pytest.raises(UserError, match="is not a network that onnxruntime can run|must have one"):
        deployed.load(copies / "onnx")


def test_onnx_of_other_classes_is_noticed(copies):
    card = dataclasses.replace(CARD, classes=5)
    with pytest.raises(UserError, match="its card says"):
        deployed.load(copies / "onnx", card=card)(noise((1, 3, 32, 32)))


@pytest.mark.parametrize("device, message", [
    ("tpu", "device must be cpu, gpu or gpu"), ("cpu(x)", "device must be")])
def test_unknown_devices_are_refused(files, device, message):
    with pytest.raises(UserError, match=message):
        deployed.load(files / "mxnet", device=device)


def test_a_missing_engine_names_its_extra(files, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is needed here.*gluon-resnest.onnx"):
        deployed.load(files / "onnx")


def test_detectors_are_told_to_use_the_plain_export(tmp_path):
    class Two(Card):
        output_shapes = ((1, 3), (1, 3))

    with pytest.raises(UserError, match="is a detector, which has no deploy graph"):
        export_deployment(None, tmp_path / "x", Two("d", 3, 32), Plan("mxnet"))


def test_exported_paths_are_those_of_the_target(tmp_path):
    assert [file.name for file in export.files_of(tmp_path / "x", "onnx")] == ["x.onnx", "x.json"]
