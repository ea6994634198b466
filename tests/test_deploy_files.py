"""interop.deploy: files of deploy graphs, our own and changed ones."""
import dataclasses
import errno
import json
import os

import mxnet as mx
import numpy as np
import pytest
from deploy_case import CARD, FAMILY, assert_equal, export_both, noise, randomized, tiny_network
from full_disk import room_for
from mxnet import nd
from mxnet.gluon import nn

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop import deployed
from gluon_resnest.interop import export as plain_export
from gluon_resnest.interop.deploy import export, judging, loading
from gluon_resnest.interop.deploy.export import Plan, export_deployment
from gluon_resnest.interop.deploy.onnx_file import to_onnx
from gluon_resnest.interop.deploy.rewriting import deploy_graph
from gluon_resnest.interop.deployed import Card
from gluon_resnest.interop.predictor import Predictor
from gluon_resnest.interop.segmentation import SegmentationCard
from gluon_resnest.provenance import sha256

SHAPES = [(1, 3, 32, 32), (2, 3, 64, 40), (3, 3, 33, 77)]


@pytest.fixture(scope="module")
def tiny():
    return tiny_network()


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    return export_both(tiny, tmp_path_factory.mktemp("deploy"))


@pytest.mark.parametrize("target, engine", loading.ENGINE_OF.items())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_loaded_network_computes_what_the_net_does(tiny, files, target, engine, shape):
    network = deployed.load(files / target)
    assert (network.engine, network.precision) == (engine, "fp32")
    x = noise(shape)
    assert_equal(network(x), tiny(nd.array(x)).asnumpy())


def test_a_deformable_classifier_is_folded_and_loads(tmp_path):
    net = randomized(zoo.get_model("resnest_tiny", classes=3, deform_stages=(3, 4)))
    export_deployment(net, tmp_path / "x", CARD, Plan("mxnet"))
    x = noise((2, 3, 64, 40))
    assert_equal(deployed.load(tmp_path / "x")(x), net(nd.array(x)).asnumpy())


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


def test_a_card_of_another_task_has_to_be_given(tmp_path):
    deployed.paths(tmp_path / "x")[2].write_text(SegmentationCard("fcn", 4, 64).to_json())
    with pytest.raises(UserError, match="is no classifier's card, it says task='segmentation'"):
        deployed.read_card(tmp_path / "x")


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


# Files of several exports under one prefix


@pytest.fixture
def copies(files, tmp_path):
    for file in files.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def other():
    """Another network of the same card."""
    return randomized(zoo.get_model("resnest_tiny", classes=3))


def export_as(kind, net, prefix):
    """Writes a plain pair, or the deploy graph of a target."""
    if kind == "plain":
        plain_export.export_classifier(net, prefix, CARD)
    else:
        export_deployment(net, prefix, CARD, Plan(kind))


@pytest.mark.parametrize("first, second", [("onnx", "mxnet"), ("onnx", "plain"), ("mxnet", "onnx")])
def test_an_export_removes_the_files_of_other_targets(tiny, other, tmp_path, first, second):
    pytest.importorskip("onnxruntime")
    export_as(first, tiny, tmp_path / "x")
    export_as(second, other, tmp_path / "x")
    assert sorted(tmp_path.iterdir()) == sorted(export.files_of(tmp_path / "x", second))
    x = noise(SHAPES[0])
    assert_equal(deployed.load(tmp_path / "x")(x), other(nd.array(x)).asnumpy())


@pytest.mark.parametrize("kind", ["mxnet", "plain", "onnx"])
def test_a_stale_file_of_another_target_is_never_loaded(tiny, other, copies, tmp_path, kind):
    export_as(kind, other, tmp_path / "x")
    left, engine, message = {
        "onnx": ("mxnet", "mxnet", "is for the engine onnxruntime, not for mxnet"),
    }.get(kind, ("onnx", "onnxruntime", "there is no .*x.onnx.* that its card 'x.json' tells of"))
    for file in export.files_of(copies / left, left)[:-1]:      # all but the card
        file.rename(tmp_path / file.name.replace(left, "x", 1))
    assert deployed.is_plain(tmp_path / "x") is (kind == "plain")
    x = noise(SHAPES[0])
    assert_equal(deployed.load(tmp_path / "x")(x), other(nd.array(x)).asnumpy())
    predictor = Predictor.load(tmp_path / "x")
    assert_equal(predictor._forward(x), other(nd.array(x)).asnumpy())
    for path, asked in ((tmp_path / "x", engine),
                        (export.files_of(tmp_path / "x", left)[0], None)):
        with pytest.raises(UserError, match=message):
            deployed.load(path, engine=asked)


def test_an_onnx_file_that_no_card_tells_of_is_refused(copies):
    deployed.paths(copies / "onnx")[2].unlink()
    for load in (deployed.load, Predictor.load):
        with pytest.raises(UserError, match="onnx.onnx' has no card 'onnx.json' that tells of it"):
            load(copies / "onnx")


def test_a_card_without_its_onnx_file_is_one_sentence(copies):
    deployed.onnx_path(copies / "onnx").unlink()
    with pytest.raises(UserError, match="there is no .*onnx.onnx', of which 'onnx.json' is the"):
        deployed.load(copies / "onnx")


@pytest.mark.parametrize("moment", range(7))
def test_an_export_that_fails_at_any_move_leaves_what_there_was(copies, tmp_path, moment,
                                                                monkeypatch):
    """Four files are moved out of the way, three get their names."""
    deployed.onnx_path(copies / "onnx").rename(deployed.onnx_path(copies / "mxnet"))
    aside = tmp_path / "new" / "mxnet"
    aside.parent.mkdir()
    for file in deployed.paths(aside):
        file.write_text("new")
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    left, replace = [moment], os.replace

    def failing(source, target):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output error"):
        plain_export.settle(aside, copies / "mxnet", ("-symbol.json", "-0000.params", ".json"))
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


@pytest.mark.parametrize("target, number", [("mxnet", 1), ("onnx", 0)])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_files(tiny, copies, target, number):
    files = export.files_of(copies / target, target)
    before = [file.read_bytes() for file in files]
    with room_for(len(before[number]) - 9), pytest.raises(
            UserError, match="cannot write .*: File too large; choose a prefix .* with space"):
        export_deployment(tiny, copies / target, CARD, Plan(target))
    assert [file.read_bytes() for file in files] == before
    assert not list(copies.glob(".*"))


# Files of others


def change(prefix, **changes):
    file = deployed.paths(prefix)[2]
    values = json.loads(file.read_text())
    values["deploy"].update(changes)
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("changes", [
    {"precision": "int4"}, {"target": 3}, {"ranges": {"a": [0.0, 1.0]}}, {"ranges": []},
    {"precision": "int8"}, {"precision": "int8", "ranges": {"a": [1.0, float("nan")]}},
    {"precision": "int8", "ranges": {"a": [2.0, 1.0]}}, {"float_layers": ["a"]}, {"sha256": 5},
    {"checks": "fine"}, {"more": 1}], ids=str)
def test_a_record_that_cannot_be_is_refused(copies, changes):
    change(copies / "mxnet", **changes)
    with pytest.raises(UserError, match="mxnet.json.*which cannot be; export the network again"):
        deployed.load(copies / "mxnet")


def test_a_record_of_an_onnx_file_without_its_checksum_is_refused(copies):
    change(copies / "onnx", sha256=None)
    with pytest.raises(UserError, match="onnx.json' says sha256=None about its deployment"):
        deployed.load(copies / "onnx")


def test_ranges_of_another_network_are_refused(copies):
    change(copies / "mxnet", precision="int8", ranges={"a": [0.0, 1.0]})
    with pytest.raises(UserError, match="ranges are those of another network: 1 layers"):
        deployed.load(copies / "mxnet")


def test_float_layers_of_another_network_are_refused(copies):
    change(copies / "mxnet", precision="int8", ranges={"a": [0.0, 1.0]}, float_layers=[99])
    with pytest.raises(UserError, match="there is no layer 99 to keep in float32"):
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
    file = deployed.onnx_path(copies / "onnx")
    file.write_bytes(data)
    change(copies / "onnx", sha256=sha256(file))
    with pytest.raises(UserError, match="is not a network that onnxruntime can run|must have one"):
        deployed.load(copies / "onnx")


def test_onnx_of_other_classes_is_noticed(copies):
    card = dataclasses.replace(CARD, classes=5)
    with pytest.raises(UserError, match="its card says"):
        deployed.load(copies / "onnx", card=card)(noise((1, 3, 32, 32)))


@pytest.mark.parametrize("device, message", [
    ("tpu", "device must be cpu, gpu or gpu"), ("cpu(x)", "device must be"),
    ("gpu(99)", "MXNet sees .* GPUs here, got device 'gpu.99.'; give cpu")])
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


def test_a_variable_called_self_is_no_classifiers(tmp_path):
    symbol = mx.sym.FullyConnected(mx.sym.Flatten(mx.sym.var("data")), mx.sym.var("self"),
                                   mx.sym.var("bias"), num_hidden=3)
    symbol.save(str(tmp_path / "x-symbol.json"))
    nd.save(str(tmp_path / "x-0000.params"), {"arg:self": nd.ones((3, 12)), "arg:bias": nd.ones(3)})
    card = dataclasses.replace(CARD, classes=3, crop_px=32, sha256=None, class_names=None)
    with pytest.raises(UserError, match="do not make a classifier: a variable is called 'self'"):
        deployed.load_pair(tmp_path / "x", card)
