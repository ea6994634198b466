"""The table: what it declares is measured; names, options and mistakes."""
import inspect
import json

import numpy as np
import pytest
from mxnet import init, nd, sym
from mxnet.gluon import nn

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.models.resnest import ResNeSt
from gluon_resnest.zoo import get_model, list_models, variant

RESNESTS = list_models("resnest*")


def parameters(net):
    return sum(int(np.prod(param.shape)) for param in net.collect_params().values()
               if param.grad_req != "null")


def gmacs(net, px):
    """Walks the graph: output pixels times weights of every convolution and dense layer."""
    graph = net(sym.var("data"))
    internals = graph.get_internals()
    _, shapes, _ = internals.infer_shape(data=(1, 3, px, px))
    shapes = dict(zip(internals.list_outputs(), shapes))
    nodes = json.loads(graph.tojson())["nodes"]
    total = 0
    for node in nodes:
        if node["op"] in ("Convolution", "FullyConnected"):
            pixels = np.prod(shapes[node["name"] + "_output"][2:])
            total += np.prod(shapes[nodes[node["inputs"][1][0]]["name"]]) * pixels
    return total / 1e9


@pytest.mark.parametrize("name", RESNESTS)
def test_declared_cost_is_measured_cost(name):
    entry, net = variant(name), get_model(name, dropblock=0)
    assert parameters(net) == entry.params
    assert gmacs(net, 224) == pytest.approx(entry.gmacs, abs=0.006 if entry.gmacs < 15 else 0.05)


@pytest.mark.parametrize("name, keys, statistics", [
    ("resnest14", 129, 22336), ("resnest26", 221, 36736), ("resnest50", 405, 64576),
    ("resnest101", 796, 130112), ("resnest200", 1555, 218432), ("resnest269", 2084, 314432)])
def test_files_have_as_many_keys_and_statistics_as_the_published_ones(name, keys, statistics):
    net = get_model(name)
    assert len(net._collect_params_with_prefix()) == keys
    assert sum(int(np.prod(param.shape)) for param in net.collect_params().values()
               if param.grad_req == "null") == statistics


@pytest.mark.parametrize("name, millions", [
    ("resnest14_0s1x64d", 8.06), ("resnest14_1s1x64d", 8.23), ("resnest14_1s1x40d", 5.44),
    ("resnest14_1s2x64d", 13.63), ("resnest14_2s1x64d", 8.58), ("resnest14", 8.58),
    ("resnest32", 16.56), ("resnest50", 25.45), ("resnest101_fast_2s1x64d", 46.14)])
def test_counts_of_the_cifar_report_come_out(name, millions):
    """Tables I and II, 10 classes."""
    assert parameters(get_model(name, classes=10)) / 1e6 == pytest.approx(millions, abs=0.01)


def test_every_name_that_spells_its_numbers_has_them():
    for name in RESNESTS:
        spelled = zoo.table._GRAMMAR.fullmatch(name)
        if spelled:
            arch = variant(name).arch
            assert arch.depths == zoo.table.DEPTHS[int(spelled.group(1))]
            assert [arch.radix, arch.cardinality, arch.bottleneck_width] == [
                int(number) for number in spelled.group(3, 4, 5)]


def test_grammar_builds_what_the_table_lacks():
    assert "resnest26_fast_4s2x40d" not in list_models()
    net = get_model("resnest26_fast_4s2x40d", classes=3)
    arch = variant("resnest26_fast_4s2x40d").arch
    assert (arch.depths, arch.radix, arch.cardinality, arch.pool) == ((2, 2, 2, 2), 4, 2, "before")
    assert net.prefix == "resnetv1f_"
    assert get_model("resnest101_2s1x64d").prefix == "resnest_"
    assert variant("resnest101_2s1x64d").arch == variant("resnest101").arch


def test_radix_zero_in_the_fast_family_is_resnet_d(tmp_path):
    theirs = pytest.importorskip("gluoncv.model_zoo").get_model("resnet50_v1d")
    theirs.initialize(init.Xavier())
    x = nd.random.normal(shape=(1, 3, 32, 64))
    expected = theirs(x).asnumpy()
    theirs.save_parameters(str(tmp_path / "d.params"))
    ours = get_model("resnest50_fast_0s1x64d")
    ours.load_parameters(str(tmp_path / "d.params"))
    np.testing.assert_allclose(ours(x).asnumpy(), expected, rtol=1e-4,
                               atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("name, backbone", [
    ("faster_rcnn_fpn_resnet50_coco", "resnet50_msra"), ("deeplab_resnet50_ade", "resnet50_v1s"),
    ("Mask_RCNN_fpn_resnest50_dcn_lvis", "resnest50"), ("simple_pose_resnet50", "resnet50"),
    ("panoptic_cascade_fpn_resnet101_coco", "resnet101_msra"), ("resnet50", "resnet50")])
def test_the_backbone_of_a_name_is_the_variant_that_is_built(name, backbone):
    assert zoo.backbone_name(name) == backbone


def test_the_same_network_is_more_than_the_same_parameters():
    assert zoo.is_same_network("resnest50", "resnest50_2s1x64d")
    assert zoo.is_same_network("resnet50d", "resnest50_fast_0s1x64d")      # another DropBlock
    for name, other in (("resnet50", "resnet50_msra"), ("resnest50", "resnest50_fast_2s1x64d"),
                        ("resnest14", "resnest14_2s1x64d")):
        assert not zoo.is_same_network(name, other)
        assert parameters(get_model(name)) == parameters(get_model(other))


def test_list_models_filters_and_hides_the_test_network():
    fast = list_models("resnest*fast*")
    assert len(fast) == 9 and all("fast" in name for name in fast)
    assert {"resnest50", "resnest101_fast_2s1x64d", "resnest32"} <= set(list_models())
    assert not list_models("*tiny*") and isinstance(get_model("resnest_tiny"), ResNeSt)


def test_weights_state_how_to_evaluate_them():
    published = {name: variant(name).weights for name in RESNESTS if variant(name).weights}
    assert len(published) == 13
    assert {name: published[name].crop_px for name in
            ("resnest50", "resnest101", "resnest200", "resnest269")} == {
                "resnest50": 224, "resnest101": 256, "resnest200": 320, "resnest269": 416}
    for weights in published.values():
        assert all(len(sha1) == 40 and int(sha1, 16) for sha1 in weights.sha1)
        assert 75 < weights.top1 < 85 and weights.protocol == "gluon" and weights.source


@pytest.mark.parametrize("options, shape", [
    ({"classes": 7, "in_channels": 1}, (1, 7)), ({"dilated": True}, (1, 1000))])
def test_options_reach_the_network(options, shape):
    net = get_model("ResNeSt_Tiny", **options)
    net.initialize()
    assert net(nd.zeros((1, options.get("in_channels", 3), 32, 32))).shape == shape
    assert net.feature_strides[-1] == (8 if "dilated" in options else 32)


def test_norm_layer_and_its_arguments_reach_every_layer():
    given = {"momentum": 0.5}
    net = get_model("resnest_tiny", norm_layer="frozen", norm_kwargs=given)
    assert given == {"momentum": 0.5}
    for name, param in net.collect_params().items():
        assert param.grad_req == ("null" if "batchnorm" in name else "write")


def test_features_only_returns_maps_without_a_classifier():
    net = get_model("resnest_tiny", features_only=True, out_indices=(2, 3))
    net.initialize()
    assert [feature.shape for feature in net(nd.zeros((1, 3, 32, 64)))] == [
        (1, 128, 2, 4), (1, 256, 1, 2)]
    assert not any("dense" in name for name in net.collect_params())


def test_gluoncv_answers_for_its_own_names():
    pytest.importorskip("gluoncv")
    net = get_model("cifar_resnet20_v1", classes=10)
    net.initialize()
    assert net(nd.zeros((1, 3, 32, 32))).shape == (1, 10)


@pytest.mark.parametrize("options", [{"features_only": True}, {"in_channels": 1},
                                     {"deform_stages": (4,)}])
def test_options_gluoncvs_networks_do_not_take_are_refused(options):
    pytest.importorskip("gluoncv")
    with pytest.raises(UserError, match=f"'cifar_resnet20_v1' is .*GluonCV.*{list(options)[0]}"):
        get_model("cifar_resnet20_v1", **options)


@pytest.mark.parametrize("name, message", [
    ("resnest51", "unknown model 'resnest51'.*did you mean 'resnest50'"),
    ("resnest17_2s1x64d", "depth must be one of 14, 26"),
    ("resnest50_2s0x64d", "cardinality and width at least 1"),
    ("resnest50_fast_3s1x64d", "radix 3 and cardinality 1 cannot divide 64 input"),
])
def test_names_that_are_none_say_so(name, message):
    with pytest.raises(UserError, match=message):
        get_model(name)


def test_unknown_names_are_refused_without_gluoncv(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gluoncv", None)
    with pytest.raises(UserError, match=r"unknown model 'cifar_resnet20_v1'.* "
                                        r"after `pip install 'gluon-resnest\[gluoncv\]'`"):
        get_model("cifar_resnet20_v1")
    with pytest.raises(UserError, match="did you mean 'mask_rcnn_fpn_resnest50_coco'"):
        get_model("mask_rcnn_fpn_resnest50_cocoa")


@pytest.mark.parametrize("option", ["classes", "in_channels"])
@pytest.mark.parametrize("value", [0, -1, 1 << 40, 2.5])
def test_sizes_that_no_array_has_are_refused(option, value):
    with pytest.raises(UserError, match=f"{option} must be a whole number from 1"):
        get_model("resnest_tiny", **{option: value})


def test_a_file_that_gluoncv_cannot_fetch_is_one_sentence(monkeypatch):
    from gluoncv import model_zoo

    def offline(name, **_):
        raise ConnectionError("no route")

    monkeypatch.setattr(model_zoo, "get_model", offline)
    with pytest.raises(UserError, match="GluonCV's 'alexnet' needs a file .*ConnectionError"):
        get_model("alexnet")


def test_gluoncv_gets_the_options_that_are_given_and_no_others(monkeypatch):
    from gluoncv import model_zoo
    monkeypatch.setattr(model_zoo, "get_model", lambda name, **options: (name, options))
    name = "faster_rcnn_fpn_syncbn_resnest50_coco"
    for options in ({}, {"pretrained_base": False, "num_devices": 2},
                    {"use_global_stats": True, "ctx": "cpu"}):
        assert get_model(name, **options) == (name, options)


def test_options_that_gluoncv_refuses_are_one_sentence():
    with pytest.raises(UserError, match="GluonCV's 'alexnet' does not take .* 'num_devices'"):
        get_model("alexnet", num_devices=2)


@pytest.mark.parametrize("name", ["resnest_tiny", "deeplab_resnest_tiny_ade"])
def test_contradicting_strides_are_refused(name):
    with pytest.raises(UserError, match="dilated=True means output_stride=8, got output_stride=16"):
        get_model(name, dilated=True, output_stride=16)


KINDS = {"classifier": "resnest_tiny", "segmentation network": "deeplab_resnest_tiny_ade",
         "pose network": "simple_pose_resnest_tiny", "detector": "mask_rcnn_fpn_resnest_tiny_coco",
         "panoptic network": "panoptic_fpn_resnest_tiny_coco"}
GIVEN = {"classes": 7, "norm_layer": "frozen", "norm_kwargs": {"momentum": 0.5}, "dilated": True,
         "last_gamma": True, "in_channels": 4, "output_stride": 16, "dropblock": 0.25,
         "final_drop": 0.25, "features_only": True, "out_indices": (3,), "aux": False,
         "deform_stages": (4,), "use_global_stats": True, "pretrained_base": False}


def anatomy(block):
    """Describes a network: settings and parameters of every block inside, names left out."""
    settings = {key: str(value) for key, value in vars(block).items()
                if isinstance(value, (bool, int, float, tuple, dict)) and key != "_children"
                and not key.startswith(("_reg_", "_forward", "_cached"))}
    params = [(param.shape, param.grad_req, json.dumps(
        param.init, default=lambda each: each.dumps())) for param in block._reg_params.values()]
    return type(block).__name__, settings, params, [
        anatomy(child) for child in block._children.values()]


@pytest.mark.parametrize("option", GIVEN)
@pytest.mark.parametrize("kind", KINDS)
def test_every_option_changes_the_network_or_is_refused(kind, option):
    given = {option: GIVEN[option]}
    if (kind, option) == ("panoptic network", "classes"):
        given = {"classes": (7, 2)}
    if (kind, option) == ("classifier", "out_indices"):
        given["features_only"] = True
    same = option == "pretrained_base" or (kind, option) == ("segmentation network", "dilated")
    if same and option in zoo.OPTIONS[kind]:
        assert anatomy(get_model(KINDS[kind], **given)) == anatomy(get_model(KINDS[kind]))
    elif option in zoo.OPTIONS[kind]:
        assert anatomy(get_model(KINDS[kind], **given)) != anatomy(get_model(KINDS[kind]))
    else:
        with pytest.raises(UserError, match=f"is a {kind}, which has no {option}; leave"):
            get_model(KINDS[kind], **given)


def test_anatomies_of_equal_networks_are_equal():
    for name in KINDS.values():
        assert anatomy(get_model(name)) == anatomy(get_model(name))


def test_the_table_of_options_knows_those_of_get_model_and_no_others():
    own = {"name", "pretrained", "root", "ctx", "others"}
    assert {option for options in zoo.OPTIONS.values() for option in options} == set(GIVEN)
    assert set(GIVEN) == set(inspect.signature(get_model).parameters) - own
    assert set(zoo.OPTIONS) == {*KINDS, "network of GluonCV's"}


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_no_network_has_are_refused_with_those_it_has(kind):
    with pytest.raises(UserError, match=f"is a {kind}, which has no use_global_stat; leave .* "
                                        "norm_layer, .*did you mean 'use_global_stats'"):
        get_model(KINDS[kind], use_global_stat=True)


@pytest.mark.parametrize("norm", [None, "frozen"])
def test_global_statistics_are_those_of_every_norm(norm):
    net = get_model("resnest_tiny", norm_layer=norm, use_global_stats=True)
    norms = []
    net.apply(lambda block: norms.append(block) if isinstance(block, nn.BatchNorm) else None)
    assert norms and all(layer._kwargs["use_global_stats"] for layer in norms)
    assert {layer.gamma.grad_req for layer in norms} == {"null" if norm else "write"}


def test_weights_of_a_backbone_are_not_loaded_by_the_way():
    with pytest.raises(UserError, match="gives a backbone no weights.* zoo.load_backbone_weights"):
        get_model(KINDS["detector"], pretrained_base=True)


def test_maps_without_features_only_are_refused():
    with pytest.raises(UserError, match="maps of features_only=True, got .3,. without it"):
        get_model("resnest_tiny", out_indices=(3,))


@pytest.mark.parametrize("option", ["out_indices", "deform_stages"])
def test_one_number_for_several_is_refused(option):
    with pytest.raises(UserError, match=rf"{option} must be a tuple of numbers, got 3; give .3,."):
        get_model("resnest_tiny", **{option: 3})


def test_a_detector_takes_names_of_classes_as_its_page_says():
    assert get_model(KINDS["detector"], classes=("cat", "dog")).classes == ("cat", "dog")
    for classes in ((), "cat", ("cat", 1), 0):
        with pytest.raises(UserError, match="classes must be a whole number"):
            get_model(KINDS["detector"], classes=classes)


@pytest.mark.parametrize("output_stride", [0, 4, 12])
def test_other_output_strides_are_refused(output_stride):
    with pytest.raises(UserError, match="output_stride must be 8, 16 or 32"):
        get_model("resnest_tiny", output_stride=output_stride)


def test_pretrained_loads_the_published_file(tmp_path, monkeypatch):
    import hashlib
    from dataclasses import replace
    net = get_model("resnest_tiny")
    net.initialize()
    net.save_parameters(str(tmp_path / "w.params"))
    sha1 = hashlib.sha1((tmp_path / "w.params").read_bytes()).hexdigest()
    (tmp_path / "w.params").rename(tmp_path / f"resnest_tiny-{sha1[:8]}.params")
    weights = zoo.Weights((sha1,), 224, 80.0, None, "test")
    entry = replace(zoo.variant("resnest_tiny"), weights=weights)
    monkeypatch.setitem(zoo.HIDDEN, "resnest_tiny", entry)
    for pretrained in (True, sha1[:8]):
        loaded = get_model("resnest_tiny", pretrained=pretrained, root=str(tmp_path))
        assert_same_values(loaded, net)
    loaded = get_model("resnest_tiny")
    zoo.load_weights(loaded, "ResNeSt_Tiny", "published", root=tmp_path)
    assert_same_values(loaded, net)
    loaded = get_model("resnest_tiny")
    zoo.load_backbone_weights(loaded, "ResNeSt_Tiny", root=tmp_path)
    assert_same_values(loaded, net)


def assert_same_values(net, other):
    for mine, theirs in zip(net.collect_params().values(), other.collect_params().values()):
        assert (mine.data() == theirs.data()).min().asscalar() == 1


def test_pretrained_without_published_weights_says_so():
    with pytest.raises(UserError, match="no weights were ever published for 'resnest_tiny'"):
        get_model("resnest_tiny", pretrained=True)
