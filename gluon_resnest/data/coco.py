"""COCO's instance annotations, or a json of one's own in their format, as a source of images.

Polygons lie in one array, so that the annotations of all of COCO are small enough to be sent to
every loader process.
"""
import itertools
import os
from pathlib import Path

import numpy as np

from gluon_resnest.data import instances
from gluon_resnest.data.instances import Annotations
from gluon_resnest.data.keypoints import read_json
from gluon_resnest.errors import UserError


def read_instances(json_path, images_dir):
    """Reads instances_*.json, or image_info_*.json, which has no annotations.

    Returns:
      CocoInstances, in the order of the file's images.

    Raises:
      UserError: if a file is missing or damaged, or an entry makes no sense; names file and id.
    """
    return CocoInstances(read_json(json_path), images_dir, str(json_path))


class CocoInstances:
    """A source of images with objects, see `instances`; polygons of fewer than 3 points are left
    out.

    Args:
      content: of the json file.
      images_dir: folder of the images.
      source: the json file's name, for messages.

    Attributes:
      class_names: tuple of str, categories in the order of their ids.
      category_ids: int64 (K,).

    Raises:
      UserError: see `read_instances`.
    """

    def __init__(self, content, images_dir, source):
        self._source, self._folder = source, Path(images_dir)
        kinds = sorted(self._rows(content, "categories", ("id", "name")),
                       key=lambda kind: kind["id"])
        self.class_names = tuple(kind["name"] for kind in kinds)
        self.category_ids = self._unique("category", [kind["id"] for kind in kinds])
        pictures = self._rows(content, "images", ("id", "file_name", "height", "width"))
        self._files = [picture["file_name"] for picture in pictures]
        self._image_ids = self._unique("image", [picture["id"] for picture in pictures])
        self._sizes = self._numbers("image", self._image_ids, [
            (picture["height"], picture["width"]) for picture in pictures], np.int64, 2)
        for number in self._image_ids[(self._sizes < 1).any(axis=1)]:
            raise self._wrong("image", number, "is of no size; give its height and width")
        self._check_files()
        rows = [] if "annotations" not in content else self._rows(
            content, "annotations", ("id", "image_id", "category_id", "bbox"))
        self._index(rows)

    def __len__(self):
        return len(self._files)

    def image_id(self, index):
        return int(self._image_ids[index])

    def size(self, index):
        return tuple(self._sizes[index].tolist())

    def file(self, index):
        return self._folder / self._files[index]

    def name(self, index):
        return f"{self.file(index)} (image {self.image_id(index)} of {self._source})"

    def learnable(self, index):
        return not self._crowd[self._first[index]:self._first[index + 1]].all()

    def read(self, index):
        """Returns the image, uint8 (H, W, 3) RGB.

        Raises:
          UserError: if it cannot be read or is of another size than the json says.
        """
        return instances.load(self.file(index), self.size(index), self.name(index))

    def objects(self, index):
        """Returns the Annotations of an image."""
        rows = range(self._first[index], self._first[index + 1])
        part = slice(rows.start, rows.stop)
        boxes = self._boxes[part].copy()
        boxes[:, 2:] += boxes[:, :2]
        return Annotations(self._ids[part], boxes.astype(np.float32), self._classes[part],
                           self._crowd[part], self._areas[part],
                           [self._segmentation(row) for row in rows])

    def _segmentation(self, row):
        if row in self._run_lengths:
            return self._run_lengths[row]
        polygons = range(self._first_polygon[row], self._first_polygon[row + 1])
        return [self._points[self._first_point[each]:self._first_point[each + 1]]
                for each in polygons] or None

    def _index(self, rows):
        """Sorts the annotations by image and lays them out as arrays."""
        ids = self._unique("annotation", [row["id"] for row in rows])
        where = {number: index for index, number in enumerate(self._image_ids.tolist())}
        kinds = {number: index for index, number in enumerate(self.category_ids.tolist())}
        for row in rows:
            if row["image_id"] not in where:
                raise self._wrong("annotation", row["id"], f"belongs to image {row['image_id']!r}, "
                                  "which the file does not list; remove one or add the other")
            if row["category_id"] not in kinds:
                raise self._wrong("annotation", row["id"],
                                  f"is of category {row['category_id']!r}, which the file does not "
                                  "list; mend the number or add the category")
        owners = np.array([where[row["image_id"]] for row in rows], np.int64)
        order = np.argsort(owners, kind="stable")
        rows = [rows[number] for number in order]
        self._first = np.searchsorted(owners[order], np.arange(len(self) + 1))
        self._ids = ids[order]
        self._classes = np.array([kinds[row["category_id"]] for row in rows], np.int64)
        self._crowd = np.array([bool(row.get("iscrowd")) for row in rows], bool)
        self._boxes = self._numbers("annotation", self._ids, [row["bbox"] for row in rows],
                                    np.float64, 4)
        areas = [row.get("area", box[2] * box[3]) for row, box in zip(rows, self._boxes.tolist())]
        self._areas = self._numbers("annotation", self._ids, areas, np.float64)
        self._lay_out_segmentations([row.get("segmentation") for row in rows])

    def _lay_out_segmentations(self, segmentations):
        self._run_lengths, polygons, counts = {}, [], []
        for row, segmentation in enumerate(segmentations):
            if isinstance(segmentation, dict):
                self._run_lengths[row] = segmentation
                segmentation = []
            try:
                usable = [polygon for polygon in segmentation or ()
                          if len(polygon) >= 6 and len(polygon) % 2 == 0]
            except TypeError as error:
                raise self._wrong("annotation", self._ids[row], "has a segmentation that is "
                                  "neither polygons nor run lengths; give [[x, y, ...], ...] or "
                                  "{\"size\", \"counts\"}") from error
            polygons.extend(usable)
            counts.append(len(usable))
        self._first_polygon = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._first_point = np.concatenate([[0], np.cumsum([len(each) for each in polygons],
                                                           dtype=np.int64)])
        try:
            self._points = np.fromiter(itertools.chain.from_iterable(polygons), np.float64,
                                       self._first_point[-1])
            wrong = np.flatnonzero(~np.isfinite(self._points))
        except (TypeError, ValueError):
            wrong = [number for number, value in enumerate(itertools.chain.from_iterable(polygons))
                     if not isinstance(value, (int, float))]
        if len(wrong):
            polygon = np.searchsorted(self._first_point, wrong[0], side="right") - 1
            row = np.searchsorted(self._first_polygon, polygon, side="right") - 1
            raise self._wrong("annotation", self._ids[row], "has a polygon with something that is "
                              "no finite number; mend it")

    def _rows(self, content, table, fields):
        """Returns one of the file's lists after a look at its entries."""
        rows = content.get(table) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UserError(f"{self._source} is no annotation file of COCO's instances: it has no "
                            f"list of {table}; give an instances_*.json or an image_info_*.json")
        for row in rows:
            for field in fields:
                if not isinstance(row, dict) or field not in row:
                    raise UserError(f"{self._source} has an entry of {table} without {field!r} "
                                    f"({str(row)[:60]}); every entry needs {', '.join(fields)}")
        return rows

    def _unique(self, what, numbers):
        """Returns ids as an array."""
        strange = [number for number in numbers if type(number) is not int]
        if strange:
            raise self._wrong(what, strange[0], "has an id that is no whole number; number them")
        ids, counts = np.unique(np.array(numbers, np.int64), return_counts=True)
        if (counts > 1).any():
            raise self._wrong(what, ids[counts > 1][0], "is listed more than once; give each "
                              "entry an id of its own")
        return np.array(numbers, np.int64)

    def _numbers(self, what, ids, rows, dtype, columns=None):
        """Returns finite numbers as an array (len(ids),) or (len(ids), columns)."""
        shape = (len(ids),) if columns is None else (len(ids), columns)
        try:
            numbers = np.array(rows, np.float64).reshape(shape)
            if np.isfinite(numbers).all():
                return numbers.astype(dtype)
        except (TypeError, ValueError):
            pass
        for number, row in zip(ids, rows):
            values = np.array(row, object).ravel()
            if values.size != (columns or 1) or not all(
                    isinstance(value, (int, float)) and np.isfinite(value) for value in values):
                raise self._wrong(what, number, f"has {row!r} where {columns or 1} finite numbers "
                                  "are expected; mend it")
        raise AssertionError("unreachable: some row is wrong")

    def _check_files(self):
        """Refuses a folder that lacks images of the file, without opening any."""
        try:
            there = {entry.name for entry in os.scandir(self._folder)}
        except OSError as error:
            raise UserError(f"{self._folder} cannot be read as the folder of the images of "
                            f"{self._source} ({error.strerror}); check the path") from error
        missing = [index for index, file in enumerate(self._files)
                   if file not in there and not self.file(index).exists()]
        if missing:
            what = "image that is" if len(missing) == 1 else "images that are"
            raise UserError(f"{self._source} lists {len(missing)} {what} not in {self._folder}, "
                            f"first {self._files[missing[0]]} (image {self.image_id(missing[0])}); "
                            "check the folder")

    def _wrong(self, what, number, problem):
        return UserError(f"{self._source}: {what} {number!r} {problem}")
