import itertools
import os
import pickle
import signal
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gluon_resnest.data import detection
from gluon_resnest.data.coco import read_instances
from gluon_resnest.data.detection import DetectionDataset, DetectionLoader, pack, stack, unpack
from gluon_resnest.data.detection_transforms import (
    EvalTransform, TrainTransform, moved, moved_objects, random_window, resized)
from gluon_resnest.data.instance_masks import Move
from gluon_resnest.data.sampling import TrainPlan, random_for
from gluon_resnest.data.shapes import KINDS, ShapeInstances
from gluon_resnest.data.synthetic import SyntheticDetection
from gluon_resnest.errors import UserError

SHAPES = ShapeInstances(11, (36, 48), 3, seed=4)
TRAIN = TrainTransform((32, 40, 48), max_px=56, crop=(0.6, 0.8))
EVAL = EvalTransform(40, 50)


def loader(dataset=None, **changes):
    dataset = dataset or DetectionDataset(SHAPES, TRAIN)
    return DetectionLoader(dataset, **{**dict(batch=4, rank=0, size=1, seed=2, workers=0,
                                              divisor=16), **changes})


def some(batches, count=8):
    return list(itertools.islice(batches, count))


def same(one, other):
    """Tells whether two batches are equal in everything."""
    arrays = ("images", "sizes", "original", "indices", "image_ids")
    return all([np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays]
               + [len(one.objects) == len(other.objects)]
               + [np.array_equal(a.boxes, b.boxes) and np.array_equal(a.classes, b.classes)
                  and np.array_equal(a.crowd, b.crowd) and a.masks.codes == b.masks.codes
                  for a, b in zip(one.objects, other.objects)])


# Sizes

@pytest.mark.parametrize("rule", ["detectron2", "mmdetection"])
@pytest.mark.parametrize("size, expected", [
    ((480, 640), (800, 1067)),      # 1066.67 is rounded
    ((640, 480), (1067, 800)),
    ((427, 640), (800, 1199)),      # 1199.06
    ((300, 900), (444, 1333)),      # the longer side limits
    ((800, 800), (800, 800)),
])
def test_sizes_are_those_of_the_published_rules(rule, size, expected):
    assert resized(*size, 800, 1333, rule) == expected


def test_rules_round_differently():
    """Detectron2 scales twice, mmdetection once: 176 / 352 * 1333 is 666.5 up to the last bit."""
    assert resized(176, 352, 800, 1333) == (666, 1333)
    assert resized(176, 352, 800, 1333, "mmdetection") == (667, 1333)


def test_interpolation_is_the_rule_s():
    image = np.random.randint(0, 256, (20, 30, 3)).astype(np.uint8)
    move = Move((0, 0, 20, 30), 10, 15)
    blurred = np.asarray(Image.fromarray(image).resize((15, 10), Image.BILINEAR))
    np.testing.assert_array_equal(moved(image, move), blurred)
    sampled = moved(image, move, "mmdetection")       # no anti-aliasing: mean of four neighbours
    mean = image.reshape(10, 2, 15, 2, 3).mean(axis=(1, 3))
    assert np.abs(sampled - mean).max() <= 1 < np.abs(blurred - mean).max()


def test_what_is_drawn_is_what_the_recipe_names():
    choice = TrainTransform((32, 40), max_px=99, flip=False)
    shorts = {choice.move(30, 40, None, random_for(0, 0, i)).height for i in range(40)}
    assert shorts == {32, 40}
    span = replace(choice, sampling="range")
    shorts = {span.move(30, 40, None, random_for(0, 0, i)).height for i in range(300)}
    assert shorts == set(range(32, 41))
    mirrored = [replace(choice, flip=True).move(30, 40, None, random_for(0, 0, i)).mirrored
                for i in range(200)]
    assert 70 < sum(mirrored) < 130
    assert not any(choice.move(30, 40, None, random_for(0, 0, i)).mirrored for i in range(20))


@pytest.mark.parametrize("make, message", [
    (lambda: TrainTransform((900,), max_px=800), "from 1 to the longer side's limit 800"),
    (lambda: TrainTransform(()), "expected shorter sides"),
    (lambda: TrainTransform(sampling="rang"), "sampling must be one of .* did you mean 'range'"),
    (lambda: TrainTransform(crop=(0, 1)), "expected shares of height and width in 0..1"),
    (lambda: EvalTransform(rule="d2"), "rule must be one of detectron2, mmdetection"),
])
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


# Windows and objects

def test_windows_contain_the_centre_of_an_object():
    boxes = np.array([[3, 4, 9, 30], [20, 1, 50, 8], [-30, -30, -20, -20]], np.float32)
    seen = set()
    for number in range(300):
        top, left, height, width = random_window(random_for(0, 0, number), 33, 47, (0.3, 0.5),
                                                 boxes[:2])
        assert 0 <= top <= 33 - height and 0 <= left <= 47 - width
        assert 0.3 * 33 <= height <= 33 and 0.5 * 47 - 1 <= width <= 47
        inside = [left - 1 <= (x1 + x2) / 2 <= left + width + 1
                  and top - 1 <= (y1 + y2) / 2 <= top + height + 1 for x1, y1, x2, y2 in boxes[:2]]
        assert any(inside)
        seen.add(tuple(inside))
    assert {(True, False), (False, True)} <= seen
    for boxes in (boxes[2:], boxes[:0]):                    # outside of the image; none at all
        for number in range(50):
            top, left, height, width = random_window(random_for(0, 0, number), 33, 47, (0.3, 0.5),
                                                     boxes)
            assert 0 <= top <= 33 - height and 0 <= left <= 47 - width


def test_a_cut_object_gets_the_box_of_its_visible_mask():
    for index in range(len(SHAPES)):
        objects = SHAPES.objects(index)
        height, width = SHAPES.size(index)
        move = Move((6, 10, height - 12, width - 20), height - 12, width - 20)
        found = moved_objects(objects, (height, width), move, True)
        np.testing.assert_array_equal(found.boxes, found.masks.boxes())
        without = moved_objects(objects, (height, width), move, False)
        assert len(without.boxes) >= len(found.boxes)
        shown = [mask[6:-6, 10:-10] for mask in objects.segmentations if mask[6:-6, 10:-10].any()]
        np.testing.assert_array_equal(found.masks.dense(), shown)


@pytest.mark.parametrize("index", range(6))
def test_boxes_masks_and_pixels_go_the_same_way(index):
    """The masks, seen as an image, move to where the masks of the moved objects are."""
    source = SyntheticDetection(11, (60, 90), 3)
    height, width = source.size(index)
    objects = source.objects(index)
    move = TrainTransform((40, 80), max_px=120, crop=(0.5, 0.5)).move(
        height, width, lambda: objects.boxes, random_for(0, 0, index))
    found = moved_objects(objects, (height, width), move, True)
    picture = np.zeros((height, width, 3), np.uint8)
    for left, top, right, bottom in objects.boxes.astype(int):
        picture[top:bottom, left:right] = 255
    seen = moved(picture, move)[:, :, 0] > 127
    assert np.mean(found.masks.dense().any(axis=0) != seen) < 0.03     # borders only
    inside = found.masks.boxes()
    assert np.abs(found.boxes - inside).max(initial=0) <= 1
    assert (found.boxes >= 0).all() and (found.boxes <= [move.width, move.height] * 2).all()


def test_drawn_boxes_and_masks_are_exact():
    overlaps = 0
    for split in ("train", "held-out"):
        source = ShapeInstances(30, (40, 56), 4, split=split)
        assert source.class_names == KINDS[:4]
        for index in range(len(source)):
            objects = source.objects(index)
            assert source.read(index).shape[:2] == source.size(index)
            assert source.size(index) == ((40, 56) if index % 2 == 0 else (56, 40))
            assert np.sum(objects.segmentations, axis=0).max() == 1     # of visible pixels
            for box, mask, area in zip(objects.boxes, objects.segmentations, objects.areas):
                rows, columns = np.nonzero(mask)
                assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1,
                                        rows.max() + 1]
                assert area == mask.sum()
            left, top, right, bottom = objects.boxes.T
            meet = ((left[:, None] < right) & (right[:, None] > left)
                    & (top[:, None] < bottom) & (bottom[:, None] > top))
            overlaps += meet.sum() > len(meet)
            assert source.learnable(index) and not objects.crowd.all()
    assert overlaps > 20


def test_splits_and_seeds_of_drawn_pictures_differ_and_repeat():
    pictures = [ShapeInstances(3, 32, seed=seed, split=split).read(1)
                for seed, split in [(0, "train"), (0, "held-out"), (1, "train")]]
    for one, other in itertools.combinations(pictures, 2):
        assert not np.array_equal(one, other)
    np.testing.assert_array_equal(ShapeInstances(9, 32).read(1), pictures[0])


def test_mostly_covered_shapes_are_crowds():
    source = ShapeInstances(200, 32, 5, most=8)
    crowds = [source.objects(index).crowd for index in range(60)]
    assert 0 < np.concatenate(crowds).sum() < 0.3 * len(np.concatenate(crowds))


@pytest.mark.parametrize("make, message", [
    (lambda: ShapeInstances(3, 32, 6), "1 to 5 classes"),
    (lambda: ShapeInstances(0, 32), "positive length"),
    (lambda: ShapeInstances(3, 32, split="val"), "split must be one of train, held-out"),
    (lambda: SyntheticDetection(3, 8, 2), "at least 16"),
])
def test_drawn_sources_refuse_nonsense(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_synthetic_objects_are_where_their_colours_are():
    source = SyntheticDetection(20, (40, 60), 5)
    for index in range(20):
        objects, image = source.objects(index), source.read(index)
        for (left, top, right, bottom), kind in zip(objects.boxes.astype(int), objects.classes):
            colours = np.unique(image[top:bottom, left:right].reshape(-1, 3), axis=0)
            assert len(colours) == 1 and colours.min() >= 60 and 0 <= kind < 5
        assert (image.min(axis=2) >= 60).sum() == objects.areas.sum()


# Batches

def test_pixels_are_normalised_then_padded_with_zeros():
    images = [np.random.randint(0, 256, (h, w, 3)).astype(np.uint8)[:, ::step]
              for h, w, step in [(20, 30, 1), (33, 9, -1)]]
    batch, sizes = stack(images, EVAL, 16)
    assert batch.shape == (2, 3, 48, 32) and batch.dtype == np.float32
    assert sizes.tolist() == [[20, 30], [33, 9]]
    for padded, image in zip(batch, images):
        height, width = image.shape[:2]
        np.testing.assert_allclose(padded[:, :height, :width].transpose(1, 2, 0),
                                   (image - np.array(EVAL.mean)) / EVAL.std, rtol=1e-5, atol=1e-6)
        assert not padded[:, height:].any() and not padded[:, :, width:].any()
    empty, sizes = stack([], EVAL, 16)
    assert empty.shape == (0, 3, 16, 16) and sizes.shape == (0, 2)


def test_a_row_of_bytes_holds_the_sample():
    dataset = DetectionDataset(SHAPES, TRAIN)
    sample = dataset[3, random_for(0, 0, 3)]
    back = unpack(pack(sample, 20000))
    np.testing.assert_array_equal(back.image, sample.image)
    assert back.original == SHAPES.size(3)
    for one, other in zip(back.objects, sample.objects):
        np.testing.assert_array_equal(getattr(one, "codes", one), getattr(other, "codes", other))
    assert unpack(pack(sample, sample.image.size)) is None


def test_a_sample_too_long_for_its_row_is_read_again(monkeypatch):
    with loader() as fits:
        expected = some(fits.batches())
    monkeypatch.setattr(detection, "_OBJECTS_BYTES", -4000)
    with loader() as overflows:
        assert all(map(same, some(overflows.batches()), expected))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_processes(workers):
    with loader() as alone, loader(workers=workers) as many:
        batches = list(zip(some(alone.batches()), some(many.batches())))
    assert len(batches) == 8 and all(same(*pair) for pair in batches)
    for batch, _ in batches:
        height, width = batch.images.shape[2:]
        assert height % 16 == width % 16 == 0
        wide = batch.original[:, 1] > batch.original[:, 0]
        assert wide.all() or not wide.any()
        assert [SHAPES.image_id(index) for index in batch.indices] == batch.image_ids.tolist()
        assert [each.masks.dense().shape[1:] for each in batch.objects] == [
            tuple(size) for size in batch.sizes]


def test_workers_together_see_the_batch_of_one():
    with loader() as alone:
        whole = some(alone.batches())
    parts = []
    for rank in range(2):
        with loader(rank=rank, size=2) as part:
            parts.append(some(part.batches()))
    for step, batch in enumerate(whole):
        assert np.concatenate([part[step].indices for part in parts]).tolist() == (
            batch.indices.tolist())
        for part, start in zip(parts, (0, 2)):
            for k, objects in enumerate(part[step].objects):
                np.testing.assert_array_equal(objects.boxes, batch.objects[start + k].boxes)
                height, width = part[step].sizes[k]
                np.testing.assert_array_equal(part[step].images[k, :, :height, :width],
                                              batch.images[start + k, :, :height, :width])


@pytest.mark.parametrize("start", [1, 5])
def test_a_continued_run_goes_on_with_the_same_batches(start):
    with loader() as undisturbed, loader(workers=1) as continued:
        assert all(map(same, some(undisturbed.batches())[start:],
                       some(continued.batches(start), 8 - start)))


def test_generators_of_targets_belong_to_seed_epoch_and_image():
    with loader() as data:
        batch = some(data.batches(), 4)[3]
        assert batch.epoch == 1 == 3 // data.steps_per_epoch
        expected = random_for(2, 1, int(batch.indices[1]), "targets").random(4)
        np.testing.assert_array_equal(data.rng(batch, 1).random(4), expected)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_evaluation_sees_each_image_once_unmirrored(size):
    dataset = DetectionDataset(SHAPES, EVAL, masks=False, skip_empty=False)
    seen, steps = [], set()
    for rank in range(size):
        with loader(dataset, rank=rank, size=size, train=False) as data:
            batches = list(data.epoch(0))
            steps.add(len(batches))
            for batch in batches:
                seen.extend(batch.image_ids.tolist())
                assert batch.images.shape[0] == len(batch.indices) == len(batch.objects)
                for image, (height, width), index in zip(batch.images, batch.sizes, batch.indices):
                    alone, _ = stack([dataset[int(index), None].image], EVAL, 16)
                    np.testing.assert_array_equal(image[:, :height, :width],
                                                  alone[0, :, :height, :width])
                    assert max(height, width) == 50
                assert all(each.masks is None and len(each.boxes) for each in batch.objects)
    assert sorted(seen) == [SHAPES.image_id(index) for index in range(11)] and len(steps) == 1


def test_a_worker_without_images_gets_empty_batches():
    dataset = DetectionDataset(SHAPES, EVAL, masks=False, skip_empty=False)
    with loader(dataset, rank=12, size=13, train=False) as data:
        batch, = data.epoch(0)
    assert batch.images.shape == (0, 3, 16, 16) and batch.objects == []
    assert batch.sizes.shape == batch.original.shape == (0, 2) and not len(batch.image_ids)


def test_max_pixels_limits_the_longer_side():
    dataset = DetectionDataset(SHAPES, replace(TRAIN, short_px=(40,), max_px=200, crop=None))
    limit = 48 * 48                                        # 40 is padded to 48
    with loader(dataset) as free, loader(dataset, max_pixels=limit) as bounded:
        assert max(batch.images[0, 0].size for batch in some(free.batches())) > limit
        for batch in some(bounded.batches()):
            assert batch.images[0, 0].size <= limit
            assert (batch.sizes.max(axis=1) == 48).all()
    with pytest.raises(UserError, match="expected max_pixels of at least 2304 .* got 2303"):
        loader(dataset, max_pixels=limit - 1)


def test_test_time_flip_mirrors_image_and_boxes():
    plain, flipped = (DetectionDataset(SHAPES, replace(EVAL, flip=flip))[2, None]
                      for flip in (False, True))
    np.testing.assert_array_equal(plain.image[:, ::-1], flipped.image)
    np.testing.assert_allclose(plain.objects.boxes[:, 0] + flipped.objects.boxes[:, 2],
                               plain.image.shape[1], atol=1e-3)


def test_datasets_are_picklable_and_small(tmp_path):
    dataset = DetectionDataset(SHAPES, TRAIN)
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again[1, random_for(0, 0, 1)].image,
                                  dataset[1, random_for(0, 0, 1)].image)
    assert len(pickle.dumps(dataset)) < 2000


class Fatal(ShapeInstances):
    """Ends its process at picture 5."""

    def read(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


def test_a_dead_process_is_noticed_and_what_it_read_is_named():
    with loader(DetectionDataset(Fatal(11, 32), TRAIN), workers=1) as data:
        with pytest.raises(RuntimeError, match="data worker 0 was killed by SIGKILL while reading"):
            some(data.batches(), 12)


def padded_share(dataset, plans, epochs=5):
    """Returns the share of padding in the batches of some workers' plans."""
    padding = pixels = 0
    for plan, step in itertools.product(plans, range(epochs * plans[0].steps_per_epoch)):
        epoch, within = divmod(step, plan.steps_per_epoch)
        moves = [dataset.move(index, random_for(0, epoch, index))
                 for index in plan.indices(epoch, within).tolist()]
        sides = np.array([(move.height, move.width) for move in moves])
        whole = (-(-sides.max(axis=0) // 32) * 32).prod() * len(sides)
        padding, pixels = padding + whole - sides.prod(axis=1).sum(), pixels + whole
    return padding / pixels


@pytest.mark.realdata
def test_less_than_a_tenth_of_the_pixels_is_padding(data_root, capsys):
    """On 8 workers of 2 images, the published batch, with the published sizes."""
    source = read_instances(data_root / "tiny_coco/annotations/instances_train2017.json",
                            data_root / "tiny_coco/train2017")
    dataset, grouped = DetectionDataset(source, TrainTransform()), []
    assert len(dataset) == 49                               # one image has no object
    for rank in range(8):
        with DetectionLoader(dataset, batch=16, rank=rank, size=8, seed=0, workers=0) as data:
            grouped.append(data.plan)
    share = padded_share(dataset, grouped)
    plain = padded_share(dataset, [TrainPlan(49, 16, rank, 8, 0) for rank in range(8)])
    with DetectionLoader(dataset, batch=16, rank=0, size=1, seed=0, workers=0) as data:
        whole = padded_share(dataset, [data.plan])
    with capsys.disabled():
        print(f"padded pixels: {100 * share:.1f} %, {100 * plain:.1f} % in random order, "
              f"{100 * whole:.1f} % padded to the largest image of a step")
    assert share < 0.1 < plain
