"""Image classification datasets: from records and from a folder for each class."""
import itertools
import os
from pathlib import Path

import numpy as np

from gluon_resnest.data import images
from gluon_resnest.data.recordio import RecordFile, sidecar
from gluon_resnest.data.text_files import text_lines
from gluon_resnest.errors import UserError, nearest


class RecordDataset:
    """Images and labels of a .rec file.

    `dataset[index, rng] -> (image, label int64)`, where image is what the transform returns.

    Args:
      rec: path of the .rec file, written by tools/pack_records.py or MXNet's im2rec.
      transform: callable (`images.Picture`, rng) -> float32 (3, H, W).
      classes: number of classes; labels outside 0..classes-1 are refused. By default as many as
        the file's .classes.txt names, and any number where there is none.

    Attributes:
      class_names: list of str, or None if the names are not known.
      labels: int64 (N,); asking for them the first time reads the whole file.

    Raises:
      UserError: if the file is missing or damaged.
    """

    def __init__(self, rec, transform, classes=None):
        self._records = RecordFile(rec)
        self._transform = transform
        names = sidecar(rec, ".classes.txt")
        self.class_names = read_class_names(names) if names.is_file() else None
        if classes is None and self.class_names:
            classes = len(self.class_names)
        self._classes = classes
        self._labels = None

    def __len__(self):
        return len(self._records)

    def __getitem__(self, key):
        index, rng = key
        label, data = self._records[index]
        label = self._checked(label, index)
        try:
            return self._transform(images.Picture(data), rng), label
        except images.BadImage as error:
            raise UserError(f"{self.name(index)}: {error}; pack it again without this image"
                            ) from error

    @property
    def labels(self):
        if self._labels is None:
            self._labels = np.array([self._checked(self._records[index][0], index)
                                     for index in range(len(self))], np.int64)
        return self._labels

    def name(self, index):
        """Returns what an error message calls this sample."""
        return self._records.name(index)

    def _checked(self, label, index):
        return class_number(label, lambda: self.name(index), self._classes)


def class_number(label, name, classes=None):
    """Returns the label of a record as an int64.

    Args:
      label: number, or array of numbers.
      name: callable that returns what an error message calls the record.
      classes: the label must be below; None: any.

    Raises:
      UserError: if it is not one whole number in that range.
    """
    if np.size(label) != 1:
        raise UserError(f"{name()} has {np.size(label)} labels, expected one; a detection file "
                        "cannot be used for classification")
    label = float(np.reshape(label, ()))
    if not label.is_integer() or label < 0 or classes and label >= classes:
        expected = f"0 to {classes - 1}" if classes else "a whole number from 0 on"
        raise UserError(f"{name()} has the label {label:g}, expected {expected}; check the number "
                        "of classes and the list the file was packed from")
    return np.int64(label)


def first_difference(classes, others):
    """Returns where two lists of classes first differ: (number, class, other), or None.

    What a shorter list lacks is None.
    """
    pairs = enumerate(itertools.zip_longest(classes, others))
    return next(((number, *pair) for number, pair in pairs if pair[0] != pair[1]), None)


class FolderDataset:
    """Images in a folder for each class; classes are numbered in the order of their names.

    `dataset[index, rng] -> (image, label int64)`, where image is what the transform returns.

    Args:
      root: the folder that contains the class folders.
      transform: callable (`images.Picture`, rng) -> float32 (3, H, W).
      classes: number of classes; more folders than that are refused.
      class_names: numbers the classes by this list, e.g. the training set's; folders for some of
        them may then be missing.

    Attributes:
      class_names: list of str.
      labels: int64 (N,).
      root: Path of the folder.

    Raises:
      UserError: if there is no such folder, no image in it, or too many classes.
    """

    def __init__(self, root, transform, classes=None, class_names=None):
        self.root = Path(root)
        self._transform = transform
        items, self.class_names = list_folder(root, class_names)
        if classes and len(self.class_names) > classes:
            raise UserError(f"expected at most {classes} classes in {root}, got "
                            f"{len(self.class_names)}; check the folder and the number of classes")
        self._files = [file for _, file in items]
        self.labels = np.array([label for label, _ in items], dtype=np.int64)

    def __len__(self):
        return len(self._files)

    def __getitem__(self, key):
        index, rng = key
        data = images.read_file(self.name(index))
        try:
            return self._transform(images.Picture(data), rng), self.labels[index]
        except images.BadImage as error:
            raise UserError(f"{self.name(index)}: {error}; replace or remove it") from error

    def name(self, index):
        """Returns what an error message calls this sample."""
        return str(self.root / self._files[index])


def list_folder(root, class_names=None):
    """Lists the images of a folder-per-class tree.

    Args:
      root: the folder that contains the class folders; hidden folders and files are left out.
      class_names: numbers the classes by this list; by default, by the sorted folder names.

    Returns:
      ([(label, path relative to root with forward slashes), ...], class names); sorted by class,
      then by path.

    Raises:
      UserError: if there is no such folder, a class folder is unknown or without images, or its
        name is none that a file of names can hold.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; expected one that contains a folder of images "
                        f"for each class")
    folders = sorted(path.name for path in root.iterdir()
                     if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise UserError(f"{root} contains no folders; expected a folder of images for each class")
    for folder in folders:
        fault = name_fault(folder) or folder != folder.strip() and "begins or ends with a space"
        if fault:
            raise UserError(f"{root} has a class folder {folder!a}, whose name {fault}, so that no "
                            "file of class names can hold it; rename it")
    names = list(class_names) if class_names else folders
    labels = {name: label for label, name in enumerate(names)}
    items = []
    for folder in folders:
        if folder not in labels:
            raise UserError(f"{root} has a folder {folder!r}, which is none of the {len(names)} "
                            f"classes{nearest(folder, names)}")
        items += [(labels[folder], file) for file in _images_below(root, folder)]
    return items, names


def name_fault(name):
    """Returns what keeps a class name out of a file of names, one a line, or None.

    The spaces around a name are not kept there.
    """
    if not name.strip():
        return "is empty"
    if "\n" in name:
        return "has a line break"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is no UTF-8"
    return None


def read_class_names(path, distinct=True):
    """Returns the class names of a text file, one a line, in the order of the classes.

    Args:
      path: UTF-8 text, with a byte order mark or without.
      distinct: refuse a name that occurs twice; names that only label pictures may.

    Raises:
      UserError: if the file cannot be read, is empty, or has an empty line or a repeated name.
    """
    try:
        lines = text_lines(Path(path).read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read class names from {str(path)!r} ({error}); expected UTF-8 "
                        "text, one name a line") from error
    names = [line.strip() for line in lines]
    if not names or not all(names):
        empty = names.index("") + 1 if names else 1
        raise UserError(f"line {empty} of {str(path)!r} is empty; expected one class name a line, "
                        "in the order of the classes")
    if distinct and len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{again!r} names {names.count(again)} classes in {str(path)!r}; expected "
                        "different names")
    return names


def _images_below(root, folder):
    files, others = [], set()
    for directory, subfolders, names in os.walk(root / folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix in images.SUFFIXES:
                files.append((Path(directory) / name).relative_to(root).as_posix())
            else:
                others.add(suffix or name)
    if not files:
        found = f"only {', '.join(sorted(others)[:5])}" if others else "nothing"
        raise UserError(f"the class folder {root / folder} contains no image ({found}); expected "
                        f"files with {' '.join(images.SUFFIXES)}")
    return sorted(files)
