import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from gluon_resnest.errors import UserError
from gluon_resnest.models.deform import DeformableConv2D, set_deformable_form

# strides, dilation, groups, deformable groups
GEOMETRIES = [(1, 1, 1, 1), (2, 1, 2, 1), (1, 2, 4, 2), (2, 2, 2, 4)]


def layer_and_input(strides=1, dilation=1, groups=1, deformable_groups=1, *, moved=True):
    layer = DeformableConv2D(8, 3, strides, dilation, dilation, groups, in_channels=4,
                             deformable_groups=deformable_groups)
    layer.initialize(mx.init.Normal(0.5))
    if moved:
        layer.offset.weight.set_data(nd.random.normal(0, 0.4, shape=layer.offset.weight.shape))
        layer.offset.bias.set_data(nd.random.normal(0, 1, shape=layer.offset.bias.shape))
    return layer, nd.random.normal(shape=(2, 4, 6, 7))


def slow_dcn(x, offset, mask, weight, strides, dilation, groups, deformable_groups):
    """Zhu et al. 2019, eq. 1, one sample at a time, zeros around the input."""
    n, c, h, w = x.shape
    channels = len(weight)
    out = np.zeros((n, channels) + offset.shape[2:])

    def at(image, channel, y, x_):
        y0, x0 = int(np.floor(y)), int(np.floor(x_))
        value = 0.0
        for yy, xx in ((y0, x0), (y0, x0 + 1), (y0 + 1, x0), (y0 + 1, x0 + 1)):
            if 0 <= yy < h and 0 <= xx < w:
                value += (1 - abs(y - yy)) * (1 - abs(x_ - xx)) * x[image, channel, yy, xx]
        return value

    for i, o, py, px in np.ndindex(*out.shape):
        group = o // (channels // groups)
        for j in range(c // groups):
            channel = group * (c // groups) + j
            g = channel // (c // deformable_groups)
            for k in range(9):
                dy, dx = offset[i, 18 * g + 2 * k:18 * g + 2 * k + 2, py, px]
                out[i, o, py, px] += weight[o, j, k // 3, k % 3] * mask[i, 9 * g + k, py, px] * at(
                    i, channel, py * strides + (k // 3 - 1) * dilation + dy,
                    px * strides + (k % 3 - 1) * dilation + dx)
    return out


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("form", ["fused", "composed"])
def test_both_forms_equal_the_slow_twin(geometry, form, hybridize):
    layer, x = layer_and_input(*geometry)
    layer.set_form(form)
    if hybridize:
        layer.hybridize()
    said = layer.offset(x).asnumpy()
    split = 18 * geometry[3]
    expected = slow_dcn(x.asnumpy(), said[:, :split], 1 / (1 + np.exp(-said[:, split:])),
                        layer.weight.data().asnumpy(), *geometry)
    np.testing.assert_allclose(layer(x).asnumpy(), expected, atol=2e-5)


@pytest.mark.parametrize("form", ["fused", "composed"])
def test_a_fresh_layer_is_half_the_plain_convolution(form):
    layer, x = layer_and_input(2, 1, 2, 2, moved=False)
    layer.set_form(form)
    plain = nn.Conv2D(8, 3, 2, 1, groups=2, use_bias=False, in_channels=4)
    plain.initialize()
    plain.weight.set_data(layer.weight.data())
    np.testing.assert_allclose(layer(x).asnumpy(), plain(x).asnumpy() / 2, atol=1e-6)


def test_behind_a_norm_a_fresh_layer_is_the_plain_convolution():
    layer, x = layer_and_input(moved=False)
    plain = nn.Conv2D(8, 3, 1, 1, use_bias=False, in_channels=4)
    plain.initialize()
    plain.weight.set_data(layer.weight.data())
    norm = nn.BatchNorm(in_channels=8, epsilon=1e-12)
    norm.initialize()
    with autograd.train_mode():
        np.testing.assert_allclose(norm(layer(x)).asnumpy(), norm(plain(x)).asnumpy(), atol=1e-4)


def test_gradients_of_the_composed_form_are_those_of_the_slow_twin():
    layer, x = layer_and_input(1, 1, 2, 2)
    layer.set_form("composed")
    x.attach_grad()
    head = nd.random.normal(shape=layer(x).shape)
    with autograd.record():
        loss = (layer(x) * head).sum()
    loss.backward()
    watched = {"x": (x, x.grad), "weight": (layer.weight.data(), layer.weight.grad()),
               "offset": (layer.offset.weight.data(), layer.offset.weight.grad())}
    for name, (value, gradient) in watched.items():
        start = value.asnumpy()
        direction = np.random.randn(*start.shape).astype(np.float32)
        step, ends = 1e-4, []     # hardly a sample crosses a pixel
        for sign in (1, -1):
            value[:] = nd.array(start + sign * step * direction)
            said = layer.offset(x).asnumpy().astype(np.float64)
            ends.append((slow_dcn(x.asnumpy(), said[:, :36], 1 / (1 + np.exp(-said[:, 36:])),
                                  layer.weight.data().asnumpy(), 1, 1, 2, 2)
                         * head.asnumpy()).sum())
        value[:] = nd.array(start)
        expected = (ends[0] - ends[1]) / (2 * step)
        found = (gradient.asnumpy() * direction).sum()
        assert found == pytest.approx(expected, rel=2e-2, abs=2e-2), name


def test_forms_of_a_net_are_set_together():
    net = nn.HybridSequential()
    layer, x = layer_and_input()
    net.add(layer)
    net.hybridize()
    fused = net(x).asnumpy()
    set_deformable_form(net, "composed")
    x.attach_grad()
    with autograd.record():     # the fused form has no gradient on a CPU
        composed = net(x)
    composed.backward()
    np.testing.assert_allclose(composed.asnumpy(), fused, atol=1e-5)
    assert np.abs(x.grad.asnumpy()).sum() > 0


@pytest.mark.parametrize("make, message", [
    (lambda: DeformableConv2D(8, 1, in_channels=4), "3x3 kernel"),
    (lambda: DeformableConv2D(8, in_channels=4, deformable_groups=3), "into 1 groups and 3"),
    (lambda: DeformableConv2D(8, in_channels=4).set_form("fast"), "must be one of fused")])
def test_what_it_cannot_do_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_cast_layer_computes_in_its_type_in_both_forms():
    layer, x = layer_and_input()
    expected = layer(x).asnumpy()
    layer.cast("float64")
    layer.set_form("composed")
    found = layer(x.astype("float64"))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.asnumpy(), expected, atol=1e-4)
