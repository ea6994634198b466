"""Crops, colours and pipelines against MXNet's own operators, slow twins and hand numbers."""
import math
import pickle

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from gluon_resnest.data import color, crops
from gluon_resnest.data.erasing import RandomErasing
from gluon_resnest.data.transforms import PROTOCOLS, eval_transform, train_transform
from gluon_resnest.errors import UserError

SHAPES = [(1, 1), (1, 500), (37, 2), (30, 47), (61, 40)]


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def generator(seed=0):
    return np.random.default_rng(seed)


def mxnet_image(image, dtype="float32"):
    return mx.nd.array(image, dtype=dtype)


class Script:
    """A generator whose uniform and integer draws are given."""

    def __init__(self, uniform, integers=()):
        self._uniform, self._integers = iter(uniform), iter(integers)

    def uniform(self, low, high):
        return next(self._uniform)

    def integers(self, low, high):
        value = next(self._integers)
        assert low <= value < high
        return value


# --- resizing --------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype, tolerance", [("uint8", 0), ("float32", 2e-3)])
@pytest.mark.parametrize("height, width", [(20, 30), (75, 17), (64, 80)])
def test_bilinear_is_mxnets(dtype, tolerance, height, width):
    image = picture(37, 53).astype(dtype)
    expected = mx.image.imresize(mxnet_image(image, dtype), width, height, interp=1).asnumpy()
    ours = crops.resize(image, height, width, "bilinear")
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.astype(float), expected, atol=tolerance)


def test_bicubic_is_pillows():
    image = picture(37, 53)
    expected = Image.fromarray(image).resize((20, 30), Image.BICUBIC)
    np.testing.assert_array_equal(crops.resize(image, 30, 20, "bicubic"), np.asarray(expected))


@pytest.mark.parametrize("height, width", [(37, 53), (53, 37), (375, 500), (1, 7), (9, 9)])
def test_resize_short_has_mxnets_shape(height, width):
    resize = mx.gluon.data.vision.transforms.Resize(32, keep_ratio=True)
    expected = resize(mx.nd.zeros((height, width, 3), dtype="uint8")).shape
    assert crops.resize_short(picture(height, width), 32, "bilinear").shape == expected


# --- boxes -----------------------------------------------------------------------------------

@pytest.mark.parametrize("height, width", SHAPES + [(500, 2)])
def test_boxes_lie_inside(height, width):
    rng = generator()
    for _ in range(200):
        for box in (crops.random_area_box(rng, height, width, 24),
                    crops.distorted_box(rng, height, width, 24),
                    crops.scaled_center_box(height, width, 24)):
            top, left, rows, columns = box
            assert top >= 0 and left >= 0 and rows > 0 and columns > 0
            assert top + rows <= height and left + columns <= width


def test_random_area_box_hand_number():
    # Share .25 of 100 x 200 = 5000 px, aspect 1: side 70.7 -> 71.
    script = Script([0.25, 0.0], [7, 11])
    assert crops.random_area_box(script, 100, 200, 24) == (11, 7, 71, 71)


@pytest.mark.parametrize("height, width", [(1, 500), (40, 30), (20, 90)])
def test_ten_misses_give_mxnets_center_crop(height, width):
    # Area 1 at aspect 1 does not fit an oblong image.
    box = crops.random_area_box(Script([1.0, 0.0] * 10), height, width, 24)
    _, (left, top, columns, rows) = mx.image.center_crop(
        mx.nd.zeros((height, width, 3)), (24, 24), interp=1)
    assert box == (top, left, rows, columns)


def test_random_area_is_uniform_and_aspect_log_uniform():
    rng = generator()
    boxes = np.array([crops.random_area_box(rng, 1000, 1000, 24, scale=0.1)
                      for _ in range(4000)])
    area = boxes[:, 2] * boxes[:, 3] / 1e6
    small = area[area < 0.5]            # no draw below one half of a square image is rejected
    assert np.histogram(small, 4, (0.1, 0.5))[0] == pytest.approx(len(small) / 4, rel=0.12)
    log_aspect = np.log(boxes[:, 3] / boxes[:, 2])[area < 0.5]
    assert abs(log_aspect).max() <= math.log(4 / 3) + 0.01
    assert log_aspect.mean() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("height, width, aspect, shortest, tallest", [
    (100, 200, 0.8, 50, 100),       # areas 2000 and 20000 -> heights 50 and 158, cut to the image
    (200, 100, 1.25, 40, 80),       # 40 and 126; 80 rows are 100 columns wide
    (200, 100, 1.3, 39, 76),        # 77 rows would be 100.1 columns wide
    (100, 100, 1.0, 32, 100),       # 31.6 and 100
])
def test_distorted_box_hand_numbers(height, width, aspect, shortest, tallest):
    drawn = []

    class Recorder(Script):
        def uniform(self, low, high):
            drawn.append((low, high))
            return super().uniform(low, high)

    box = crops.distorted_box(Recorder([aspect, 60.2], [3, 5]), height, width, 320)
    assert drawn == [(3 / 4, 4 / 3), (shortest, tallest)]
    assert box == (5, 3, 60, round(60 * aspect))


def test_distorted_box_obeys_its_limits():
    rng = generator()
    center = crops.scaled_center_box(300, 400, 320)
    boxes = [crops.distorted_box(rng, 300, 400, 320) for _ in range(1000)]
    drawn = np.array([box for box in boxes if box != center])
    assert len(drawn) > 900
    share = drawn[:, 2] * drawn[:, 3] / 120000
    assert share.min() >= 0.1 and share.max() <= 1
    # Uniform in height, hence smaller areas than a uniform share (mean .55) would give.
    assert 0.3 < share.mean() < 0.52


def test_whole_image_draw_gives_the_center_box():
    box = crops.distorted_box(Script([1.0, 64.0]), 64, 64, 320)
    assert box == crops.scaled_center_box(64, 64, 320)


@pytest.mark.parametrize("size, side", [(320, 364), (416, 371), (224, 350)])
def test_scaled_center_box_hand_number(size, side):
    # size / (size + 32) * 400: 363.6, 371.4, 350
    assert crops.scaled_center_box(400, 500, size)[2:] == (side, side)


# --- colours ---------------------------------------------------------------------------------

def through(image, color_map):
    return color.apply(image, color_map).transpose(1, 2, 0)


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.37])
@pytest.mark.parametrize("operator, make", [
    ("random_brightness", lambda image, factor: color.brightness(factor)),
    ("random_contrast", lambda image, factor: color.contrast(
        factor, np.dot(color.LUMA, image.reshape(-1, 3).mean(axis=0)))),
    ("random_saturation", lambda image, factor: color.saturation(factor)),
])
def test_jitter_steps_are_mxnets(operator, make, factor):
    image = picture(7, 9)
    expected = getattr(mx.nd.image, operator)(mxnet_image(image), factor, factor).asnumpy()
    ours = through(image, make(image, factor))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-3)
    assert factor != 1.37 or ours.max() > 255      # floats are not clipped, here or there


def test_lighting_is_mxnets():
    image = picture(7, 9)
    expected = mx.nd.image.adjust_lighting(mxnet_image(image), alpha=(0.1, -0.2, 0.3)).asnumpy()
    np.testing.assert_allclose(through(image, color.lighting((0.1, -0.2, 0.3))), expected,
                               rtol=1e-5, atol=1e-3)


def test_normalization_is_mxnets():
    image = picture(7, 9)
    tensor = mx.nd.image.to_tensor(mxnet_image(image, "uint8"))
    expected = mx.nd.image.normalize(tensor, color.MEAN, color.STD).asnumpy()
    np.testing.assert_allclose(color.apply(image, color.normalization()), expected, atol=1e-5)


def test_composed_jitter_equals_mxnet_step_by_step():
    """The one affine map against MXNet's operators in the same drawn order, factors and noise."""
    image = picture(7, 9)
    mean_pixel = image.reshape(-1, 3).mean(axis=0)
    for seed in range(20):
        total = color.random_jitter(generator(seed), mean_pixel, 0.4)
        twin, slow = generator(seed), mxnet_image(image)
        for step in twin.permutation(3):
            operator = (mx.nd.image.random_brightness, mx.nd.image.random_contrast,
                        mx.nd.image.random_saturation)[step]
            factor = 1 + twin.uniform(-0.4, 0.4)
            slow = operator(slow, factor, factor)
        np.testing.assert_allclose(through(image, total), slow.asnumpy(), rtol=1e-4, atol=2e-3)


def test_jitter_draws_the_whole_range():
    rng = generator()
    red = np.array([color.random_jitter(rng, np.zeros(3), 0.4)[0, 0] for _ in range(3000)])
    # Red is scaled by all three factors; the extremes are .6 ** 3 and 1.4 ** 3.
    assert 0.216 <= red.min() < 0.3 and 2.2 < red.max() <= 2.744


def test_contrast_sees_what_came_before_it():
    """The mean grey depends on the drawn order: all orders occur, and give different maps."""
    offsets = {}
    for seed in range(60):
        total = color.random_jitter(generator(seed), np.full(3, 100.0), 0.4)
        order = tuple(generator(seed).permutation(3))
        offsets[order] = total[0, 3]
    assert len(set(offsets.values())) == 6


def test_then_is_function_composition():
    rng = generator()
    first, second = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    pixel = rng.normal(size=3)
    inner = first[:, :3] @ pixel + first[:, 3]
    np.testing.assert_allclose(color.then(first, second) @ np.append(pixel, 1),
                               second[:, :3] @ inner + second[:, 3])


# --- random erasing --------------------------------------------------------------------------

def test_erasing_overwrites_one_rectangle():
    image = np.full((3, 40, 60), 7, dtype=np.float32)
    for seed in range(50):
        erased = RandomErasing(1.0)(image, generator(seed))
        rows, columns = np.nonzero(erased[0] == 0)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width                  # a full rectangle
        assert 0.015 < height * width / 2400 < 0.35
        assert 0.25 < height / width < 4
        np.testing.assert_array_equal(erased[0], erased[2])
    assert (image == 7).all()                               # the argument is not touched


def test_erasing_with_noise_and_its_probability():
    image = np.full((3, 40, 60), 7, dtype=np.float32)
    rng = generator()
    erased = [RandomErasing(0.3, "pixel")(image, rng) for _ in range(500)]
    assert sum(result is not image for result in erased) == pytest.approx(150, abs=35)
    values = np.concatenate([result[result != 7] for result in erased])
    assert values.dtype == np.float32
    assert values.mean() == pytest.approx(0, abs=0.01)
    assert values.std() == pytest.approx(1, abs=0.01)


# --- evaluation protocols --------------------------------------------------------------------

NO_NORM = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def pixels(size, protocol, image):
    """The protocol's crop as whole numbers 0..255, (H, W, 3)."""
    output = eval_transform(size, protocol, **NO_NORM)(image)
    return np.rint(output * 255).astype(np.uint8).transpose(1, 2, 0)


@pytest.mark.parametrize("protocol, size", [("gluon", 48), ("gluon", 224), ("gluon", 256),
                                            ("paper", 224)])
@pytest.mark.parametrize("height, width", [(300, 411), (281, 200)])
def test_small_crops_are_mxnets(protocol, size, height, width):
    vision = mx.gluon.data.vision.transforms
    image = picture(height, width)
    short = {48: 55, 224: 256, 256: 293}[size]              # ceil(size / .875)
    expected = vision.CenterCrop(size)(vision.Resize(short, keep_ratio=True)(
        mxnet_image(image, "uint8")))
    np.testing.assert_array_equal(pixels(size, protocol, image), expected.asnumpy())


@pytest.mark.parametrize("protocol, size", [("gluon", 320), ("torch", 320), ("torch", 224)])
@pytest.mark.parametrize("height, width", [(300, 411), (281, 200)])
def test_large_crops_are_the_authors(protocol, size, height, width):
    """Twin in Pillow's own terms: crop with a fractional box, then resize."""
    image = picture(height, width)
    side = float(size) / (size + 32) * min(height, width)
    top, left = int(round((height - side) / 2)), int(round((width - side) / 2))
    part = Image.fromarray(image).crop((left, top, left + side, top + side))
    expected = np.asarray(part.resize((size, size), Image.BICUBIC))
    np.testing.assert_array_equal(pixels(size, protocol, image), expected)


def test_paper_protocol_is_bicubic_above_256():
    image = picture(300, 400)
    resized = Image.fromarray(image).resize((366 * 400 // 300, 366), Image.BICUBIC)
    left = (resized.width - 320) // 2
    expected = np.asarray(resized)[23:343, left:left + 320]
    np.testing.assert_array_equal(pixels(320, "paper", image), expected)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
@pytest.mark.parametrize("height, width", SHAPES)
def test_evaluation_takes_any_image(protocol, height, width):
    output = eval_transform(32, protocol)(picture(height, width))
    assert output.shape == (3, 32, 32) and output.dtype == np.float32
    assert output.flags.c_contiguous
    low, high = -np.divide(color.MEAN, color.STD), (1 - np.array(color.MEAN)) / color.STD
    assert (output.min(axis=(1, 2)) >= low - 1e-5).all()
    assert (output.max(axis=(1, 2)) <= high + 1e-5).all()


# --- training pipelines ----------------------------------------------------------------------

TRAINING = [
    {}, {"crop": "efficientnet"}, {"interpolation": "bicubic"}, {"flip": False},
    {"auto_augment": "authors"}, {"auto_augment": "paper"}, {"auto_augment": "randaugment"},
    {"erase_prob": 1.0, "erase_fill": "pixel"}, {"jitter": 0, "lighting": 0, "scale": 0.5},
    {"crop": "pad"}, {"crop": "whole"},
]


@pytest.mark.parametrize("options", TRAINING, ids=str)
@pytest.mark.parametrize("height, width", SHAPES)
def test_training_takes_any_image(options, height, width):
    transform = train_transform(24, **options)
    for seed in range(5):
        output = transform(picture(height, width), generator(seed))
        assert output.shape == (3, 24, 24) and output.dtype == np.float32
        assert output.flags.c_contiguous and np.isfinite(output).all()


@pytest.mark.parametrize("options", TRAINING, ids=str)
def test_the_generator_decides_everything(options):
    transform, image = train_transform(24, **options), picture(30, 47)
    kept = image.copy()
    copy = pickle.loads(pickle.dumps(transform))
    first, again = transform(image, generator(3)), copy(image, generator(3))
    assert first.tobytes() == again.tobytes()
    assert any((first != transform(image, generator(seed))).any() for seed in range(4, 9))
    np.testing.assert_array_equal(image, kept)


def test_training_pipeline_is_mxnets_on_floats():
    """The published pipeline, step by step with MXNet's operators and the same draws."""
    image = picture(60, 80)
    for seed in range(5):
        output = train_transform(24)(image, generator(seed))
        rng = generator(seed)
        top, left, rows, columns = crops.random_area_box(rng, 60, 80, 24)
        slow = mx.image.fixed_crop(mxnet_image(image), left, top, columns, rows, (24, 24), 1)
        if rng.random() < 0.5:
            slow = mx.nd.image.flip_left_right(slow)
        for step in rng.permutation(3):
            operator = (mx.nd.image.random_brightness, mx.nd.image.random_contrast,
                        mx.nd.image.random_saturation)[step]
            factor = 1 + rng.uniform(-0.4, 0.4)
            slow = operator(slow, factor, factor)
        slow = mx.nd.image.adjust_lighting(slow, alpha=tuple(rng.normal(0, 0.1, size=3)))
        slow = mx.nd.image.normalize(mx.nd.image.to_tensor(slow), color.MEAN, color.STD)
        np.testing.assert_allclose(output, slow.asnumpy(), atol=2e-4)


def test_flip_mirrors_half_of_the_images():
    transform = train_transform(8, scale=1, jitter=0, lighting=0)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[:, :4] = 255
    rng = generator()
    left_is_bright = [output[0, 0, 0] > output[0, 0, -1]
                      for output in (transform(image, rng) for _ in range(400))]
    assert sum(left_is_bright) == pytest.approx(200, abs=45)


def test_large_training_crops_are_efficientnets_and_bicubic():
    assert train_transform(320) == train_transform(320, crop="efficientnet",
                                                   interpolation="bicubic", scale=0.1)
    assert train_transform(319) == train_transform(319, crop="gluon",
                                                   interpolation="bilinear", scale=0.08)


PLAIN = {"flip": False, "jitter": 0, "lighting": 0}


def test_the_whole_image_is_what_is_evaluated():
    image = picture(24, 24)
    whole = train_transform(24, crop="whole", **PLAIN)(image, generator())
    np.testing.assert_array_equal(whole, eval_transform(24, "whole")(image))
    np.testing.assert_array_equal(pixels(24, "whole", image), image)


def test_a_padded_crop_is_the_image_shifted():
    image = picture(16, 16)
    transform, seen = train_transform(16, crop="pad", **PLAIN), set()
    black = eval_transform(16, "whole")(np.zeros_like(image))
    whole = eval_transform(16, "whole")(image)
    for seed in range(60):
        down, right = generator(seed).integers(0, 5, size=2) - 2
        expected = black.copy()
        for row in range(16):
            for column in range(16):
                if 0 <= row + down < 16 and 0 <= column + right < 16:
                    expected[:, row, column] = whole[:, row + down, column + right]
        np.testing.assert_allclose(transform(image, generator(seed)), expected, atol=1e-6)
        seen.add((down, right))
    assert {shift[0] for shift in seen} == {shift[1] for shift in seen} == {-2, -1, 0, 1, 2}


# --- mistakes --------------------------------------------------------------------------------

@pytest.mark.parametrize("options, message", [
    ({"auto_augment": "author"}, "auto_augment must be one of .*did you mean 'authors'"),
    ({"crop": "gluom"}, "crop must be one of .*'gluon'"),
    ({"interpolation": "bilinar"}, "interpolation must be one of .*'bilinear'"),
    ({"jitter": 2}, "jitter must lie in 0..1, got 2"),
    ({"lighting": -1}, "lighting must lie in 0"),
    ({"scale": 1.5}, "scale must lie in 0..1, got 1.5"),
    ({"erase_prob": 1.5}, "erase_prob must lie in 0..1, got 1.5"),
    ({"erase_prob": 0.5, "erase_fill": "zeros"}, "erase_fill must be one of .*'zero'"),
])
def test_training_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        train_transform(24, **options)


def test_evaluation_mistakes():
    with pytest.raises(UserError, match="protocol must be one of .*did you mean 'gluon'"):
        eval_transform(224, "gluom")
    with pytest.raises(UserError, match="positive number of pixels, got 0"):
        eval_transform(0)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8),
                                   np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)])
def test_only_rgb_bytes_come_in(image):
    with pytest.raises(UserError, match="non-empty uint8"):
        eval_transform(8)(image)
