"""What the numbers in the label files of segmentation data sets mean."""
from dataclasses import dataclass
from typing import Mapping, Optional, Tuple

import numpy as np

from gluon_resnest.errors import UserError

IGNORED = -1        # class of pixels that neither train nor count
_UNKNOWN = -2


@dataclass(frozen=True)
class Labels:
    """A rule from the numbers in a file to classes.

    Attributes:
      count: number of classes; they are 0 to count - 1.
      classes: file's number -> class, IGNORED for pixels without one; others are errors.
      names: of the classes, or None.
    """

    count: int
    classes: Mapping[int, int]
    names: Optional[Tuple[str, ...]] = None

    def translate(self, values, source):
        """Returns the classes of the pixels, int32 (H, W), IGNORED included.

        Args:
          values: integers (H, W) from a file, not negative.
          source: name of the file, for the error message.

        Raises:
          UserError: if a number has no meaning.
        """
        table = np.full(max(1 << 16, max(self.classes) + 1), _UNKNOWN, np.int32)
        table[list(self.classes)] = list(self.classes.values())
        found = table[np.minimum(values, len(table) - 1)]
        if found.min(initial=0) == _UNKNOWN:
            value = int(values[found == _UNKNOWN][0])
            known = sorted(number for number, label in self.classes.items() if label != IGNORED)
            raise UserError(f"{source} has a pixel of value {value}, but the {self.count} classes "
                            f"have the values {known[0]} to {known[-1]} and ignored are "
                            f"{self._ignored()}; check the data set and the number of classes")
        return found

    def _ignored(self):
        values = sorted(value for value, label in self.classes.items() if label == IGNORED)
        return ", ".join(map(str, values)) if values else "none"


def counted_from_one(count, names=None):
    """Returns the rule of ADE20K and Pascal Context: 0 is ignored, 1 to count are classes."""
    return Labels(count, {0: IGNORED, **{number + 1: number for number in range(count)}}, names)


def counted_from_zero(count, names=None, ignored=None):
    """Returns the rule of one's own masks: 0 to count - 1, and the largest value is ignored.

    That is 255, or 65535 where 255 is a class, unless `ignored` says which.
    """
    return Labels(count, {**{number: number for number in range(count)},
                          ignored or ignored_value(count): IGNORED}, names)


def ignored_value(count):
    """Returns the number that stands for an ignored pixel in masks of `counted_from_zero`."""
    return 255 if count <= 255 else 65535


CITYSCAPES_NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle")
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

# Its files hold the ids 0 to 33 of 34 kinds of things, and 255 for the licence plate's -1.
CITYSCAPES = Labels(19, {**dict.fromkeys((*range(34), 255), IGNORED),
                         **{number: label for label, number in enumerate(_CITYSCAPES_IDS)}},
                    CITYSCAPES_NAMES)

PASCAL_CONTEXT_NAMES = (
    "aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle",
    "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow",
    "cup", "curtain", "dog", "door", "fence", "floor", "flower", "food", "grass", "ground",
    "horse", "keyboard", "light", "motorbike", "mountain", "mouse", "person", "plate", "platform",
    "pottedplant", "road", "rock", "sheep", "shelves", "sidewalk", "sign", "sky", "snow", "sofa",
    "table", "track", "train", "tree", "truck", "tvmonitor", "wall", "water", "window", "wood")
