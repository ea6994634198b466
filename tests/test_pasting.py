"""Masks on images: the rule pixel by pixel, COCO's code, and the time it takes."""
import time

import numpy as np
import pytest

from gluon_resnest.models.detection.pasting import compress, encode, encode_pixels, paste

coco = pytest.importorskip("pycocotools.mask")


def slow_paste(mask, box, height, width):
    """Detectron2's rule: bilinear sampling at every pixel's centre, zeros beyond, at least 0.5."""
    cells, pixels = len(mask), np.zeros((height, width), bool)
    left, top, right, bottom = map(float, box)
    bordered = np.pad(mask.astype(float), 1)
    for y in range(height):
        for x in range(width):
            if right <= left or bottom <= top:
                continue
            u = (x + 0.5 - left) / (right - left) * cells + 0.5      # in the bordered mask
            v = (y + 0.5 - top) / (bottom - top) * cells + 0.5
            if not (0 <= u < cells + 1 and 0 <= v < cells + 1):
                continue
            i, j = int(v), int(u)
            a, b = v - i, u - j
            value = ((1 - a) * ((1 - b) * bordered[i, j] + b * bordered[i, j + 1])
                     + a * ((1 - b) * bordered[i + 1, j] + b * bordered[i + 1, j + 1]))
            pixels[y, x] = value >= 0.5
    return pixels


def blob(rng, cells):
    y, x = np.mgrid[:cells, :cells] / cells - 0.5
    distance = np.hypot(y, x) + 0.1 * np.sin(8 * rng.uniform() * x) + rng.normal(0, 0.04, x.shape)
    return (1 / (1 + np.exp(30 * (distance - rng.uniform(0.2, 0.6))))).astype(np.float32)


BOXES = {"inside": (5.2, 3.7, 17.9, 14.1), "beyond the image": (-6.3, -4.1, 30.2, 8.8),
         "all of it": (0, 0, 24, 19), "narrower than a cell": (7.1, 2.2, 8.4, 15.0),
         "smaller than a pixel": (7.1, 2.2, 7.3, 2.4), "empty": (7, 5, 7, 9),
         "turned over": (9, 5, 7, 9), "elsewhere": (-20, -20, -3, -3), "right": (30, 1, 44, 9)}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("cells", [5, 28])
def test_pasting_is_detectron2s_rule_at_every_pixel(box, cells):
    rng = np.random.default_rng(cells)
    for mask in (blob(rng, cells), rng.uniform(size=(cells, cells)), np.ones((cells, cells)),
                 np.zeros((cells, cells))):
        pixels = paste(mask, box, 19, 24)
        np.testing.assert_array_equal(pixels, slow_paste(mask, box, 19, 24))
        expected = coco.encode(np.asfortranarray(pixels, np.uint8))
        assert encode(mask, box, 19, 24) == {"size": [19, 24],
                                             "counts": expected["counts"].decode()}


def test_a_certain_mask_is_the_pixels_whose_centres_its_box_holds():
    pixels = paste(np.ones((28, 28)), (2.5, 1, 4.4, 3), 5, 8)
    assert pixels[1:3, 2:4].all() and pixels.sum() == 4


def test_codes_are_those_of_pycocotools_bit_for_bit():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 80, 2)
        pixels = rng.uniform(size=(height, width)) < rng.choice([0, 0.01, 0.5, 0.99, 1])
        expected = coco.encode(np.asfortranarray(pixels, np.uint8))
        assert encode_pixels(pixels) == {"size": [height, width],
                                         "counts": expected["counts"].decode()}


def test_long_runs_and_large_differences_are_coded():
    for runs in ([10 ** 8], [0, 10 ** 7, 3, 1], [5, 1, 40000, 1, 1, 70000, 2]):
        height = sum(runs)
        expected = coco.frPyObjects([{"size": [height, 1], "counts": runs}], height, 1)[0]
        assert compress(np.array(runs)) == expected["counts"].decode()


def test_a_hundred_masks_of_a_large_image_take_less_than_three_tenths_of_a_second():
    """Of this process's own time, since other processes may share the core."""
    rng = np.random.default_rng(1)
    masks = [blob(rng, 28) for _ in range(100)]
    corners = np.sort(rng.uniform(0, [1333, 800], (100, 2, 2)), axis=1).reshape(100, 4)
    for boxes in (corners, [(0, 0, 1333, 800)] * 100):
        began = time.process_time()
        for mask, box in zip(masks, boxes):
            encode(mask, box, 800, 1333)
        assert time.process_time() - began < 0.3
