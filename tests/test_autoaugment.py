"""Policy tables against the published lists, operations by hand numbers, probabilities."""
import pickle
from collections import Counter

import numpy as np
import pytest

from gluon_resnest.data import autoaugment
from gluon_resnest.data.autoaugment import (
    AUTHORS_SPANS, OPERATIONS, PAPER_SPANS, POLICIES, RANDAUGMENT_SPANS, AutoAugment, RandAugment,
    Span, Step)
from gluon_resnest.data.operations import View
from gluon_resnest.errors import UserError

# The published list: operation, probability / level.
AUTHORS = """
Posterize .4/8 + Rotate .6/9;      Solarize .6/5 + AutoContrast .6/5; Equalize .8/8 + Equalize .6/3
Posterize .6/7 + Posterize .6/6;   Equalize .4/7 + Solarize .2/4;     Equalize .4/4 + Rotate .8/8
Solarize .6/3 + Equalize .6/7;     Posterize .8/5 + Equalize 1.0/2;   Rotate .2/3 + Solarize .6/8
Equalize .6/8 + Posterize .4/6;    Rotate .8/8 + Color .4/0;          Rotate .4/9 + Equalize .6/2
Equalize 0/7 + Equalize .8/8;      Invert .6/4 + Equalize 1.0/8;      Color .6/4 + Contrast 1.0/8
Rotate .8/8 + Color 1.0/0;         Color .8/8 + Solarize .8/7;        Sharpness .4/7 + Invert .6/8
ShearX .6/5 + Equalize 1.0/9;      Color .4/0 + Equalize .6/3;        Equalize .4/7 + Solarize .2/4
Solarize .6/5 + AutoContrast .6/5; Invert .6/4 + Equalize 1.0/8;      Color .6/4 + Contrast 1.0/8
Equalize .8/8 + Equalize .6/3
"""


def parse(text):
    def step(words):
        name, numbers = words.split()
        probability, level = numbers.split("/")
        return name, float(probability), int(level)
    rows = [row for line in text.strip().splitlines() for row in line.split(";") if row.strip()]
    return tuple(tuple(step(half) for half in row.split("+")) for row in rows)


def picture(*values):
    """A picture of one row with the given grey values."""
    return View(np.repeat(np.array([values], np.uint8)[:, :, None], 3, axis=2))


def noise(height=9, width=14, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return View(values.astype(np.uint8))


def array(image):
    return np.asarray(image).astype(int)


class Coin:
    """A generator whose every `random()` is the given number."""

    def __init__(self, value):
        self._value = value

    def random(self):
        return self._value


HEADS, TAILS = Coin(0.0), Coin(0.999)       # sign flips below .5


# --- tables ----------------------------------------------------------------------------------

def test_the_authors_table_is_the_published_list():
    assert autoaugment.AUTHORS_TABLE == parse(AUTHORS)
    counts = Counter(autoaugment.AUTHORS_TABLE)
    assert (len(autoaugment.AUTHORS_TABLE), len(counts)) == (25, 20)
    assert sorted(counts.values()) == [1] * 15 + [2] * 5


def test_the_paper_table_differs_in_sub_policy_15_only():
    differing = [number for number, rows in enumerate(
        zip(autoaugment.AUTHORS_TABLE, autoaugment.PAPER_TABLE)) if rows[0] != rows[1]]
    assert differing == [15]
    assert autoaugment.PAPER_TABLE[15] == (("Rotate", 0.8, 8), ("Color", 1.0, 2))


@pytest.mark.parametrize("name, table, spans, max_level, fill", [
    ("authors", autoaugment.AUTHORS_TABLE, AUTHORS_SPANS, 10, (0, 0, 0)),
    ("paper", autoaugment.PAPER_TABLE, PAPER_SPANS, 9, (128, 128, 128)),
])
def test_policies_are_their_tables(name, table, spans, max_level, fill):
    assert POLICIES[name].fill == fill
    for row, steps in zip(table, POLICIES[name].table):
        assert [(step.name, step.probability) for step in steps] == [half[:2] for half in row]
        assert [step.strength for step in steps] == [level / max_level for _, _, level in row]
        for step in steps:
            assert step.name in OPERATIONS and step.span is spans.get(step.name)
            assert (step.span is None) == (step.name in {"AutoContrast", "Equalize", "Invert"})


@pytest.mark.parametrize("level", range(11))
def test_authors_levels(level):
    """Fast AutoAugment's formulas, truncating as `int` does."""
    def value(name):
        return AUTHORS_SPANS[name].draw(level / 10, TAILS)
    assert value("ShearX") == pytest.approx(0.3 * level / 10)
    assert value("Rotate") == int(3 * level)
    assert value("Solarize") == 256 - int(25.6 * level)
    assert value("Posterize") == 4 - int(0.4 * level)
    for name in ("Color", "Contrast", "Sharpness"):
        assert value(name) == pytest.approx(0.18 * level + 0.1)


def test_levels_hand_numbers():
    assert AUTHORS_SPANS["Solarize"].draw(0.5, TAILS) == 128
    assert [AUTHORS_SPANS["Posterize"].draw(level / 10, TAILS) for level in (5, 6, 7, 8)] == [
        2, 2, 2, 1]
    # Ten values over [4, 8], [0, 256], [0, 30], [.1, 1.9].
    assert [PAPER_SPANS["Posterize"].draw(level / 9, TAILS) for level in (0, 5, 8, 9)] == [
        4, 6, 7, 8]
    assert PAPER_SPANS["Solarize"].draw(5 / 9, TAILS) == 142
    assert PAPER_SPANS["Rotate"].draw(9 / 9, TAILS) == pytest.approx(30)
    assert PAPER_SPANS["Color"].draw(0, TAILS) == pytest.approx(0.1)


def test_only_signed_spans_change_sign():
    assert Span(0.0, 0.3, signed=True).draw(0.5, HEADS) == pytest.approx(-0.15)
    assert Span(0.0, 0.3, signed=True).draw(0.5, TAILS) == pytest.approx(0.15)
    assert Span(0.1, 1.8).draw(0.5, HEADS) == Span(0.1, 1.8).draw(0.5, TAILS)
    rng = np.random.default_rng(0)
    signs = [Span(0, 30, True, True).draw(0.3, rng) for _ in range(400)]
    assert set(signs) == {-9, 9} and abs(sum(signs)) < 9 * 80


# --- operations ------------------------------------------------------------------------------

NEUTRAL = {"Identity": None, "ShearX": 0.0, "ShearY": 0.0, "TranslateX": 0.0, "TranslateY": 0.0,
           "Rotate": 0, "Solarize": 256, "Posterize": 8, "Color": 1.0, "Contrast": 1.0,
           "Brightness": 1.0, "Sharpness": 1.0}


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_neutral_value_is_the_identity(name):
    image = noise()
    np.testing.assert_array_equal(array(OPERATIONS[name](image, NEUTRAL[name], (1, 2, 3))),
                                  array(image))


def test_invert_is_its_own_inverse():
    image = noise()
    inverted = OPERATIONS["Invert"](image, None, None)
    np.testing.assert_array_equal(array(inverted), 255 - array(image))


@pytest.mark.parametrize("name, value, before, after", [
    ("Solarize", 128, (0, 127, 128, 255), (0, 127, 127, 0)),
    ("Posterize", 1, (0, 127, 128, 255), (0, 0, 128, 128)),
    ("Posterize", 2, (63, 64, 200, 255), (0, 64, 192, 192)),
    ("AutoContrast", None, (50, 60, 75, 101), (0, 50, 125, 255)),
    ("Equalize", None, (10, 10, 10, 10), (10, 10, 10, 10)),
    ("Contrast", 0.0, (0, 100, 200, 100), (100, 100, 100, 100)),
    ("Contrast", 2.0, (90, 100, 110, 100), (80, 100, 120, 100)),
    ("Brightness", 0.5, (0, 100, 200, 255), (0, 50, 100, 127)),
    ("Color", 0.0, (7, 100, 200, 255), (7, 100, 200, 255)),
    ("TranslateX", 0.25, (1, 2, 3, 4), (2, 3, 4, 99)),
    ("TranslateX", -0.5, (1, 2, 3, 4), (99, 99, 1, 2)),
])
def test_operations_hand_numbers(name, value, before, after):
    image = OPERATIONS[name](picture(*before), value, (99, 99, 99))
    np.testing.assert_array_equal(array(image)[0, :, 0], after)


def test_color_moves_towards_grey():
    red = View(np.array([[[200, 0, 0]]], np.uint8))
    grey = round(0.299 * 200)
    np.testing.assert_array_equal(array(OPERATIONS["Color"](red, 0.0, None)), [[[grey] * 3]])


def test_translate_y_and_shears_move_along_their_axis():
    column = View(np.asarray(picture(1, 2, 3, 4)).transpose(1, 0, 2))
    moved = OPERATIONS["TranslateY"](column, 0.25, (9, 9, 9))
    np.testing.assert_array_equal(array(moved)[:, 0, 0], [2, 3, 4, 9])
    stripes = np.zeros((20, 20, 3), np.uint8)
    stripes[:, 10] = 255                      # a vertical line; row y samples column x + .3 y
    sheared = array(OPERATIONS["ShearX"](View(stripes), 0.3, (0, 0, 0)))[:, :, 0]
    assert (sheared[0].argmax(), sheared[10].argmax(), sheared[19].argmax()) == (10, 7, 4)
    turned = array(OPERATIONS["ShearY"](View(stripes.transpose(1, 0, 2)), 0.3,
                                        (0, 0, 0)))[:, :, 0]
    np.testing.assert_array_equal(turned, sheared.T)


def test_rotation_is_counter_clockwise_and_filled():
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 8] = 255                         # due east
    turned = array(OPERATIONS["Rotate"](View(image), 90, (0, 0, 0)))
    assert turned[0, 4].tolist() == [255] * 3
    corner = array(OPERATIONS["Rotate"](View(image), 45, (128, 128, 128)))[0, 0]
    assert corner.tolist() == [128] * 3


def test_shears_are_bicubic_and_rotations_nearest():
    edge = np.zeros((20, 20, 3), np.uint8)
    edge[:, 10:] = 255
    image = View(edge)
    assert len(np.unique(array(OPERATIONS["ShearX"](image, 0.13, (0, 0, 0))))) > 2
    assert set(np.unique(array(OPERATIONS["Rotate"](image, 13, (0, 0, 0))))) == {0, 255}


def test_sharpness_blurs_below_one():
    image = noise()
    blurred = array(OPERATIONS["Sharpness"](image, 0.0, None))
    assert blurred[1:-1, 1:-1].std() < array(image)[1:-1, 1:-1].std()


def test_equalize_flattens_the_histogram():
    dark = np.tile(np.arange(64, dtype=np.uint8), (64, 1))      # 64 of 256 levels, equally often
    flat = array(OPERATIONS["Equalize"](View(np.repeat(dark[:, :, None], 3, 2)),
                                        None, None))
    assert (flat.min(), flat.max()) == (0, 255)
    assert np.diff(flat[0, :, 0]).max() <= 5                    # spread evenly


# --- policies --------------------------------------------------------------------------------

def test_a_step_is_applied_with_its_probability():
    image, step = picture(0, 100), Step("Invert", 0.6, 0.0, None)
    rng = np.random.default_rng(0)
    applied = sum(step.apply(image, rng, None) is not image for _ in range(2000))
    assert applied == pytest.approx(1200, abs=100)
    assert Step("Invert", 0.0, 0.0, None).apply(image, HEADS, None) is image
    assert Step("Invert", 1.0, 0.0, None).apply(image, TAILS, None) is not image


def test_every_sub_policy_is_equally_likely():
    """Sub-policies that paint different greys, all certain, drawn as often as each other."""
    table = tuple((Step("Posterize", 1.0, 0.0, Span(bits, 0, whole=True)),) for bits in range(1, 6))
    policy = AutoAugment(table, (0, 0, 0))
    rng, image = np.random.default_rng(0), np.full((1, 1, 3), 255, np.uint8)
    counts = Counter(int(np.asarray(policy(image, rng))[0, 0, 0]) for _ in range(2000))
    assert set(counts) == {128, 192, 224, 240, 248}
    assert all(count == pytest.approx(400, abs=80) for count in counts.values())


@pytest.mark.parametrize("name", sorted(POLICIES))
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (33, 2), (9, 14)])
def test_policies_keep_shape_and_depend_on_the_generator_only(name, shape):
    image = array(noise(*shape)).astype(np.uint8)
    kept, copy = image.copy(), pickle.loads(pickle.dumps(POLICIES[name]))
    outputs = set()
    for seed in range(40):
        first = POLICIES[name](image, np.random.default_rng(seed))
        again = copy(image, np.random.default_rng(seed))
        assert first.shape == image.shape and first.dtype == np.uint8
        assert array(first).tobytes() == array(again).tobytes()
        outputs.add(array(first).tobytes())
    assert len(outputs) > 1
    np.testing.assert_array_equal(image, kept)


# --- RandAugment -----------------------------------------------------------------------------

def test_randaugment_has_the_fourteen_operations():
    assert len(RANDAUGMENT_SPANS) == 14 and set(RANDAUGMENT_SPANS) <= set(OPERATIONS)


@pytest.mark.parametrize("name", sorted(set(RANDAUGMENT_SPANS) & set(NEUTRAL)))
def test_magnitude_zero_is_the_identity(name):
    image = noise()
    step = Step(name, 1.0, 0.0, RANDAUGMENT_SPANS[name])
    np.testing.assert_array_equal(array(step.apply(image, HEADS, (0, 0, 0))), array(image))


def test_randaugment_applies_as_many_operations_as_asked(monkeypatch):
    applied = []
    for name in RANDAUGMENT_SPANS:
        monkeypatch.setitem(OPERATIONS, name,
                            lambda image, value, fill, name=name: applied.append(name) or image)
    image, rng = array(noise()).astype(np.uint8), np.random.default_rng(0)
    for _ in range(500):
        RandAugment(3, 12)(image, rng)
    counts = Counter(applied)
    assert len(applied) == 1500 and set(counts) == set(RANDAUGMENT_SPANS)
    assert all(count == pytest.approx(1500 / 14, abs=40) for count in counts.values())


def test_randaugment_full_magnitude_hand_numbers():
    values = {name: span.draw(1.0, HEADS) for name, span in RANDAUGMENT_SPANS.items() if span}
    assert values == pytest.approx({
        "Rotate": -30, "Solarize": 0, "Color": 0.1, "Posterize": 4, "Contrast": 0.1,
        "Brightness": 0.1, "Sharpness": 0.1, "ShearX": -0.3, "ShearY": -0.3,
        "TranslateX": -0.45, "TranslateY": -0.45})


@pytest.mark.parametrize("operations, magnitude", [(-1, 5), (2, 31), (2, -1)])
def test_randaugment_mistakes(operations, magnitude):
    with pytest.raises(UserError, match="operations >= 0 and a magnitude in 0..30"):
        RandAugment(operations, magnitude)
