import builtins
import importlib

import mxnet as mx
import numpy as np
import pytest

import gluon_resnest
from gluon_resnest import zoo
from gluon_resnest.errors import MissingExtra
from gluon_resnest.interop import gluoncv as bridge
from gluon_resnest.interop.weights import load_parameters, read_params, save_parameters
from gluon_resnest.models.dropblock import DropBlock
from gluon_resnest.models.resnest import Bottleneck, ResNeSt

gluoncv = pytest.importorskip("gluoncv")

# GluonCV's builders initialise parts of a network before their user does.
pytestmark = pytest.mark.filterwarnings("ignore:Parameter .* is already initialized")

RESNESTS = ("resnest14", "resnest26", "resnest50", "resnest101", "resnest200", "resnest269")


@pytest.fixture
def registered():
    """Calls `register` and restores GluonCV after the test."""
    yield bridge.register
    bridge.unregister()


def snapshot():
    """Returns everything in GluonCV that the bridge may change."""
    models = importlib.import_module("gluoncv.model_zoo.model_zoo")
    modules = [importlib.import_module(name) for name in
               bridge._HOLDERS + ("gluoncv.nn.dropblock",)]
    return [dict(models._models)] + [dict(vars(module)) for module in modules]


def test_importing_changes_nothing():
    before = snapshot()
    importlib.reload(bridge)
    assert snapshot() == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_unregister_undoes_register(overwrite):
    before = snapshot()
    bridge.register(not overwrite)
    bridge.register(overwrite)              # replaces the first
    assert snapshot() != before
    bridge.unregister()
    assert snapshot() == before
    bridge.unregister()
    assert snapshot() == before


def test_gluoncv_finds_ours_by_name(registered):
    with pytest.raises(ValueError, match="not among"):
        gluoncv.model_zoo.get_model("resnest50_fast_1s4x24d")
    registered()
    net = gluoncv.model_zoo.get_model("ResNeSt50_fast_1s4x24d", pretrained=False, classes=7,
                                      ctx=mx.cpu(), root="~/.mxnet/models", last_gamma=True)
    assert type(net) is ResNeSt and net.fc.weight.shape == (7, 2048)
    assert set(zoo.list_models()) <= set(gluoncv.model_zoo.get_model_list())


def test_gluoncvs_own_names_change_only_when_overwritten(registered):
    registered()
    theirs = gluoncv.model_zoo.get_model("resnest14")
    registered(overwrite=True)
    ours = gluoncv.model_zoo.get_model("resnest14")
    assert type(theirs) is not ResNeSt and type(ours) is ResNeSt
    for name in RESNESTS:
        assert gluoncv.model_zoo.model_zoo._models[name] is not theirs
        for holder in bridge._HOLDERS:
            function = vars(importlib.import_module(holder)).get(name)
            assert function is None or function.__module__ == bridge.__name__
    assert type(gluoncv.model_zoo.resnest14(dilated=True)) is ResNeSt


def test_frozen_statistics_are_asked_for_as_in_gluoncv(registered):
    registered(overwrite=True)
    net = gluoncv.model_zoo.get_model("resnest14", use_global_stats=True,
                                      norm_kwargs={"momentum": 0.8})
    assert net.bn1._kwargs["use_global_stats"] and net.bn1._kwargs["momentum"] == 0.8
    assert net.bn1.gamma.grad_req == "write"


def probabilities(net):
    found = []
    net.apply(lambda block: found.append(block._p) if isinstance(block, DropBlock) else None)
    return set(found)


def test_gluoncvs_dropblock_schedule_reaches_ours(registered):
    registered()
    net = gluoncv.model_zoo.get_model("resnest50_fast_1s4x24d")
    assert probabilities(net) == {0}
    gluoncv.nn.dropblock.DropBlockScheduler(net, 0, 0.1, 10)(4)
    assert probabilities(net) == {0.05}


def fill(net, rng):
    """Gives every parameter random values that keep activations near one; leaves anchors alone."""
    for name, param in net._collect_params_with_prefix().items():
        shape = param.shape
        if name.endswith(("gamma", "var")):
            param.set_data(mx.nd.array(rng.uniform(0.5, 1.5, shape)))
        elif not name.endswith("anchors"):
            scale = 0.7 / np.sqrt(max(1, np.prod(shape[1:])))
            param.set_data(mx.nd.array(rng.normal(0, scale, shape)))


def deeplab():
    return gluoncv.model_zoo.get_deeplab("ade20k", "resnest50", pretrained_base=False, crop_size=32)


def faster_rcnn():
    return gluoncv.model_zoo.get_model("faster_rcnn_fpn_syncbn_resnest50_coco",
                                       pretrained_base=False, num_devices=1)


def custom_faster_rcnn():
    # The zoo's entry of this name is DoubleHead's, which fails on any backbone (0.10.5.post0).
    module = importlib.import_module("gluoncv.model_zoo.rcnn.faster_rcnn.faster_rcnn")
    return module.custom_faster_rcnn_fpn(("a", "b"), base_network_name="resnest50",
                                         pretrained_base=False)


def logits(net):
    return net(pixels(32, 32))


def detections(net):
    """What the backbone decides, and the heads on fixed regions.

    Not the sorted boxes: of random weights they have ties, and a pass takes 16 s.
    """
    box_features = net.box_features(pixels(14, 14, channels=256))
    return net.features(pixels(64, 96)) + [net.class_predictor(box_features),
                                           net.box_predictor(box_features)]


def pixels(height, width, channels=3):
    return mx.nd.array(np.random.RandomState(0).rand(1, channels, height, width))


@pytest.mark.parametrize("build, outputs", [(deeplab, logits), (faster_rcnn, detections),
                                            (custom_faster_rcnn, detections)])
def test_files_of_gluoncvs_networks_load_into_the_same_on_our_backbone(registered, tmp_path, build,
                                                                       outputs):
    theirs = build()
    theirs.initialize()
    outputs(theirs)                         # finishes the deferred shapes of the heads
    if hasattr(theirs, "rpn"):
        head = getattr(theirs.rpn, "rpn_head", theirs.rpn)
        hidden = head.conv1(pixels(4, 4, channels=256))
        head.score(hidden), head.loc(hidden)
    fill(theirs, np.random.RandomState(0))
    theirs.save_parameters(str(tmp_path / "theirs.params"))
    registered(overwrite=True)
    ours = build()
    load_parameters(ours, tmp_path / "theirs.params")
    save_parameters(ours, tmp_path / "ours.params")
    again, saved = read_params(tmp_path / "ours.params"), read_params(tmp_path / "theirs.params")
    assert list(again) == list(saved)
    for name, value in saved.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    for one, other in zip(outputs(theirs), outputs(ours)):
        assert 1e-3 < float(one.abs().max().asscalar()) < 1e4
        np.testing.assert_allclose(other.asnumpy(), one.asnumpy(), rtol=1e-5, atol=1e-5)


def test_gluoncvs_detectors_stay_gluoncvs_on_our_backbone(registered, monkeypatch):
    registered(overwrite=True)
    built, get_model = [], zoo.get_model
    monkeypatch.setattr(zoo, "get_model", lambda name, **options:
                        built.append(name) or get_model(name, **options))
    assert type(faster_rcnn()).__module__.startswith("gluoncv.")
    assert built == ["resnest50"]


def test_segmentation_trains_at_a_size_gluoncvs_dropblock_cannot(registered):
    registered(overwrite=True)
    net = deeplab()
    assert type(net.layer1[0]) is Bottleneck
    net.initialize()
    with mx.autograd.record():
        loss = sum(logits.mean() for logits in net(mx.nd.random.uniform(shape=(2, 3, 32, 32))))
    loss.backward()
    assert float(net.layer1[0].conv1.weight.grad().abs().sum().asscalar()) > 0


@pytest.mark.parametrize("drop_prob", [0, 0.1])
def test_simple_pose_trains_a_step_at_256x192(registered, hybridize, drop_prob):
    registered(overwrite=True)
    net = gluoncv.model_zoo.simple_pose.simple_pose_resnet.SimplePoseResNet("resnest50")
    assert type(net.resnet[4][0]) is Bottleneck
    net.initialize()
    net.apply(lambda block: gluoncv.nn.dropblock.set_drop_prob(drop_prob, block))
    if hybridize:
        net.hybridize()
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})
    with mx.autograd.record():
        heatmaps = net(mx.nd.random.uniform(shape=(1, 3, 256, 192)))
        loss = heatmaps.sum()
    weight = net.resnet[7][0].conv1.weight
    before = weight.data().asnumpy()
    loss.backward()
    trainer.step(1)
    assert heatmaps.shape == (1, 17, 64, 48)
    after = weight.data().asnumpy()
    assert np.isfinite(after).all() and np.abs(after - before).max() > 0


def test_our_zoo_answers_for_gluoncvs_names_after_registration(registered):
    registered(overwrite=True)
    net = gluon_resnest.get_model("cifar_resnet20_v1")
    assert type(net).__module__.startswith("gluoncv")


def test_absent_gluoncv_names_the_extra(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args):
        if name.startswith("gluoncv"):
            raise ImportError(name)
        return real(name, *args)
    monkeypatch.setattr(importlib, "import_module", lambda name: refuse(name))
    with pytest.raises(MissingExtra, match=r"gluon-resnest\[gluoncv\]"):
        bridge.register()
