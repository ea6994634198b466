"""CIFAR-10 is the same images whatever form it comes in, and nothing in it is executed."""
import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from gluon_resnest.data import cifar10
from gluon_resnest.data.packing import folder_items, pack
from gluon_resnest.data.recordio import RecordWriter
from gluon_resnest.errors import UserError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = {"train": 2, "test": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tree of PNG files; returns its root."""
    root, random = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    for part, count in PER_CLASS.items():
        for name in NAMES:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.randint(0, 256, (2, 2, 3)).astype("uint8")
                pixels = pixels.repeat(16, axis=0).repeat(16, axis=1)
                Image.fromarray(pixels).save(root / part / name / f"{number:04d}.png")
    return root


def doubled(times):
    """Returns a tuple of two that are one and the same, and so on: 2^times leaves."""
    value = ()
    for _ in range(times):
        value = value, value
    return value


def write_batches(root, parts, protocol):
    """Writes the python batches as Krizhevsky's files have them: rows of 3 x 32 x 32."""
    root.mkdir()
    pieces = {"test_batch": (parts["test"], range(10))}
    for number in range(5):
        pieces[f"data_batch_{number + 1}"] = (parts["train"], range(number, 20, 5))
    for name, (images, chosen) in pieces.items():
        some = images.take(list(chosen))
        content = {"data": some.pixels.transpose(0, 3, 1, 2).reshape(len(some), -1),
                   "labels": some.labels.tolist(), "batch_label": name, "filenames": ["x.png"]}
        (root / name).write_bytes(pickle.dumps(content, protocol))
    (root / "batches.meta").write_bytes(pickle.dumps(
        {"label_names": list(NAMES), "num_cases_per_batch": 1, "num_vis": 3072}, protocol))


def archive(root, path, top):
    with tarfile.open(path, "w:gz") as file:
        file.add(root, arcname=top)
    return path


def check(got, expected, ordered=True):
    assert got.class_names == expected.class_names == NAMES
    one, other = ((images.pixels, images.labels) if ordered else
                  (np.array(sorted(p.tobytes() + bytes([int(label)]) for p, label in
                                   zip(images.pixels, images.labels))), [])
                  for images in (got, expected))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_folders_hold_the_pixels_of_their_files(folder):
    parts = cifar10.read(folder)
    train = parts["train"]
    assert train.pixels.shape == (20, 32, 32, 3)
    assert train.labels.tolist() == np.repeat(range(10), 2).tolist()
    np.testing.assert_array_equal(
        train.pixels[7], np.asarray(Image.open(folder / "train/cat/0001.png")))
    assert len(parts["test"]) == 10


def test_an_archive_is_its_folder(folder, tmp_path):
    path = archive(folder, tmp_path / "cifar10-images.tar.gz", "anything")
    for source in (path, tmp_path):             # the folder that holds only the archive, too
        found, expected = cifar10.read(source), cifar10.read(folder)
        assert found.keys() == expected.keys() == {"train", "test"}
        for part, images in found.items():
            check(images, expected[part])


@pytest.mark.parametrize("protocol", [2, 4])
def test_python_batches_hold_the_same_images(folder, tmp_path, protocol):
    expected = cifar10.read(folder)
    root = tmp_path / "cifar-10-batches-py"
    write_batches(root, expected, protocol)
    for source in (root, archive(root, tmp_path / "cifar-10-python.tar.gz", root.name)):
        found = cifar10.read(source)
        assert found.keys() == expected.keys() == {"train", "test"}
        for part, images in found.items():
            check(images, expected[part], ordered=False)


def test_the_bytes_of_python_2_are_read():
    """What cPickle of Python 2 wrote: byte strings as SHORT_BINSTRING, arrays by _reconstruct."""
    pixels = bytes(range(256)) * 12
    text = (b"\x80\x02}q\x01(U\x04datacnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
            b"K\x00\x85U\x01b\x87Rq\x03(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01"
            b"\x87Rq\x04(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00"
            b"\x00" + pixels + b"tbU\x06labels]q\x05K\x07au.")
    batch = cifar10.inert_pickle.load(io.BytesIO(text), cifar10.CONSTRUCTORS)
    np.testing.assert_array_equal(batch["data"].value[0], np.frombuffer(pixels, np.uint8))
    assert batch["labels"] == [7]


def test_records_hold_the_same_images(folder, tmp_path):
    train = cifar10.read(pack_parts(folder, tmp_path))["train"]
    expected = cifar10.read(folder)["train"]
    assert train.labels.tolist() == expected.labels.tolist() and train.class_names == NAMES
    assert abs(train.pixels.astype(int) - expected.pixels).mean() < 5        # records hold JPEGs


def test_records_of_several_labels_are_refused(folder, tmp_path):
    pack_parts(folder, tmp_path)
    with RecordWriter(tmp_path / "test.rec") as writer:
        writer.write([1, 2, 3], b"")
    (tmp_path / "test.names.txt").unlink()
    with pytest.raises(UserError, match="record 0 of .*test.rec has 3 labels, expected one"):
        cifar10.read(tmp_path)


def pack_parts(folder, root):
    """Packs both parts, each with the names of its own folders."""
    for part in cifar10.PARTS:
        items, names = folder_items(folder / part)
        pack(items, folder / part, root / f"{part}.rec", class_names=names)
    return root


FORMS = {"folder": lambda folder, root: folder, "records": pack_parts,
         "archive": lambda folder, root: archive(folder, root / "images.tar.gz", "cifar10")}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("break_it, message", [
    (lambda root: shutil.rmtree(root / "test/airplane"), "only one of them has 'airplane'"),
    (lambda root: shutil.rmtree(root / "train/airplane"), "only one of them has 'airplane'"),
    (lambda root: (root / "test/cat").rename(root / "test/kitten"), "has 'cat', 'kitten'"),
    (lambda root: [shutil.copytree(root / part / "cat", root / part / "zebra")
                   for part in cifar10.PARTS], "has 11 classes and labels from 0 to 10, expected"),
    (lambda root: [shutil.rmtree(root / part / "truck") for part in cifar10.PARTS],
     "train of .* has 9 classes .*expected images of CIFAR-10's 10, 0 to 9"),
], ids=["test lacks one", "train lacks one", "renamed", "eleven", "nine"])
def test_both_parts_have_the_same_ten_classes(folder, tmp_path, form, break_it, message):
    shutil.copytree(folder, tmp_path / "images")
    break_it(tmp_path / "images")
    with pytest.raises(UserError, match=message):
        cifar10.read(FORMS[form](tmp_path / "images", tmp_path))


def test_records_number_both_parts_alike(folder, tmp_path):
    pack_parts(folder, tmp_path)
    (tmp_path / "test.classes.txt").write_text("\n".join(reversed(NAMES)))
    with pytest.raises(UserError, match="their order differs"):
        cifar10.read(tmp_path)
    for part in cifar10.PARTS:          # without names, the labels still say how many classes
        (tmp_path / f"{part}.classes.txt").unlink()
    assert cifar10.read(tmp_path)["test"].labels.tolist() == list(range(10))


def change(file, **changes):
    file.write_bytes(pickle.dumps({**pickle.loads(file.read_bytes()), **changes}, 2))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_batch_is_executed(folder, tmp_path):
    root = tmp_path / "batches"
    write_batches(root, cifar10.read(folder), 4)
    (root / "data_batch_3").write_bytes(pickle.dumps(
        {"data": Bomb(str(tmp_path / "made")), "labels": []}))
    with pytest.raises(UserError, match="mkdir"):
        cifar10.read(root)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("break_it, message", [
    (lambda root: (root / "test_batch").unlink(), "test_batch cannot be read"),
    (lambda root: (root / "test_batch").write_bytes(b"\x80\x02}q."), "damaged|not CIFAR-10's"),
    (lambda root: (root / "batches.meta").write_bytes(pickle.dumps({}, 2)), "label_names"),
    (lambda root: (root / "test_batch").write_bytes(pickle.dumps({"data": 3, "labels": []}, 2)),
     "damaged or not"),
    (lambda root: change(root / "test_batch", labels=doubled(60)), "labels that are no numbers"),
    (lambda root: change(root / "test_batch", labels=[2 ** 70] * 6), "labels that are no numbers"),
    (lambda root: change(root / "test_batch", labels=[-1] * 6), "labels that are no numbers"),
    (lambda root: change(root / "batches.meta", label_names=doubled(60)), "label_names that are"),
    (lambda root: change(root / "batches.meta", label_names=[doubled(60)] * 3), "label_names that"),
])
def test_damaged_batches_are_named(folder, tmp_path, break_it, message):
    root = tmp_path / "batches"
    write_batches(root, cifar10.read(folder), 2)
    break_it(root)
    with pytest.raises(UserError, match=message):
        cifar10.read(root)


def test_what_is_no_cifar10_is_said(folder, tmp_path):
    with pytest.raises(UserError, match="no folder or archive"):
        cifar10.read(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no CIFAR-10; expected train/ and test/"):
        cifar10.read(tmp_path)
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="get the archive again"):
        cifar10.read(tmp_path / "x.tar.gz")
    only_train = archive(folder / "train", tmp_path / "y.tar", "train")
    with pytest.raises(UserError, match="holds no CIFAR-10"):
        cifar10.read(only_train)


def test_an_archive_whose_files_would_fill_the_memory_is_refused(folder, tmp_path):
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as file:
        bomb = tarfile.TarInfo("cifar/train/cat/a.png")
        bomb.size = 1 << 20
        file.addfile(bomb, io.BytesIO(bytes(bomb.size)))
    with pytest.raises(UserError, match="'cifar/train/cat/a.png' of 1048576 bytes, no file of"):
        cifar10.read(tmp_path / "bomb.tar.gz")


def test_other_sizes_are_refused(folder, tmp_path):
    for part in cifar10.PARTS:
        (tmp_path / part / "cat").mkdir(parents=True)
        Image.new("RGB", (40, 32)).save(tmp_path / part / "cat" / "a.png")
    with pytest.raises(UserError, match="a.png has 40 x 32 pixels, expected 32 x 32"):
        cifar10.read(tmp_path)


def test_the_real_archive(data_root):
    parts = cifar10.read(data_root / "cifar10")
    assert np.bincount(parts["train"].labels).tolist() == [5000] * 10
    assert np.bincount(parts["test"].labels).tolist() == [1000] * 10
    assert parts["test"].class_names[0] == "airplane"
