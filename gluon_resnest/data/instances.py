"""Annotated objects, and what a source of images with objects offers.

A source has `class_names` (tuple of str), `category_ids` (int64 (K,), each class's number in
COCO's files), `len`, `image_id(index)`, `size(index) -> (height, width)`, `read(index) -> uint8
(H, W, 3)`, `objects(index) -> Annotations`, `learnable(index) -> bool`, whether an object is no
crowd, and `name(index)` for messages. Sources are picklable and read files lazily.
"""
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gluon_resnest.data import images
from gluon_resnest.data.instance_masks import as_pixels, coco_masks
from gluon_resnest.errors import UserError


class Annotations(NamedTuple):
    """The objects of one image as they are annotated; there may be none.

    ids: int64 (G,), unique in the source.
    boxes: float32 (G, 4), corners (left, top, right, bottom) in pixels; may reach outside.
    classes: int64 (G,), 0..K-1.
    crowd: bool (G,), a group that is neither learnt nor counted.
    areas: float64 (G,), pixels of the mask, by which COCO tells small from large.
    segmentations: list of G: polygons, run lengths or pixels, see `instance_masks`, or None.
    """

    ids: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    segmentations: list


class DrawnPictures:
    """What sources of drawn pictures share: ids from 1 on; every other picture stands upright.

    Args:
      length: number of pictures.
      size: height and width, one number or (height, width); exchanged in odd pictures.
      class_names: of the objects.
    """

    def __init__(self, length, size, class_names):
        self._length, self._size = length, (size, size) if np.isscalar(size) else tuple(size)
        self.class_names = tuple(class_names)
        self.category_ids = np.arange(1, len(self.class_names) + 1)

    def __len__(self):
        return self._length

    def image_id(self, index):
        return index + 1

    def size(self, index):
        return self._size[::-1] if index % 2 else self._size

    def learnable(self, index):
        return True


def ground_truth(source):
    """Returns a source's objects as the content of an annotation file of COCO."""
    pictures, annotations = [], []
    for index in range(len(source)):
        height, width = source.size(index)
        pictures.append({"id": int(source.image_id(index)), "file_name": source.name(index),
                         "height": height, "width": width})
        annotations.extend(_annotations(source, index))
    return {"images": pictures, "annotations": annotations,
            "categories": [{"id": int(number), "name": name}
                           for number, name in zip(source.category_ids, source.class_names)]}


def check_files(folder, files, source, ids=None):
    """Refuses a folder that lacks images, without opening any.

    Args:
      folder: path.
      files: list of paths of the images, relative to it.
      source: the file that lists them, for the message.
      ids: of the images, for the message; None: they have none.

    Raises:
      UserError: if images are missing, or the folder cannot be read.
    """
    folder = Path(folder)
    try:
        there = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise UserError(f"{folder} cannot be read as the folder of the images of {source} "
                        f"({error.strerror}); check the path") from error
    missing = [index for index, file in enumerate(files)
               if file not in there and not (folder / file).exists()]
    if missing:
        what = "image that is" if len(missing) == 1 else "images that are"
        first = f"{files[missing[0]]}{f' (image {ids[missing[0]]})' if ids else ''}"
        raise UserError(f"{source} lists {len(missing)} {what} not in {folder}, first {first}; "
                        "check the folder")


def load(path, size, name):
    """Loads an image that must be (height, width) pixels, because its annotations are.

    Returns:
      uint8 (H, W, 3), RGB.

    Raises:
      UserError: if it cannot be read, or is of another size; calls it `name`.
    """
    image = images.load(path)
    if image.shape[:2] != tuple(size):
        raise UserError(f"{name} is {image.shape[0]} x {image.shape[1]} pixels (height x width), "
                        f"but its annotations are for {size[0]} x {size[1]}; use the images they "
                        "were made for")
    return image


def _annotations(source, index):
    objects = source.objects(index)
    rows = zip(objects.ids.tolist(), objects.boxes.tolist(), objects.classes.tolist(),
               objects.crowd.tolist(), objects.areas.tolist(), objects.segmentations)
    for number, (left, top, right, bottom), kind, crowd, area, segmentation in rows:
        row = {"id": number, "image_id": int(source.image_id(index)),
               "category_id": int(source.category_ids[kind]), "iscrowd": int(crowd),
               "bbox": [left, top, right - left, bottom - top], "area": area}
        if segmentation is not None:
            row["segmentation"] = _portable(segmentation, source.size(index))
        yield row


def _portable(segmentation, size):
    """Returns polygons as lists, anything else as compressed run lengths."""
    if isinstance(segmentation, (list, tuple)):
        return [np.asarray(polygon).tolist() for polygon in segmentation]
    code = coco_masks().encode(np.asfortranarray(as_pixels(segmentation, size), np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}
