"""interop.export, deployed and trained: what is exported and loaded again computes the same."""
import dataclasses
import json
import os
import shutil

import mxnet as mx
import numpy as np
import pytest
from full_disk import room_for
from mxnet import autograd, gluon, nd

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop import deployed, export, trained
from gluon_resnest.interop.deployed import Card
from gluon_resnest.models.dropblock import DropBlock
from gluon_resnest.models.resnest import initialize

CARD = Card("resnest_tiny", 3, 32)
SHAPES = [(1, 3, 32, 32), (2, 3, 64, 40), (3, 3, 33, 77)]


def tiny_net(name="resnest_tiny", **options):
    """A network with random values everywhere, running statistics included."""
    net = zoo.get_model(name, classes=3, **options)
    initialize(net)
    for key, param in net.collect_params().items():
        if key.endswith(("gamma", "running_var")):
            param.set_data(nd.random.uniform(0.5, 1.5, shape=param.shape))
        elif key.endswith(("beta", "bias", "running_mean")):
            param.set_data(nd.random.normal(0, 0.1, shape=param.shape))
    return net


def answers(net, shape, seed=5):
    """What a network says to noise."""
    noise = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    return net(nd.array(noise)).asnumpy()


def assert_same(actual, expected):
    """Equal within 1e-5 of the largest logit: float32 sums in another order differ by less."""
    assert abs(actual - expected).max() <= 1e-5 * abs(expected).max()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(net, prefix, card) of one export; tests that damage it work on `copy`."""
    mx.random.seed(3)
    net = tiny_net(dropblock=0.3, final_drop=0.5)
    prefix = tmp_path_factory.mktemp("deploy") / "tiny"
    return net, prefix, export.export_classifier(net, prefix, CARD)


@pytest.fixture
def copy(exported, tmp_path):
    """A prefix with a copy of the exported files, without their card's checksums."""
    prefix = tmp_path / "copy"
    for source, target in zip(deployed.paths(exported[1]), deployed.paths(prefix)):
        shutil.copy(source, target)
    change_card(prefix, sha256=None)
    return prefix


def change_card(prefix, **changes):
    file = deployed.paths(prefix)[2]
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def load(prefix):
    return deployed.load_pair(prefix, deployed.read_card(prefix))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loaded_pair_computes_what_the_net_does(exported, shape):
    net, prefix, card = exported
    assert_same(answers(deployed.load_pair(prefix, card), shape), answers(net, shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_plain_mxnet_loads_the_pair(exported, shape):
    net, prefix, _ = exported
    symbol_file, params_file, _ = map(str, deployed.paths(prefix))
    block = gluon.SymbolBlock.imports(symbol_file, ["data"], params_file)
    assert_same(answers(block, shape), answers(net, shape))


@pytest.mark.parametrize("name", ["resnest14_0s1x64d", "resnest14_1s2x40d", "resnest14_2s1x64d",
                                  "resnest14_fast_4s2x40d"])
def test_every_form_of_the_family_passes_the_reader_and_keeps_no_size(name):
    net = zoo.get_model(name, classes=3)
    net.initialize()
    graph, arrays = export.trace(net)
    symbol = mx.sym.load_json(graph.to_json())
    shapes = {name[4:]: array.shape for name, array in arrays.items()}
    for shape in SHAPES:
        assert symbol.infer_shape(data=shape, **shapes)[1] == [(shape[0], 3)]


def test_nothing_that_drops_is_exported(exported):
    graph = deployed.read_graph(deployed.paths(exported[1])[0])
    drawn = [op for op in graph.operators() if "Dropout" in op or "random" in op]
    assert not drawn


def test_export_leaves_the_net_as_it_was(exported):
    net = exported[0]
    blocks = []
    net.apply(lambda block: blocks.append(block) if isinstance(block, DropBlock) else None)
    assert {block._p for block in blocks} == {0.3}
    with autograd.train_mode():
        assert not np.array_equal(answers(net, SHAPES[1]), answers(net, SHAPES[1]))


def test_training_mode_and_hybridization_before_export_change_nothing(tmp_path):
    files = []
    for used in (False, True):
        mx.random.seed(1)
        net = tiny_net(dropblock=0.3)
        if used:
            net.hybridize(static_alloc=True)
            values = {name: param.data().copy() for name, param in net.collect_params().items()}
            with autograd.record():
                net(nd.ones((2, 3, 48, 48))).backward()
            mx.nd.waitall()
            for name, param in net.collect_params().items():
                param.set_data(values[name])
            with autograd.train_mode():     # the mode the export is called in
                export.export_classifier(net, tmp_path / "x", CARD)
        else:
            export.export_classifier(net, tmp_path / "x", CARD)
        files.append([file.read_bytes() for file in deployed.paths(tmp_path / "x")])
    assert files[0] == files[1]


def test_equal_nets_give_equal_bytes_whatever_was_built_before(exported, tmp_path):
    net, prefix, _ = exported
    other = tiny_net(dropblock=0.3, final_drop=0.5)
    net.save_parameters(str(tmp_path / "w.params"))
    other.load_parameters(str(tmp_path / "w.params"))
    export.export_classifier(other, tmp_path / "again", CARD)
    for first, second in zip(deployed.paths(prefix), deployed.paths(tmp_path / "again")):
        assert first.read_bytes() == second.read_bytes()


def test_parameters_keep_their_structural_names(exported):
    net, prefix, _ = exported
    names = {name[4:] for name in nd.load(str(deployed.paths(prefix)[1]))}
    assert names == set(net._collect_params_with_prefix())


def test_the_card_says_what_the_net_wants(exported, tmp_path):
    card = deployed.read_card(exported[1])
    assert card == exported[2]
    assert (card.crop_px, card.protocol, card.interpolation) == (32, "gluon", "bilinear")
    big = dataclasses.replace(CARD, protocol="torch", class_names=("a", "b", "c"))
    written = export.export_classifier(exported[0], tmp_path / "t", big)
    assert written.interpolation == "bicubic"
    assert deployed.read_card(tmp_path / "t").class_names == ("a", "b", "c")


def test_a_failed_comparison_leaves_nothing_behind(tmp_path, monkeypatch):
    net = tiny_net()
    monkeypatch.setattr(export, "_by_module", lambda prefix, images: [np.float32(1.0)])
    with pytest.raises(RuntimeError, match="reloaded by Module, differ.*nothing was written"):
        export.export_classifier(net, tmp_path / "deploy" / "x", CARD)
    assert list((tmp_path / "deploy").iterdir()) == []


def test_fused_rounding_is_a_warning_and_not_a_failure(exported, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(export, "_FUSED_TOLERANCE", 0)
    monkeypatch.delenv("MXNET_SUBGRAPH_BACKEND", raising=False)
    export.export_classifier(exported[0], tmp_path / "x", CARD)
    assert "magnifies rounding" in caplog.text
    assert "MXNET_SUBGRAPH_BACKEND" not in os.environ


def test_not_a_number_fails_the_comparison(tmp_path):
    net = tiny_net()
    net.fc.bias.set_data(nd.array([0, 1, np.nan]))
    with pytest.raises(UserError, match="fc.bias holds NaN"):
        export.export_classifier(net, tmp_path / "x", CARD)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes, message", [
    ({"classes": 4}, r"shape \(1, 3\), expected \(1, 4\)"),
    ({"class_names": ("a", "b")}, "2 class names for 3 classes"),
    ({"protocol": "gluno"}, "protocol='gluno'.*did you mean 'gluon'"),
    ({"crop_px": 0}, "crop_px=0, which cannot be"),
    ({"std": (1, 0, 1)}, r"std=\(1, 0, 1\), which cannot be"),
])
def test_a_card_that_cannot_be_is_refused_before_writing(exported, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        export.export_classifier(exported[0], tmp_path / "x", dataclasses.replace(CARD, **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_net_without_values_is_refused(tmp_path):
    net = zoo.get_model("resnest_tiny", classes=3)
    with pytest.raises(UserError, match="no values yet; load weights"):
        export.export_classifier(net, tmp_path / "x", CARD)


def test_a_backbone_is_refused(tmp_path):
    net = zoo.get_model("resnest_tiny", features_only=True)
    net.initialize()
    with pytest.raises(UserError, match="export the classifier, not its features"):
        export.export_classifier(net, tmp_path / "x", CARD)


def test_an_operator_that_no_reader_knows_is_refused_when_writing(tmp_path):
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.GELU(), gluon.nn.Dense(3))
    net.initialize()
    net(nd.ones((1, 3, 32, 32)))
    with pytest.raises(UserError, match="cannot export HybridSequential.*operator 'LeakyReLU'"):
        export.export_classifier(net, tmp_path / "x", CARD)


@pytest.mark.parametrize("prefix", ["", "."])
def test_a_prefix_without_a_name_is_refused(exported, prefix):
    with pytest.raises(UserError, match="names no files; give a path such as deploy/r50"):
        export.export_classifier(exported[0], prefix, CARD)


def test_an_unwritable_place_is_one_sentence(exported, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*choose a prefix in a writable folder"):
        export.export_classifier(exported[0], tmp_path / "file" / "x", CARD)


@pytest.mark.parametrize("lacking", [1, 9, 300_000])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_files(exported, copy, lacking):
    """MXNet's own writer would lose the last bytes without a word."""
    before = [file.read_bytes() for file in deployed.paths(copy)]
    with room_for(len(before[1]) - lacking), pytest.raises(
            UserError, match="cannot write .*copy.: File too large; choose a prefix .* with space"):
        export.export_classifier(exported[0], copy, CARD)
    assert [file.read_bytes() for file in deployed.paths(copy)] == before
    assert len(list(copy.parent.iterdir())) == 3


# What comes back from disk


def test_a_changed_file_is_noticed(exported, tmp_path):
    for number, ending in enumerate(("-symbol.json", "-0000.params")):
        prefix = tmp_path / str(number)
        for source, target in zip(deployed.paths(exported[1]), deployed.paths(prefix)):
            shutil.copy(source, target)
        file = deployed.paths(prefix)[number]
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
        with pytest.raises(UserError, match=f"{ending}.* is not the file that was exported"):
            load(prefix)


def test_a_missing_file_names_a_near_prefix(exported):
    with pytest.raises(UserError, match="there is no .*tinny-symbol.json.*did you mean 'tiny'"):
        deployed.load_pair(exported[1].with_name("tinny"), CARD)


def test_truncated_parameters_are_refused(copy):
    file = deployed.paths(copy)[1]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not an intact MXNet parameter file"):
        load(copy)


def test_parameters_of_another_net_are_refused(copy):
    arrays = nd.load(str(deployed.paths(copy)[1]))
    arrays["arg:extra"] = arrays.pop("arg:fc.bias")
    nd.save(str(deployed.paths(copy)[1]), arrays)
    with pytest.raises(UserError, match="1 parameters are missing .'arg:fc.bias'.*'arg:extra'"):
        load(copy)


def test_misshaped_parameters_are_refused(copy):
    arrays = nd.load(str(deployed.paths(copy)[1]))
    arrays["arg:fc.bias"] = nd.zeros((7,))
    nd.save(str(deployed.paths(copy)[1]), arrays)
    with pytest.raises(UserError, match="do not make a classifier"):
        load(copy)


def test_a_graph_that_asks_for_all_memory_is_refused(copy):
    """Each Reshape keeps the element count, but padding a pooling hundreds of times does not."""
    file = deployed.paths(copy)[0]
    document = json.loads(file.read_text())
    for node in document["nodes"]:
        if node["op"] == "Convolution" and "(3, 3)" in node["attrs"]["kernel"]:
            node["attrs"]["pad"] = "(64, 64)"
    change_card(copy, crop_px=4096)
    file.write_text(json.dumps(document))
    with pytest.raises(UserError, match="do not make a classifier"):
        load(copy)


@pytest.mark.parametrize("text, message", [
    ("{", "not the card"), ("[" * 100_000, "not the card"), ("[]", "not a card of format 1"),
    ('{"format": 2}', "not a card of format 1")])
def test_a_damaged_card_is_refused(copy, text, message):
    deployed.paths(copy)[2].write_text(text)
    with pytest.raises(UserError, match=message):
        deployed.read_card(copy)


@pytest.mark.parametrize("changes", [
    {"crop_px": "224"}, {"crop_px": 1e9}, {"classes": True}, {"mean": [0, 0]}, {"mean": "abc"},
    {"std": [1, 1, None]}, {"class_names": 3}, {"class_names": [1, 2, 3]}, {"protocol": {}},
    {"sha256": {"symbol": 1, "params": 2}}, {"sha256": []}, {"model": None}, {"format": 0}],
    ids=str)
def test_a_card_with_a_wrong_value_is_refused(copy, changes):
    change_card(copy, **changes)
    with pytest.raises(UserError, match="copy.json"):
        deployed.read_card(copy)


def test_a_pair_of_gluon_needs_no_card(tmp_path):
    """What `HybridBlock.export` of this or another version wrote loads as well."""
    net = tiny_net(final_drop=0.2, dropblock=0)
    net.hybridize()
    net(nd.ones((1, 3, 32, 32)))
    net.export(str(tmp_path / "plain"))
    assert deployed.read_card(tmp_path / "plain") is None
    card = deployed.assumed_card(tmp_path / "plain", 32)
    assert card == Card("plain", 3, 32)
    block = deployed.load_pair(tmp_path / "plain", card)
    assert_same(answers(block, SHAPES[1]), answers(net, SHAPES[1]))


# Where networks come from


def test_zoo_networks_take_their_classes_from_the_weights(tmp_path):
    net = tiny_net()
    net.save_parameters(str(tmp_path / "w.params"))
    loaded, card = trained.from_zoo("resnest_tiny", tmp_path / "w.params")
    assert card == Card("resnest_tiny", 3, 224)
    assert np.array_equal(answers(loaded, SHAPES[0]), answers(net, SHAPES[0]))
    export.export_classifier(net, tmp_path / "x", card)
    loaded, again = trained.from_zoo("resnest_tiny", tmp_path / "x-0000.params")
    assert again == card
    assert np.array_equal(answers(loaded, SHAPES[0]), answers(net, SHAPES[0]))


def test_zoo_cards_hold_the_published_crop():
    assert trained.zoo_card("resnest101", 1000).crop_px == 256
    assert trained.zoo_card("ResNeSt269", 1000).crop_px == 416
    assert trained.zoo_card("mobilenet1.0", 10) == Card("mobilenet1.0", 10, 224)
