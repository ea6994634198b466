"""Semantic labels from COCO's instance annotations: 0 is background, then the categories by id."""
from pathlib import Path

import numpy as np

from gluon_resnest.data import images
from gluon_resnest.data.instance_masks import BadMask, check_mask, outlines
from gluon_resnest.errors import MissingExtra, UserError

CROWD = 65535       # value of pixels that only a crowd covers; nobody says what they are


class CocoMasks:
    """A source of images with instance annotations; smaller things lie on top of larger ones.

    Args:
      annotations: JSON file such as instances_val2017.json.
      folder: of its images.

    Attributes:
      names: of the values, tuple of str; values count from 0, the background.

    Raises:
      UserError: if a file is missing or is no such JSON.
    """

    def __init__(self, annotations, folder):
        try:
            from pycocotools.coco import COCO
        except ImportError:
            raise MissingExtra("pycocotools", "coco") from None
        self._folder = Path(folder)
        try:
            self._coco = COCO(str(annotations))
            numbers = sorted(self._coco.cats)
            self.names = ("background", *(self._coco.cats[number]["name"] for number in numbers))
            self._files = sorted((number, image["file_name"])
                                 for number, image in self._coco.imgs.items())
            self._values = {number: value for value, number in enumerate(numbers, 1)}
            for thing in self._coco.anns.values():
                thing["area"] = float(thing["area"] if "area" in thing else
                                      thing["bbox"][2] * thing["bbox"][3])
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f"{annotations} cannot be read as COCO's instance annotations "
                            f"({error}); expected images, annotations and categories") from error
        for thing in self._coco.anns.values():
            if thing["category_id"] not in self._values:
                raise UserError(f"{annotations}: annotation {thing['id']} belongs to category "
                                f"{thing['category_id']!r}, which the file does not list; mend the "
                                "number or remove the annotation")

    def __len__(self):
        return len(self._files)

    def read(self, index):
        number, file = self._files[index]
        image = images.load(self._folder / file)
        values = np.zeros(image.shape[:2], np.int32)
        things = self._coco.loadAnns(self._coco.getAnnIds(imgIds=[number]))
        order = sorted(things, key=lambda thing: (not thing.get("iscrowd", 0), -thing["area"]))
        for thing in order:
            mask = self._mask(index, thing, values.shape)
            values[mask] = CROWD if thing.get("iscrowd", 0) else self._values[thing["category_id"]]
        return image, values

    def _mask(self, index, thing, size):
        """Returns the pixels of an object, bool (H, W)."""
        entry = self._coco.imgs[thing["image_id"]]
        told = entry.get("height"), entry.get("width")
        if told != size:
            raise UserError(f"{self.name(index)} is {size[0]} x {size[1]} pixels (height x width), "
                            f"but its annotations are for {told[0]} x {told[1]}; use the images "
                            "they were made for")
        mask = outlines(thing.get("segmentation"))
        try:
            check_mask(mask, size)
        except BadMask as error:
            raise UserError(f"{self.name(index)}: annotation {thing['id']} has a broken mask: "
                            f"{error}; mend or remove it") from error
        return self._coco.annToMask({**thing, "segmentation": mask}).astype(bool)

    def image_bytes(self, index):
        return images.read_file(self._folder / self._files[index][1])

    def name(self, index):
        return str(self._folder / self._files[index][1])
