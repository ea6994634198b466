"""Operations of the policies against the same ones of Pillow: every magnitude, every size."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from slow_pipeline import PILLOW

from gluon_resnest.data import operations
from gluon_resnest.data.autoaugment import AUTHORS_SPANS, PAPER_SPANS, POLICIES, RANDAUGMENT_SPANS
from gluon_resnest.data.operations import OPERATIONS, View

FILL = (10, 20, 30)


class Coin:
    """Draws this number whenever it is asked."""

    def __init__(self, value):
        self._value = value

    def random(self):
        return self._value


def values(name):
    """Every value that a policy can hand to an operation: all levels, both signs."""
    spans = ((AUTHORS_SPANS, 10), (PAPER_SPANS, 9), (RANDAUGMENT_SPANS, 30))
    return sorted({span.draw(level / levels, coin)
                   for table, levels in spans for span in [table.get(name)] if span
                   for level in range(levels + 1) for coin in (Coin(0.0), Coin(0.9))}) or [None]


def picture(height, width, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (height, width, 3)).astype(np.uint8)


PICTURES = {
    "noise": picture(19, 26),
    "narrow range": picture(19, 26, low=90, high=140),
    "photograph-like": (np.add.outer(np.arange(64) * 2, np.arange(90))[:, :, None]
                        + picture(64, 90, high=40) * [1, 2, 3]).clip(0, 255).astype(np.uint8),
    "one colour": np.full((7, 5, 3), (3, 200, 255), np.uint8),
    "two colours": (picture(8, 9, high=2) * [255, 7, 90]).astype(np.uint8),
    "grey": np.repeat(picture(20, 30)[:, :, :1], 3, axis=2),
    "pixel": picture(1, 1), "row": picture(1, 300), "column": picture(300, 1),
}


def test_the_twin_has_every_operation():
    assert set(PILLOW) == set(OPERATIONS)


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("name", sorted(PILLOW))
def test_operations_are_pillows(name, kind):
    image = PICTURES[kind]
    for value in values(name):
        expected = np.asarray(PILLOW[name](Image.fromarray(image), value, FILL))
        ours = OPERATIONS[name](View(image), value, FILL)
        assert (ours.shape, ours.dtype, ours.size) == (image.shape, image.dtype, image.size)
        np.testing.assert_array_equal(np.asarray(ours), expected, err_msg=str(value))
        np.testing.assert_array_equal(ours[0:1, 0:1], expected[0:1, 0:1])


@given(st.data())
def test_sequences_of_operations_are_pillows_in_every_box(data):
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    low = data.draw(st.integers(0, 255))
    image = picture(height, width, data.draw(st.integers(0, 99)), low,
                    data.draw(st.integers(low + 1, 256)))
    ours, slow = View(image), Image.fromarray(image)
    for name in data.draw(st.lists(st.sampled_from(sorted(PILLOW)), min_size=1, max_size=3)):
        value = data.draw(st.sampled_from(values(name)))
        ours, slow = OPERATIONS[name](ours, value, FILL), PILLOW[name](slow, value, FILL)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom = data.draw(st.integers(top + 1, height))
    right = data.draw(st.integers(left + 1, width))
    np.testing.assert_array_equal(ours[top:bottom, left:right],
                                  np.asarray(slow)[top:bottom, left:right])


@given(st.floats(-180, 180), st.integers(1, 60), st.integers(1, 60), st.data())
def test_any_angle_in_any_box_is_pillows(angle, height, width, data):
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    image = picture(height, width)
    expected = np.asarray(Image.fromarray(image).rotate(angle, fillcolor=FILL))
    ours = OPERATIONS["Rotate"](View(image), angle, FILL)
    np.testing.assert_array_equal(ours[top:top + 9, left:left + 9],
                                  expected[top:top + 9, left:left + 9])


@pytest.mark.parametrize("table", [[0, 0, 5], [255, 0, 9]])
def test_histograms_follow_tables(table):
    image = picture(9, 11, high=3)
    table = np.repeat(np.resize(np.array(table, np.uint8), 256)[:, None], 3, axis=1)
    changed = View(View(image), table=table)
    expected = [np.bincount(np.asarray(changed)[:, :, channel].ravel(), minlength=256)
                for channel in range(3)]
    np.testing.assert_array_equal(changed.histogram, np.transpose(expected))


def test_histograms_of_very_large_images_are_exact(monkeypatch):
    monkeypatch.setattr(operations, "_COUNTED", 30)
    image = picture(25, 13)
    expected = [np.bincount(channel.ravel(), minlength=256) for channel in image.transpose(2, 0, 1)]
    np.testing.assert_array_equal(View(image).histogram, np.transpose(expected))


class Watched:
    """An image that notes which boxes were asked for."""
    shape, size = (100, 120, 3), 36000

    def __init__(self):
        self.boxes = []

    def __getitem__(self, box):
        self.boxes.append(box)
        return picture(*self.shape[:2])[box]


@pytest.mark.parametrize("name, value", [("Invert", None), ("Solarize", 100), ("Posterize", 2),
                                         ("Color", 0.3), ("Brightness", 1.4)])
def test_a_box_needs_only_its_own_pixels(name, value):
    """An array that cannot be had as a whole: np.asarray(Watched()) has no pixels."""
    image, box = Watched(), (slice(10, 20), slice(30, 50))
    OPERATIONS[name](View(image), value, FILL)[box]
    assert image.boxes == [box]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_policies_are_the_twins(name, monkeypatch):
    """The same draws with Pillow's operations on the whole image."""
    policy, image = POLICIES[name], PICTURES["photograph-like"]
    fast = [np.asarray(policy(image, np.random.default_rng(seed))) for seed in range(60)]
    for operation, slow in PILLOW.items():
        monkeypatch.setitem(OPERATIONS, operation, lambda view, value, fill, slow=slow: View(
            np.asarray(slow(Image.fromarray(np.asarray(view)), value, fill))))
    for seed, ours in enumerate(fast):
        np.testing.assert_array_equal(ours, np.asarray(policy(image, np.random.default_rng(seed))))
