import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image, ImageFile

from gluon_resnest.data import images
from gluon_resnest.data.classification import (
    FolderDataset, RecordDataset, list_folder, read_class_names)
from gluon_resnest.data.loader import Loader
from gluon_resnest.data.recordio import RecordWriter
from gluon_resnest.data.sampling import EvalPlan, random_for
from gluon_resnest.data.synthetic import SyntheticClassification
from gluon_resnest.errors import UserError


def to_chw(image, rng):
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1), dtype=np.float32)


def encoded(array, kind="PNG", mode=None, **options):
    stored = io.BytesIO()
    Image.fromarray(array, mode).save(stored, kind, **options)
    return stored.getvalue()


def smooth(height=24, width=17, channels=3):
    """A smooth image, which JPEG keeps within a few levels."""
    y, x = np.mgrid[:height, :width]
    waves = [60 + 5 * y + (3 + channel) * x for channel in range(channels)]
    return np.stack(waves, axis=-1).clip(0, 255).astype(np.uint8)


def tree(root, folders):
    for folder, names in folders.items():
        (root / folder).mkdir(parents=True)
        for number, name in enumerate(names):
            value = 10 * len(folder) + number
            (root / folder / name).write_bytes(encoded(np.full((3, 5, 3), value, np.uint8)))
    return root


def records(rec, *content):
    with RecordWriter(rec) as writer:
        for label, data in content:
            writer.write(label, data)
    return rec


def test_labels_are_those_of_the_samples(tmp_path):
    folder = FolderDataset(tree(tmp_path / "all", {"a": ["0.png"], "b": ["1.png", "2.png"]}),
                           to_chw)
    rec = RecordDataset(records(tmp_path / "some.rec", (1, encoded(smooth())),
                                (0, encoded(smooth()))), to_chw)
    for dataset, expected in ((folder, [0, 1, 1]), (rec, [1, 0]),
                              (SyntheticClassification(5, 8, 3), [0, 1, 2, 0, 1])):
        assert dataset.labels.tolist() == expected
        assert [int(dataset[index, random_for(0, 0, index)][1])
                for index in range(len(dataset))] == expected


def test_lossless_images_decode_to_themselves():
    image = np.random.RandomState(0).randint(0, 256, (6, 4, 3)).astype(np.uint8)
    np.testing.assert_array_equal(images.decode(encoded(image)), image)


def test_a_jpeg_decodes_as_opencv_does():
    cv2 = pytest.importorskip("cv2")
    data = encoded(smooth(), "JPEG")
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(images.decode(data), theirs)


def test_greyscale_is_repeated():
    grey = smooth()[:, :, 0]
    np.testing.assert_array_equal(images.decode(encoded(grey)), np.dstack([grey] * 3))


def test_transparency_is_dropped():
    image = np.random.RandomState(0).randint(0, 256, (6, 4, 4)).astype(np.uint8)
    np.testing.assert_array_equal(images.decode(encoded(image)), image[:, :, :3])


def test_of_sixteen_bits_the_upper_eight_are_kept():
    grey = np.arange(0, 65536, 997, dtype=np.uint16).reshape(6, 11)
    stored = encoded(grey.astype("<u2"), mode="I;16")
    np.testing.assert_array_equal(images.decode(stored), np.dstack([grey >> 8] * 3))


def test_palettes_are_resolved():
    image = (smooth() // 128 * 128).astype(np.uint8)
    stored = io.BytesIO()
    Image.fromarray(image).convert("P", palette=Image.ADAPTIVE, colors=8).save(stored, "PNG")
    np.testing.assert_array_equal(images.decode(stored.getvalue()), image)


def test_cmyk_jpegs_have_the_right_colours():
    colour = np.zeros((16, 16, 3), np.uint8) + np.array([200, 120, 40], np.uint8)
    stored = io.BytesIO()
    Image.fromarray(colour).convert("CMYK").save(stored, "JPEG", quality=95)
    assert images.kind(stored.getvalue()) == ("JPEG", "CMYK")
    assert abs(images.decode(stored.getvalue()).astype(int) - colour).max() <= 4


def test_orientation_is_ignored():
    plain, turned = encoded(smooth(), "JPEG"), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth()).save(turned, "JPEG", exif=exif)
    np.testing.assert_array_equal(images.decode(turned.getvalue()), images.decode(plain))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("left", [0.5, 0.9])
@pytest.mark.parametrize("tolerated", [False, True])
def test_truncated_images_are_refused(kind, left, tolerated, monkeypatch):
    # importing GluonCV makes Pillow tolerate truncated files in the whole process
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerated)
    noise = np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8)
    data = encoded(noise, kind)
    with pytest.raises(images.BadImage, match="damaged image: .*"):
        images.decode(data[:int(len(data) * left)])


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff" + b"\x00" * 90,
                                  b"\x89PNG\r\n\x1a\n" + b"\x01" * 90])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(images.BadImage, match="no image of a known format|damaged image"):
        images.decode(data)


def test_classes_are_numbered_in_the_order_of_their_names(tmp_path):
    tree(tmp_path, {"cat": ["b.png", "a.PNG"], "ant": ["x.png"], "Zoo": ["y.png"],
                    ".hidden": ["z.png"]})
    (tmp_path / "classes.csv").write_text("no image")
    dataset = FolderDataset(tmp_path, to_chw)
    assert dataset.class_names == ["Zoo", "ant", "cat"]
    found = [(dataset.name(index), int(dataset[index, None][1])) for index in range(len(dataset))]
    assert found == [(str(tmp_path / file), label) for file, label in
                     [("Zoo/y.png", 0), ("ant/x.png", 1), ("cat/a.PNG", 2), ("cat/b.png", 2)]]


def test_folders_of_folders_belong_to_their_class(tmp_path):
    tree(tmp_path, {"cat/young": ["a.png"], "cat/old": ["b.png"]})
    assert list_folder(tmp_path) == ([(0, "cat/old/b.png"), (0, "cat/young/a.png")], ["cat"])


def test_hidden_files_and_folders_are_no_images(tmp_path):
    """Those of macOS hold no picture, those of notebooks one that was replaced."""
    tree(tmp_path, {"cat": ["a.png", "._a.png"], "cat/.ipynb_checkpoints": ["b.png"]})
    assert list_folder(tmp_path)[0] == [(0, "cat/a.png")]


def test_given_class_names_number_the_folders(tmp_path):
    tree(tmp_path, {"cat": ["a.png"], "ant": ["x.png"]})
    dataset = FolderDataset(tmp_path, to_chw, class_names=["ant", "bee", "cat"])
    assert [int(dataset[index, None][1]) for index in range(2)] == [0, 2]


def test_folder_samples_are_what_the_files_hold(tmp_path):
    tree(tmp_path, {"cat": ["a.png"]})
    image, label = FolderDataset(tmp_path, to_chw)[0, None]
    np.testing.assert_array_equal(image, np.full((3, 3, 5), 30, np.float32))
    assert label == 0 and label.dtype == np.int64


@pytest.mark.parametrize("folders, arguments, message", [
    (None, {}, "there is no folder .*pictures"),
    ({}, {}, "contains no folders"),
    ({"cat": []}, {}, r"cat contains no image \(nothing\)"),
    ({"cat": ["a.png"], "dog": ["b.tif", "c.txt"]}, {}, r"dog contains no image \(only .tif, .txt"),
    ({"cat": ["a.png"], "dgo": ["b.png"]}, {"class_names": ["cat", "dog"]},
     "'dgo', which is none of the 2 classes; did you mean 'dog'"),
    ({"cat": ["a.png"], "dog": ["b.png"]}, {"classes": 1}, "at most 1 classes in .*, got 2"),
    ({"cat ": ["a.png"]}, {}, "class folder 'cat ', whose name begins or ends with a space, so"),
    ({"a\nb": ["a.png"]}, {}, r"class folder 'a\\nb', whose name has a line break"),
    ({os.fsdecode(b"K\xe4fer"): ["a.png"]}, {}, r"folder 'K\\udce4fer', whose name is no UTF-8"),
])
def test_folders_that_do_not_serve_are_refused(tmp_path, folders, arguments, message):
    root = tmp_path / "pictures"
    if folders is not None:
        root.mkdir()
        tree(root, {folder: [] for folder in folders})
        for folder, names in folders.items():
            for name in names:
                (root / folder / name).write_bytes(encoded(smooth()))
    with pytest.raises(UserError, match=message):
        FolderDataset(root, to_chw, **arguments)


def test_a_file_that_vanishes_or_breaks_is_a_sentence(tmp_path):
    tree(tmp_path, {"cat": ["a.png", "b.png"]})
    dataset = FolderDataset(tmp_path, to_chw)
    (tmp_path / "cat/a.png").unlink()
    (tmp_path / "cat/b.png").write_bytes(b"junk")
    with pytest.raises(UserError, match="a.png cannot be read .No such file"):
        dataset[0, None]
    with pytest.raises(UserError, match="b.png: 4 bytes that are no image of a known format"):
        dataset[1, None]


def test_record_samples_are_what_was_packed(tmp_path):
    image = smooth()
    rec = records(tmp_path / "a.rec", (1, encoded(image)), ([0.0], encoded(image[:5])))
    dataset = pickle.loads(pickle.dumps(RecordDataset(rec, to_chw, classes=2)))
    assert len(dataset) == 2 and dataset.class_names is None
    for number, (expected, label) in enumerate([(image, 1), (image[:5], 0)]):
        chw, found = dataset[number, None]
        np.testing.assert_array_equal(chw, expected.transpose(2, 0, 1))
        assert found == label and found.dtype == np.int64


def test_transforms_draw_from_the_generator_they_are_given(tmp_path):
    rec = records(tmp_path / "a.rec", (0, encoded(smooth())))
    dataset = RecordDataset(rec, draw_only)
    draws = [dataset[0, random_for(1, 2, 3)][0] for _ in range(2)]
    assert draws[0] == draws[1] == random_for(1, 2, 3).random()


def draw_only(image, rng):
    return rng.random()


def test_good_samples_do_not_have_the_names_of_all_files_read(tmp_path, monkeypatch):
    rec = records(tmp_path / "a.rec", (1, encoded(smooth())))
    dataset = RecordDataset(rec, to_chw, classes=2)
    monkeypatch.setattr(dataset._records, "name", None)
    assert dataset[0, None][1] == 1 and dataset.labels.tolist() == [1]


def test_class_names_beside_the_records_are_known(tmp_path):
    rec = records(tmp_path / "a.rec", (1, encoded(smooth())), (2, encoded(smooth())))
    (tmp_path / "a.classes.txt").write_text("ant\nbee\n")
    dataset = RecordDataset(rec, to_chw)
    assert dataset.class_names == ["ant", "bee"] and dataset[0, None][1] == 1
    with pytest.raises(UserError, match="record 1 of .* has the label 2, expected 0 to 1"):
        dataset[1, None]


@pytest.mark.parametrize("label, message", [
    (5, "record 1 .* has the label 5, expected 0 to 4"),
    (-1, "has the label -1, expected 0 to 4"),
    (0.5, "has the label 0.5, expected 0 to 4"),
    (float("nan"), "has the label nan"),
    ([4, 5, 0.1, 0.2], "has 4 labels, expected one; a detection file"),
])
def test_labels_out_of_range_are_refused(tmp_path, label, message):
    rec = records(tmp_path / "a.rec", (0, encoded(smooth())), (label, encoded(smooth())))
    dataset = RecordDataset(rec, to_chw, classes=5)
    dataset[0, None]
    with pytest.raises(UserError, match=message):
        dataset[1, None]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_record_stops_the_loader_with_its_name(tmp_path, workers):
    whole = encoded(smooth(), "JPEG")
    rec = records(tmp_path / "a.rec", (0, whole), (0, whole), (0, whole[:len(whole) - 20]))
    (tmp_path / "a.names.txt").write_text("x/0.jpg\nx/1.jpg\nx/2.jpg\n")
    dataset = RecordDataset(rec, to_chw, classes=1)
    with Loader(dataset, EvalPlan(3, 2), seed=0, workers=workers) as loader:
        with pytest.raises(UserError, match=r"record 2 \(x/2.jpg\) of .*: damaged image"):
            list(loader.epoch(0))


@pytest.mark.parametrize("text, message", [
    ("", "line 1 of .*a.classes.txt' is empty"), ("ant\n\nbee\n", "line 2 of .* is empty"),
    ("ant\nbee\nant\n", "'ant' names 2 classes in .*a.classes.txt"),
    (None, "cannot read class names from .*a.classes.txt")])
def test_class_names_that_number_nothing_are_refused(tmp_path, text, message):
    rec, names = records(tmp_path / "a.rec", (1, encoded(smooth()))), tmp_path / "a.classes.txt"
    if text is None:
        names.write_bytes(b"\xff\xfe")
    else:
        names.write_text(text)
    with pytest.raises(UserError, match=message):
        RecordDataset(rec, to_chw)


def test_class_names_may_repeat_where_they_only_label(tmp_path):
    (tmp_path / "names.txt").write_text("crane\n maillot \ncrane\n")
    names = read_class_names(tmp_path / "names.txt", distinct=False)
    assert names == ["crane", "maillot", "crane"]


def test_a_byte_order_mark_and_strange_ends_of_lines_do_not_change_class_names(tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffant\r\nbee\u2028hive\r\n".encode())
    assert read_class_names(tmp_path / "names.txt") == ["ant", "bee\u2028hive"]


def test_synthetic_images_are_a_function_of_seed_and_index():
    one, same, other = (SyntheticClassification(30, (6, 9), 4, seed) for seed in (0, 0, 1))
    for index in (0, 7, 29):
        image, label = one[index, None]
        assert image.shape == (3, 6, 9) and image.dtype == np.float32
        assert label == index % 4 and label.dtype == np.int64
        np.testing.assert_array_equal(image, same[index, None][0])
        assert (image != other[index, None][0]).any()


def test_synthetic_classes_can_be_told_apart_across_seeds():
    """The nearest class mean of one seed recognises the images of another."""
    train, test = (SyntheticClassification(200, 16, 10, seed) for seed in (0, 1))
    means = np.stack([np.mean([train[index, None][0] for index in range(label, 200, 10)], axis=0)
                      for label in range(10)])
    right = sum(((means - image) ** 2).sum((1, 2, 3)).argmin() == label
                for image, label in (test[index, None] for index in range(200)))
    assert right == 200


@pytest.mark.parametrize("arguments", [(0, 8, 2), (8, 0, 2), (8, 8, 0), (8, (8, -1), 2)])
def test_synthetic_sizes_must_be_positive(arguments):
    with pytest.raises(UserError, match="expected a positive length, size and number of classes"):
        SyntheticClassification(*arguments)


def test_real_photographs_are_read(data_root):
    dataset = FolderDataset(data_root / "imagenet_sample", to_chw, classes=1000)
    assert len(dataset) == len(dataset.class_names) == 250
    for index in range(0, 250, 10):
        image, label = dataset[index, None]
        assert label == index and image.shape[0] == 3 and 0 <= image.min() < image.max() <= 255
