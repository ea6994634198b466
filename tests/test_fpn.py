import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from mxnet.gluon import nn

from gluon_resnest.errors import UserError
from gluon_resnest.models.detection.build import rcnn
from gluon_resnest.models.detection.fpn import FPN, FeaturePyramid
from gluon_resnest.models.norm import norm_layer
from gluon_resnest.zoo import get_model

CHANNELS, STRIDES = (3, 4, 5, 6), (4, 8, 16, 32)
SIZES = [(13, 18), (7, 9), (4, 5), (2, 3)]


def maps():
    return [nd.random.normal(shape=(2, c) + size) for c, size in zip(CHANNELS, SIZES)]


def built(**options):
    fpn = FPN(CHANNELS, STRIDES, channels=8, **options)
    fpn.initialize(mx.init.Xavier())
    return fpn


def test_the_pyramid_equals_the_slow_twin(hybridize):
    fpn, c = built(), maps()
    if hybridize:
        fpn.hybridize()
    laterals = [block(x).asnumpy() for block, x in zip(fpn.laterals, c)]
    for level in (2, 1, 0):
        finer, coarser = laterals[level], laterals[level + 1]
        for row, column in np.ndindex(*finer.shape[2:]):
            finer[:, :, row, column] += coarser[:, :, row // 2, column // 2]
    expected = [block(nd.array(x)).asnumpy() for block, x in zip(fpn.outputs, laterals)]
    expected.append(expected[-1][:, :, ::2, ::2])
    for found, wanted in zip(fpn(*c), expected):
        np.testing.assert_allclose(found.asnumpy(), wanted, atol=1e-5)


def test_p6_may_stride_on_the_lateral_of_p5():
    fpn, c = built(p6="conv"), maps()
    np.testing.assert_allclose(fpn(*c)[-1].asnumpy(),
                               fpn.p6(fpn.laterals[3](c[3])).asnumpy(), atol=1e-6)
    assert fpn(*c)[-1].shape == (2, 8, 1, 2)


def test_norms_take_the_place_of_biases():
    names = set(built(norm=norm_layer("batch"))._collect_params_with_prefix())
    assert not any(name.endswith("bias") for name in names)
    assert "outputs.3.norm.gamma" in names
    names = set(built()._collect_params_with_prefix())
    assert "laterals.0.conv.bias" in names and not any("norm" in name for name in names)


@pytest.mark.parametrize("name, strides", [("resnest_tiny", (4, 8, 16, 32, 64)),
                                           ("cifar_resnest14", (2, 4, 8, 16, 32))])
@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_strides_say_how_large_the_maps_are(name, strides, size):
    backbone = get_model(name, features_only=True, dropblock=0.0)
    pyramid = FeaturePyramid(
        backbone, FPN(backbone.feature_channels, backbone.feature_strides, channels=4))
    pyramid.initialize()
    assert pyramid.strides == strides
    for found, stride in zip(pyramid(nd.zeros((1, 3) + size)), pyramid.strides):
        assert found.shape[1:] == (4, -(-size[0] // stride), -(-size[1] // stride))


def test_maps_that_do_not_halve_are_refused():
    backbone = get_model("resnest_tiny", features_only=True, output_stride=8)
    with pytest.raises(UserError, match=r"got strides \(4, 8, 8, 8\); build the backbone without"):
        rcnn("faster_rcnn", backbone)


def test_weights_begin_as_caffe2_fills_them():
    fpn = FPN((400,) * 4, STRIDES, channels=300)
    fpn.initialize()
    weight = fpn.laterals[0].conv.weight.data().asnumpy()
    assert np.abs(weight).max() == pytest.approx((3 / 400) ** 0.5, rel=1e-3)
    assert isinstance(fpn.laterals[0].conv, nn.Conv2D)
