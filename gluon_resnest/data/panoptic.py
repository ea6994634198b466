"""COCO's panoptic format: a PNG with the segment of every pixel, and a json with their categories.

A pixel of colour (R, G, B) belongs to segment R + 256 G + 256^2 B; 0 is no segment. The json lists
for each image the PNG and its `segments_info`: id, category_id, area, bbox and iscrowd (Kirillov et
al. 2019, Panoptic Segmentation; cocodataset.org, format of results).
"""
import io
import json
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from gluon_resnest.data import images
from gluon_resnest.data.text_files import read_json
from gluon_resnest.errors import UserError

VOID = 0                # id of pixels that belong to no segment
_BASE = np.array([1, 1 << 8, 1 << 16], np.int64)
_SUFFIX = ".json"
_KINDS = {int: "a whole number", str: "a text", list: "a list"}


class Panoptic(NamedTuple):
    """The segments of one image.

    ids: int32 (H, W), the segment of each pixel, VOID where there is none.
    segments: list of dicts as in COCO's segments_info: "id", "category_id", and in annotations
      "area" in pixels, "bbox" [left, top, width, height] and "iscrowd".
    """

    ids: np.ndarray
    segments: list


def ids_of(pixels):
    """Returns the segments int32 (H, W) that the colours uint8 (H, W, 3) of a PNG mean."""
    return (pixels.astype(np.int64) @ _BASE).astype(np.int32)


def colors_of(ids):
    """Returns the colours uint8 (H, W, 3) that stand for segments (H, W)."""
    return (np.asarray(ids, np.int64)[..., None] // _BASE % 256).astype(np.uint8)


def png(ids):
    """Returns the bytes of the PNG of segments (H, W)."""
    file = io.BytesIO()
    Image.fromarray(colors_of(ids)).save(file, "PNG")
    return file.getvalue()


def described(ids, categories, crowd=()):
    """Returns the `Panoptic` of an annotation.

    Args:
      ids: int (H, W).
      categories: {id of a segment: category_id}; those without a pixel are left out.
      crowd: ids of the segments that are crowds.
    """
    segments = []
    for number, category in categories.items():
        rows, columns = np.nonzero(ids == number)
        if len(rows):
            left, top = int(columns.min()), int(rows.min())
            segments.append({
                "id": int(number), "category_id": int(category), "iscrowd": int(number in crowd),
                "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
                "area": len(rows)})
    return Panoptic(np.asarray(ids, np.int32), segments)


class PanopticFiles:
    """The content of a panoptic json and the folder of its PNGs, read when asked for.

    Every loader process has a copy: segments are kept as compressed text, a tenth of their dicts.

    Args:
      content: of the json.
      folder: of the PNGs.
      source: the json's name, for messages.

    Attributes:
      image_ids: list of int, COCO's numbers of the annotated images, in the order of the file.

    Raises:
      UserError: if the content is no panoptic annotation.
    """

    def __init__(self, content, folder, source):
        self._folder, self._source = Path(folder), source
        rows = self._table(content, "annotations", {"image_id": int, "file_name": str,
                                                    "segments_info": list})
        self._rows = {row["image_id"]: (row["file_name"], _packed(row["segments_info"]))
                      for row in rows}
        if len(self._rows) < len(rows):
            raise UserError(f"{source} lists an image more than once; keep one of its entries")
        self.image_ids = list(self._rows)
        self._categories = {"categories": content.get("categories")}
        sized = self._table(content, "images", {"id": int}) if "images" in content else []
        self._sizes = {row["id"]: (row["height"], row["width"])
                       for row in sized if "height" in row and "width" in row}

    def __len__(self):
        return len(self._rows)

    def categories(self):
        """Returns {category_id: its entry in the json, with "name" and "isthing"}, by id."""
        rows = self._table(self._categories, "categories",
                           {"id": int, "name": str, "isthing": int})
        return {row["id"]: row for row in sorted(rows, key=lambda row: row["id"])}

    def __contains__(self, image_id):
        return image_id in self._rows

    def name(self, image_id):
        """Returns what an error message calls an image."""
        return f"{self._folder / self._rows[image_id][0]} (image {image_id})"

    def read(self, image_id, categories):
        """Returns the `Panoptic` of an image, whose PNG and json agree.

        Args:
          image_id: COCO's number.
          categories: known category ids.

        Raises:
          UserError: if the PNG cannot be read, or contradicts the json; names both.
        """
        file, segments = self._rows[image_id]
        found = Panoptic(ids_of(images.load(self._folder / file)),
                         json.loads(zlib.decompress(segments)))
        self._check(found, image_id, categories)
        return found

    def _check(self, found, image_id, categories):
        name, size = self.name(image_id), self._sizes.get(image_id, found.ids.shape)
        if found.ids.shape != tuple(size):
            raise UserError(f"{name} is {found.ids.shape[0]} x {found.ids.shape[1]} pixels (height "
                            f"x width), but {self._source} says {size[0]} x {size[1]}; use the "
                            "PNG that belongs to this json")
        listed = self._listed(found.segments, name)
        numbers, areas = np.unique(found.ids, return_counts=True)
        seen = dict(zip(numbers.tolist(), areas.tolist()))
        seen.pop(VOID, None)
        for number in sorted(set(seen) - set(listed)):
            raise UserError(f"{name} has pixels of segment {number}, which {self._source} does not "
                            "list; use the PNG that belongs to this json, or list the segment")
        for number, segment in listed.items():
            if number not in seen:
                raise UserError(f"{self._source} lists segment {number}, of which {name} has no "
                                "pixel; use the PNG that belongs to this json, or remove the entry")
            if segment["category_id"] not in categories:
                raise UserError(f"{self._source}: segment {number} of {name} has category "
                                f"{segment['category_id']!r}, which is not among the "
                                f"{len(categories)} known ones; mend the number")
            if segment.get("area", seen[number]) != seen[number]:
                raise UserError(f"{self._source} gives segment {number} an area of "
                                f"{segment['area']} pixels, but {name} has {seen[number]}; use the "
                                "PNG that belongs to this json")

    def _listed(self, segments, name):
        """Returns {id: entry} of an image's segments."""
        listed = {}
        for segment in segments:
            if not isinstance(segment, dict) or type(segment.get("id")) is not int \
                    or type(segment.get("category_id")) is not int:
                raise UserError(f"{self._source}: a segment of {name} lacks its id or category_id, "
                                f"whole numbers: {str(segment)[:60]}; mend it")
            if segment["id"] in listed:
                raise UserError(f"{self._source} lists segment {segment['id']} of {name} more than "
                                "once; give each an id of its own")
            listed[segment["id"]] = segment
        return listed

    def _table(self, content, table, fields):
        rows = content.get(table) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(
                isinstance(row, dict) and all(isinstance(row.get(name), kind)
                                              for name, kind in fields.items()) for row in rows):
            needed = ", ".join(f"{name} ({_KINDS[kind]})" for name, kind in fields.items())
            raise UserError(f"{self._source} is no panoptic json of COCO: it needs a list of "
                            f"{table}, each with {needed}; give a panoptic_*.json")
        return rows


def _packed(segments):
    return zlib.compress(json.dumps(segments).encode())


def read_panoptic(json_path, folder=None):
    """Opens a panoptic json.

    Args:
      json_path: the json.
      folder: of its PNGs; None is the json's path without its ending, as COCO distributes them.

    Returns:
      PanopticFiles.

    Raises:
      UserError: if the json is missing or damaged, or there is no such folder.
    """
    content = read_json(json_path)
    folder = Path(folder or str(json_path)[:-len(_SUFFIX)])
    if not folder.is_dir():
        raise UserError(f"{json_path} needs the folder {folder} of its PNGs, which does not exist; "
                        "unpack them there")
    return PanopticFiles(content, folder, str(json_path))


def write_panoptic(json_path, content, pngs, folder=None):
    """Writes a panoptic json and the PNGs of its images; the json comes last, whole.

    Args:
      json_path: the json.
      content: of the json.
      pngs: iterable of (file name, bytes), see `png`.
      folder: as in `read_panoptic`; it is made.

    Raises:
      UserError: if a file cannot be written.
    """
    json_path, folder = Path(json_path), Path(folder or str(json_path)[:-len(_SUFFIX)])
    partial = json_path.with_name(json_path.name + ".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in pngs:
            (folder / name).write_bytes(data)
        partial.write_text(json.dumps(content), encoding="utf-8")
        os.replace(partial, json_path)
    except OSError as error:
        raise UserError(f"cannot write {str(json_path)!r} and its PNGs: {error.strerror}; choose a "
                        "writable folder with space") from error
