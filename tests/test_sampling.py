import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from gluon_resnest.data.sampling import EvalPlan, TrainPlan, epoch_order, random_for, shard
from gluon_resnest.errors import UserError

LENGTHS = (1, 2, 3, 6, 7, 20, 101)
WORKERS = range(1, 8)


def step_union(size, epoch, step, **arguments):
    """What all workers together see at a step, in the order of the workers."""
    plans = [TrainPlan(rank=rank, size=size, **arguments) for rank in range(size)]
    return np.concatenate([plan.indices(epoch, step) for plan in plans])


def test_random_is_a_function_of_its_arguments():
    draws = [random_for(3, 1, 4, "crop").integers(0, 2 ** 60, 5).tolist() for _ in range(2)]
    assert draws[0] == draws[1]


def test_random_streams_differ_in_every_argument():
    arguments = {(seed, epoch, index, purpose)
                 for seed in (-1, 0, 1, 11) for epoch in (0, 1, 11) for index in (0, 1, 11, 111)
                 for purpose in ("augment", "order", "1", "1/augment")}
    first = {random_for(*each).bytes(16) for each in arguments}
    assert len(first) == len(arguments)


def test_random_accepts_numpy_integers():
    other = random_for(np.int64(3), np.int32(1), np.uint8(4))
    assert other.bytes(8) == random_for(3, 1, 4).bytes(8)


def test_random_refuses_fractions():
    with pytest.raises(TypeError):
        random_for(0, 0.5, 0)


def test_random_golden():
    """The raw stream is fixed by BLAKE2 and Philox; a change would change every training run."""
    words = random_for(1, 2, 3, "augment").bit_generator.random_raw(3)
    assert words.tolist() == [2413159532553265695, 425043165501108174, 15832586603737551404]
    assert epoch_order(8, 1, 2).tolist() == [5, 7, 3, 1, 4, 2, 0, 6]


def test_random_is_uniform_over_samples():
    draws = np.array([random_for(0, 0, index).random() for index in range(4000)])
    counts, _ = np.histogram(draws, bins=10, range=(0, 1))
    assert ((counts - 400) ** 2 / 400).sum() < 28            # chi-square, 9 degrees, p < .001


@pytest.mark.parametrize("length", (0,) + LENGTHS)
@pytest.mark.parametrize("size", WORKERS)
def test_shards_partition_the_dataset(length, size):
    shards = [shard(length, rank, size) for rank in range(size)]
    assert sorted(index for part in shards for index in part) == list(range(length))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("length", LENGTHS)
def test_order_is_a_permutation_that_changes_with_epoch_and_seed(length):
    orders = [epoch_order(length, seed, epoch) for seed in range(3) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(length))
    if length > 6:
        assert len({tuple(order) for order in orders}) == 9


@pytest.mark.parametrize("size", [2, 3, 4, 6])
@pytest.mark.parametrize("length", [5, 24, 31])
def test_what_a_step_sees_does_not_depend_on_the_number_of_workers(length, size):
    arguments = dict(length=length, batch=12, seed=7)
    steps = TrainPlan(rank=0, size=1, **arguments).steps_per_epoch
    for step in range(steps):
        np.testing.assert_array_equal(step_union(size, 2, step, **arguments),
                                      step_union(1, 2, step, **arguments))


@hypothesis.given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 3))
def test_filled_epoch_continues_with_the_next_permutations(length, batch, epoch):
    plan = TrainPlan(length, batch, 0, 1, seed=5)
    seen = np.concatenate([plan.indices(epoch, step) for step in range(plan.steps_per_epoch)])
    endless = np.concatenate([epoch_order(length, 5, epoch + later)
                              for later in range(len(seen) // length + 1)])
    assert plan.steps_per_epoch == -(-length // batch)
    np.testing.assert_array_equal(seen, endless[:len(seen)])


@hypothesis.given(st.integers(1, 60), st.integers(1, 20))
def test_discarding_keeps_whole_batches_only(length, batch):
    hypothesis.assume(batch <= length)
    plan = TrainPlan(length, batch, 0, 1, seed=5, remainder="discard")
    seen = np.concatenate([plan.indices(0, step) for step in range(plan.steps_per_epoch)])
    assert plan.steps_per_epoch == length // batch
    np.testing.assert_array_equal(seen, epoch_order(length, 5, 0)[:len(seen)])


@pytest.mark.parametrize("remainder", ["fill", "discard"])
@pytest.mark.parametrize("size", WORKERS)
def test_fixed_shards_stay_with_their_worker(size, remainder):
    plans = [TrainPlan(101, 2 * size, rank, size, seed=1, order="shards", remainder=remainder)
             for rank in range(size)]
    assert len({plan.steps_per_epoch for plan in plans}) == 1
    for rank, plan in enumerate(plans):
        orders = [np.concatenate([plan.indices(epoch, step)
                                  for step in range(plan.steps_per_epoch)]) for epoch in (0, 1)]
        for order in orders:
            assert set(order.tolist()) <= set(shard(101, rank, size))
            own = order[:len(shard(101, rank, size))]
            assert len(set(own.tolist())) == len(own)
        assert orders[0].tolist() != orders[1].tolist()


def test_fixed_shards_of_one_worker_see_everything():
    plan = TrainPlan(10, 5, 0, 1, seed=1, order="shards")
    seen = np.concatenate([plan.indices(0, step) for step in range(2)])
    assert sorted(seen.tolist()) == list(range(10))


def test_calls_in_any_order_give_the_same():
    plan = TrainPlan(31, 4, 0, 1, seed=2)
    moments = [(epoch, step) for epoch in range(4) for step in range(plan.steps_per_epoch)]
    forwards = {moment: plan.indices(*moment).tolist() for moment in moments}
    for moment in reversed(moments):
        assert plan.indices(*moment).tolist() == forwards[moment]


@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.parametrize("size", WORKERS)
@pytest.mark.parametrize("length", LENGTHS)
def test_evaluation_sees_each_sample_once(length, size, batch):
    plans = [EvalPlan(length, batch, rank, size) for rank in range(size)]
    assert len({plan.steps_per_epoch for plan in plans}) == 1
    parts = [plan.indices(0, step) for plan in plans for step in range(plan.steps_per_epoch)]
    assert all(len(part) <= plans[0].batch and part.dtype == np.int64 for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(length))


@pytest.mark.parametrize("make, message", [
    (lambda: TrainPlan(10, 5, 0, 2, 0), "divisible by the 2 workers, got 5; use 4 or 6"),
    (lambda: TrainPlan(10, 0, 0, 2, 0), "divisible by the 2 workers, got 0"),
    (lambda: TrainPlan(0, 4, 0, 2, 0), "at least one sample, got an empty one"),
    (lambda: TrainPlan(3, 4, 0, 1, 0, remainder="discard"), "got 3 samples for a batch of 4"),
    (lambda: TrainPlan(2, 3, 0, 3, 0, order="shards"), "each of the 3 workers, got 2"),
    (lambda: TrainPlan(9, 3, 0, 1, 0, order="shard"), "got 'shard'; did you mean 'shards'"),
    (lambda: TrainPlan(9, 3, 0, 1, 0, remainder="fil"), "got 'fil'; did you mean 'fill'"),
    (lambda: TrainPlan(9, 3, 3, 3, 0), "from 0 to 2, got 3"),
    (lambda: EvalPlan(0, 3), "empty one"),
    (lambda: EvalPlan(3, 0), "a batch of at least 1, got 0"),
    (lambda: shard(3, -1, 2), "from 0 to 1, got -1"),
])
def test_numbers_that_do_not_fit_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("plan", [TrainPlan(9, 3, 0, 1, 0), EvalPlan(9, 3)])
@pytest.mark.parametrize("step", [-1, 3])
def test_steps_outside_the_epoch_are_refused(plan, step):
    with pytest.raises(IndexError, match=f"steps 0..2, got {step}"):
        plan.indices(0, step)
