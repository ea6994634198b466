"""Reads CIFAR-10 whole, in any of the forms it comes in."""
import io
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np

from gluon_resnest.data import images, inert_pickle
from gluon_resnest.data.classification import class_number, list_folder, read_class_names
from gluon_resnest.data.in_memory import Images
from gluon_resnest.data.pickled_numpy import CONSTRUCTORS, ArrayShell
from gluon_resnest.data.recordio import RecordFile, sidecar
from gluon_resnest.errors import UserError

PARTS = ("train", "test")
SIDE, CLASSES = 32, 10
_BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
_META = "batches.meta"
_MAX_PICTURE, _MAX_BATCH = 1 << 16, 1 << 26     # bytes; an image has 3 KB, a batch 31 MB
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_EXPECTED = ("expected train/ and test/ with a folder of images for each class, the python batches "
             "(data_batch_1 ...), train.rec and test.rec, or an archive of one of the first two")


def read(path):
    """Reads both parts.

    Args:
      path: folder with train/ and test/, each with a folder of images for each class; or with the
        python batches, which are not unpickled (decision 0030); or with train.rec and test.rec; a
        .tar.gz of one of the first two; or a folder that holds nothing else but such a file.

    Returns:
      {"train": Images, "test": Images}, 32 x 32, classes in the order of their names.

    Raises:
      UserError: if it is none of these, or damaged, or has not ten classes, the same in both parts.
    """
    parts = _read(Path(path))
    _check_classes(parts, path)
    return parts


def _read(path):
    if path.name.endswith(_ARCHIVES) and path.is_file():
        return _from_archive(path)
    if not path.is_dir():
        raise UserError(f"there is no folder or archive {path}; {_EXPECTED}")
    if all((path / part).is_dir() for part in PARTS):
        return {part: _from_folder(path / part) for part in PARTS}
    if all((path / f"{part}.rec").is_file() for part in PARTS):
        return {part: _from_records(path / f"{part}.rec") for part in PARTS}
    if (path / _BATCHES["train"][0]).is_file():
        return _from_batches(lambda name: images.read_file(path / name), path)
    inside = [file for file in path.iterdir() if file.name.endswith(_ARCHIVES)]
    if len(inside) == 1:
        return _from_archive(inside[0])
    raise UserError(f"{path} holds no CIFAR-10; {_EXPECTED}")


def _check_classes(parts, path):
    train, test = (parts[part].class_names for part in PARTS)
    if train and test and train != test:
        lonely = ", ".join(map(repr, sorted({*train} ^ {*test})[:5]))
        what = f"only one of them has {lonely}" if lonely else "their order differs"
        raise UserError(f"expected the same classes in train and test of {path}, but {what}; get "
                        "the data again, or pack both by the same list of classes")
    for part in PARTS:
        found = np.unique(parts[part].labels).tolist()
        named = len(parts[part].class_names or found)
        if named != CLASSES or found != list(range(CLASSES)):
            raise UserError(f"{part} of {path} has {named} classes and labels from {found[0]} to "
                            f"{found[-1]}, expected images of CIFAR-10's {CLASSES}, 0 to "
                            f"{CLASSES - 1}; take recipes/finetune.py for other images")


def _from_folder(root):
    items, names = list_folder(root)
    return _stack(((label, str(root / file), images.read_file(root / file))
                   for label, file in items), names)


def _from_records(rec):
    records = RecordFile(rec)
    file = sidecar(rec, ".classes.txt")
    names = read_class_names(file) if file.is_file() else None
    return _stack(((class_number(label, lambda: name), name, data) for name, (label, data) in
                   ((records.name(index), records[index]) for index in range(len(records)))), names)


def _from_archive(path):
    """Reads an archive from front to back, once; members are never written to disk."""
    pictures, batches = {}, {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isfile():
                    continue
                if name.suffix.lower() in images.SUFFIXES and name.parts[-3:-2] and \
                        name.parts[-3] in PARTS:
                    pictures[name.parts[-3:]] = _content(archive, member, _MAX_PICTURE, path)
                elif name.name == _META or name.name in sum(_BATCHES.values(), []):
                    batches[name.name] = _content(archive, member, _MAX_BATCH, path)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); get the archive again") from error
    if not pictures and batches:
        return _from_batches(lambda name: _member(batches, name, path), path)
    names = {part: sorted({key[1] for key in pictures if key[0] == part}) for part in PARTS}
    if not all(names.values()):
        raise UserError(f"{path} holds no CIFAR-10; {_EXPECTED}")
    return {part: _stack(((names[part].index(key[1]), f"{'/'.join(key)} of {path}", pictures[key])
                          for key in sorted(pictures) if key[0] == part), names[part])
            for part in PARTS}


def _content(archive, member, most, path):
    if member.size > most:
        raise UserError(f"{path} holds {member.name[:80]!r} of {member.size} bytes, no file of "
                        f"CIFAR-10 has more than {most}; get the archive again")
    return archive.extractfile(member).read()


def _member(batches, name, path):
    if name not in batches:
        raise UserError(f"{path} has no {name}; get the archive again")
    return batches[name]


def _from_batches(read_bytes, path):
    """Reads the python batches; `read_bytes` gives the bytes of one by its name."""
    try:
        names = inert_pickle.load(io.BytesIO(read_bytes(_META)), CONSTRUCTORS)["label_names"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("label_names that are no list of texts")
        order = np.argsort(sorted(range(len(names)), key=names.__getitem__))
        return {part: _unpacked([inert_pickle.load(io.BytesIO(read_bytes(name)), CONSTRUCTORS)
                                 for name in _BATCHES[part]], order, tuple(sorted(names)))
                for part in PARTS}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path} holds batches that are damaged or not CIFAR-10's ({error!r}); get "
                        "them again") from error


def _unpacked(batches, order, names):
    arrays = [batch["data"].value if isinstance(batch["data"], ArrayShell) else None
              for batch in batches]
    pixels = np.concatenate(arrays).reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    labels = [label for batch in batches for label in batch["labels"]]
    if not all(isinstance(label, int) and 0 <= label < len(names) for label in labels):
        raise ValueError(f"labels that are no numbers from 0 to {len(names) - 1}")
    labels = order[labels]
    if pixels.dtype != np.uint8 or len(labels) != len(pixels):
        raise ValueError(f"{pixels.dtype} pixels of {len(pixels)} images, {len(labels)} labels")
    return Images(np.ascontiguousarray(pixels), labels.astype(np.int64), names)


def _stack(items, names):
    """Decodes (label, name, bytes) of all images into one array."""
    pixels, labels = [], []
    for label, name, data in items:
        try:
            pixels.append(images.decode(data))
        except images.BadImage as error:
            raise UserError(f"{name}: {error}; get it again") from error
        if pixels[-1].shape != (SIDE, SIDE, 3):
            height, width = pixels[-1].shape[:2]
            raise UserError(f"{name} has {width} x {height} pixels, expected {SIDE} x {SIDE}; this "
                            "recipe is for CIFAR-10, take recipes/finetune.py for other images")
        labels.append(label)
    return Images(np.stack(pixels), np.array(labels, np.int64), names and tuple(names))
