"""Semantic labels from COCO's instance annotations: 0 is background, then the categories by id."""
import numpy as np

from gluon_resnest.data import images, instances
from gluon_resnest.data.coco import read_instances
from gluon_resnest.data.instance_masks import BadMask, Move, check_mask, coco_masks, moved_mask
from gluon_resnest.errors import UserError

CROWD = 65535       # value of pixels that only a crowd covers; nobody says what they are


class CocoMasks:
    """A source of images with instance annotations; smaller things lie on top of larger ones.

    Args:
      annotations: JSON file such as instances_val2017.json.
      folder: of its images.

    Attributes:
      names: of the values, tuple of str; values count from 0, the background.

    Raises:
      UserError: see `coco.read_instances`.
    """

    def __init__(self, annotations, folder):
        coco_masks()                            # missing now, not at the first image
        self._things = read_instances(annotations, folder)
        self._order = np.argsort([self._things.image_id(place)
                                  for place in range(len(self._things))], kind="stable")
        self.names = ("background", *self._things.class_names)

    def __len__(self):
        return len(self._things)

    def read(self, index):
        place = self._order[index]
        image = instances.load(self._file(index), self._things.size(place), self.name(index))
        values = np.zeros(image.shape[:2], np.int32)
        things = self._things.objects(place)
        for row in np.lexsort((-things.areas, ~things.crowd)):
            mask = self._mask(index, things, row, values.shape)
            values[mask] = CROWD if things.crowd[row] else things.classes[row] + 1
        return image, values

    def _mask(self, index, things, row, size):
        """Returns the pixels of an object, bool (H, W)."""
        segmentation = things.segmentations[row]
        try:
            check_mask(segmentation, size)
            code = moved_mask(segmentation, size, Move((0, 0, *size), *size))
        except BadMask as error:
            raise UserError(f"{self.name(index)}: annotation {things.ids[row]} has a broken mask: "
                            f"{error}; mend or remove it") from error
        return coco_masks().decode({"size": list(size), "counts": code}).astype(bool)

    def _file(self, index):
        return self._things.file(self._order[index])

    def image_bytes(self, index):
        return images.read_file(self._file(index))

    def name(self, index):
        return str(self._file(index))
