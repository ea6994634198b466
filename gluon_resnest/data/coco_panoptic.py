"""COCO's images with objects and with the class of every pixel: instances and panoptic files."""
import numpy as np

from gluon_resnest.data.coco import CocoInstances
from gluon_resnest.data.detection import IGNORED
from gluon_resnest.data.panoptic import VOID, read_panoptic
from gluon_resnest.data.text_files import read_json
from gluon_resnest.errors import UserError

THING = 0               # label of the pixels of any thing


def labels_of(found, classes):
    """Returns the class of every pixel for a semantic head, uint8 (H, W).

    Args:
      found: `panoptic.Panoptic`.
      classes: {category_id: 1, 2, ...} of the kinds of stuff; the others are THING.

    Returns:
      IGNORED where there is no segment, or a crowd.
    """
    numbers, places = np.unique(found.ids, return_inverse=True)
    meanings = {VOID: IGNORED}
    for segment in found.segments:
        meanings[segment["id"]] = IGNORED if segment.get("iscrowd") else \
            classes.get(segment["category_id"], THING)
    table = np.array([meanings[number] for number in numbers.tolist()], np.uint8)
    return table[places].reshape(found.ids.shape)


class CocoPanoptic(CocoInstances):
    """A source of images with objects, see `instances`, that also knows the class of every pixel.

    Objects, their boxes and masks are those of the instances' json.

    Args:
      content, images_dir, source: see `CocoInstances`.
      files: `panoptic.PanopticFiles` of the same images.

    Attributes:
      stuff_names: tuple of str. stuff_ids: int64 (S,), COCO's numbers of the kinds of stuff.
      files: as given.

    Raises:
      UserError: if an image has no panoptic annotation, or the things are other ones.
    """

    def __init__(self, content, images_dir, source, files):
        super().__init__(content, images_dir, source)
        self.files = files
        categories = files.categories()
        stuff = [number for number, row in categories.items() if not row["isthing"]]
        things = [number for number, row in categories.items() if row["isthing"]]
        if things != self.category_ids.tolist():
            raise UserError(f"{source} has {len(self.category_ids)} categories, the panoptic "
                            f"annotations {len(things)} things with these or other numbers; give "
                            "annotations of the same classes")
        self.stuff_names = tuple(categories[number]["name"] for number in stuff)
        self.stuff_ids = np.array(stuff, np.int64)
        self._stuff_classes = {number: 1 + place for place, number in enumerate(stuff)}
        self._known = frozenset(categories)
        for index in range(len(self)):
            if self.image_id(index) not in files:
                raise UserError(f"{self.name(index)} has no panoptic annotation; give the panoptic "
                                "json of the same images")

    def panoptic(self, index):
        """Returns what is true of an image, `panoptic.Panoptic`.

        Raises:
          UserError: if its PNG is damaged, contradicts the json or is of another size.
        """
        number, size = self.image_id(index), self.size(index)
        found = self.files.read(number, self._known)
        if found.ids.shape != size:
            raise UserError(f"{self.files.name(number)} is {found.ids.shape[0]} x "
                            f"{found.ids.shape[1]} pixels (height x width), but {self.name(index)} "
                            f"{size[0]} x {size[1]}; use the PNG of this image")
        return found

    def labels(self, index):
        """Returns the class of every pixel, uint8 (H, W); see `labels_of`."""
        return labels_of(self.panoptic(index), self._stuff_classes)


def read_coco_panoptic(instances_json, images_dir, panoptic_json, pngs=None):
    """Reads instances_*.json and panoptic_*.json of the same images.

    Args:
      images_dir: folder of the images.
      pngs: folder of the panoptic PNGs; None: see `panoptic.read_panoptic`.

    Raises:
      UserError: if a file is missing or damaged, or they contradict each other.
    """
    return CocoPanoptic(read_json(instances_json), images_dir, str(instances_json),
                        read_panoptic(panoptic_json, pngs))
