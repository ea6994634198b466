from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from gluon_resnest.data.grouping import GroupedPlan, SortedEvalPlan
from gluon_resnest.data.sampling import epoch_order
from gluon_resnest.errors import UserError

GROUPS = np.array([0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0])
SETS = st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=17), st.integers(1, 5))


def steps(plan, count, start=0):
    return [plan.indices(*divmod(step, plan.steps_per_epoch)) for step in range(start, count)]


def slow_batches(groups, batch, seed, count):
    """Detectron2's rule by hand: a line for each group; a full line is a batch."""
    lines, batches, epoch = {}, [], 0
    while len(batches) < count:
        for index in epoch_order(len(groups), seed, epoch).tolist():
            line = lines.setdefault(groups[index], [])
            line.append(index)
            if len(line) == batch:
                batches.append(list(line))
                line.clear()
        epoch += 1
    return batches[:count]


@hypothesis.given(SETS, st.integers(0, 3))
def test_batches_are_those_of_waiting_lines(case, seed):
    groups, batch = case
    plan = GroupedPlan(groups, batch, 0, 1, seed)
    found = [indices.tolist() for indices in steps(plan, 40)]
    assert found == slow_batches(groups, batch, seed, 40)


@hypothesis.given(SETS)
def test_any_step_can_be_asked_for_first(case):
    groups, batch = case
    plan = GroupedPlan(groups, batch, 0, 1, 0)
    in_order = steps(plan, 30)
    for step in (29, 3, 17, 0):
        again = GroupedPlan(groups, batch, 0, 1, 0)
        np.testing.assert_array_equal(steps(again, step + 1, step)[0], in_order[step])


@hypothesis.given(SETS)
def test_in_the_long_run_all_samples_come_equally_often(case):
    groups, batch = case
    seen = Counter(np.concatenate(steps(GroupedPlan(groups, batch, 0, 1, 0), 60)).tolist())
    counts = [seen[index] for index in range(len(groups))]
    sizes = Counter(groups)
    waiting = [-(-batch // sizes[group]) for group in groups]       # epochs in a line, at most
    assert max(counts) - min(counts) <= 1 + max(waiting)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_workers_see_together_does_not_depend_on_their_number(size):
    shape = (lambda epoch, index: (index * 7 + epoch) % 11)
    alone = steps(GroupedPlan(GROUPS, 4, 0, 1, 5, shape=shape), 20)
    parts = [steps(GroupedPlan(GROUPS, 4, rank, size, 5, shape=shape), 20) for rank in range(size)]
    for step, whole in enumerate(alone):
        together = np.concatenate([part[step] for part in parts])
        np.testing.assert_array_equal(together, whole)
        assert len(set(GROUPS[whole])) == 1
        assert len(parts[0][step]) == 4 // size


def test_workers_get_samples_of_like_shape():
    sides = np.array([9, 1, 5, 8, 6, 2, 9, 1, 5, 2, 8])
    plain = GroupedPlan(GROUPS, 4, 0, 1, 0)
    plan = GroupedPlan(GROUPS, 4, 0, 1, 0, shape=lambda epoch, index: sides[index])
    for before, after in zip(steps(plain, 12), steps(plan, 12)):
        assert sorted(before.tolist()) == sorted(after.tolist())
        assert (np.diff(sides[after]) >= 0).all()


def test_remainders_change_the_length_of_an_epoch_only():
    filled, discarded = (GroupedPlan(GROUPS, 4, 0, 1, 0, rule) for rule in ("fill", "discard"))
    assert (filled.steps_per_epoch, discarded.steps_per_epoch) == (3, 2)
    for one, other in zip(steps(filled, 12), steps(discarded, 12)):
        np.testing.assert_array_equal(one, other)


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="expected a global batch divisible by the 2 workers"):
        GroupedPlan(GROUPS, 3, 0, 2, 0)
    with pytest.raises(UserError, match="at least one sample"):
        GroupedPlan([], 3, 0, 1, 0)
    with pytest.raises(IndexError, match="an epoch has steps 0..2"):
        GroupedPlan(GROUPS, 4, 0, 1, 0).indices(0, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 14])
def test_evaluation_sees_each_sample_once(size):
    shapes = [(group, index % 3) for index, group in enumerate(GROUPS)]
    plans = [SortedEvalPlan(shapes, 4, rank, size) for rank in range(size)]
    assert len({plan.steps_per_epoch for plan in plans}) == 1
    seen = [index for plan in plans for step in range(plan.steps_per_epoch)
            for index in plan.indices(0, step).tolist()]
    assert sorted(seen) == list(range(len(GROUPS)))
    if size == 1:
        assert [shapes[index] for index in seen] == sorted(shapes)


@pytest.mark.parametrize("size", [2, 3, 14])
def test_batches_of_an_evaluation_are_the_same_for_any_number_of_workers(size):
    alone = [tuple(each) for each in steps(SortedEvalPlan(GROUPS, 2), 6)]
    dealt = {tuple(each) for rank in range(size)
             for plan in [SortedEvalPlan(GROUPS, 2 * size, rank, size)]
             for each in steps(plan, plan.steps_per_epoch) if len(each)}
    assert dealt == set(alone)
