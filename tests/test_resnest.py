"""ResNeSt against GluonCV's, in names, values and gradients, and by its laws."""
import json
import zlib
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon, nd

from gluon_resnest.errors import UserError
from gluon_resnest.models.dropblock import DropBlock, set_drop_prob
from gluon_resnest.models.resnest import FeatureExtractor, initialize, stage_plan
from gluon_resnest.zoo import get_model

GOLDEN = Path(__file__).parent / "golden" / "resnest.json"


def tiny(**options):
    net = get_model("resnest_tiny", **{"classes": 5, **options})
    initialize(net)
    return net


def fill(net):
    """Sets every parameter to values that depend on its structural name alone."""
    for name, param in net._collect_params_with_prefix().items():
        noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(param.shape)
        if name.endswith("running_var"):
            noise = 1 + abs(noise)
        elif name.endswith("gamma"):
            noise = 1 + 0.2 * noise
        elif noise.ndim == 4:
            noise *= np.sqrt(2 / np.prod(noise.shape[1:]))
        else:
            noise *= 0.1
        param.set_data(nd.array(noise))


def close(ours, theirs, relative):
    """Compares with the largest value of the array, the unit in which both round."""
    ours, theirs = ours.asnumpy(), theirs.asnumpy()
    assert np.isfinite(theirs).all()
    assert abs(ours - theirs).max() <= relative * abs(theirs).max()


@pytest.fixture
def gluoncv_model():
    return pytest.importorskip("gluoncv.model_zoo").get_model


# --- one rule for strides and dilations ---------------------------------------------------------

@pytest.mark.parametrize("output_stride, plan", [
    (32, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
    (16, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]),
    (8, [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]),
])
def test_stage_plan(output_stride, plan):
    assert stage_plan(output_stride) == plan


@pytest.mark.parametrize("output_stride", [0, 4, 64, "8"])
def test_stage_plan_refuses_other_strides(output_stride):
    with pytest.raises(UserError, match="output_stride must be 8, 16 or 32, got"):
        stage_plan(output_stride)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_have_the_declared_shapes_at_odd_sizes(output_stride, hybridize):
    net = tiny(output_stride=output_stride)
    net.hybridize(hybridize)
    x = nd.random.normal(shape=(1, 3, 75, 101))
    assert net.feature_channels == (32, 64, 128, 256)
    assert net.feature_strides == tuple(min(s, output_stride) for s in (4, 8, 16, 32))
    for feature, channels, stride in zip(net.features(x), net.feature_channels,
                                         net.feature_strides):
        assert feature.shape == (1, channels, -(-75 // stride), -(-101 // stride))


# --- parity with GluonCV ------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["resnest14", "resnest26", "resnest50", "resnest101"])
def test_names_of_parameters_and_activations_are_gluoncvs(name, gluoncv_model):
    ours, theirs = get_model(name), gluoncv_model(name)
    assert list(ours.collect_params()) == list(theirs.collect_params())
    assert list(ours._collect_params_with_prefix()) == list(theirs._collect_params_with_prefix())
    tapped = [[node for node in net(mx.sym.var("data")).get_internals().list_outputs()
               if "_relu" in node] for net in (ours, theirs)]
    assert tapped[0] == tapped[1]


@pytest.mark.parametrize("name, nodes", [
    ("resnest50", ["layers1_relu11", "layers2_relu15", "layers3_relu23", "layers4_relu11"]),
    ("resnest101", ["layers1_relu11", "layers2_relu15", "layers3_relu91", "layers4_relu11"]),
    ("resnest269", ["layers1_relu11", "layers2_relu119", "layers3_relu191", "layers4_relu31"]),
])
def test_features_are_the_nodes_that_gluoncvs_pyramids_tap(name, nodes):
    net = get_model(name)
    outputs = [feature.list_outputs() for feature in net.features(mx.sym.var("data"))]
    assert outputs == [[f"resnest_{node}_fwd_output"] for node in nodes]
    internals = net(mx.sym.var("data")).get_internals().list_outputs()
    assert {f"resnest_{node}_fwd_output" for node in nodes} <= set(internals)


def exchange(name, gluoncv_model, tmp_path, ours_first):
    """Returns ours and theirs with the same random values, passed through a file."""
    ours, theirs = get_model(name, classes=10), gluoncv_model(name, classes=10)
    source, target = (ours, theirs) if ours_first else (theirs, ours)
    source.initialize()
    fill(source)
    file = str(tmp_path / "exchange.params")
    source.save_parameters(file)
    target.load_parameters(file)
    for mine, other in zip(ours.collect_params().values(), theirs.collect_params().values()):
        assert (mine.data().asnumpy() == other.data().asnumpy()).all()
    return ours, theirs


@pytest.mark.parametrize("ours_first", [False, True])
@pytest.mark.parametrize("name", ["resnest14", "resnest26", "resnest50", "resnest101"])
def test_parameter_files_interchange_and_outputs_agree(name, ours_first, gluoncv_model, tmp_path):
    ours, theirs = exchange(name, gluoncv_model, tmp_path, ours_first)
    x = nd.random.normal(shape=(2, 3, 64, 96))
    close(ours(x), theirs(x), 1e-5)


@pytest.mark.parametrize("output_stride, dilation", [(8, 4), (16, 2)])
def test_dilated_features_equal_gluoncvs(output_stride, dilation, gluoncv_model, tmp_path):
    ours = get_model("resnest26", classes=10, output_stride=output_stride)
    theirs = gluoncv_model("resnest26", classes=10, dilation=dilation)
    theirs.initialize()
    fill(theirs)
    theirs.save_parameters(str(tmp_path / "x.params"))
    ours.load_parameters(str(tmp_path / "x.params"))
    x = nd.random.normal(shape=(1, 3, 75, 101))
    reference = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    for mine, layer in zip(ours.features(x), (theirs.layer1, theirs.layer2, theirs.layer3,
                                              theirs.layer4)):
        reference = layer(reference)
        assert mine.shape == reference.shape
        close(mine, reference, 1e-5)


@pytest.mark.parametrize("name", ["resnest14", "resnest26", "resnest50", "resnest101"])
def test_gradients_of_a_training_step_agree_with_gluoncvs(name, gluoncv_model, tmp_path):
    """Within what reversing the batch changes: batch norm on 1x1 maps magnifies every rounding."""
    from gluoncv.nn.dropblock import DropBlock as TheirDropBlock
    ours, theirs = exchange(name, gluoncv_model, tmp_path, ours_first=False)
    set_drop_prob(ours, 0)
    theirs.apply(lambda block: setattr(block, "drop_prob", 0)
                 if isinstance(block, TheirDropBlock) else None)
    x, labels = nd.random.normal(shape=(8, 3, 64, 64)), nd.arange(8)
    loss = gluon.loss.SoftmaxCrossEntropyLoss()

    def gradients(net, order):
        with autograd.record():
            value = loss(net(x[order]), labels[order]).mean()
        value.backward()
        return np.concatenate([param.grad().asnumpy().ravel()
                               for param in net.collect_params().values()
                               if param.grad_req != "null"])

    forward, backward = nd.arange(8), nd.arange(7, -1, -1)
    reference = gradients(theirs, forward)
    noise = np.linalg.norm(gradients(theirs, backward) - reference)
    error = np.linalg.norm(gradients(ours, forward) - reference)
    assert np.linalg.norm(reference) > 0
    assert error <= 3 * noise + 1e-6 * np.linalg.norm(reference)


# --- modes, graphs, sizes -----------------------------------------------------------------------

def test_hybridize_changes_nothing():
    net = tiny()
    fill(net)
    x = nd.random.normal(shape=(2, 3, 64, 48))
    imperative = net(x)
    net.hybridize(static_alloc=True)
    close(net(x), imperative, 1e-6)


@pytest.mark.parametrize("training_first", [True, False])
def test_inference_is_deterministic_and_training_drops_whatever_came_first(training_first):
    net, x = tiny(dropblock=0.3), nd.random.normal(shape=(2, 3, 96, 96))
    expected = tiny(dropblock=0)
    for param, value in zip(expected.collect_params().values(), net.collect_params().values()):
        param.set_data(value.data())
    net.hybridize(static_alloc=True)
    for training in (training_first, not training_first):
        if training:
            with autograd.train_mode():
                assert abs(net(x) - net(x)).max().asscalar() > 1e-3
        else:
            first = net(x)
            assert (first == net(x)).min().asscalar() == 1
            close(first, expected(x), 1e-6)


@pytest.mark.parametrize("modes", [(True,), (False,), (True, False), (False, True)])
def test_export_has_no_dropblock_whatever_was_traced(modes, tmp_path):
    net, x = tiny(dropblock=0.3), nd.random.normal(shape=(2, 3, 64, 96))
    net.hybridize()
    for training in modes:
        with autograd.train_mode() if training else autograd.predict_mode():
            y = net(x)
    mx.nd.waitall()
    net.export(str(tmp_path / "net"))
    graph = json.loads((tmp_path / "net-symbol.json").read_text())
    assert not {node["op"] for node in graph["nodes"]} & {"Dropout", "_random_uniform_like"}
    back = gluon.SymbolBlock.imports(str(tmp_path / "net-symbol.json"), ["data"],
                                     str(tmp_path / "net-0000.params"))
    close(back(x), net(x), 1e-6)
    assert y.shape == (2, 5)


def test_graph_inside_another_block_is_right_in_both_modes(tmp_path):
    outer, x = gluon.nn.HybridSequential(), nd.random.normal(shape=(2, 3, 96, 96))
    outer.add(tiny(dropblock=0.3))
    plain = outer(x)
    outer.hybridize()
    with autograd.train_mode():
        assert abs(outer(x) - outer(x)).max().asscalar() > 1e-3
    close(outer(x), plain, 1e-6)
    outer.export(str(tmp_path / "outer"))
    back = gluon.SymbolBlock.imports(str(tmp_path / "outer-symbol.json"), ["data"],
                                     str(tmp_path / "outer-0000.params"))
    close(back(x), plain, 1e-6)


def test_fused_inference_after_training_changes_nothing():
    net, x = tiny(dropblock=0.3), nd.random.normal(shape=(2, 3, 64, 64))
    net.hybridize()
    with autograd.train_mode():
        net(x)
    expected = net(x)
    net.optimize_for(x, backend="MKLDNN", static_alloc=True)
    close(net(x), expected, 1e-5)


def test_set_drop_prob_reaches_a_hybridized_net():
    net, x = tiny(dropblock=0.3), nd.random.normal(shape=(2, 3, 96, 96))
    net.hybridize(static_alloc=True)
    with autograd.train_mode():
        assert (net(x) != net(x)).max().asscalar() == 1
        set_drop_prob(net, 0)
        assert (net(x) == net(x)).min().asscalar() == 1
        set_drop_prob(net, 0.3)
        assert (net(x) != net(x)).max().asscalar() == 1


def test_dropblock_stands_in_the_last_two_stages_only():
    net = get_model("resnest26")
    found = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        blocks = []
        stage.apply(lambda block: blocks.append(block) if isinstance(block, DropBlock) else None)
        found.append(len(blocks))
    assert found == [0, 0, 6, 6]


@pytest.mark.parametrize("size", [(256, 192), (112, 112), (32, 32)])
def test_any_size_trains(size, hybridize):
    net, x = tiny(dropblock=0.1), nd.random.normal(shape=(4, 3, *size))
    net.hybridize(hybridize)
    trainer = gluon.Trainer(net.collect_params(), "nag", {"learning_rate": 0.05, "momentum": 0.9})
    loss, labels, values = gluon.loss.SoftmaxCrossEntropyLoss(), nd.arange(4), []
    for _ in range(6):
        with autograd.record():
            value = loss(net(x), labels).mean()
        value.backward()
        trainer.step(1)
        values.append(value.asscalar())
    assert np.isfinite(values).all() and values[-1] < values[0]


# --- options ------------------------------------------------------------------------------------

def test_zero_last_gamma_starts_residual_branches_at_zero():
    net = tiny(last_gamma=True)
    params = net._collect_params_with_prefix()
    for name, param in params.items():
        if name.endswith("gamma"):
            assert (param.data().asnumpy() == (0 if ".bn3." in name else 1)).all()


def test_initialisation_is_kaiming_normal_by_fan_in():
    net = get_model("resnest14")
    initialize(net)
    for name, param in net._collect_params_with_prefix().items():
        value = param.data().asnumpy()
        if name.endswith("weight") and value.size > 5000:
            assert value.std() == pytest.approx(np.sqrt(2 / np.prod(value.shape[1:])), rel=0.05)
        elif name.endswith("bias"):
            assert (value == 0).all()


def test_last_dropout_acts_in_training_only():
    net, x = tiny(final_drop=0.5, dropblock=0), nd.random.normal(shape=(2, 3, 32, 32))
    assert (net(x) == net(x)).min().asscalar() == 1
    with autograd.train_mode():
        assert (net(x) != net(x)).max().asscalar() == 1


def test_reset_classifier_keeps_all_but_the_classifier(hybridize):
    net, x = tiny(), nd.random.normal(shape=(2, 3, 64, 64))
    net.hybridize(hybridize)
    assert net(x).shape == (2, 5)
    names, features = list(net.collect_params()), net.features(x)[-1]
    net.reset_classifier(7)
    assert net(x).shape == (2, 7)
    assert list(net.collect_params()) == names
    close(net.features(x)[-1], features, 1e-6)


def test_reset_classifier_keeps_the_type_and_refuses_what_is_no_count():
    net = tiny()
    net.cast("float16")
    net.reset_classifier(7)
    assert net.fc.weight.data().dtype == net.fc.bias.data().dtype == np.float16
    with pytest.raises(UserError, match="classes must be a whole number from 1 .* got 0"):
        net.reset_classifier(0)
    assert net.fc.weight.shape[0] == 7


@pytest.mark.parametrize("indices", [(1, 3), (0, 1)])
def test_feature_extractor_gives_the_chosen_maps_and_needs_all_its_parameters(indices, hybridize):
    net = tiny()
    extractor = FeatureExtractor(net, indices)
    extractor.hybridize(hybridize)
    x = nd.random.normal(shape=(1, 3, 64, 96))
    for feature, i in zip(extractor(x), indices):
        close(feature, net.features(x)[i], 1e-6)
    assert extractor.feature_channels == tuple(net.feature_channels[i] for i in indices)
    assert extractor.feature_strides == tuple(net.feature_strides[i] for i in indices)
    names = net._collect_params_with_prefix()
    for name, param in extractor._collect_params_with_prefix().items():
        assert param is names[name]
    graph = mx.sym.Group(list(extractor(mx.sym.var("data"))))
    assert set(graph.list_inputs()) == {"data", *extractor.collect_params()}


@pytest.mark.parametrize("indices", [(), (4,), (-1, 2)])
def test_feature_extractor_refuses_other_indices(indices):
    with pytest.raises(UserError, match="out_indices must be chosen from 0, 1, 2, 3, got"):
        FeatureExtractor(tiny(), indices)


# --- golden values ------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["resnest_tiny", "resnest14", "resnest14_2s1x64d",
                                  "resnest14_fast_4s2x40d", "resnest14_0s1x64d"])
def test_golden_logits(name, update_golden):
    """UPDATE_GOLDEN=1 writes the file anew."""
    net = get_model(name, classes=4)
    net.initialize()
    fill(net)
    x = nd.array(np.random.RandomState(0).standard_normal((1, 3, 48, 64)))
    logits = [round(float(value), 5) for value in net(x)[0].asnumpy()]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if update_golden:
        GOLDEN.write_text(json.dumps({**golden, name: logits}, indent=1, sort_keys=True) + "\n")
    else:
        np.testing.assert_allclose(logits, golden[name], rtol=1e-4,
                                   atol=1e-4 * np.abs(golden[name]).max())


@pytest.fixture
def update_golden():
    import os
    return os.environ.get("UPDATE_GOLDEN") == "1"
