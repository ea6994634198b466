"""Segmentation networks: sizes, shared parameters, GluonCV's files, export, gradients."""
import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon, nd

from gluon_resnest import get_model, list_models
from gluon_resnest.errors import UserError
from gluon_resnest.interop import gluoncv as bridge
from gluon_resnest.interop.weights import load_parameters, read_params, save_parameters
from gluon_resnest.models.deeplab import resize_like
from gluon_resnest.models.segmentation import HEADS, Segmenter, initialize, parse_name, segmenter
from gluon_resnest.zoo import SEGMENTERS, load_backbone_weights, segmentation_model

ALL = [f"{head}_resnest_tiny" for head in HEADS]


def images(*shape):
    return nd.array(np.random.RandomState(0).standard_normal(shape))


def tiny(name="deeplab_resnest_tiny", classes=5, **options):
    net = get_model(name, classes=classes, **options)
    initialize(net)
    return net


def count(net):
    return sum(int(np.prod(param.shape)) for param in net.collect_params().values()
               if param.grad_req != "null")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [(40, 56), (33, 65)])
def test_logits_have_the_size_of_the_image(name, size, hybridize):
    net = tiny(name)
    if hybridize:
        net.hybridize()
    logits, auxiliary = net(images(2, 3, *size))
    assert logits.shape == auxiliary.shape == (2, 5, *size)
    assert tiny(name, aux=False)(images(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("name", ALL)
def test_hybridized_equals_imperative_after_other_sizes(name):
    net = tiny(name)
    sizes = [(1, 3, 40, 48), (2, 3, 33, 65), (1, 3, 40, 48)]
    expected = [net(images(*size))[0].asnumpy() for size in sizes]
    net.hybridize()
    for size, logits in zip(sizes, expected):
        np.testing.assert_allclose(net(images(*size))[0].asnumpy(), logits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_trains_after_predicting_at_another_size(name, hybridize):
    net = tiny(name)
    if hybridize:
        net.hybridize()
    net.predict(images(1, 3, 64, 48))
    with autograd.record():
        logits, auxiliary = net(images(2, 3, 40, 40))
        loss = (logits * logits).mean() + (auxiliary * auxiliary).mean()
    loss.backward()
    assert logits.shape == (2, 5, 40, 40)
    for param in net.collect_params().values():
        if param.grad_req != "null":
            gradient = param.grad().asnumpy()
            assert np.isfinite(gradient).all(), param.name
    assert abs(net.conv1[0].weight.grad()).sum().asscalar() > 0


def test_without_auxiliary_shares_the_parameters():
    net = tiny()
    main = net.without_auxiliary()
    main.hybridize()
    x = images(1, 3, 40, 48)
    np.testing.assert_allclose(main(x).asnumpy(), net(x)[0].asnumpy(), rtol=1e-4, atol=1e-6)
    net.head.block[-1].bias.set_data(nd.arange(5))
    np.testing.assert_allclose(main(x).asnumpy(), net(x)[0].asnumpy(), rtol=1e-4, atol=1e-6)
    names = set(net._collect_params_with_prefix())
    assert set(main._collect_params_with_prefix()) == {
        name for name in names if not name.startswith("auxlayer.")}


def test_pooled_branch_of_aspp_sees_the_whole_image():
    net = tiny("deeplab_resnest_tiny", aux=False)
    x = images(1, 3, 64, 64)
    changed = x.copy()
    changed[:, :, -8:, -8:] += 10
    difference = abs(net(changed) - net(x)).asnumpy()
    assert difference[:, :, :8, :8].min(axis=1).max() > 0


@pytest.mark.parametrize("like", [(2, 1, 9, 13), (2, 3, 4, 6), (2, 3, 1, 1)])
def test_resizing_keeps_the_corners_and_gives_no_gradient_to_the_model_size(like):
    x, other = images(2, 3, 4, 6), nd.full(like, 7.0)
    other.attach_grad()
    x.attach_grad()
    with autograd.record():
        y = resize_like(nd, x, other)
        y.sum().backward()
    assert y.shape[2:] == like[2:]
    assert abs(other.grad).sum().asscalar() == 0
    assert x.grad.sum().asscalar() == pytest.approx(y.size, rel=1e-5)
    if like[2] > 1:
        np.testing.assert_allclose(y[:, :, ::like[2] - 1, ::like[3] - 1].asnumpy(),
                                   x[:, :, ::3, ::5].asnumpy(), rtol=1e-5)


@pytest.mark.parametrize("stride", [8, 16])
def test_backbone_has_the_stride(stride):
    net = tiny(output_stride=stride)
    assert net.features(images(1, 3, 64, 80))[3].shape[2:] == (64 // stride, 80 // stride)
    rates = [net.head.aspp.concurent[number][0]._kwargs["dilate"] for number in (1, 2, 3)]
    assert rates == [(rate * 8 // stride,) * 2 for rate in (12, 24, 36)]


@pytest.mark.parametrize("name, aux, millions", [
    ("deeplab_resnest50_ade", True, 44.00), ("deeplab_resnest50_ade", False, 41.60),
    ("deeplab_resnest101_ade", True, 64.79), ("deeplab_resnest101_ade", False, 62.39),
    ("deeplab_resnet50_ade", True, 42.2)])
def test_parameter_counts_are_those_of_table_1(name, aux, millions):
    """ResNeSt: original_code; ResNet: the paper's table 1, one digit."""
    digits = 0.05 if millions == 42.2 else 0.005
    assert count(get_model(name, aux=aux)) / 1e6 == pytest.approx(millions, abs=digits)


@pytest.mark.parametrize("name, parts", [
    ("deeplab_resnest50_ade", ("deeplab", "resnest50", "ade")),
    ("deeplabplus_resnest200_citys", ("deeplabplus", "resnest200", "citys")),
    ("FCN_ResNeSt_tiny_voc", ("fcn", "resnest_tiny", "voc")),
    ("fcn_resnest50_fast_2s1x64d", ("fcn", "resnest50_fast_2s1x64d", None)),
    ("psp_resnet50_pcontext", ("psp", "resnet50_v1s", "pcontext"))])
def test_names_are_spelled(name, parts):
    assert tuple(parse_name(name)) == parts


def test_names_of_other_networks_are_not():
    assert parse_name("resnest50") is None and parse_name("deeplab") is None


def test_table_is_listed_and_every_name_is_spelled():
    assert set(SEGMENTERS) <= set(list_models())
    assert all(parse_name(name).classes for name in SEGMENTERS)


def test_data_set_in_the_name_says_how_many_classes():
    assert get_model("deeplab_resnest_tiny_citys").head.block[-1].weight.shape[0] == 19
    assert get_model("deeplab_resnest_tiny_citys", classes=7).head.block[-1].weight.shape[0] == 7


@pytest.mark.parametrize("head", sorted(HEADS))
def test_a_head_may_be_narrow_and_without_dropout(head):
    def block(**options):
        return segmentation_model(f"{head}_resnest_tiny", 5, **options).head
    names = list(block()._collect_params_with_prefix())
    narrow = block(head_channels=24, head_dropout=False)
    assert list(narrow._collect_params_with_prefix()) == names
    assert narrow.block[-1].weight.shape == (5, 24, 1, 1)
    narrow.initialize()
    shapes = [(2, channels, 6, 4) for channels in get_model("resnest_tiny").feature_channels]
    maps = [mx.nd.random.normal(shape=shapes[level]) for level in narrow.levels]
    with autograd.train_mode():
        np.testing.assert_array_equal(narrow(*maps).asnumpy(), narrow(*maps).asnumpy())


@pytest.mark.parametrize("call, message", [
    (lambda: segmentation_model("resnest_tiny", 5), "no segmentation network"),
    (lambda: get_model("deeplab_resnest_tiny_ade", output_stride=32), "8 or 16, got 32"),
    (lambda: get_model("fcn_cifar_resnest14"), "last map has the stride 8 or 16, got 4; give an"),
    (lambda: get_model("deeplab_resnest_tiny_ade", last_gamma=True), "last_gamma"),
    (lambda: segmenter(get_model("resnest_tiny", dilated=True), 5, head="deeplap"), "'deeplab'"),
    (lambda: segmenter(get_model("resnest_tiny"), 5), "8 or 16, got 32"),
    (lambda: get_model("deeplab_resnest51_ade"), "deeplab_resnest51_ade")])
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_backbone_weights_arrive_tensor_by_tensor(tmp_path):
    classifier = get_model("resnest_tiny", classes=11)
    classifier.initialize(mx.init.Normal(0.3))
    save_parameters(classifier, tmp_path / "classifier.params")
    saved = read_params(tmp_path / "classifier.params")
    net = tiny()
    heads = {name: param.data().asnumpy() for name, param in
             net._collect_params_with_prefix().items() if name.startswith(("head", "auxlayer"))}
    load_backbone_weights(net.stages(), str(tmp_path / "classifier.params"))
    now = {name: param.data().asnumpy() for name, param in
           net._collect_params_with_prefix().items()}
    assert set(now) == set(heads) | {name for name in saved if not name.startswith("fc.")}
    for name, value in now.items():
        np.testing.assert_array_equal(value, heads[name] if name in heads else saved[name])


def test_export_holds_no_size(tmp_path):
    net = tiny().without_auxiliary()
    net.hybridize()
    net(images(1, 3, 40, 40))
    net.export(str(tmp_path / "net"))
    again = gluon.SymbolBlock.imports(str(tmp_path / "net-symbol.json"), ["data"],
                                      str(tmp_path / "net-0000.params"))
    for size in [(1, 3, 40, 40), (2, 3, 56, 33)]:
        np.testing.assert_allclose(again(images(*size)).asnumpy(), net(images(*size)).asnumpy(),
                                   rtol=1e-4, atol=1e-6)


# GluonCV's own networks ---------------------------------------------------------------------------

def theirs(kind, backbone):
    pytest.importorskip("gluoncv")
    from gluoncv.model_zoo import deeplabv3, fcn, pspnet
    build = {"deeplab": deeplabv3.get_deeplab, "fcn": fcn.get_fcn, "psp": pspnet.get_psp}[kind]
    net = build("ade20k", backbone, pretrained_base=False, crop_size=48)
    net.initialize()
    return net


def fill(net):
    """Gives every parameter random values that keep activations near one."""
    rng = np.random.RandomState(1)
    for name, param in net._collect_params_with_prefix().items():
        if name.endswith(("gamma", "var")):
            value = rng.uniform(0.5, 1.5, param.shape)
        else:
            value = rng.normal(0, 0.7 / np.sqrt(max(1, np.prod(param.shape[1:]))), param.shape)
        param.set_data(nd.array(value))


@pytest.mark.filterwarnings("ignore:Parameter .* is already initialized")
@pytest.mark.parametrize("kind, backbone", [("deeplab", "resnest50"), ("deeplab", "resnet50"),
                                            ("fcn", "resnest50"), ("psp", "resnest50")])
def test_gluoncvs_files_load_and_give_equal_outputs(kind, backbone, tmp_path):
    other = theirs(kind, backbone)
    x = images(2, 3, 48, 48)
    other(x)
    fill(other)
    other.save_parameters(str(tmp_path / "theirs.params"))
    net = get_model(f"{kind}_{backbone}_ade")
    load_parameters(net, tmp_path / "theirs.params")
    save_parameters(net, tmp_path / "ours.params")
    saved, again = (read_params(tmp_path / f"{whose}.params") for whose in ("theirs", "ours"))
    assert set(saved) == set(again)
    for ours, expected in zip(net(x), other(x)):
        expected = expected.asnumpy()
        assert abs(expected).max() > 0.1
        np.testing.assert_allclose(ours.asnumpy(), expected, rtol=1e-4,
                                   atol=1e-5 * abs(expected).max())


@pytest.mark.filterwarnings("ignore:Parameter .* is already initialized")
@pytest.mark.parametrize("depth", [101, 200, 269])
def test_deeper_files_have_the_same_keys_and_shapes(depth):
    other = theirs("deeplab", f"resnest{depth}")._collect_params_with_prefix()
    net = get_model(f"deeplab_resnest{depth}_ade")._collect_params_with_prefix()
    assert {name: param.shape for name, param in net.items()} == {
        name: param.shape for name, param in other.items()}


def test_gluoncvs_zoo_finds_them_after_registration():
    gluoncv = pytest.importorskip("gluoncv")
    bridge.register(overwrite=True)
    try:
        net = gluoncv.model_zoo.get_model("deeplab_resnest50_ade", crop_size=480, aux=False)
        citys = gluoncv.model_zoo.get_model("deeplab_resnest50_citys", pretrained=False)
    finally:
        bridge.unregister()
    assert type(net) is Segmenter and net.auxlayer is None
    assert citys.head.block[-1].weight.shape[0] == 19
