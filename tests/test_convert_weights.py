"""Conversion of whole networks: total, exact, and with the logits of the system it came from."""
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from numpy_resnest import forward, ruled, ruled_image

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop import checkpoints, convert
from gluon_resnest.interop.torch_names import BY_NAME, Naming, written
from gluon_resnest.interop.weights import load_parameters
from gluon_resnest.provenance import sha256

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import convert_weights  # noqa: E402

GOLDEN = np.load(ROOT / "tests/golden/timm_logits.npz")
TINY = "resnest_tiny"
LAYOUTS = [("torch", ""), ("torch", "module."), ("mmpretrain", "backbone."), ("mmdet", "backbone."),
           ("detectron2", "backbone.bottom_up."), ("gluon", ""), ("gluon-symbol", "resnest0_")]


def parameter_shapes(model, **options):
    net = zoo.get_model(model, **options)
    return {name: param.shape for name, param in net._collect_params_with_prefix().items()}


def random_tensors(model, **options):
    return {name: np.random.randn(*shape).astype(np.float32)
            for name, shape in parameter_shapes(model, **options).items()}


def ruled_tensors(model, **options):
    """Returns {torch name: array} by the rule that the peers follow too."""
    names = map(written("torch").theirs, parameter_shapes(model, **options))
    return {name: ruled(name, shape)
            for name, shape in zip(names, parameter_shapes(model, **options).values())}


def spelled(tensors, layout, prefix):
    naming = Naming(BY_NAME[layout], prefix)
    return {naming.theirs(name): value for name, value in tensors.items()}


# --- mapping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout, prefix", LAYOUTS)
def test_conversion_inverts_the_names_of_every_layout(layout, prefix):
    tensors = random_tensors(TINY, classes=7, in_channels=5)
    done = convert.to_gluon(spelled(tensors, layout, prefix), model=TINY,
                            backbone=not BY_NAME[layout].classifier)
    headless = layout in ("mmdet", "detectron2")
    assert done.naming == Naming(BY_NAME[layout], prefix)
    assert list(done.tensors) == [name for name in tensors
                                  if not (headless and name.startswith("fc."))]
    for name, value in done.tensors.items():
        assert value.tobytes() == tensors[name].tobytes()
    assert len(done.dropped) == (2 if headless else 0)


@pytest.mark.parametrize("layout", ["torch", "mmpretrain", "gluon"])
@pytest.mark.parametrize("container", ["torch", "safetensors", "params"])
def test_there_and_back_through_files_is_bit_identical(tmp_path, layout, container):
    tensors, path = random_tensors(TINY), str(tmp_path / "file")
    checkpoints.write_weights(path, convert.from_gluon(tensors, layout), container, {})
    done = convert.to_gluon(checkpoints.read_weights(path).tensors, model=TINY)
    assert {name: value.tobytes() for name, value in done.tensors.items()} == {
        name: value.tobytes() for name, value in tensors.items()}


@pytest.mark.parametrize("model", [name for name in zoo.VARIANTS if name.startswith("resnest")])
def test_the_network_is_recognised_from_its_shapes(model):
    tensors = {name: np.broadcast_to(np.float32(0), shape)
               for name, shape in parameter_shapes(model).items()}
    assert model in convert.recognise(tensors, written("gluon"))
    assert convert.to_gluon(tensors, file_name=f"{model}-0123.params").model == model


def test_a_network_of_the_grammar_is_recognised():
    tensors = {name: np.broadcast_to(np.float32(0), shape)
               for name, shape in parameter_shapes("resnest26_fast_4s2x24d").items()}
    assert convert.recognise(tensors, written("gluon")) == [
        "resnest26_fast_4s2x24d", "resnest26_4s2x24d"]


def test_a_convolution_without_channels_is_none():
    tensors = {**random_tensors(TINY), "layer1.0.conv1.weight": np.zeros((0, 64, 1, 1), np.float32)}
    with pytest.raises(UserError, match=r"layer1.0.conv1.weight is absent or no convolution"):
        convert.to_gluon(tensors)


def test_names_do_not_depend_on_case():
    done = convert.to_gluon(random_tensors(TINY), model="ResNeSt_Tiny")
    assert done.model == TINY


def test_networks_of_equal_shapes_are_named():
    tensors = {name: np.broadcast_to(np.float32(0), shape)
               for name, shape in parameter_shapes("resnest50").items()}
    done = convert.to_gluon(tensors)
    assert done.model == "resnest50"
    assert "resnest50_fast_2s1x64d" in done.lookalikes
    for file in ("resnest50_fast_2s1x64d.pth", "ResNeSt50_fast_2s1x64d.pth"):
        assert convert.to_gluon(tensors, file_name=file).model == "resnest50_fast_2s1x64d"


def test_an_exported_graph_file_becomes_the_saved_file(tmp_path):
    net = zoo.get_model(TINY, classes=3)
    net.initialize()
    net.hybridize()
    net(mx.nd.zeros((1, 3, 32, 40)))
    net.export(str(tmp_path / "net"))
    file = checkpoints.read_weights(str(tmp_path / "net-0000.params"))
    done = convert.to_gluon(file.tensors, model=TINY)
    assert done.naming.layout.name == "gluon-symbol"
    for name, param in net._collect_params_with_prefix().items():
        np.testing.assert_array_equal(done.tensors[name], param.data().asnumpy(), err_msg=name)


def test_counters_and_heads_are_dropped_by_name():
    trunk = {name: value for name, value in random_tensors(TINY).items() if name[:3] != "fc."}
    tensors = spelled(trunk, "mmdet", "backbone.")
    extra = ["backbone.stem.1.num_batches_tracked", "neck.fpn_convs.0.conv.weight",
             "roi_head.mask_head.0.upsample.weight"]
    tensors.update({name: np.zeros(1, np.float32) for name in extra})
    assert list(convert.to_gluon(tensors, model=TINY).dropped) == sorted(extra)


def test_a_mismatch_lists_both_sides():
    tensors = spelled(random_tensors(TINY), "torch", "")
    del tensors["layer2.0.conv1.weight"]
    tensors["layer2.0.convX.weight"] = np.zeros(1, np.float32)
    tensors["bn1.weight"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r"1 missing: layer2.0.conv1.weight; 1 unexpected: "
                       r"layer2.0.convX.weight; 1 mis-shaped: bn1.weight \(expected \(16,\), "
                       r"found \(3,\)\); name the right network with --model"):
        convert.to_gluon(tensors, model=TINY)


def test_a_long_mismatch_shows_ten_and_counts():
    tensors = {name: np.broadcast_to(np.float32(0), shape)
               for name, shape in parameter_shapes("resnest26").items()}
    with pytest.raises(UserError, match=r"92 unexpected: (layer[1-4]\.1\.[a-z0-9_.]+, ){9}"
                       r"layer[1-4]\.1\.[a-z0-9_.]+ and 82 more"):
        convert.to_gluon(tensors, model="resnest14")


def test_a_deformable_backbone_is_not_silently_made_a_plain_one():
    tensors = spelled(random_tensors(TINY), "detectron2", "backbone.bottom_up.")
    tensors["backbone.bottom_up.res3.0.conv2_offset.weight"] = np.zeros(54, np.float32)
    with pytest.raises(UserError, match=r"1 missing: backbone.bottom_up.res3.0.conv2_offset.bias; "
                       r"1 mis-shaped: backbone.bottom_up.res3.0.conv2_offset.weight \(expected"):
        convert.to_gluon(tensors, model=TINY)
    shapes = parameter_shapes(TINY, deform_stages=(3, 5))
    tensors = spelled({name: np.ones(shape, np.float32) for name, shape in shapes.items()},
                      "detectron2", "backbone.bottom_up.")
    done = convert.to_gluon(tensors, model=TINY)
    assert done.call == "get_model('resnest_tiny', deform_stages=(3, 5))"
    assert set(shapes) - set(done.tensors) == {"fc.weight", "fc.bias"}


def test_a_missing_classifier_needs_to_be_allowed():
    tensors = {name: value for name, value in spelled(random_tensors(TINY), "torch", "").items()
               if not name.startswith("fc.")}
    with pytest.raises(UserError, match="2 missing: fc.weight, fc.bias; "
                       "the file has no classifier, convert the rest with --backbone"):
        convert.to_gluon(tensors, model=TINY)
    assert len(convert.to_gluon(tensors, model=TINY, backbone=True).tensors) == len(tensors)


def test_shapes_of_no_network_are_refused():
    tensors = random_tensors(TINY)
    with pytest.raises(UserError, match=r"no network of the family has \(1, 1, 1, 1\) blocks, stem "
                       r"8, radix 2, cardinality 1 and widths \(8, 16, 32, 64\)"):
        convert.to_gluon(tensors)
    del tensors["layer1.0.conv3.weight"]
    with pytest.raises(UserError, match="layer1.0.conv3.weight is absent or no convolution"):
        convert.to_gluon(tensors)


# --- the same logits --------------------------------------------------------------------------

PEERS = [("resnest14d", "resnest14"), ("resnest26d", "resnest26"),
         ("resnest50d_1s4x24d", "resnest50_fast_1s4x24d"),
         ("resnest50d_4s2x40d", "resnest50_fast_4s2x40d")]


def close(found, expected):
    """Agreement within 1e-5 of the largest logit; float32 sums in other orders stay near 1e-6."""
    return np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def converted_net(tmp_path, model, peer, **options):
    """Converts the peer's tensors through files and loads them."""
    tensors = ruled_tensors(model, classes=16)
    source, target = str(tmp_path / f"{peer}.pth"), str(tmp_path / "net.params")
    checkpoints.write_weights(source, tensors, "torch", {})
    convert_weights.main([source, target])
    net = zoo.get_model(model, classes=16, **options)
    load_parameters(net, target)
    net.hybridize()
    return net, tensors


@pytest.mark.parametrize("peer, model", PEERS)
def test_converted_weights_give_the_logits_of_timm_and_of_numpy(tmp_path, peer, model, capsys):
    net, tensors = converted_net(tmp_path, model, peer)
    assert f"network   {model}" in capsys.readouterr().out
    for height, width in ((64, 96), (97, 65)):
        image, expected = ruled_image(height, width), GOLDEN[f"{peer}/{height}x{width}"]
        assert close(net(mx.nd.array(image))[0].asnumpy(), expected)
        assert close(forward(tensors, image, pool_first="fast" in model)[0], expected)


def test_timm_dilates_differently_from_the_published_network(tmp_path):
    """timm has no pooling at the head of a stride-1 stage and a 2x2 one on the shortcut there.

    With both put right (tests/peers/timm_models.py) its logits are ours, so that is the whole
    difference; a timm file therefore means the same network at output stride 32 only.
    """
    net, tensors = converted_net(tmp_path, "resnest14", "resnest14d", dilated=True)
    image = ruled_image(64, 96)
    ours = net(mx.nd.array(image))[0].asnumpy()
    assert close(ours, forward(tensors, image, dilated=True)[0])
    assert close(ours, GOLDEN["resnest14d-dilated-repaired/64x96"])
    assert np.abs(ours - GOLDEN["resnest14d-dilated/64x96"]).max() > 0.05 * np.abs(ours).max()


def test_dilated_nets_of_gluoncv_compute_the_same(tmp_path):
    model_zoo = pytest.importorskip("gluoncv.model_zoo", reason="needs gluoncv")
    net, _ = converted_net(tmp_path, "resnest14", "resnest14d", dilated=True)
    theirs = model_zoo.resnest14(dilated=True, classes=16)
    theirs.load_parameters(str(tmp_path / "net.params"))
    image = mx.nd.array(ruled_image(64, 96))
    np.testing.assert_allclose(net(image).asnumpy(), theirs(image).asnumpy(), rtol=1e-5, atol=1e-6)


# --- the tool ---------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    """Returns the path of a training checkpoint of the tiny network in the layout of timm."""
    path = str(tmp_path / "tiny.pth")
    tensors = spelled(random_tensors(TINY), "torch", "module.")
    tensors["module.bn1.num_batches_tracked"] = np.ones(1, np.int64)
    checkpoints.write_weights(path, tensors, "torch", {})
    return path


def test_the_tool_reports_everything(source, tmp_path, capsys):
    target = str(tmp_path / "out.params")
    convert_weights.main([source, target, "--model", TINY])
    out = capsys.readouterr().out
    assert "layout    torch (the authors' PyTorch code, PyTorch-Encoding, timm), prefix 'module.'" \
        in out
    assert f"network   {TINY}\n" in out and "used      129 tensors\n" in out
    assert "build     get_model('resnest_tiny')\n" in out
    assert ("dropped   1 tensors\n          counters of PyTorch's batch norms: "
            "1 times *.num_batches_tracked\n") in out
    for path in (source, target):
        assert f"sha256    {sha256(path)}\n" in out
    load_parameters(zoo.get_model(TINY), target)


def test_a_dry_run_writes_nothing(source, tmp_path, capsys):
    convert_weights.main([source, str(tmp_path / "out.params"), "--model", TINY, "--dry-run"])
    assert "wrote" not in capsys.readouterr().out
    assert not (tmp_path / "out.params").exists()


@pytest.mark.parametrize("to, suffix, name", [
    ("torch", ".pth", "layer1.0.conv2.bn0.weight"), ("timm", ".safetensors", "bn1.weight"),
    (None, ".safetensors", "bn1.weight"), ("mmpretrain", ".pth", "head.fc.bias"),
    ("mmdet", ".pth", "stem.7.weight"), ("detectron2", ".pth", "res5.0.shortcut.norm.bias"),
    ("params", ".params", "bn1.gamma")])
def test_every_system_can_be_written_for(source, tmp_path, to, suffix, name, capsys):
    target = str(tmp_path / ("out" + suffix))
    convert_weights.main([source, target, "--model", TINY] + (["--to", to] if to else []))
    assert name in checkpoints.read_weights(target).tensors


@pytest.mark.parametrize("out, to, reason", [
    ("x.h5", None, "should end in one of .params, .pth, .pt, .safetensors"),
    ("x.params", "torch", "--to torch does not go with the suffix .params"),
    ("x.pth", "safetensors", "--to safetensors does not go with the suffix .pth")])
def test_targets_that_contradict_themselves_are_refused(source, out, to, reason):
    with pytest.raises(UserError, match=reason):
        convert_weights.main([source, out] + (["--to", to] if to else []))


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"nothing")
    run = subprocess.run([sys.executable, str(ROOT / "tools/convert_weights.py"),
                          str(tmp_path / "x.pth"), str(tmp_path / "y.params")],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=str(ROOT), timeout=120)
    assert run.returncode == 2
    assert run.stderr.decode().splitlines()[-1].startswith("error: ")
    assert b"Traceback" not in run.stderr
