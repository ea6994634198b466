"""Pascal VOC's layout, also of one's own pictures: an XML file with boxes for each image."""
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from gluon_resnest.data import images, instances
from gluon_resnest.data.instances import Annotations
from gluon_resnest.data.text_files import text_lines
from gluon_resnest.errors import UserError, nearest

CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
           "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
           "train", "tvmonitor")


def read_voc(root, split, classes=CLASSES):
    """Reads ROOT/ImageSets/Main/SPLIT.txt and the files of ROOT/Annotations that it names.

    Returns:
      VocInstances, in the order of the list.

    Raises:
      UserError: if a file is missing or damaged, or an object makes no sense; names the file.
    """
    root = Path(root)
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    names = [line.split()[0] for line in _lines(listed) if line.strip()]
    repeated = sorted({name for name in names if names.count(name) > 1}) if (
        len(set(names)) < len(names)) else []
    if repeated or not names:
        raise UserError(f"{listed} lists {repeated[0] if repeated else 'nothing'}"
                        f"{' more than once' if repeated else ''}; give one name a line")
    source = VocInstances(root, names, tuple(classes))
    instances.check_files(root / "JPEGImages", [f"{name}.jpg" for name in names], str(listed))
    return source


class VocInstances:
    """A source of images with boxes, see `instances`; there are no masks.

    The first pixel has number 1 and a box includes its last one. "difficult" objects are crowds:
    neither learnt nor counted, as in VOC's evaluation.

    Args:
      root: folder with Annotations and JPEGImages.
      names: list of file names without suffix.
      classes: names of the classes.
    """

    def __init__(self, root, names, classes):
        self._root, self._names = Path(root), list(names)
        self.class_names, self.category_ids = tuple(classes), np.arange(1, len(classes) + 1)
        kinds = {name: number for number, name in enumerate(classes)}
        self._pictures = [_read(self._root / "Annotations" / f"{name}.xml", kinds)
                          for name in names]
        counts = [len(boxes) for _, boxes, _, _ in self._pictures]
        self._first_id = np.concatenate([[1], 1 + np.cumsum(counts, dtype=np.int64)])

    def __len__(self):
        return len(self._names)

    def image_id(self, index):
        return index + 1

    def size(self, index):
        return self._pictures[index][0]

    def file(self, index):
        return self._root / "JPEGImages" / f"{self._names[index]}.jpg"

    def name(self, index):
        return str(self.file(index))

    def learnable(self, index):
        return not self._pictures[index][3].all()

    def read(self, index):
        """Returns the image, uint8 (H, W, 3) RGB.

        Raises:
          UserError: if it cannot be read or is of another size than its XML file says.
        """
        return instances.load(self.file(index), self.size(index), self.name(index))

    def objects(self, index):
        _, boxes, classes, crowd = self._pictures[index]
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).astype(np.float64)
        return Annotations(self._first_id[index] + np.arange(len(boxes)), boxes, classes, crowd,
                           areas, [None] * len(boxes))


def _read(file, kinds):
    """Returns size, boxes, classes and crowd of an XML file."""
    content = images.read_file(file)
    try:
        tree = ElementTree.fromstring(content)      # of bytes, so that its declaration counts
        size = tuple(int(tree.find(f"size/{side}").text) for side in ("height", "width"))
        if min(size) < 1:
            raise ValueError(f"a size of {size[0]} x {size[1]}")
        rows = [_object(entry) for entry in tree.iter("object")]
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError, LookupError) as error:
        raise UserError(f"{file} is not an annotation of VOC ({error}); it needs size, and for "
                        "each object name and bndbox") from error
    for name, _, _ in rows:
        if name not in kinds:
            raise UserError(f"{file} has an object of class {name!r}, which is not among the "
                            f"classes{nearest(name, kinds)}; name all classes")
    return (size, _boxes([box for _, box, _ in rows], file),
            np.array([kinds[name] for name, _, _ in rows], np.int64),
            np.array([difficult for _, _, difficult in rows], bool))


def _object(entry):
    left, top, right, bottom = (float(entry.find(f"bndbox/{side}").text)
                                for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = entry.find("difficult")
    return (entry.find("name").text, (left - 1, top - 1, right, bottom),
            difficult is not None and (difficult.text or "").strip() == "1")


def _boxes(corners, file):
    """Returns boxes float32 (G, 4), each from its left to its right and from its top down."""
    with np.errstate(over="ignore"):                            # beyond float32 is infinite
        boxes = np.array(corners, np.float32).reshape(-1, 4)
    wrong = ~(np.isfinite(boxes).all(axis=1) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1))
    for left, top, right, bottom in boxes[wrong]:
        raise UserError(f"{file} has a bndbox from ({left + 1:g}, {top + 1:g}) to ({right:g}, "
                        f"{bottom:g}), expected finite numbers with xmin up to xmax and ymin up to "
                        "ymax; mend it")
    return boxes


def _lines(file):
    try:
        return text_lines(images.read_file(file))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text ({error.reason}); fetch it again") from error
