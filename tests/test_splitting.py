"""A split is a partition, keeps proportions, and keeps equal images together."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gluon_resnest.data.splitting import Subset, split
from gluon_resnest.errors import UserError


@st.composite
def sets(draw):
    sizes = draw(st.lists(st.integers(2, 30), min_size=1, max_size=5))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = labels[np.random.RandomState(draw(st.integers(0, 99))).permutation(len(labels))]
    return labels, draw(st.integers(1, len(labels) - 1))


@given(sets(), st.integers(0, 1000))
def test_a_split_is_a_partition_with_every_class_on_both_sides(case, seed):
    labels, count = case
    others, chosen = split(labels, count, seed)
    assert sorted([*others, *chosen]) == list(range(len(labels)))
    assert set(labels[others]) == set(labels[chosen]) == set(labels)


def test_each_class_has_its_share():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    _, chosen = split(labels, 32, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [20, 10, 2]


def test_the_seed_alone_decides():
    labels = np.repeat([0, 1], 20)
    first = split(labels, 10, 0)[1]
    assert (first == split(labels, 10, 0)[1]).all() and (first != split(labels, 10, 1)[1]).any()


@given(st.integers(0, 200), st.lists(st.integers(0, 6), min_size=20, max_size=40))
def test_equal_contents_stay_on_one_side(seed, contents):
    labels = np.arange(len(contents)) % 2
    contents = [(content, label) for content, label in zip(contents, labels)]
    if min(len({c for c in contents if c[1] == label}) for label in (0, 1)) < 2:
        return
    others, chosen = split(labels, len(labels) // 4, seed, contents)
    assert not {contents[i] for i in others} & {contents[i] for i in chosen}
    assert len(others) + len(chosen) == len(labels)


@pytest.mark.parametrize("labels, count, contents, message", [
    ([0, 0, 1, 1], 4, None, "split off 1 to 3 of 4 images, got 4"),
    ([0, 0, 1, 1], 0, None, "got 0"),
    ([0, 0, 1], 1, None, "class 1 has 1 different image"),
    ([0, 0, 1, 1], 1, "aabc", "class 0 has 1 different image")])
def test_what_cannot_be_split_is_named(labels, count, contents, message):
    with pytest.raises(UserError, match=message):
        split(labels, count, 0, contents)


@given(st.integers(0, 200), st.lists(st.integers(0, 4), min_size=4, max_size=12))
def test_every_class_is_on_both_sides_or_the_split_is_refused(seed, contents):
    """Also where classes consist of copies of each other's images."""
    labels = np.arange(len(contents)) % 2
    try:
        others, chosen = split(labels, len(labels) // 2, seed, contents)
    except UserError:
        return
    assert set(labels[others]) == set(labels[chosen]) == {0, 1}


def test_a_class_of_copies_is_named():
    with pytest.raises(UserError, match="images of class 'dog' are copies of images of other"):
        split([0] * 5 + [1] * 2, 2, 0, "abcdeaa", class_names=["cat", "dog"])


def test_a_class_that_cannot_be_split_is_called_by_its_name():
    with pytest.raises(UserError, match="class 'dog' has 1 different image"):
        split([0, 0, 1], 1, 0, class_names=["cat", "dog"])


class Letters:
    class_names = ["even", "odd"]
    labels = np.array([0, 1, 0, 1])

    def __len__(self):
        return 4

    def __getitem__(self, key):
        index, rng = key
        return "abcd"[index], rng

    def name(self, index):
        return f"letter {index}"


def test_a_subset_is_its_dataset_under_other_numbers():
    subset = Subset(Letters(), np.array([3, 1]))
    assert len(subset) == 2 and subset[0, "rng"] == ("d", "rng") and subset.name(1) == "letter 1"
    assert subset.labels.tolist() == [1, 1] and subset.class_names == ["even", "odd"]
