"""Objects and pixels become segments: a slow twin, hand numbers, the rules' edges."""
import numpy as np
import pytest

from gluon_resnest.errors import UserError
from gluon_resnest.models.detection.inference import Found
from gluon_resnest.models.detection.merging import Rules, check_rules, merge
from gluon_resnest.models.detection.pasting import paste

SIZE = (20, 30)
RULES = Rules(confidence=0.5, overlap=0.5, stuff_area=1)


def found(*rows):
    """Returns a Found of (box, class, score): their masks fill the boxes."""
    boxes, classes, scores = zip(*rows) if rows else ((), (), ())
    return Found(np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64),
                 np.array(scores, np.float32), np.ones((len(rows), 28, 28), np.float32))


def stuff(value=0):
    return np.full(SIZE, value, np.int32)


def random_case(seed):
    rng = np.random.RandomState(seed)
    corners = rng.uniform(-4, 24, (9, 2))
    boxes = np.hstack([corners, corners + rng.uniform(2, 15, (9, 2))]).astype(np.float32)
    objects = Found(boxes, rng.randint(0, 4, 9), rng.uniform(0.2, 1, 9).astype(np.float32),
                    rng.uniform(0, 1, (9, 8, 8)).astype(np.float32))
    labels = np.kron(rng.randint(0, 5, (4, 6)), np.ones((5, 5), int)).astype(np.int32)
    return objects, labels, Rules(0.4, rng.uniform(0.1, 0.9), int(rng.randint(0, 80)))


def slow(objects, labels, rules):
    """Visits pixel after pixel; returns the map as {(row, column): (thing, kind)}, and areas."""
    owner, areas = {}, []
    masks = [paste(mask, box, *labels.shape) for mask, box in zip(objects.masks, objects.boxes)]
    for number in sorted(range(len(masks)), key=lambda each: -objects.scores[each]):
        if objects.scores[number] < rules.confidence:
            continue
        pixels = [tuple(place) for place in np.argwhere(masks[number])]
        free = [place for place in pixels if place not in owner]
        if not pixels or (len(pixels) - len(free)) / len(pixels) > rules.overlap:
            continue
        owner.update(dict.fromkeys(free, (True, objects.classes[number], len(areas))))
        areas.append(len(free))
    for kind in range(labels.max()):
        free = [tuple(place) for place in np.argwhere(labels == kind + 1)
                if tuple(place) not in owner]
        if free and len(free) >= rules.stuff_area:
            owner.update(dict.fromkeys(free, (False, kind, len(areas))))
            areas.append(len(free))
    return owner, areas


@pytest.mark.parametrize("seed", range(12))
def test_segments_are_those_of_a_slow_twin(seed):
    objects, labels, rules = random_case(seed)
    ids, segments = merge(objects, labels, rules)
    owner, areas = slow(objects, labels, rules)
    assert [each.area for each in segments] == areas and len(areas) > 2
    for (row, column), number in np.ndenumerate(ids):
        expected = owner.get((row, column))
        assert (expected is None) == (number == 0)
        if expected:
            each = segments[number - 1]
            assert (each.thing, each.kind, each.id - 1) == expected


@pytest.mark.parametrize("seed", range(4))
def test_each_pixel_has_one_segment_and_areas_are_its_pixels(seed):
    ids, segments = merge(*random_case(seed))
    assert [each.id for each in segments] == list(range(1, len(segments) + 1))
    assert [(ids == each.id).sum() for each in segments] == [each.area for each in segments]
    assert ids.dtype == np.int32 and ids.max() == len(segments)


def test_the_better_of_two_objects_is_on_top():
    ids, segments = merge(found(((0, 0, 10, 10), 0, 0.6), ((6, 0, 16, 10), 1, 0.9)), stuff(), RULES)
    assert [(each.kind, each.area) for each in segments] == [(1, 100), (0, 60)]
    assert segments[0].score == pytest.approx(0.9) and segments[0].thing
    assert ids[0, 7] == 1 and ids[0, 0] == 2 and ids[0, 20] == 0


@pytest.mark.parametrize("left, kept", [(5, True), (4, False)])
def test_an_object_may_be_covered_up_to_the_limit_and_no_further(left, kept):
    """10 wide, 5 columns covered are exactly one half."""
    objects = found(((0, 0, 10, 10), 0, 0.9), ((left, 0, left + 10, 10), 1, 0.8))
    assert (len(merge(objects, stuff(), RULES)[1]) == 2) is kept


@pytest.mark.parametrize("score, kept", [(0.5, True), (0.49, False)])
def test_objects_need_the_confidence(score, kept):
    assert bool(merge(found(((0, 0, 10, 10), 0, score)), stuff(), RULES)[1]) is kept


@pytest.mark.parametrize("limit, kept", [(500, True), (501, False)])
def test_stuff_needs_the_area_that_objects_leave_it(limit, kept):
    """600 pixels of stuff, of which an object covers 100."""
    ids, segments = merge(found(((0, 0, 10, 10), 0, 0.9)), stuff(3), RULES._replace(
        stuff_area=limit))
    assert (len(segments) == 2) is kept and (ids > 0).sum() == (600 if kept else 100)
    if kept:
        assert segments[1][1:] == (False, 2, 500, None)


def test_nothing_found_is_nothing():
    ids, segments = merge(found(), stuff(), RULES)
    assert not ids.any() and segments == []


def test_an_empty_mask_is_no_segment():
    outside = found(((40, 0, 50, 10), 0, 0.9))
    assert merge(outside, stuff(), RULES)[1] == []


@pytest.mark.parametrize("rules", [Rules(1.5), Rules(overlap=-0.1), Rules(stuff_area=-1)])
def test_rules_that_make_no_sense_are_one_sentence(rules):
    with pytest.raises(UserError, match="confidence and overlap in 0..1"):
        check_rules(rules)
