import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
from pycocotools import mask as tools

from gluon_resnest.data.coco import read_instances
from gluon_resnest.data.instance_masks import (
    BadMask, Move, RunLengthMasks, as_pixels, check_mask, moved_mask, outlines, run_lengths)

SQUARE = [[2, 3, 8, 3, 8, 9, 2, 9]]
PIXELS = hypothesis.extra.numpy.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)),
                                       elements=st.integers(0, 1))


def stay(height, width):
    return Move((0, 0, height, width), height, width)


def decoded(code, height, width):
    return RunLengthMasks([code], height, width)[0]


@hypothesis.given(PIXELS)
def test_run_lengths_decode_to_what_was_encoded(pixels):
    coded = tools.encode(np.asfortranarray(pixels))
    text = {"size": coded["size"], "counts": coded["counts"].decode()}
    plain = {"size": coded["size"], "counts": run_lengths(coded["counts"]).tolist()}
    for runs in (coded, text, plain):
        np.testing.assert_array_equal(as_pixels(runs, pixels.shape), pixels)
    assert sum(plain["counts"]) == pixels.size


def test_long_runs_and_growing_differences_are_read():
    pixels = np.zeros((300, 500), np.uint8)
    pixels[10:290, 5:495] = 1
    pixels[100:103, 200:300] = 0
    coded = tools.encode(np.asfortranarray(pixels))
    np.testing.assert_array_equal(as_pixels(coded, pixels.shape), pixels)


@hypothesis.given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12))
def test_any_text_gives_a_mask_or_is_refused(text):
    try:
        assert as_pixels({"size": [3, 4], "counts": text}, (3, 4)).shape == (3, 4)
    except BadMask as error:
        assert "run lengths" in str(error)


@hypothesis.given(st.lists(st.integers(-2 ** 34, 2 ** 34 - 1), max_size=9))
def test_run_lengths_are_read_as_a_chain_of_differences(differences):
    """A slow writer of the code as its definition has it."""
    expected, letters = [], []
    for place, number in enumerate(differences):
        expected.append(number + (expected[place - 2] if place > 2 else 0))
        while not -16 <= number < 16:
            letters.append(number & 31 | 32)
            number >>= 5
        letters.append(number & 31)
    assert run_lengths(bytes(48 + each for each in letters)).tolist() == expected


BROKEN = [
    {"size": [20, 30], "counts": [2 ** 62, 2 ** 62, 2 ** 62, 2 ** 62 + 600]},
    {"size": [20, 30], "counts": [2 ** 70]}, {"size": [20, 30], "counts": [-600, 1200]},
    {"size": [20, 30], "counts": "PPPPPPPP"}, {"size": [20, 30], "counts": "o" * 2000},
    {"size": [2 ** 40, 30], "counts": [600]}, {"size": [20, 1e400], "counts": [600]}, {},
    [[0, 0, 1e9, 0, 5, 5]], [[0, 0, -1e300, 0, 5, 5]], [[0, 0, float("nan"), 0, 5, 5]],
    [[0, 0, 10 ** 400, 0, 5, 5]], [[0, 0, 9e5, 0] * 3], [[5, 5, 9, 9]], [[[], [], [], [], [], []]],
    [[0, 0, 9, 9, 9, 0], ["x"] * 6], [[0, 0, 9, 9, 9, 0], 5],
    [[0, 0, 9, 9, 9, 0, 7]], [], [3], "abcdefg", ["abcdefg"], None, 3]


@pytest.mark.parametrize("segmentation", BROKEN, ids=range(len(BROKEN)))
def test_what_pycocotools_would_not_survive_is_refused(segmentation):
    with pytest.raises(BadMask):
        check_mask(segmentation, (20, 30))


@pytest.mark.parametrize("far", [1e9, 1e12, -1e9, float("nan")])
def test_polygons_too_long_to_be_filled_are_refused(far):
    with pytest.raises(BadMask, match="a polygon of more than 4194304 pixels"):
        moved_mask([[0, 0, far, 0, 5, 5]], (20, 30), stay(20, 30))


@pytest.mark.parametrize("segmentation", [
    SQUARE, SQUARE + [[]], [[1, 2, 3, 4]] + SQUARE, [[-3, -3, 40, -3, 40, 25]],
    {"size": [20, 30], "counts": [600]}, {"size": [20, 30], "counts": [0, 5, 0, 595]}])
def test_what_pycocotools_reads_is_let_through(segmentation):
    check_mask(segmentation, (20, 30))
    tools.frPyObjects(outlines(segmentation), 20, 30)


@hypothesis.given(PIXELS)
def test_masks_are_used_like_an_array(pixels):
    height, width = pixels.shape
    dense = np.stack([pixels, 1 - pixels, np.ones_like(pixels)])
    masks = RunLengthMasks([moved_mask(each, pixels.shape, stay(height, width)) for each in dense],
                           height, width)
    assert len(masks) == 3 and masks.dense().dtype == np.uint8
    np.testing.assert_array_equal(masks.dense(), dense)
    for rows in (np.array([True, False, True]), np.array([2, 0]), slice(1, None),
                 np.zeros(3, bool)):
        np.testing.assert_array_equal(masks[rows].dense(), dense[rows])
    np.testing.assert_array_equal(masks[np.int64(1)], dense[1])
    left, top, right, bottom = masks.boxes()[0].astype(int)
    assert dense[0].sum() == dense[0, top:bottom, left:right].sum()
    assert (right - left) * (bottom - top) == 0 or dense[0, top].any()


def test_a_square_is_filled_where_it_is_moved_to():
    cut, large = (1, 2, 10, 8), (20, 24)       # a window of 10 x 8, two and three times as large
    move = Move(cut, *large)
    expected = np.zeros(large, np.uint8)
    expected[4:16, 0:18] = 1                   # (2..8 - 2) * 3, (3..9 - 1) * 2
    np.testing.assert_array_equal(decoded(moved_mask(SQUARE, (15, 12), move), *large), expected)
    assert move.boxes([[2, 3, 8, 9]]).tolist() == [[0, 4, 18, 16]]
    mirrored = move._replace(mirrored=True)
    np.testing.assert_array_equal(decoded(moved_mask(SQUARE, (15, 12), mirrored), *large),
                                  expected[:, ::-1])
    assert mirrored.boxes([[2, 3, 8, 9]]).tolist() == [[6, 4, 24, 16]]


@pytest.mark.parametrize("mirrored", [False, True])
def test_pixels_and_polygons_of_a_rectangle_move_alike(mirrored):
    pixels = np.zeros((15, 12), np.uint8)
    pixels[3:9, 2:8] = 1
    move = Move((1, 2, 10, 8), 20, 24, mirrored)
    np.testing.assert_array_equal(decoded(moved_mask(pixels, (15, 12), move), 20, 24),
                                  decoded(moved_mask(SQUARE, (15, 12), move), 20, 24))


@pytest.mark.parametrize("size, moved", [((48, 30), (80, 50)), ((33, 47), (20, 31))])
def test_pixels_show_what_is_at_their_centres(size, moved):
    pixels = np.random.default_rng(0).integers(0, 9, size).astype(np.uint8)
    rows, columns = (((np.arange(after) + 0.5) * before / after).astype(int)
                     for before, after in zip(size, moved))
    move = Move((0, 0, *size), *moved)
    np.testing.assert_array_equal(move.mask(pixels), pixels[rows][:, columns])
    np.testing.assert_array_equal(move._replace(mirrored=True).mask(pixels[:, ::-1]),
                                  move.mask(pixels))


def test_mirroring_twice_is_nothing():
    boxes = np.array([[1, 2, 5, 7], [0, 0, 12, 15]], np.float32)
    mirror = Move((0, 0, 15, 12), 15, 12, True)
    np.testing.assert_array_equal(mirror.boxes(mirror.boxes(boxes)), boxes)


def test_boxes_are_cut_off_at_the_border():
    assert Move((0, 0, 15, 12), 30, 24).boxes([[-3, 4, 50, 9]]).tolist() == [[0, 8, 24, 18]]
    assert stay(5, 5).boxes(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.realdata
def test_all_masks_of_real_files_equal_those_of_pycocotools(data_root):
    from pycocotools.coco import COCO
    masks = 0
    for split in ("train2017", "val2017"):
        file = data_root / f"tiny_coco/annotations/instances_{split}.json"
        source, theirs = read_instances(file, data_root / "tiny_coco" / split), COCO(str(file))
        for index in range(len(source)):
            size, objects = source.size(index), source.objects(index)
            for number, segmentation in zip(objects.ids.tolist(), objects.segmentations):
                mine = decoded(moved_mask(segmentation, size, stay(*size)), *size)
                np.testing.assert_array_equal(mine, theirs.annToMask(theirs.anns[number]))
                masks += 1
    assert masks == 470 + 382
