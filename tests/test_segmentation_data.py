"""Segmentation data: layouts and their mistakes, label files, transforms, packing, drawn shapes."""
import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gluon_resnest.data import images, label_maps
from gluon_resnest.data.label_maps import (
    CITYSCAPES, IGNORED, counted_from_one, counted_from_zero, ignored_value)
from gluon_resnest.data.loader import Loader
from gluon_resnest.data.mask_packing import PackedPairs, pack_masks
from gluon_resnest.data.sampling import TrainPlan, random_for
from gluon_resnest.data.segmentation import FilePairs, SegmentationDataset, read_ahead
from gluon_resnest.data.segmentation_layouts import open_segmentation
from gluon_resnest.data.segmentation_transforms import TrainTransform, scaled_size
from gluon_resnest.data.shapes import KINDS, ShapeScenes, draw_scene
from gluon_resnest.errors import UserError


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path)


def photo(seed=0, height=20, width=30):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)


def mask(classes=4, seed=0, height=20, width=30, low=0):
    return np.random.RandomState(seed).randint(low, classes, (height, width)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Three pairs of the layout "folder" in four classes."""
    for number in range(3):
        save(tmp_path / f"images/train/{number}.png", photo(number))
        save(tmp_path / f"masks/train/{number}.png", mask(seed=number))
    (tmp_path / "classes.txt").write_text("sky\nroad\ntree\ncar\n")
    return tmp_path


def open_folder(root, classes=4, **options):
    return open_segmentation("folder", root, "train", classes=classes, **options)


# Layouts ------------------------------------------------------------------------------------------

def test_folder_of_masks(folder):
    dataset = open_folder(folder)
    image, labels = dataset.read(1)
    np.testing.assert_array_equal(image, photo(1))
    np.testing.assert_array_equal(labels, mask(seed=1))
    assert len(dataset) == 3 and dataset.class_names == ["sky", "road", "tree", "car"]
    assert labels.dtype == np.int32


def test_ade20k_counts_classes_from_one(tmp_path):
    save(tmp_path / "images/training/a.jpg", photo())
    save(tmp_path / "annotations/training/a.png", np.array([[0, 1], [150, 7]] * 10 * 1, np.uint8)
         .repeat(15, axis=1))
    (tmp_path / "objectInfo150.txt").write_text(
        "Idx\tName\n" + "".join(f"{i}\tthing {i}, other name\n" for i in range(1, 151)))
    dataset = open_segmentation("ade20k", tmp_path, "train", classes=150)
    _, labels = dataset.read(0)
    assert set(np.unique(labels)) == {IGNORED, 0, 6, 149}
    assert dataset.class_names[6] == "thing 7" and len(dataset.class_names) == 150


def test_cityscapes_ids_become_train_ids(tmp_path):
    save(tmp_path / "leftImg8bit/train/ulm/ulm_0_leftImg8bit.png", photo(0, 1, 6))
    save(tmp_path / "gtFine/train/ulm/ulm_0_gtFine_labelIds.png",
         np.array([[7, 8, 33, 0, 14, 255]], np.uint8))
    _, labels = open_segmentation("cityscapes", tmp_path, "train", classes=19).read(0)
    assert labels.tolist() == [[0, 1, 18, IGNORED, IGNORED, IGNORED]]


def test_cityscapes_rule_is_the_published_one(data_root):
    folder = data_root / "cityscapes_sample/gtFine"
    ids, train_ids = (np.asarray(Image.open(next(folder.glob(f"*_{kind}.png"))))
                      for kind in ("labelIds", "labelTrainIds"))
    expected = np.where(train_ids == 255, IGNORED, train_ids.astype(int))
    # The sample's two files were made smaller one by one, so that some edges differ.
    assert (CITYSCAPES.translate(ids, "") == expected).mean() > 0.99


def test_pascal_context(tmp_path):
    save(tmp_path / "JPEGImages/a.jpg", photo())
    save(tmp_path / "JPEGImages/b.jpg", photo())
    save(tmp_path / "SegmentationClassContext/a.png", mask(60))
    lists = tmp_path / "ImageSets/SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("a\n")
    dataset = open_segmentation("pascal_context", tmp_path, "val", classes=59)
    np.testing.assert_array_equal(dataset.read(0)[1], mask(60).astype(int) - 1)
    assert len(dataset) == 1 and len(label_maps.PASCAL_CONTEXT_NAMES) == 59
    (lists / "val.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="b.png .* cannot be found"):
        open_segmentation("pascal_context", tmp_path, "val", classes=59)


def test_split_without_a_subfolder_is_the_folder(tmp_path):
    save(tmp_path / "images/a.png", photo())
    save(tmp_path / "masks/a.png", mask())
    for split in ("train", "val"):
        assert len(open_segmentation("folder", tmp_path, split, classes=4)) == 1


def test_hidden_files_are_no_images(folder):
    (folder / "images/train/.ipynb_checkpoints").mkdir()
    for name in ("._1.png", ".ipynb_checkpoints/1.png"):
        (folder / "images/train" / name).write_bytes(b"no picture")
    assert len(open_folder(folder)) == 3


@pytest.mark.parametrize("layout, there, missing", [
    ("folder", "train validation", "images/val"), ("ade20k", "training val", "images/validation")])
def test_a_split_under_another_name_is_missed(tmp_path, layout, there, missing):
    for part in there.split():
        save(tmp_path / f"images/{part}/a.png", photo())
        save(tmp_path / f"{'masks' if layout == 'folder' else 'annotations'}/{part}/a.png", mask())
    with pytest.raises(UserError, match=f"no folder .*{missing}, only {there.replace(' ', ', ')} "):
        open_segmentation(layout, tmp_path, "val", classes=150)


@pytest.mark.parametrize("layout, classes", [("ade20k", 150), ("cityscapes", 19)])
def test_samples_of_the_published_sets(data_root, layout, classes):
    folder = {"ade20k": "ade20k_sample", "cityscapes": "cityscapes_sample"}[layout]
    dataset = open_segmentation(layout, data_root / folder, "val", classes=classes)
    for index in range(len(dataset)):
        image, labels = dataset.read(index)
        assert image.shape[:2] == labels.shape and (labels >= 0).mean() > 0.5


# Label files --------------------------------------------------------------------------------------

def encoded(array, mode=None, palette=None):
    image = Image.fromarray(array, mode)
    if palette:
        image.putpalette(palette)
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def test_palette_images_mean_their_indices(folder):
    image = Image.fromarray(mask(seed=0), "P")
    image.putpalette([200, 10, 10, 3, 200, 30] * 20)
    image.save(folder / "masks/train/0.png")
    np.testing.assert_array_equal(open_folder(folder).read(0)[1], mask(seed=0))


def grey_png(values, bits):
    """Encodes numbers (H, W) as a grey PNG of so many bits, which Pillow does not write."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + np.packbits(np.unpackbits(
        row[:, None].astype(np.uint8), axis=1)[:, -bits:].ravel()).tobytes() for row in values)
    head = struct.pack(">IIBBBBB", *values.shape[::-1], bits, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_labels_of_few_bits_are_the_numbers_in_the_file(bits):
    values = np.arange(15).reshape(3, 5) % 2 ** bits
    np.testing.assert_array_equal(images.decode_labels(grey_png(values, bits)), values)


def test_16_bit_labels(folder):
    values = (mask(seed=0).astype(np.uint16) * 100).astype(np.uint16)
    values[0, 0] = 65535
    Image.fromarray(values).save(folder / "masks/train/0.png")
    (folder / "classes.txt").unlink()
    _, labels = open_folder(folder, classes=400).read(0)
    assert labels[0, 0] == IGNORED and labels.max() == 300
    np.testing.assert_array_equal(labels[1:], values[1:])


def test_value_outside_of_the_classes_names_file_and_value(folder):
    values = mask(seed=0)
    values[3, 4] = 9
    save(folder / "masks/train/0.png", values)
    with pytest.raises(UserError, match=r"masks/train/0.png has a pixel of value 9, but the 4 "
                                        r"classes have the values 0 to 3 and ignored are 255"):
        open_folder(folder).read(0)


def test_masks_of_another_size_are_refused(folder):
    save(folder / "masks/train/0.png", mask(height=30, width=20))
    with pytest.raises(UserError, match="0.png has 30 x 20 labels for an image of 20 x 30 pixels"):
        open_folder(folder).read(0)


def test_coloured_masks_are_refused(folder):
    save(folder / "masks/train/0.png", photo())
    with pytest.raises(UserError, match="0.png: expected one number a pixel, got .* RGB"):
        open_folder(folder).read(0)


def test_damaged_masks_are_named(folder):
    file = folder / "masks/train/0.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match="0.png: damaged image"):
        open_folder(folder).read(0)


def test_missing_partner_is_named(folder):
    (folder / "masks/train/0.png").unlink()
    (folder / "masks/train/2.png").unlink()
    with pytest.raises(UserError, match="masks/train/0.png and 1 more files of .* cannot be found"):
        open_folder(folder)


@pytest.mark.parametrize("change, message", [
    (dict(layout="foldr"), "'folder'"), (dict(split="test"), "split must be one of train, val"),
    (dict(classes=3), "has 4 classes, the network 3; set --classes 4$"),
    (dict(classes=5), "has 4 classes, the network 5; set --classes 4, or name all classes"),
    (dict(root="nowhere"), "no folder nowhere"),
    (dict(split="val"), "no folder .*images/val, only train beside it")])
def test_mistakes_are_named(folder, change, message):
    arguments = dict(layout="folder", root=folder, split="train", classes=4)
    arguments.update(change)
    with pytest.raises(UserError, match=message):
        open_segmentation(arguments.pop("layout"), arguments.pop("root"), arguments.pop("split"),
                          **arguments)


def test_no_value_is_ignored_where_the_rule_has_none():
    rule = label_maps.Labels(2, {0: 0, 1: 1})
    with pytest.raises(UserError, match="ignored are none"):
        rule.translate(np.array([[2]]), "file")


@pytest.mark.parametrize("rule, value, label", [
    (counted_from_one(150), 150, 149), (counted_from_one(150), 0, IGNORED),
    (counted_from_zero(255), 255, IGNORED), (counted_from_zero(256), 255, 255),
    (counted_from_zero(256), 65535, IGNORED)])
def test_rules(rule, value, label):
    assert rule.translate(np.array([[value]]), "file").tolist() == [[label]]


# Transform ----------------------------------------------------------------------------------------

def coordinates(height, width):
    """An image that says where each pixel is, and labels that say the same."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([y * 4, x * 4, np.zeros_like(x)], axis=-1).astype(np.uint8)
    return image, (y // 8 * 8 + x // 8).astype(np.int32)


def test_image_and_labels_are_transformed_alike():
    """Labels of 8 x 8 blocks can be read off the image's own coordinates."""
    transform = TrainTransform(64, 32, blur=0, mean=(0, 0, 0), std=(1, 1, 1))
    for index in range(40):
        image, labels = transform(*coordinates(48, 64), random_for(0, 0, index))
        assert image.shape == (3, 32, 32) and labels.shape == (32, 32)
        assert image.dtype == np.float32 and labels.dtype == np.int32
        y, x = (image[:2] * 255 + 2) / 4
        expected = np.floor(y / 8) * 8 + np.floor(x / 8)
        inside = labels != IGNORED
        far = (abs(y % 8 - 4) < 2.5) & (abs(x % 8 - 4) < 2.5)      # not at a block's edge
        assert (expected == labels)[inside & far].mean() > 0.95


def test_crop_larger_than_the_image_is_padded_with_ignored_black():
    transform = TrainTransform(20, 64, scales=(1, 1), flip=False, blur=0)
    image, labels = transform(photo(0, 10, 20), mask(height=10, width=20).astype(np.int32),
                              random_for(0, 0, 0))
    assert (labels[10:] == IGNORED).all() and (labels[:, 20:] == IGNORED).all()
    assert (labels[:10, :20] >= 0).all()
    black = -np.array(transform.mean) / transform.std
    np.testing.assert_allclose(image[:, 10:, :], np.broadcast_to(black[:, None, None],
                                                                 (3, 54, 64)), rtol=1e-5)


@pytest.mark.parametrize("size, longer, expected", [
    ((300, 400), 520, (390, 520)), ((400, 300), 520, (520, 390)), ((5, 999), 10, (1, 10)),
    ((100, 100), 50, (50, 50))])
def test_longer_side_is_set(size, longer, expected):
    assert scaled_size(*size, longer) == expected


def test_the_smallest_scale_leaves_a_pixel():
    transform = TrainTransform(60, 8, (0.01, 0.01))
    image, labels = transform(photo(0, 50, 60), np.zeros((50, 60), np.int32), random_for(0, 0, 0))
    assert image.shape == (3, 8, 8) and (labels == 0).sum() == 1


def test_same_generator_same_crop_whatever_the_loader(folder):
    dataset = open_folder(folder, transform=TrainTransform(32, 16))
    plan = TrainPlan(len(dataset), 2, 0, 1, 3)
    seen = []
    for workers in (0, 1):
        with Loader(dataset, plan, seed=3, workers=workers) as loader:
            seen.append([part.copy() for batch in loader.epoch(1) for part in batch.arrays])
    for one, other in zip(*seen):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_reading_ahead_keeps_the_order(folder, threads):
    dataset = open_folder(folder)
    for index, (image, _) in zip([2, 0, 1], read_ahead(dataset, [2, 0, 1], threads)):
        np.testing.assert_array_equal(image, photo(index))


def test_reading_ahead_passes_errors_on(folder):
    save(folder / "masks/train/1.png", photo())
    with pytest.raises(UserError, match="1.png"):
        list(read_ahead(open_folder(folder), range(3), 2))


# Packing ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("classes", [4, 300])
def test_packed_pairs_equal_the_files(folder, classes):
    if classes == 300:
        (folder / "classes.txt").unlink()
        Image.fromarray(np.full((20, 30), 299, np.uint16)).save(folder / "masks/train/0.png")
    before = [open_folder(folder, classes).read(index) for index in range(3)]
    dataset = open_folder(folder, classes)
    assert list(pack_masks(dataset, folder / "train.rec")) == [0, 1, 2]
    packed = open_folder(folder, classes)
    assert isinstance(packed.source, PackedPairs)
    assert packed.class_names == dataset.class_names
    for index, pair in enumerate(before):
        for one, other in zip(packed.read(index), pair):
            np.testing.assert_array_equal(one, other)
    assert packed.source.image_bytes(0) == dataset.source.image_bytes(0)


@pytest.mark.parametrize("packed, opened", [(4, 300), (300, 300), (300, 4)])
def test_the_ignored_value_is_that_of_the_packed_file(folder, packed, opened):
    (folder / "classes.txt").unlink()
    values = mask(seed=0).astype(np.uint8 if packed == 4 else np.uint16)
    values[2, 3] = ignored_value(packed)
    save(folder / "masks/train/0.png", values)
    list(pack_masks(open_folder(folder, packed), folder / "train.rec"))
    labels = open_folder(folder, opened).read(0)[1]
    assert np.argwhere(labels == IGNORED).tolist() == [[2, 3]]


def test_class_names_of_former_pairs_do_not_stay(folder):
    list(pack_masks(open_folder(folder), folder / "train.rec"))
    (folder / "train.rec").unlink()
    (folder / "classes.txt").unlink()
    list(pack_masks(open_folder(folder), folder / "train.rec"))
    assert open_folder(folder).class_names is None


@pytest.mark.parametrize("layout, count", [("ade20k", 150), ("pascal_context", 59)])
def test_a_published_layout_knows_its_number_of_classes(tmp_path, layout, count):
    if layout == "ade20k":
        save(tmp_path / "images/training/a.jpg", photo())
        save(tmp_path / "annotations/training/a.png", mask())
    else:
        save(tmp_path / "JPEGImages/a.jpg", photo())
        save(tmp_path / "SegmentationClassContext/a.png", mask())
        listing = tmp_path / "ImageSets/SegmentationContext/train.txt"
        listing.parent.mkdir(parents=True)
        listing.write_text("a\n")
    assert open_segmentation(layout, tmp_path, "train").classes == count


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_and_packed_files_do_not_say_how_many_classes_they_have(folder, packed):
    if packed:
        list(pack_masks(open_folder(folder), folder / "train.rec"))
    with pytest.raises(UserError, match="--classes K is missing; say how many classes"):
        open_segmentation("ade20k" if packed else "folder", folder, "train")


def test_records_of_another_kind_are_refused(folder):
    from gluon_resnest.data.recordio import RecordWriter
    with RecordWriter(folder / "train.rec") as writer:
        writer.write(3, b"a picture, says the writer")
    with pytest.raises(UserError, match="holds no pair"):
        open_folder(folder).read(0)


# Drawn shapes -------------------------------------------------------------------------------------

def test_masks_do_not_overlap_and_boxes_are_tight():
    for index in range(30):
        scene = draw_scene(random_for(0, 0, index), 40, 56)
        assert scene.image.shape == (40, 56, 3) and scene.image.dtype == np.uint8
        assert 0 < len(scene.masks) <= 4 and scene.masks.sum(axis=0).max() == 1
        for shape, (left, top, right, bottom) in zip(scene.masks, scene.boxes.astype(int)):
            assert shape.any() and shape[top:bottom, left:right].sum() == shape.sum()
            assert shape[top].any() and shape[bottom - 1].any()
            assert shape[:, left].any() and shape[:, right - 1].any()


def test_scenes_depend_on_seed_and_index_only():
    one, other = ShapeScenes(4, 32, seed=1), ShapeScenes(9, 32, seed=1)
    for index in (3, 0):
        for left, right in zip(one.read(index), other.read(index)):
            np.testing.assert_array_equal(left, right)
    assert (one.read(0)[0] != ShapeScenes(4, 32, seed=2).read(0)[0]).any()


def test_every_kind_is_drawn_and_no_more_than_the_classes():
    scenes = ShapeScenes(60, 40)
    found = {value for index in range(60) for value in np.unique(scenes.read(index)[1])}
    assert found == set(range(1 + len(KINDS)))
    few = ShapeScenes(30, 40, classes=3)
    assert max(few.read(index)[1].max() for index in range(30)) == 2


def test_shapes_go_through_the_loader():
    dataset = SegmentationDataset(ShapeScenes(4, (32, 40)), counted_from_zero(6),
                                  TrainTransform(40, 32))
    image, labels = pickle.loads(pickle.dumps(dataset))[1, random_for(0, 0, 1)]
    assert image.shape == (3, 32, 32) and labels.max() > 0


@pytest.mark.parametrize("arguments", [(0, 32), (4, 0), (4, 32, 1)])
def test_impossible_scenes_are_refused(arguments):
    with pytest.raises(UserError, match="at least 2 classes"):
        ShapeScenes(*arguments)


def test_file_pairs_name_the_label_file():
    assert FilePairs([("a.jpg", "b.png")]).name(0) == "b.png"
