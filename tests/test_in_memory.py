"""Images in memory: the same batches as image by image, whatever the order of asking."""
import numpy as np
import pytest

from gluon_resnest.data.in_memory import Images, MemoryLoader, PadAndMirror
from gluon_resnest.data.sampling import EvalPlan, TrainPlan
from gluon_resnest.data.transforms import eval_transform

COUNT, HEIGHT, WIDTH = 7, 6, 8
RANDOM = np.random.RandomState(3)
IMAGES = Images(RANDOM.randint(0, 256, (COUNT, HEIGHT, WIDTH, 3)).astype("uint8"),
                np.arange(COUNT, dtype="int64"))


def loader(augment=None, batch=3, rank=0, size=1):
    return MemoryLoader(IMAGES, TrainPlan(COUNT, batch, rank, size, seed=5), seed=5,
                        augment=augment)


def test_a_batch_is_the_pipeline_applied_to_each_image():
    square = Images(IMAGES.pixels[:, :, :6], IMAGES.labels)
    batches = list(MemoryLoader(square, EvalPlan(COUNT, 3), seed=0).epoch(0))
    images = np.concatenate([batch.arrays[0] for batch in batches])
    slow = np.stack([eval_transform(6, "whole")(pixels) for pixels in square.pixels])
    np.testing.assert_allclose(images, slow, atol=1e-6)
    assert images.dtype == np.float32
    assert np.concatenate([batch.arrays[1] for batch in batches]).tolist() == list(range(COUNT))


def test_the_augmented_batch_equals_its_slow_twin():
    augment = PadAndMirror(padding=2, mirror=True)
    indices = np.array([4, 0, 6, 4])
    got = augment(IMAGES.pixels[indices], indices, seed=1, epoch=2, length=COUNT)
    corners, mirrored = augment.draw(1, 2, COUNT)
    assert mirrored.any() and not mirrored.all()
    for row, index in enumerate(indices):
        padded = np.zeros((HEIGHT + 4, WIDTH + 4, 3), np.uint8)
        padded[2:-2, 2:-2] = IMAGES.pixels[index]
        top, left = corners[index]
        cut = padded[top:top + HEIGHT, left:left + WIDTH]
        np.testing.assert_array_equal(got[row], cut[:, ::-1] if mirrored[index] else cut)


def test_shifts_reach_every_corner_and_half_are_mirrored():
    corners, mirrored = PadAndMirror(1, True).draw(0, 0, 4000)
    assert set(map(tuple, corners)) == {(row, column) for row in range(3) for column in range(3)}
    assert 0.45 < mirrored.mean() < 0.55
    assert not PadAndMirror(1, False).draw(0, 0, 100)[1].any()


def test_epochs_and_seeds_draw_differently():
    draw = PadAndMirror(4, True).draw
    assert draw(0, 0, 50) is draw(0, 0, 50)            # not again for each batch of an epoch
    first = draw(0, 0, 50)[0]
    assert (first != draw(0, 1, 50)[0]).any() and (first != draw(1, 0, 50)[0]).any()


def test_batches_continue_where_a_run_stopped():
    augment = PadAndMirror(2, True)
    stream = loader(augment).batches(0)
    all_steps = [next(stream) for _ in range(6)]
    later = loader(augment).batches(4)
    for expected in all_steps[4:]:
        got = next(later)
        assert (got.epoch, got.step) == (expected.epoch, expected.step)
        np.testing.assert_array_equal(got.arrays[0], expected.arrays[0])


@pytest.mark.parametrize("step", range(2))
def test_workers_together_see_what_one_sees(step):
    augment = PadAndMirror(2, True)
    alone = list(loader(augment, batch=4).epoch(3))[step]
    parts = [list(loader(augment, 4, rank, 2).epoch(3))[step] for rank in range(2)]
    np.testing.assert_array_equal(
        np.concatenate([part.arrays[0] for part in parts]), alone.arrays[0])


def test_taking_some_keeps_pixels_and_labels_together():
    some = IMAGES.take([5, 1])
    assert len(some) == 2 and some.labels.tolist() == [5, 1]
    np.testing.assert_array_equal(some.pixels[0], IMAGES.pixels[5])
