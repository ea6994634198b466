"""Repeat-factor sampling: factors, what is drawn, and batches made of it."""
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from gluon_resnest.data.grouping import GroupedPlan
from gluon_resnest.data.repeat_factor import copies, image_counts, repeat_factors, repeated_order
from gluon_resnest.data.sampling import epoch_order

SHOWN = [np.array(each, np.int64) for each in ([0, 0, 1], [0], [0, 2], [], [1, 0], [0], [0], [0])]
FACTORS = np.array([1.0, 2.25, 1.5, 4.0, 1.0, 1.75])
GROUPS = np.array([0, 1, 0, 0, 1, 0])
QUICK = hypothesis.settings(max_examples=12, deadline=None)


def test_an_image_counts_once_for_a_class():
    np.testing.assert_array_equal(image_counts(SHOWN, 4), [7, 2, 1, 0])


def test_factors_are_those_computed_by_hand():
    """Of 8 images class 1 is on 1/4, class 2 on 1/8; with threshold 1/2: sqrt(2), sqrt(4)."""
    np.testing.assert_allclose(repeat_factors(SHOWN, 4, 0.5),
                               [2 ** 0.5, 1, 2, 1, 2 ** 0.5, 1, 1, 1])
    np.testing.assert_array_equal(repeat_factors(SHOWN, 4, 0.1), np.ones(8))
    np.testing.assert_array_equal(repeat_factors(SHOWN, 4, 0.0), np.ones(8))


def slow_factors(shown, threshold):
    """The paper's three formulas, word by word."""
    factors = []
    for own in shown:
        factor = 1.0
        for kind in set(own.tolist()):
            share = sum(kind in each for each in shown) / len(shown)
            factor = max(factor, (threshold / share) ** 0.5)
        factors.append(factor)
    return factors


@QUICK
@hypothesis.given(st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=9),
                  st.floats(0, 1))
def test_factors_equal_the_slow_twin(shown, threshold):
    shown = [np.array(each, np.int64) for each in shown]
    np.testing.assert_allclose(repeat_factors(shown, 5, threshold),
                               slow_factors(shown, threshold))


def test_in_expectation_an_image_comes_as_often_as_its_factor_says():
    drawn = np.array([copies(FACTORS, 3, number) for number in range(2000)])
    spread = np.sqrt((FACTORS % 1) * (1 - FACTORS % 1) / len(drawn))
    assert (np.abs(drawn.mean(axis=0) - FACTORS) <= 4 * spread).all()
    assert (drawn >= np.floor(FACTORS)).all() and (drawn <= np.ceil(FACTORS)).all()


def test_what_is_drawn_for_an_image_depends_on_seed_pass_and_image_alone():
    np.testing.assert_array_equal(copies(FACTORS, 1, 5), copies(FACTORS, 1, 5))
    np.testing.assert_array_equal(copies(FACTORS, 1, 5)[:3], copies(FACTORS[:3], 1, 5))
    passes = [tuple(copies(FACTORS, seed, number)) for seed in range(2) for number in range(9)]
    assert len(set(passes)) > 2


def test_a_pass_holds_the_copies_told_apart():
    order = repeated_order(FACTORS, 0, 7)
    assert len(set(order.tolist())) == len(order)
    np.testing.assert_array_equal(np.bincount(order % 6, minlength=6), copies(FACTORS, 0, 7))
    np.testing.assert_array_equal(repeated_order(np.ones(9), 4, 2), epoch_order(9, 4, 2))


def steps(plan, count, start=0):
    return [plan.indices(*divmod(step, plan.steps_per_epoch)) for step in range(start, count)]


def slow_batches(factors, groups, batch, seed, count):
    """A line for each group, filled pass by pass; a full line is a batch."""
    lines, batches, number = {}, [], 0
    while len(batches) < count:
        for sample in repeated_order(factors, seed, number).tolist():
            line = lines.setdefault(groups[sample % len(groups)], [])
            line.append(sample)
            if len(line) == batch:
                batches.append(list(line))
                line.clear()
        number += 1
    return batches[:count]


@QUICK
@hypothesis.given(st.lists(st.tuples(st.integers(0, 1), st.floats(1, 3.5)), min_size=1,
                           max_size=9), st.integers(1, 5))
def test_batches_are_those_of_waiting_lines_wherever_one_begins(images, batch):
    groups, factors = map(np.array, zip(*images))
    expected = slow_batches(factors, groups, batch, 0, 25)
    for start in (0, 24, 11):
        plan = GroupedPlan(groups, batch, 0, 1, 0, factors=factors)
        assert [found.tolist() for found in steps(plan, 25, start)] == expected[start:]


def test_factors_of_one_are_the_plan_without_them():
    plain, ones = (GroupedPlan(GROUPS, 4, 0, 1, 2, factors=each) for each in (None, np.ones(6)))
    np.testing.assert_array_equal(steps(plain, 20), steps(ones, 20))
    assert ones.steps_per_epoch == plain.steps_per_epoch == 2


@pytest.mark.parametrize("size", [2, 4])
def test_shards_of_the_workers_are_the_batch_of_one(size):
    whole = GroupedPlan(GROUPS, 4, 0, 1, 0, factors=FACTORS)
    parts = [GroupedPlan(GROUPS, 4, rank, size, 0, factors=FACTORS) for rank in range(size)]
    for step in range(12):
        where = divmod(step, whole.steps_per_epoch)
        together = np.concatenate([part.indices(*where) for part in parts])
        np.testing.assert_array_equal(together, whole.indices(*where))
        for part in parts:
            np.testing.assert_array_equal(part.of_all(*where), together)
        assert len(set(GROUPS[together % 6])) == 1


def test_in_the_long_run_images_come_in_the_ratio_of_their_factors():
    seen = Counter((np.concatenate(steps(GroupedPlan(GROUPS, 4, 0, 1, 1, factors=FACTORS), 600))
                    % 6).tolist())
    shares = np.array([seen[index] for index in range(6)]) / 2400
    np.testing.assert_allclose(shares, FACTORS / FACTORS.sum(), rtol=0.05)
