"""Persons with joints: the json files of COCO's keypoint challenge, read as arrays, and a dataset.

A sample is a person, not an image. Boxes are (x, y, width, height) in pixels.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Tuple

import numpy as np

from gluon_resnest.data import instances
from gluon_resnest.data.sampling import random_for
from gluon_resnest.data.text_files import read_json
from gluon_resnest.errors import UserError

JOINTS = ("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder",
          "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip",
          "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle")
# For each joint the one it is seen as in a mirror.
PARTNERS = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
# Pairs of joints that a drawn skeleton connects.
SKELETON = ((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7),
            (6, 8), (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6))
PERSON = 1          # COCO's category number
_ANNOTATIONS = "an annotation file of COCO's keypoints"


@dataclass(frozen=True)
class Persons:
    """Persons in images, as arrays of P rows.

    Attributes:
      files: image number -> path.
      sizes: image number -> (width, height).
      image_ids: int64 (P,).
      boxes: float64 (P, 4).
      joints: float32 (P, 17, 3): x, y, and 0 for not labelled, 1 for hidden, 2 for visible.
      scores: float64 (P,), how sure the detector was; 1 for annotated boxes.
      source: the file they come from, for messages.
    """

    files: Dict[int, Path]
    sizes: Dict[int, Tuple[int, int]]
    image_ids: np.ndarray
    boxes: np.ndarray
    joints: np.ndarray
    scores: np.ndarray
    source: str

    def __len__(self):
        return len(self.image_ids)


def read_annotations(file, folder):
    """Reads the persons that have at least one labelled joint.

    Boxes are cut off at the image's border. Left out are crowds, persons without labelled joints,
    and boxes with nothing inside the image.

    Args:
      file: COCO's person_keypoints_*.json.
      folder: of the images that it names.

    Returns:
      Persons, in the order of the file.

    Raises:
      UserError: if it is no such file, or names no person that can be used.
    """
    content = read_json(file)
    with _naming(file, _ANNOTATIONS):
        files, sizes = _listed(content, folder)
        rows = []
        for person in content["annotations"]:
            if person["category_id"] != PERSON or person.get("iscrowd"):
                continue
            joints = _joints(person)
            if person["image_id"] not in sizes:
                raise UserError(f"{file} has a person in image {person['image_id']!r}, which it "
                                "does not list; add the image, or leave the person out")
            box = clip(person["bbox"], *sizes[person["image_id"]])
            if box is not None and (joints[:, 2] > 0).any():
                rows.append((person["image_id"], box, joints, 1.0))
    if not rows:
        raise UserError(f"{file} has no person with a labelled joint and a box inside its image; "
                        "give a person_keypoints_*.json")
    return _persons(files, sizes, rows, str(file))


def read_detections(file, annotations, folder, min_score=0.0):
    """Reads the persons that a detector has found.

    Args:
      file: COCO's result format, a list of {"image_id", "category_id", "bbox", "score"}.
      annotations: json file that lists the images; detections in others are an error.
      folder: of the images.
      min_score: detections below are left out, as are other categories than persons and boxes with
        nothing inside the image.

    Returns:
      Persons, in the order of the file; joints are zeros.

    Raises:
      UserError: if a file is not of its format, or no person is left.
    """
    listed, found = read_json(annotations), read_json(file)
    with _naming(annotations, "an annotation file of COCO"):
        files, sizes = _listed(listed, folder)
    with _naming(file, "a list of detections in COCO's result format"):
        strange = [row["image_id"] for row in found if row["image_id"] not in sizes]
        if strange:
            raise UserError(f"{file} has detections in image {strange[0]}, which {annotations} "
                            "does not list; give the detections of the same images")
        blank, rows = np.zeros((len(JOINTS), 3), np.float32), []
        for row in found:
            box = clip(row["bbox"], *sizes[row["image_id"]])
            if row["category_id"] == PERSON and row["score"] >= min_score and box is not None:
                rows.append((row["image_id"], box, blank, float(row["score"])))
    if not rows:
        raise UserError(f"{file} has no person of score {min_score:g} or more inside its image; "
                        "lower the score or give another file")
    return _persons(files, sizes, rows, str(file))


def read_truth(file):
    """Reads what found joints are compared with: the persons of an annotation file, crowds, too.

    A person without the field of joints has none labelled; `num_keypoints` is counted, and the
    categories are COCO's person alone, whatever the file says of them.

    Returns:
      The content of an annotation file.

    Raises:
      UserError: if it is no such file, or no person in it has a labelled joint.
    """
    content = read_json(file)
    with _naming(file, _ANNOTATIONS):
        persons = [_truth(person) for person in content["annotations"]
                   if person["category_id"] == PERSON]
        images = [{"id": image["id"]} for image in content["images"]]
    if not any(person["num_keypoints"] and not person.get("iscrowd") for person in persons):
        raise UserError(f"{file} has no person with a labelled joint, so there is nothing to "
                        "compare with; give a person_keypoints_*.json with joints")
    return {"images": images, "annotations": persons,
            "categories": [{"id": PERSON, "name": "person"}]}


def clip(box, width, height):
    """Returns the part of a box inside an image, or None if there is none.

    Args:
      box: (x, y, width, height), four finite numbers.
      width, height: of the image.
    """
    x, y, box_width, box_height = (float(number) for number in box)
    if not np.isfinite([x, y, box_width, box_height]).all():
        return None
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + box_width, float(width)), min(y + box_height, float(height))
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


class PersonDataset:
    """Crops of persons: `dataset[index, rng] -> (image float32 (3, H, W), joints (J, 3))`.

    Args:
      persons: `Persons`.
      crop: `pose_transforms.PersonCrop`; joints come out in pixels of the crop.

    Raises:
      UserError: if images are missing; from an item, if its image cannot be read or is of another
        size than listed.
    """

    def __init__(self, persons, crop):
        self.persons, self.crop = persons, crop
        shown = {}                              # folder -> numbers of its images
        for number in np.unique(persons.image_ids).tolist():
            shown.setdefault(persons.files[number].parent, []).append(number)
        for folder, numbers in shown.items():
            instances.check_files(folder, [persons.files[number].name for number in numbers],
                                  persons.source, numbers)

    def __len__(self):
        return len(self.persons)

    def __getitem__(self, key):
        index, rng = key
        persons = self.persons
        number = int(persons.image_ids[index])
        image = instances.load(persons.files[number], persons.sizes[number][::-1],
                               f"{persons.files[number]} (image {number} of {persons.source})")
        return self.crop(image, persons.boxes[index], persons.joints[index], rng)

    def name(self, index):
        """Returns what an error message calls this sample."""
        persons = self.persons
        return f"person {index} in {persons.files[int(persons.image_ids[index])]}"


class SyntheticPersons:
    """Seventeen coloured dots on noise, each joint its colour: a `PersonDataset` without files.

    Sample i depends on (seed, i) only. Its image is (i, 192 x 256 pixels, one person).

    Args:
      length: number of persons.
      crop: as in `PersonDataset`.
      seed: chooses places and noise.
    """

    _SIZE = 256, 192

    def __init__(self, length, crop, seed=0):
        height, width = self._SIZE
        draw = random_for(seed, 0, 0, "synthetic persons")
        places = draw.uniform((0.15, 0.15), (0.85, 0.85), (length, len(JOINTS), 2))
        joints = np.concatenate([places * (width, height), np.full(places.shape[:2] + (1,), 2)],
                                axis=2).astype(np.float32)
        self.crop, self._seed = crop, seed
        boxes = np.tile((0.0, 0.0, width, height), (length, 1))
        self.persons = Persons({}, {}, np.arange(length), boxes, joints, np.ones(length),
                               "synthetic persons")
        self._colours = random_for(0, 0, 0, "joint colours").integers(60, 256, (len(JOINTS), 3))

    def __len__(self):
        return len(self.persons)

    def __getitem__(self, key):
        index, rng = key
        noise = random_for(self._seed, 0, index, "synthetic person")
        image = noise.integers(0, 50, self._SIZE + (3,)).astype(np.uint8)
        for (x, y, _), colour in zip(self.persons.joints[index], self._colours):
            image[int(y) - 4:int(y) + 5, int(x) - 4:int(x) + 5] = colour
        return self.crop(image, self.persons.boxes[index], self.persons.joints[index], rng)

    def name(self, index):
        """Returns what an error message calls this sample."""
        return f"synthetic person {index}"

    def ground_truth(self):
        """Returns the persons as the content of an annotation file."""
        height, width = self._SIZE
        persons = self.persons
        return {
            "images": [{"id": number, "width": width, "height": height}
                       for number in range(len(persons))],
            "categories": [{"id": PERSON, "name": "person"}],
            "annotations": [
                {"id": number + 1, "image_id": number, "category_id": PERSON, "iscrowd": 0,
                 "bbox": box.tolist(), "area": float(box[2] * box[3]),
                 "num_keypoints": len(JOINTS), "keypoints": joints.ravel().tolist()}
                for number, (box, joints) in enumerate(zip(persons.boxes, persons.joints))]}


class _naming:
    """Turns what a wrong structure raises into a sentence that names the file."""

    def __init__(self, file, expected):
        self._file, self._expected = file, expected

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if kind is not None and issubclass(kind, (KeyError, TypeError, ValueError, AttributeError,
                                                  OverflowError)):
            if not isinstance(error, UserError):
                fault = f"the field {error} is missing" if kind is KeyError else \
                    f"{kind.__name__}: {error}"
                raise UserError(f"{self._file} is not {self._expected} ({fault}); give another "
                                "file") from error


def _listed(content, folder):
    """Returns {image number: path} and {image number: (width, height)}."""
    files, sizes = {}, {}
    for image in content["images"]:
        number = image["id"]
        if type(number) is not int or abs(number) >> 63:
            raise ValueError(f"image {number!r} has an id that is no whole number of 64 bits")
        files[number] = Path(folder) / image["file_name"]
        sizes[number] = image["width"], image["height"]
    return files, sizes


def _joints(person):
    numbers = np.array(person.get("keypoints") or [0] * 3 * len(JOINTS), np.float64)
    if numbers.size != 3 * len(JOINTS):
        raise ValueError(f"person {person.get('id')} has {numbers.size} joint numbers, expected "
                         f"{3 * len(JOINTS)}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"person {person.get('id')} has a joint that is no finite number")
    return numbers.reshape(-1, 3)


def _truth(person):
    """Returns a person's annotation with what COCO's evaluation reads of joints."""
    joints = _joints(person)
    numbers = np.array([*person["bbox"], person.get("area", 0)])
    if numbers.shape != (5,) or numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        raise ValueError(f"person {person.get('id')} has {person['bbox']!r} as box and "
                         f"{person.get('area')!r} as area, expected four finite numbers and one")
    return {**{name: person[name] for name in ("area", "iscrowd") if name in person},
            "image_id": person["image_id"], "category_id": PERSON, "bbox": person["bbox"],
            "keypoints": joints.ravel().tolist(), "num_keypoints": int((joints[:, 2] > 0).sum())}


def _persons(files, sizes, rows, source):
    ids, boxes, joints, scores = zip(*rows)
    return Persons(files, sizes, np.array(ids, np.int64), np.array(boxes, np.float64),
                   np.array(joints, np.float32), np.array(scores, np.float64), source)
