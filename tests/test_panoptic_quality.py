"""Panoptic quality: hand numbers, a slow twin, numbers of the official panopticapi.

The golden numbers were made once by panopticapi's `pq_compute` (cocodataset/panopticapi at commit
1ad5afa) on the files that `damaged_files` writes: annotations are its own sample of two images,
predictions are `damaged` copies of them. Where a panopticapi is importable, it is asked again.
"""
import json
from itertools import permutations

import numpy as np
import pytest

from gluon_resnest.data.panoptic import VOID, Panoptic, described, png, read_panoptic
from gluon_resnest.errors import UserError
from gluon_resnest.tasks.panoptic_quality import Counts, count, quality

SEEDS = range(6)

# PQ, SQ, RQ of all, things, stuff by seed.
GOLDEN = {
    0: [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
    1: [[0.40943540609414997, 0.7128867670623771, 0.5080555555555555],
        [0.5402039373031025, 0.8147365211273596, 0.6799999999999999],
        [0.2786668748851975, 0.6110370129973944, 0.33611111111111114]],
    2: [[0.3010099977135136, 0.5664996917413821, 0.3951923076923077],
        [0.414322954503625, 0.7147108326844839, 0.5653846153846154],
        [0.18769704092340223, 0.41828855079828053, 0.225]],
    3: [[0.394596400454183, 0.6335055214174621, 0.4825],
        [0.4759621181250666, 0.7968777277072385, 0.6316666666666666],
        [0.31323068278329935, 0.47013331512768564, 0.3333333333333333]],
    4: [[0.14602415895243603, 0.37401471782196766, 0.19776570048309178],
        [0.23839699838963818, 0.5334241575829998, 0.33303140096618356],
        [0.053651319515233886, 0.21460527806093554, 0.0625]],
    5: [[0.4603557023196601, 0.6919192038338827, 0.5672619047619047],
        [0.3422265117835384, 0.5339450435494918, 0.46785714285714286],
        [0.5784848928557818, 0.8498933641182738, 0.6666666666666666]]}


def strips(*widths, height=4, category=1, first=1):
    """Returns a map of vertical strips, and the categories of its segments."""
    ids = np.repeat(np.arange(len(widths)) + first, widths)[None].repeat(height, axis=0)
    return ids, {number: category for number in range(first, first + len(widths))}


def one(true, predicted, crowd=(), things=(1,)):
    """Returns the metrics of one image of (ids, categories) pairs."""
    counts = count(described(*true, crowd), described(*predicted))
    return quality([counts], {number: number in things for number in range(1, 10)})[0]


# ---- hand numbers -------------------------------------------------------------------------------

def test_equal_maps_have_quality_one_hundred_whatever_the_ids():
    ids, categories = strips(3, 5, 2)
    metrics = one((ids, categories), (ids + 40, {number + 40: 1 for number in categories}))
    assert metrics == {"pq": 100, "sq": 100, "rq": 100, "things_pq": 100, "things_sq": 100,
                       "things_rq": 100}


def test_a_match_needs_more_than_half():
    """Of 8 columns 4 overlap: IoU 4 / 8 is no match, 5 / 8 is."""
    true = strips(8)
    half, more = np.where(np.arange(8) < 4, 1, 0), np.where(np.arange(8) < 5, 1, 0)
    assert one(true, (half[None].repeat(4, 0), {1: 1}))["pq"] == 0
    assert one(true, (more[None].repeat(4, 0), {1: 1}))["pq"] == pytest.approx(62.5)


def test_void_pixels_are_taken_out_of_the_union():
    ids, categories = strips(6, 2)
    ids[ids == 2] = VOID
    whole = np.ones_like(ids)
    assert one((ids, {1: 1}), (whole, {1: 1}))["pq"] == 100


@pytest.mark.parametrize("void, counted", [(4, 1), (5, 0)])
def test_a_prediction_mostly_on_void_is_no_false_positive(void, counted):
    """Its area is 8: half of it on void still counts."""
    true = np.where(np.arange(16) < 8, 1, 0)[None]
    true[0, 8 + void:] = 2
    found = np.where(np.arange(16) < 8, 1, 3)[None]
    metrics = one((true, {1: 1, 2: 2}), (found, {1: 1, 3: 3}))
    assert count(described(true, {1: 1, 2: 2}), described(found, {1: 1, 3: 3})).get(
        3, Counts()).false_positives == counted
    assert metrics["pq"] == pytest.approx(100 / (2 + counted))      # categories 1, 2 and maybe 3


def test_a_prediction_on_a_crowd_of_its_category_is_ignored_one_on_another_is_not():
    true = np.where(np.arange(16) < 8, 1, 2)[None]
    for category, counted in ((1, 0), (3, 1)):
        found = np.where(np.arange(16) < 8, 1, 2)[None]
        counts = count(described(true, {1: 1, 2: 1}, crowd={2}),
                       described(found, {1: 1, 2: category}))
        assert counts.get(category, Counts()).false_positives == counted
        assert counts[1].false_negatives == 0 and len(counts[1].overlaps) == 1


def test_a_wrong_category_is_a_miss_and_a_false_positive():
    ids, _ = strips(8)
    counts = count(described(ids, {1: 1}), described(ids, {1: 2}))
    assert counts == {1: Counts(false_negatives=1), 2: Counts(false_positives=1)}


def test_an_empty_prediction_misses_everything():
    ids, categories = strips(3, 5)
    metrics = one((ids, categories), (np.zeros_like(ids), {}))
    assert metrics["pq"] == metrics["sq"] == metrics["rq"] == 0


def test_no_segment_at_all_is_one_sentence():
    nothing = described(np.zeros((2, 3), int), {})
    with pytest.raises(UserError, match="neither the annotations nor the predictions"):
        quality([count(nothing, nothing)], {1: True})


# ---- laws ---------------------------------------------------------------------------------------

def random_pair(seed, size=(80, 110)):
    """Returns a random annotation with void and crowds, and a prediction like it."""
    rng = np.random.RandomState(seed)
    ids = np.zeros(size, int)
    categories = {}
    for number in range(1, 13):
        top, left = rng.randint(0, size[0] - 12), rng.randint(0, size[1] - 12)
        ids[top:top + rng.randint(12, 40), left:left + rng.randint(12, 40)] = number
        categories[number] = int(rng.randint(1, 6))
    truth = described(ids, categories, set(rng.choice(np.arange(1, 13), 2).tolist()))
    return truth, damaged(truth, rng, range(1, 6))


def damaged(truth, rng, categories):
    """Returns a prediction: segments cut, moved, merged, split, renamed, lost, of other category.

    Drawn by a RandomState, whose numbers never change.
    """
    ids, kinds = truth.ids.astype(int), {row["id"]: row["category_id"] for row in truth.segments}
    moved = np.roll(ids, tuple(rng.randint(-3, 4, 2)), axis=(0, 1))
    next_id = max([*kinds, 1]) + 1
    for number in sorted(kinds):
        fate = rng.rand()
        inside = moved == number
        if fate < 0.15:
            moved[inside] = VOID
        elif fate < 0.3:
            kinds[number] = int(rng.choice(list(categories)))
        elif fate < 0.5:
            rows = np.flatnonzero(inside.any(axis=1))
            if len(rows) > 1:
                split = inside & (np.arange(len(ids))[:, None] >= rows[int(len(rows) * rng.rand())])
                moved[split] = next_id
                kinds[next_id] = kinds[number]
                next_id += 1
        elif fate < 0.65:
            other = int(rng.choice(sorted(kinds)))
            moved[inside] = other
    void = (moved == VOID) & (rng.rand(*ids.shape) < 0.7)
    moved[void] = next_id
    kinds[next_id] = int(rng.choice(list(categories)))
    found = described(moved, kinds)
    return Panoptic(found.ids, [{"id": row["id"], "category_id": row["category_id"]}
                                for row in found.segments])


def slow(truth, found):
    """Counts with one loop over all pairs of segments and masks of every one."""
    results = {}

    def of(kind):
        return results.setdefault(kind, {"overlaps": [], "fp": 0, "fn": 0})

    def mask(panoptic, row):
        return panoptic.ids == row["id"]

    def outside(row):
        return mask(found, row) & (truth.ids != VOID)

    real = [row for row in truth.segments if not row["iscrowd"]]
    matched = []
    for row in real:
        for other in found.segments:
            both = (mask(truth, row) & mask(found, other)).sum()
            either = (mask(truth, row) | outside(other)).sum()
            if row["category_id"] == other["category_id"] and both / either > 0.5:
                of(row["category_id"])["overlaps"].append((both, either))
                matched += [("true", row["id"]), ("found", other["id"])]
    for row in real:
        if ("true", row["id"]) not in matched:
            of(row["category_id"])["fn"] += 1
    for other in found.segments:
        crowds = [row for row in truth.segments
                  if row["iscrowd"] and row["category_id"] == other["category_id"]][-1:]
        ignored = truth.ids == VOID
        for row in crowds:
            ignored = ignored | mask(truth, row)
        share = (mask(found, other) & ignored).sum() / mask(found, other).sum()
        if ("found", other["id"]) not in matched and share <= 0.5:
            of(other["category_id"])["fp"] += 1
    return {kind: Counts(tuple(sorted(each["overlaps"])), each["fp"], each["fn"])
            for kind, each in results.items()}


@pytest.mark.parametrize("seed", range(8))
def test_counts_are_those_of_a_slow_twin(seed):
    truth, found = random_pair(seed)
    counts = {kind: each._replace(overlaps=tuple(sorted(each.overlaps)))
              for kind, each in count(truth, found).items()}
    assert counts == slow(truth, found)
    assert any(each.overlaps for each in counts.values())
    assert any(each.false_positives for each in counts.values())


def test_the_order_of_images_does_not_change_a_bit():
    counts = [count(*random_pair(seed)) for seed in range(4)]
    things = {number: number < 3 for number in range(1, 6)}
    expected = quality(counts, things)
    for order in permutations(counts):
        assert quality(order, things) == expected


def test_categories_that_never_occur_do_not_count():
    ids, categories = strips(8)
    counts = [count(described(ids, categories), described(ids, categories))]
    metrics, per_category = quality(counts, {1: True, 2: True, 3: False})
    assert metrics["pq"] == 100 and list(per_category) == [1] and "stuff_pq" not in metrics


# ---- the official judge -------------------------------------------------------------------------

def damaged_files(data_root, folder, seed):
    """Writes damaged copies of the official sample; returns (annotations, predictions) jsons."""
    sample = data_root / "coco_panoptic_sample/sample_data/panoptic_examples.json"
    files, rng, rows = read_panoptic(sample), np.random.RandomState(seed), []
    categories = files.categories()
    (folder / "found").mkdir()
    for image_id in files.image_ids:
        truth = files.read(image_id, categories)
        found = truth if seed == 0 else damaged(
            truth, rng, sorted({row["category_id"] for row in truth.segments}))
        rows.append({"image_id": image_id, "file_name": f"{image_id}.png",
                     "segments_info": found.segments})
        (folder / "found" / f"{image_id}.png").write_bytes(png(found.ids))
    (folder / "found.json").write_text(json.dumps({"annotations": rows}))
    return sample, folder / "found.json"


def ours(sample, predictions):
    files, found = read_panoptic(sample), read_panoptic(predictions)
    known = files.categories()
    metrics, _ = quality(
        [count(files.read(image_id, known), found.read(image_id, known))
         for image_id in files.image_ids],
        {number: bool(row["isthing"]) for number, row in known.items()})
    return [[metrics[prefix + name] / 100 for name in ("pq", "sq", "rq")]
            for prefix in ("", "things_", "stuff_")]


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_are_those_of_the_official_judge(data_root, tmp_path, seed):
    np.testing.assert_allclose(ours(*damaged_files(data_root, tmp_path, seed)), GOLDEN[seed],
                               rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_are_those_of_an_installed_official_judge(data_root, tmp_path, seed):
    evaluation = pytest.importorskip("panopticapi.evaluation")
    sample, predictions = damaged_files(data_root, tmp_path, seed)
    theirs = evaluation.pq_compute(str(sample), str(predictions))
    np.testing.assert_allclose(
        ours(sample, predictions),
        [[theirs[group][name] for name in ("pq", "sq", "rq")]
         for group in ("All", "Things", "Stuff")], rtol=0, atol=1e-12)
