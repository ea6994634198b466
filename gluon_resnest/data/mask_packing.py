"""Pairs of image and labels in one .rec file, for disks that are slow with many small files.

The data of a record are the image's length (8 bytes, little endian), its file as it was, and a PNG
of labels under the rule `label_maps.counted_from_zero`.
"""
import io

import numpy as np
from PIL import Image

from gluon_resnest.data import images
from gluon_resnest.data.label_maps import IGNORED, ignored_value
from gluon_resnest.data.recordio import RecordFile, RecordWriter, write_class_names
from gluon_resnest.errors import UserError

_HEAD = 8


class PackedPairs:
    """A source of the pairs in a .rec file that `pack_masks` wrote.

    Attributes:
      ignored: value of the pixels without a class, whose width says how many classes were packed.
    """

    def __init__(self, rec):
        self._records = RecordFile(rec)
        self.ignored = ignored_value(255 if self.read(0)[1].dtype == np.uint8 else 256)

    def __len__(self):
        return len(self._records)

    def read(self, index):
        image, labels = self._parts(index)
        try:
            return images.decode(image), images.decode_labels(labels)
        except images.BadImage as error:
            raise UserError(f"{self.name(index)}: {error}; pack it again") from error

    def image_bytes(self, index):
        return self._parts(index)[0]

    def name(self, index):
        return self._records.name(index)

    def _parts(self, index):
        _, data = self._records[index]
        end = _HEAD + int.from_bytes(data[:_HEAD], "little")
        if not _HEAD < end < len(data):
            raise UserError(f"{self.name(index)} holds no pair of image and labels; pack the data "
                            "with tools/pack_masks.py")
        return data[_HEAD:end], data[end:]


def pack_masks(dataset, rec):
    """Writes the pairs of a `SegmentationDataset` into a .rec file, which appears when complete.

    Yields the number of each pair when it is written.
    """
    dtype = np.uint8 if ignored_value(dataset.classes) == 255 else np.uint16
    with RecordWriter(rec) as writer:
        for index in range(len(dataset)):
            _, labels = dataset.read(index)
            values = np.where(labels == IGNORED, ignored_value(dataset.classes), labels)
            png = io.BytesIO()
            Image.fromarray(values.astype(dtype)).save(png, "PNG")
            image = dataset.source.image_bytes(index)
            writer.write(0, len(image).to_bytes(_HEAD, "little") + image + png.getvalue())
            yield index
        write_class_names(rec, dataset.class_names)
