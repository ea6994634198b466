"""Windows, scales and mirror images add up to one answer; mIoU."""
import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from mxnet.gluon import nn

from gluon_resnest.errors import UserError
from gluon_resnest.metrics import ConfusionMatrix, intersection_over_union, pixel_accuracy
from gluon_resnest.models.whole_image import WholeImage, window_starts


class Positionwise(nn.HybridBlock):
    """Logits of a pixel from that pixel alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(4, 1, in_channels=3)
        self.initialize(mx.init.Normal(2))

    def hybrid_forward(self, F, x):
        return self.conv(F.tanh(x))


class Blurring(nn.HybridBlock):
    """Logits that depend on the neighbourhood."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(4, 5, padding=2, in_channels=3)
        self.initialize(mx.init.Normal(1))

    def hybrid_forward(self, F, x):
        return self.conv(x)


def picture(height, width):
    return np.random.RandomState(height).standard_normal((3, height, width)).astype(np.float32)


@pytest.mark.parametrize("size", [(20, 33), (47, 16), (16, 16), (9, 50), (7, 9)])
@pytest.mark.parametrize("rule", ["exp", "softmax"])
@pytest.mark.parametrize("flip", [False, True])
def test_windows_of_a_positionwise_network_equal_its_direct_answer(size, rule, flip):
    net, image = Positionwise(), picture(*size)
    direct = net(nd.array(image[None]))
    expected = (nd.softmax(direct, axis=1) if rule == "softmax" else
                nd.exp(direct * 2 if flip else direct)).asnumpy()
    whole = WholeImage(net, window_px=16, flip=flip, rule=rule, batch=3)
    np.testing.assert_allclose(whole.scores(image)[0].values.asnumpy(), expected, rtol=1e-4)
    np.testing.assert_array_equal(whole.labels(image), direct.asnumpy()[0].argmax(axis=0))


def test_several_scales_with_scale_one_alone_is_single_scale():
    net, image = Blurring(), picture(20, 30)
    several = WholeImage(net, window_px=32, base_px=30, scales=(1.0,), flip=False)
    padded = np.zeros((1, 3, 32, 32), np.float32)
    padded[0, :, :20, :30] = image
    direct = nd.softmax(net(nd.array(padded)), axis=1)[:, :, :20, :30]
    np.testing.assert_allclose(several.scores(image)[0].values.asnumpy(), direct.asnumpy(),
                               rtol=1e-5)


def test_scales_add_up_by_the_published_rule():
    """Twin: each scale resized, exponential of the logits and the mirrored ones, resized back."""
    net, image = Blurring(), picture(20, 32)
    net.conv.weight.set_data(net.conv.weight.data() / 5)
    whole = WholeImage(net, window_px=64, base_px=40, scales=(0.5, 1.5), flip=True, rule="exp",
                       padding=(1.0, 2.0, 3.0))
    total = 0
    for longer, shorter in ((20, 13), (60, 38)):
        resized = nd.contrib.BilinearResize2D(nd.array(image[None]), height=shorter, width=longer)
        canvas = np.ones((1, 3, 64, 64), np.float32) * np.reshape([1, 2, 3], (1, 3, 1, 1))
        canvas[:, :, :shorter, :longer] = resized.asnumpy()
        logits = net(nd.array(canvas)).asnumpy()
        mirrored = net(nd.array(canvas[..., ::-1].copy())).asnumpy()[..., ::-1]
        scores = nd.array(np.exp(logits + mirrored)[:, :, :shorter, :longer])
        total = total + nd.contrib.BilinearResize2D(scores, height=20, width=32).asnumpy()
    np.testing.assert_array_equal(whole.labels(image), total[0].argmax(axis=0))


def test_labels_do_not_depend_on_how_many_classes_are_resized_at_a_time(monkeypatch):
    net, image = Blurring(), picture(20, 30)
    whole = WholeImage(net, window_px=16, base_px=40, scales=(0.5, 1.0), flip=True)
    expected = whole.labels(image)
    monkeypatch.setattr("gluon_resnest.models.whole_image._MAX_SCORES", 20 * 30 * 2)
    np.testing.assert_array_equal(whole.labels(image), expected)
    assert len(set(expected.ravel())) > 1


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("rule", ["exp", "softmax"])
def test_wide_scores_are_the_scores(flip, rule):
    whole = WholeImage(Blurring(), window_px=16, base_px=40, scales=(0.3, 0.5, 1.0, 1.4),
                       flip=flip, rule=rule)
    image = picture(20, 33)
    plain, wide = whole.scores(image), whole.scores(image, wide=True)
    for scores, (values, logs) in zip(plain, wide):
        assert scores.logs is None and values.max().asscalar() <= 1 + 1e-6
        np.testing.assert_allclose(values.asnumpy() * np.exp(logs.asnumpy()),
                                   scores.values.asnumpy(), rtol=1e-4)
    (few, labels), (_, expected) = whole._best(wide, 20, 33), whole._best(plain, 20, 33)
    np.testing.assert_array_equal(labels, expected)
    assert few.min() > 1e-30


def in_long_floats(net, image, window_px, scales):
    """Twin of `labels` for networks that see a pixel alone: no windows, the rule as it is said."""
    height, width = image.shape[1:]
    total = 0
    for scale in scales:
        longer = int(np.ceil(max(height, width) * scale))
        size = [int(side * longer / max(height, width) + 0.5) for side in (height, width)]
        resized = nd.contrib.BilinearResize2D(nd.array(image[None]), height=size[0],
                                              width=size[1]).asnumpy()
        canvas = np.zeros((1, 3, *(max(side, window_px) for side in size)), np.float32)
        canvas[:, :, :size[0], :size[1]] = resized
        z = net(nd.array(canvas)) + net(nd.array(canvas[..., ::-1].copy())).flip(axis=3)
        scores = np.exp(z.asnumpy()[:, :, :size[0], :size[1]].astype(np.longdouble))
        for axis, side in ((2, height), (3, width)):
            step = np.float32((scores.shape[axis] - 1) / (side - 1))
            places = np.arange(side, dtype=np.float32) * step
            first = np.minimum(places.astype(int), scores.shape[axis] - 2)
            share = (places - first).reshape([-1 if each == axis else 1 for each in range(4)])
            scores = (1 - share) * scores.take(first, axis) + share * scores.take(first + 1, axis)
        total = total + scores
    return total[0].argmax(axis=0)


@pytest.mark.parametrize("offset", [0, 300, -300, 1000])
def test_logits_of_any_size_are_added_up_as_exactly_as_small_ones(offset):
    """80-bit floats hold exp(11000): the twin adds up what float32 holds up to exp(88) only."""
    net = Positionwise()
    net.conv.weight.set_data(net.conv.weight.data() * 30)
    net.conv.bias.set_data(net.conv.bias.data() + offset)
    image = picture(20, 33)
    whole = WholeImage(net, window_px=16, scales=(0.7, 1.0, 1.3), flip=True, rule="exp")
    labels, expected = whole.labels(image), in_long_floats(net, image, 16, (0.7, 1.0, 1.3))
    assert len(set(expected.ravel())) > 1
    assert (labels != expected).mean() <= 2 / labels.size       # ties within rounding


@pytest.mark.parametrize("rule", ["exp", "softmax"])
@pytest.mark.parametrize("logits", [(45, 60), (-60, -45), (1e4, 2e4), (-2e4, -1e4)])
def test_the_larger_of_large_logits_wins(rule, logits):
    whole = WholeImage(constant(logits), window_px=16, flip=True, rule=rule)
    assert (whole.labels(picture(20, 33)) == 1).all()


def constant(logits):
    """Returns a network that gives every pixel the same logits."""
    def net(x):
        row = nd.array(logits).reshape((1, -1, 1, 1))
        return nd.broadcast_to(row, (len(x), len(logits), *x.shape[2:]))
    return net


@pytest.mark.parametrize("size", [(16, 16), (20, 33)])
@pytest.mark.parametrize("rule", ["exp", "softmax"])
@pytest.mark.parametrize("logits", [(np.nan, 1), (1, np.nan), (np.inf, 1), (-np.inf, -np.inf)])
def test_logits_that_are_not_finite_are_refused(size, rule, logits):
    whole = WholeImage(constant(logits), window_px=16, flip=True, rule=rule, name="x")
    with pytest.raises(UserError, match="the network x gives NaN or infinity for this image"):
        whole.labels(picture(*size))


@pytest.mark.parametrize("length, window", [(16, 16), (17, 16), (26, 16), (100, 16), (5, 1)])
def test_windows_cover_a_side_and_stay_inside(length, window):
    starts = window_starts(length, window)
    assert starts == sorted(set(starts)) and starts[0] == 0 and starts[-1] == length - window
    assert {start + offset for start in starts for offset in range(window)} == set(range(length))


@pytest.mark.parametrize("options, message", [(dict(rule="max"), "rule must be one of"),
                                              (dict(scales=()), "positive numbers"),
                                              (dict(scales=(1, 0)), "positive numbers")])
def test_impossible_evaluations_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        WholeImage(None, window_px=16, **options)


def test_miou_of_a_case_by_hand_with_an_absent_class():
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([[0, 0, 1], [1, 1, 3]]), np.array([[0, 0, 0], [1, -1, 1]]))
    # true 0: two hits, one taken for 1; true 1: one hit, one taken for 3; class 2 is absent
    overlaps = intersection_over_union(matrix.pixels)
    np.testing.assert_allclose(overlaps, [2 / 3, 1 / 3, np.nan, 0])
    assert np.nanmean(overlaps) == pytest.approx(1 / 3)
    assert pixel_accuracy(matrix.pixels) == pytest.approx(3 / 5)


def test_confusion_matrices_add_up():
    rng = np.random.RandomState(0)
    labels, predicted = rng.randint(-1, 5, (4, 6, 7)), rng.randint(0, 5, (4, 6, 7))
    whole, parts = ConfusionMatrix(5), [ConfusionMatrix(5) for _ in range(4)]
    whole.update(predicted, labels)
    for part, one, other in zip(parts, predicted, labels):
        part.update(one, other)
    np.testing.assert_array_equal(whole.pixels, sum(part.pixels for part in parts))
    assert whole.pixels[3, 1] == ((labels == 3) & (predicted == 1)).sum()


def test_no_pixel_no_accuracy():
    assert np.isnan(pixel_accuracy(np.zeros((3, 3), int)))
