"""COCO's instance annotations, or a json of one's own in their format, as a source of images.

Polygons lie in one array, so that the annotations of all of COCO are small enough to be sent to
every loader process.
"""
import contextlib
import gc
import itertools
import sys
from pathlib import Path

import numpy as np

from gluon_resnest.data import instances
from gluon_resnest.data.classification import name_fault
from gluon_resnest.data.instances import Annotations, check_files
from gluon_resnest.data.text_files import read_json
from gluon_resnest.errors import UserError

_LARGEST_PX = 1 << 20       # side of an image
_REACH = 10                 # sides of its image that a polygon's point may be away from the corner


def read_instances(json_path, images_dir):
    """Reads instances_*.json, or image_info_*.json, which has no annotations.

    Returns:
      CocoInstances, in the order of the file's images.

    Raises:
      UserError: if a file is missing or damaged, or an entry makes no sense; names file and id.
    """
    with no_garbage_collection():
        return CocoInstances(read_json(json_path), images_dir, str(json_path))


class CocoInstances:
    """A source of images with objects, see `instances`.

    Polygons of fewer than three points are left out.

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

    files = "COCO's instances: instances_*.json or image_info_*.json"    # what a reader expects

    def __init__(self, content, images_dir, source):
        self._source, self._folder = source, Path(images_dir)
        ids, names = self._columns(content, "categories", ("id", "name"))
        ids = self._unique("category", ids)
        order = np.argsort(ids)
        self.category_ids = ids[order]
        names = self._texts("category", ids, names)
        for number, name in zip(ids, names):
            fault = name_fault(name)
            if fault:
                raise self._wrong("category", number, f"has the name {name!a}, which {fault}; give "
                                  "it a name of one line")
        self.class_names = tuple(names[number] for number in order)
        ids, files, heights, widths = self._columns(
            content, "images", ("id", "file_name", "height", "width"))
        self._files = self._texts("image", ids, files)
        self._image_ids = self._unique("image", ids)
        sizes = self._numbers("image", ids, list(zip(heights, widths)), 2)
        for place in np.flatnonzero(((sizes < 1) | (sizes > _LARGEST_PX)).any(axis=1)):
            raise self._wrong("image", ids[place], f"is of {heights[place]} x {widths[place]} "
                              "pixels; give its height and width")
        self._sizes = sizes.astype(np.int64)
        check_files(images_dir, files, source, self._image_ids.tolist())
        if "annotations" not in content:
            content = {"annotations": []}
        self._index(content["annotations"], *self._columns(
            content, "annotations", ("id", "image_id", "category_id", "bbox")))

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

    def _index(self, rows, ids, image_ids, category_ids, boxes):
        """Sorts the annotations by image and lays them out as arrays."""
        self._ids = self._unique("annotation", ids)
        owners = self._places(ids, "image", image_ids, self._image_ids)
        order = np.argsort(owners, kind="stable")
        self._first = np.searchsorted(owners[order], np.arange(len(self) + 1))
        self._classes = self._places(ids, "category", category_ids, self.category_ids)[order]
        boxes = self._numbers("annotation", ids, boxes, 4)
        self._boxes = boxes[order]
        areas = [row.get("area", area)
                 for row, area in zip(rows, (boxes[:, 2] * boxes[:, 3]).tolist())]
        self._areas = self._numbers("annotation", ids, areas)[order]
        self._ids, rows = self._ids[order], [rows[number] for number in order.tolist()]
        crowd = [row.get("iscrowd") for row in rows]
        for number, value in zip(self._ids.tolist(), crowd):
            if value not in (0, 1, None):
                raise self._wrong("annotation", number, f"has {value!r} as iscrowd, expected 0 or "
                                  "1; mend it")
        self._crowd = np.array(crowd, bool)
        self._lay_out_segmentations([row.get("segmentation") for row in rows])

    def _places(self, ids, what, numbers, known):
        """Returns where in a table of known ids those lie that annotations name."""
        where = {number: place for place, number in enumerate(known.tolist())}
        try:
            return np.array([where[number] for number in numbers], np.int64)
        except (KeyError, TypeError):
            owner, number = next((owner, number) for owner, number in zip(ids, numbers)
                                 if type(number) is not int or number not in where)
            raise self._wrong("annotation", owner, f"belongs to {what} {number!r}, which the file "
                              "does not list; mend the number or remove the annotation") from None

    def _lay_out_segmentations(self, segmentations):
        self._run_lengths, polygons, counts = {}, [], []
        for row, segmentation in enumerate(segmentations):
            if isinstance(segmentation, dict):
                self._run_lengths[row] = segmentation
                segmentation = ()
            before = len(polygons)
            try:
                polygons += [polygon for polygon in segmentation or ()
                             if len(polygon) >= 6 and len(polygon) % 2 == 0]
            except TypeError:
                raise self._wrong("annotation", self._ids[row], "has a segmentation that is "
                                  "neither polygons nor run lengths; give [[x, y, ...], ...] or "
                                  "{\"size\", \"counts\"}") from None
            counts.append(len(polygons) - before)
        self._first_polygon = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._first_point = np.concatenate([[0], np.cumsum([len(each) for each in polygons],
                                                           dtype=np.int64)])
        try:
            self._points = np.fromiter(itertools.chain.from_iterable(polygons), np.float64,
                                       self._first_point[-1])
            wrong = np.flatnonzero(~np.isfinite(self._points))
        except (TypeError, ValueError, OverflowError):
            wrong = [number for number, value in enumerate(itertools.chain.from_iterable(polygons))
                     if not is_number(value)]
        if len(wrong):
            polygon = np.searchsorted(self._first_point, wrong[0], side="right") - 1
            row = np.searchsorted(self._first_polygon, polygon, side="right") - 1
            raise self._wrong("annotation", self._ids[row], "has a polygon with something that is "
                              "no finite number; mend it")
        self._check_reach(counts)

    def _check_reach(self, counts):
        """Refuses polygons far outside their image, whose outlines would fill the memory.

        Args:
          counts: of each annotation's polygons.
        """
        starts = self._first_point[:-1]
        if not len(starts):
            return
        sides = np.repeat(self._sizes.max(axis=1), np.diff(self._first))
        reach = np.maximum(np.maximum.reduceat(self._points, starts),
                           -np.minimum.reduceat(self._points, starts))
        rows = np.repeat(np.arange(len(counts)), counts)
        for row in rows[reach > _REACH * sides[rows]]:
            raise self._wrong("annotation", self._ids[row], "has a polygon with a point more than "
                              f"{_REACH} times as far away as its image is large; mend it")

    def _columns(self, content, table, fields):
        """Returns a list for each field of one of the file's tables."""
        rows = content.get(table) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UserError(f"{self._source} is no annotation file like {self.files}: it has no "
                            f"list of {table}; give such a file")
        try:
            return [[row[field] for row in rows] for field in fields]
        except (KeyError, TypeError):
            wrong = next(row for row in rows if not isinstance(row, dict)
                         or not set(fields) <= set(row))
            raise UserError(f"{self._source} has an entry of {table} that lacks some of "
                            f"{', '.join(fields)}: {str(wrong)[:60]}; mend it") from None

    def _unique(self, what, numbers):
        """Returns ids as an array."""
        if not set(map(type, numbers)) <= {int} or max(map(abs, numbers), default=0) >> 63:
            strange = next(number for number in numbers
                           if type(number) is not int or abs(number) >> 63)
            raise self._wrong(what, strange, "has an id that is no whole number of 64 bits; number "
                              "them")
        ids = np.array(numbers, np.int64)
        ordered = np.sort(ids)
        for number in ordered[1:][ordered[1:] == ordered[:-1]].tolist():
            raise self._wrong(what, number, "is listed more than once; give each entry an id of "
                              "its own")
        return ids

    def _texts(self, what, ids, names):
        """Returns a list of str."""
        for number, name in zip(ids, names):
            if not isinstance(name, str):
                raise self._wrong(what, number, f"has {name!r} where a name is expected; mend it")
        return names

    def _numbers(self, what, ids, rows, columns=None):
        """Returns finite numbers as an array float64 (len(ids),) or (len(ids), columns)."""
        try:
            numbers = np.array(rows, np.float64).reshape(
                (len(ids),) if columns is None else (len(ids), columns))
            finite = np.isfinite(numbers.reshape(len(ids), columns or 1))
            wrong = np.flatnonzero(~finite.all(axis=1))
            if np.array(rows).dtype.kind in "US":       # read above, but by no judge
                raise ValueError("numbers written as text")
        except (TypeError, ValueError, OverflowError):
            wrong = [place for place, row in enumerate(rows) if not is_numbers(row, columns)]
        if len(wrong):
            raise self._wrong(what, ids[wrong[0]], f"has {rows[wrong[0]]!r} where {columns or 1} "
                              "finite numbers are expected; mend it")
        return numbers

    def _wrong(self, what, number, problem):
        return UserError(f"{self._source}: {what} {number!r} {problem}")


@contextlib.contextmanager
def no_garbage_collection():
    """Keeps Python from looking for cycles in millions of new lists again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def is_numbers(row, columns):
    """Tells whether a row of a json file is one number, or so many."""
    row = [row] if columns is None else row
    return isinstance(row, (list, tuple)) and len(row) == (columns or 1) and all(
        map(is_number, row))


def is_number(value):
    """Tells whether a value of a json file is a number, and one that a float can hold."""
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
