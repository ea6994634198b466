"""interop.analysis and operators: counts, memory, fields; the drawing, the tool and the page."""
import importlib.util
import json
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from gluon_resnest import zoo
from gluon_resnest.engine.comm import Comm
from gluon_resnest.errors import UserError
from gluon_resnest.interop import network_drawing, operators, zoo_page
from gluon_resnest.interop.analysis import analyze, trace
from gluon_resnest.models.deform import set_deformable_form

ROOT = Path(__file__).resolve().parents[1]
TINY = "resnest_tiny"


def network(*layers):
    net = nn.HybridSequential()
    net.add(*layers)
    return net


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def resnest50():
    return analyze(zoo.get_model("resnest50"))


def test_resnest50_costs_what_the_paper_says(resnest50):
    total = resnest50.total()
    assert total.params == 27483240
    assert total.macs / 1e9 == pytest.approx(5.37, abs=0.005)


def test_products_of_split_attention_are_one_for_each_output(resnest50):
    # Of two gates that sum to one, one is multiplied: N * C * H * W of each middle.
    expected = sum(blocks * width * side ** 2 for blocks, width, side in [
        (3, 64, 56), (1, 128, 56), (3, 128, 28), (1, 256, 28), (5, 256, 14), (1, 512, 14),
        (2, 512, 7)])
    assert resnest50.total().products == expected


def test_stages_and_operators_add_up_to_the_total(resnest50):
    total = resnest50.total()
    for parts in (resnest50.by_stage(), resnest50.by_operator()):
        for key in ("layers", "params", "macs", "products", "bytes"):
            assert sum(getattr(part, key) for part in parts) == getattr(total, key)


def test_stages_are_stem_layers_and_head(resnest50):
    assert [(stage.label, stage.shape[1:]) for stage in resnest50.by_stage()] == [
        ("stem", (64, 56, 56)), ("layer1", (256, 56, 56)), ("layer2", (512, 28, 28)),
        ("layer3", (1024, 14, 14)), ("layer4", (2048, 7, 7)), ("head", (1000,))]
    assert [block.label for block in resnest50.by_block("layer2")] == [
        f"layer2.{i}" for i in range(4)]


def test_a_feature_extractor_has_the_same_stages(resnest50):
    found = analyze(zoo.get_model("resnest50", features_only=True)).by_stage()
    assert [stage.macs for stage in found] == [stage.macs for stage in resnest50.by_stage()][:5]


def test_macs_of_a_convolution_are_its_output_where_everything_is_one():
    layer = nn.Conv2D(6, (3, 2), strides=(2, 1), dilation=(1, 2), groups=2, use_bias=False,
                      in_channels=4)
    layer.initialize(mx.init.One())
    found = analyze(network(layer), (9, 7), batch=2, in_channels=4).layers[0]
    out = layer(nd.ones((2, 4, 9, 7)))
    assert found.shape == out.shape == (2, 6, 4, 5)
    assert found.macs == out.sum().asscalar()
    assert found.params == 6 * 2 * 6
    assert found.kind == "convolution 3x2 grouped"


@pytest.mark.parametrize("layer, size, macs", [
    (nn.Dense(5, in_units=24), (2, 4), 5 * 24),
    (nn.Conv2DTranspose(5, 4, strides=2, padding=1, in_channels=3), (3, 4), 3 * 12 * 5 * 16),
    (nn.BatchNorm(in_channels=3), (2, 4), 0)])
def test_macs_by_hand(layer, size, macs):
    assert analyze(network(layer), size).total().macs == macs


def test_params_are_those_that_are_not_running_statistics():
    net = zoo.get_model(TINY)
    assert analyze(net, (32, 32)).total().params == sum(
        int(np.prod(param.shape)) for param in net.collect_params().values()
        if param.grad_req != "null")


def test_a_shared_parameter_counts_once():
    layer = nn.Conv2D(3, 1, in_channels=3, use_bias=False)
    assert analyze(network(layer, layer), (4, 4)).total().params == 9


def test_macs_and_memory_are_proportional_to_the_batch():
    one, three = (analyze(zoo.get_model(TINY), (33, 49), batch=batch) for batch in (1, 3))
    assert three.total().macs == 3 * one.total().macs
    assert three.total().bytes == 3 * one.total().bytes
    assert three.peak_bytes == 3 * one.peak_bytes
    assert three.total().params == one.total().params


class Residual(nn.HybridBlock):
    """x + relu(relu(x)), and views on the way."""

    def hybrid_forward(self, F, x):
        inner = F.Activation(F.Activation(x, act_type="relu"), act_type="relu")
        return F.Flatten(F.reshape(inner, shape=(0, -1)) + F.reshape(x, shape=(0, -1)))


def test_memory_by_hand():
    found = analyze(Residual(), (2, 5), in_channels=1)
    # image, relu, relu, sum: 40 bytes each, views none; three are alive at each operator.
    assert found.total().bytes == 3 * 40
    assert found.peak_bytes == 3 * 40
    assert [layer.bytes for layer in found.layers if layer.op in operators.VIEWS] == [0, 0, 0]


def test_a_chain_needs_two_neighbours():
    net = network(nn.Conv2D(4, 1, in_channels=1), nn.Conv2D(8, 1, in_channels=4),
                  nn.Conv2D(1, 1, in_channels=8))
    found = analyze(net, (5, 5), in_channels=1)
    assert found.peak_bytes == 4 * 25 * (4 + 8)
    assert found.total().bytes == 4 * 25 * (4 + 8 + 1)


FIELDS = {
    "3x3 twice": ([nn.Conv2D(1, 3, in_channels=1), nn.Conv2D(1, 3, in_channels=1)], (5, 5)),
    "dilated": ([nn.Conv2D(1, 3, dilation=(2, 3), in_channels=1)], (5, 7)),
    "strided": ([nn.Conv2D(1, 3, strides=(2, 1), in_channels=1), nn.AvgPool2D(2, 2),
                 nn.Conv2D(1, (3, 2), in_channels=1)], (13, 6)),
    "pooled": ([nn.AvgPool2D(3, 2, padding=1), nn.Conv2D(1, 1, in_channels=1)], (3, 3)),
    "enlarged": ([nn.AvgPool2D(2, 2), nn.Conv2DTranspose(1, 3, strides=2, in_channels=1)], None),
}


@pytest.mark.parametrize("layers, field", [value for value in FIELDS.values() if value[1]],
                         ids=[key for key, value in FIELDS.items() if value[1]])
def test_the_field_is_where_the_gradient_is_not_zero(layers, field):
    net = network(*layers)
    net.initialize(mx.init.One(), force_reinit=True)
    x = nd.ones((1, 1, 41, 37))
    x.attach_grad()
    with autograd.record():
        out = net(x)
        centre = out[0, 0, out.shape[2] // 2, out.shape[3] // 2]
    centre.backward()
    rows, columns = np.nonzero(x.grad.asnumpy()[0, 0])
    measured = (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1)
    assert analyze(net, (41, 37), in_channels=1).layers[-1].field == measured == field


def test_a_transposed_convolution_puts_pixels_closer():
    field, jump = operators.reach("Deconvolution", {"kernel": "(4, 4)", "stride": "(2, 2)"},
                                  [((7, 7), (4, 4))])
    assert (field, jump) == ((13, 13), (2, 2))


def test_gates_do_not_widen_the_field_and_the_head_sees_everything(resnest50):
    plain = analyze(zoo.get_model("resnest50_fast_0s1x64d"))
    fast = analyze(zoo.get_model("resnest50_fast_1s1x64d"))
    assert fast.of_stage("layer1")[-1].field == plain.of_stage("layer1")[-1].field
    assert resnest50.of_stage("head")[-1].field is None


def test_dropblock_is_left_out():
    assert {layer.op for layer in analyze(zoo.get_model(TINY, dropblock=0.1), (32, 32)).layers} \
        == {layer.op for layer in analyze(zoo.get_model(TINY, dropblock=0.0), (32, 32)).layers}


def test_forms_of_training_cost_what_inference_does():
    workers = Comm()
    workers.size = 2
    sync = zoo.get_model(TINY, norm_layer="sync", norm_kwargs={"workers": workers})
    assert analyze(sync, (32, 48)).by_operator() \
        == analyze(zoo.get_model(TINY), (32, 48)).by_operator()
    net = zoo.get_model(TINY, deform_stages=(4,))
    fused = analyze(net, (32, 48)).by_operator()
    set_deformable_form(net, "composed")
    assert analyze(net, (32, 48)).by_operator() == fused


def test_tracing_leaves_the_network_as_it_was(tmp_path):
    net = zoo.get_model(TINY, classes=3)
    net.initialize()
    net.hybridize()
    x = nd.random.normal(shape=(1, 3, 32, 32))
    before = net(x).asnumpy()
    analyze(net, (32, 32))
    assert not net.conv1._forward_hooks and not net.conv1._forward_pre_hooks
    np.testing.assert_array_equal(net(x).asnumpy(), before)
    assert "__block__" not in net(mx.sym.var("data")).tojson()


def test_every_operator_knows_the_block_that_calls_it():
    net = zoo.get_model(TINY)
    nodes = json.loads(trace(net).tojson())["nodes"]
    blocks = {node["attrs"].get("__block__") for node in nodes if node["op"] != "null"}
    for path in blocks:
        child = net
        for name in path.split("."):
            child = child._children[name]
    assert {"conv1.0", "layer1.0.conv2.fc1", "layer4.0", "fc"} <= blocks


@pytest.mark.parametrize("options, words", [
    (dict(size=(0, 8)), "must be a whole number from 1 to .*, got 0"),
    (dict(size=(8, 8), in_channels=4), "cannot take images of shape")])
def test_impossible_images_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        analyze(zoo.get_model(TINY), **options)


@pytest.mark.parametrize("name", ["resnest50", "sknet50", "senet50", "efficientnet_b0"])
def test_folding_and_arranging_keep_every_operator_apart(name):
    layers = analyze(zoo.get_model(name)).layers
    boxes = network_drawing.fold(layers, "layer2.0")
    assert sum(len(box.kinds) for box in boxes[1:]) == sum(
        layer.block == "layer2.0" or layer.block.startswith("layer2.0.") for layer in layers)
    ranks, columns, lanes = network_drawing.arrange(boxes)
    assert len(set(zip(ranks, columns))) == len(boxes)
    assert set(lanes) == {(source, i) for i, box in enumerate(boxes) for source in box.sources}
    for (source, i), lane in lanes.items():
        assert ranks[source] < ranks[i]
        between = {(rank, lane) for rank in range(ranks[source] + 1, ranks[i])}
        assert not between & set(zip(ranks, columns))


def test_a_network_without_stages_is_not_drawn(tmp_path):
    found = analyze(network(nn.Conv2D(3, 1, in_channels=3)), (4, 4))
    with pytest.raises(UserError, match="has no stages layer1"):
        network_drawing.draw_network(tmp_path / "a.png", "net", found)


def test_the_tool_prints_draws_and_compares(tmp_path, capsys):
    main = tool("analyze_model").main
    main([TINY, "--size", "32x48", "--draw", str(tmp_path / "net.png")])
    printed = capsys.readouterr().out
    assert "input 1x3x32x48" in printed and "layer4" in printed and "peak of inference" in printed
    assert (tmp_path / "net.png").read_bytes()[:4] == b"\x89PNG"
    main([TINY, "--size", "32", "--batch", "2", "--json"])
    document = json.loads(capsys.readouterr().out)
    found = analyze(zoo.get_model(TINY), (32, 32), batch=2)
    assert document["input_shape"] == [2, 3, 32, 32]
    assert document["total"]["macs"] == found.total().macs
    assert len(document["layers"]) == len(found.layers)
    main(["--compare", TINY, TINY, "--size", "32"])
    assert "1.000" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, words", [
    ([], "give either NAME or --compare A B"),
    ([TINY, "--compare", TINY, TINY], "give either NAME or --compare A B"),
    (["--compare", TINY, TINY, "--draw", "a.png"], "--draw draws one network"),
    ([TINY, "--batch", "0"], "batch must be a whole number from 1"),
    ([TINY, "--batch", "1000000000000"], "batch must be a whole number from 1"),
    ([TINY, "--classes", "0"], "classes must be a whole number from 1"),
    ([TINY, "--size", "ax3"], "--size must be HxW"),
    ([TINY, "--draw", "net.txt"], "cannot draw 'net.txt'"),
    (["resnset50"], "or 'resnest50'?")])
def test_mistakes_end_in_one_sentence(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool("analyze_model").main(arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_the_committed_page_is_what_the_table_gives():
    committed = (ROOT / "docs" / zoo_page.PAGE).read_text(encoding="utf-8")
    assert committed == zoo_page.render_page(), f"render it anew: {zoo_page.COMMAND}"


def test_the_committed_plot_shows_the_points():
    from PIL import Image
    shown = Image.open(ROOT / "docs" / zoo_page.PLOT).text["Description"]
    assert shown == zoo_page.digest(zoo_page.points()), f"draw it anew: {zoo_page.COMMAND}"


def test_the_plot_holds_what_is_published_only():
    labels = {point.label for point in zoo_page.points()}
    assert {"SENet-154", "NASNet-A", "AmoebaNet-A", "AmoebaNet-C", "GPipe", "b7", "269"} <= labels


def test_the_renderer_refuses_a_folder_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool("render_model_zoo").main(["--out", str(tmp_path / "none")])
    assert "--out must be an existing folder" in capsys.readouterr().err


def test_the_renderer_says_where_it_cannot_write(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo_page, "render_page", lambda: "")
    (tmp_path / zoo_page.PAGE).mkdir()
    with pytest.raises(UserError, match="cannot write into .*; choose a writable folder"):
        zoo_page.write_page(tmp_path)
