"""LVIS's annotations (version 1) as a source of images, and drawn pictures in their form.

LVIS is annotated class by class: an image says of which classes every object is marked (those it
shows and those it has not), and of which only some are. What it does not speak of is unknown there.
Its images are COCO's, of train2017 and of val2017, whichever its own split; `coco_url` says which.
"""
import numpy as np

from gluon_resnest.data.coco import CocoInstances, no_garbage_collection
from gluon_resnest.data.repeat_factor import image_counts
from gluon_resnest.data.text_files import read_json

FREQUENCIES = {"r": 10, "c": 100, "f": np.inf}      # rare: on at most 10 training images, ...
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


def read_lvis(json_path, images_dir):
    """Reads lvis_v1_*.json, or lvis_v1_image_info_*.json, which has no annotations.

    Args:
      json_path: the file.
      images_dir: the folder of COCO that has train2017 and val2017; or, for a json of one's own
        with `file_name` instead of `coco_url`, that of the images.

    Returns:
      LvisInstances, in the order of the file's images.

    Raises:
      UserError: if a file is missing or damaged, or an entry makes no sense; names file and id.
    """
    with no_garbage_collection():
        return LvisInstances(read_json(json_path), images_dir, str(json_path))


class LvisInstances(CocoInstances):
    """A source of images with objects, see `instances` and `CocoInstances`.

    Attributes:
      frequencies: for each class "r", "c" or "f": rare, common, frequent in the training set.
    """

    files = "LVIS's: lvis_v1_*.json"

    def __init__(self, content, images_dir, source):
        self._source = source
        super().__init__(self._with_files(content), images_dir, source)
        self.frequencies = self._frequencies(content)
        if "annotations" in content:
            self._columns(content, "annotations", ("area", "segmentation"))     # of the evaluation
            self._check_federation(content)

    def _with_files(self, content):
        """Returns the json's content, its images with the file names that their URLs end with."""
        numbers, = self._columns(content, "images", ("id",))
        pictures = []
        for number, picture in zip(numbers, content["images"]):
            file = picture.get("file_name")
            if isinstance(picture.get("coco_url"), str):
                file = "/".join(picture["coco_url"].split("/")[-2:])
            if not isinstance(file, str):
                raise self._wrong("image", number, "has neither a coco_url, such as "
                                  ".../val2017/000000000139.jpg, nor a file_name; add one of them")
            pictures.append({**picture, "file_name": file})
        return {**content, "images": pictures}

    def _frequencies(self, content):
        known = {}
        for number, frequency in zip(*self._columns(content, "categories", ("id", "frequency"))):
            if frequency not in FREQUENCIES:
                raise self._wrong("category", number, f"has the frequency {frequency!r}; expected "
                                  f"one of {', '.join(FREQUENCIES)}")
            known[number] = frequency
        return tuple(known[number] for number in self.category_ids.tolist())

    def _check_federation(self, content):
        """Refuses images that do not say what is known of them."""
        numbers, *columns = self._columns(content, "images", ("id", *_FEDERATED))
        known = set(self.category_ids.tolist())
        for field, column in zip(_FEDERATED, columns):
            for number, named in zip(numbers, column):
                if not isinstance(named, list) or any(type(each) is not int for each in named):
                    raise self._wrong("image", number, f"has {field} that are no list of whole "
                                      "numbers; mend it")
                for stranger in set(named) - known:
                    raise self._wrong("image", number, f"names category {stranger} in {field}, "
                                      "which the file does not list; mend the number")


def exhaustive(content):
    """Returns COCO's content in LVIS's form, of pictures on which every object is annotated.

    A class is negative wherever it is not shown, and as frequent as these pictures make it.
    """
    shown = {picture["id"]: set() for picture in content["images"]}
    for annotation in content["annotations"]:
        shown[annotation["image_id"]].add(annotation["category_id"])
    numbers = [category["id"] for category in content["categories"]]
    place = {number: row for row, number in enumerate(numbers)}
    counts = image_counts([np.array([place[each] for each in kinds], np.int64)
                           for kinds in shown.values()], len(numbers))
    return {
        **content,
        "images": [{**picture, "not_exhaustive_category_ids": [],
                    "neg_category_ids": sorted(set(numbers) - shown[picture["id"]])}
                   for picture in content["images"]],
        "categories": [{**category, "image_count": int(count), "frequency": next(
            letter for letter, limit in FREQUENCIES.items() if count <= limit)}
            for category, count in zip(content["categories"], counts)]}
