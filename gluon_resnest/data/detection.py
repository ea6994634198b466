"""Images with objects: a dataset, and batches of them padded to one size."""
import copy
import pickle
import zlib
from typing import NamedTuple, Optional

import cv2
import numpy as np

from gluon_resnest.data.detection_transforms import DetectionObjects, moved, moved_objects
from gluon_resnest.data.grouping import GroupedPlan, SortedEvalPlan
from gluon_resnest.data.instance_masks import BadMask, RunLengthMasks
from gluon_resnest.data.loader import Loader
from gluon_resnest.data.sampling import random_for
from gluon_resnest.errors import UserError

LANDSCAPE, PORTRAIT = 0, 1
_OBJECTS_BYTES = 1 << 19        # of a row, for an image's objects and labels
_FAST = 1                       # of zlib's levels
IGNORED = 255                   # label of a pixel that has no class
DIVISOR = 32                    # of padded sides


class DetectionSample(NamedTuple):
    """An image as it was resized, cropped and mirrored.

    image: uint8 (h, w, 3) RGB.
    objects: DetectionObjects in its pixels.
    original: (height, width) of the file.
    labels: uint8 (h, w), the class of each pixel, IGNORED where it has none; or None.
    """

    image: np.ndarray
    objects: DetectionObjects
    original: tuple
    labels: Optional[np.ndarray] = None


class DetectionBatch(NamedTuple):
    """One worker's part of a step; without images at the end of some evaluations.

    images: float32 (N, 3, H, W), normalised, then padded with zeros at the right and the bottom.
    sizes: int64 (N, 2), heights and widths without padding.
    original: int64 (N, 2), heights and widths of the files.
    objects: list of N DetectionObjects; masks are of the size without padding.
    indices: int64 (N,), of the dataset. image_ids: int64 (N,), COCO's.
    epoch, step: where in the run they belong.
    labels: uint8 (N, H, W), the class of each pixel, IGNORED where it has none, as in the padding;
      None if no labels are wanted.
    """

    images: np.ndarray
    sizes: np.ndarray
    original: np.ndarray
    objects: list
    indices: np.ndarray
    image_ids: np.ndarray
    epoch: int
    step: int
    labels: Optional[np.ndarray] = None


class DetectionDataset:
    """Images with objects: `dataset[index, rng] -> DetectionSample`.

    Indices beyond the last begin anew: copies of an image, each with what is random of its own.

    Args:
      source: see `instances`.
      transform: `detection_transforms.TrainTransform` or `EvalTransform`.
      masks: whether objects get masks; those without a segmentation are then left out.
      skip_empty: leaves out images without objects other than crowds, as Detectron2 does in
        training.
      labels: whether samples get the class of each pixel; the source then has `labels(index)`.

    Raises:
      UserError: if no image is left, or no object has a mask though masks are wanted; from an
        item, if its file or its masks are broken.
    """

    def __init__(self, source, transform, masks=True, skip_empty=True, labels=False):
        self.source, self.transform, self._masks = source, transform, masks
        self._labels = labels
        self.class_names = list(source.class_names)
        self._images = np.array([index for index in range(len(source))
                                 if not skip_empty or source.learnable(index)], np.int64)
        if not len(self._images):
            raise UserError(f"none of the {len(source)} images has an object that can be learnt; "
                            "check the annotations")
        if masks:
            self._check_masks()

    def __len__(self):
        return len(self._images)

    def __getitem__(self, key):
        index, rng = key
        number = self._number(index)
        image = self.source.read(number)
        size, move = image.shape[:2], self.move(index, rng)
        annotations = self.source.objects(number)
        try:
            objects = moved_objects(annotations, size, move, self._masks)
        except BadMask as error:
            raise UserError(f"{self.name(index)}: {error}; mend or remove it") from error
        labels = move.mask(self.source.labels(number)) if self._labels else None
        return DetectionSample(moved(image, move, self.transform.rule), objects, size, labels)

    def move(self, index, rng):
        """Returns what the transform makes of an image, without reading it."""
        number = self._number(index)
        return self.transform.move(*self.source.size(number),
                                   lambda: self.source.objects(number).boxes, rng)

    def _check_masks(self):
        objects = 0
        for number in self._images:
            segmentations = self.source.objects(number).segmentations
            if any(each is not None for each in segmentations):
                return
            objects += len(segmentations)
        if objects:
            raise UserError(f"none of the {objects} objects has a segmentation, but masks are to "
                            "be learnt; add them, or use a recipe without mask head")

    def transformed(self, transform):
        """Returns the same images with another transform."""
        dataset = copy.copy(self)
        dataset.transform = transform
        return dataset

    def aspect(self, index):
        """Returns LANDSCAPE for an image that is wider than high, else PORTRAIT."""
        height, width = self.source.size(self._number(index))
        return LANDSCAPE if width > height else PORTRAIT

    def image_id(self, index):
        return self.source.image_id(self._number(index))

    def name(self, index):
        """Returns what an error message calls this sample."""
        return self.source.name(self._number(index))

    def shown(self, index):
        """Returns the classes of an image's objects, crowds aside: int64, each once."""
        objects = self.source.objects(self._number(index))
        return np.unique(objects.classes[~objects.crowd])

    def _number(self, index):
        return self._images[index % len(self._images)]


class DetectionLoader:
    """Batches of images of one orientation, the same for any number of processes.

    In training each worker pads its part of a step to its own largest image (decision 0118); an
    evaluation's batches are the same for any number of workers.

    Args:
      dataset: DetectionDataset.
      batch: images of a step over all workers.
      rank, size: this worker, and how many there are.
      seed: the run's.
      workers: loader processes; 0 reads in this one.
      train: endless batches by `grouping.GroupedPlan`; else each image once.
      factors: float (images,), how often each comes in training, see `repeat_factor`; None: all
        equally often.
      max_pixels: largest height times width of a padded image; longer sides are limited to this
        over the largest shorter side, whatever else is in the batch; windows of a random crop in
        both orientations may be padded to more. None: no further limit.
      divisor: padded sides are multiples of it.

    Attributes:
      plan: which images are read at which step; see `grouping`.
      steps_per_epoch: the same on all workers.

    Raises:
      UserError: if the numbers do not fit together, or the first image cannot be read.
    """

    def __init__(self, dataset, *, batch, rank, size, seed, workers, train=True, factors=None,
                 max_pixels=None, divisor=DIVISOR):
        self.dataset = _limited(dataset, max_pixels, divisor)
        self._seed, self._divisor = seed, divisor
        if train:
            groups = [dataset.aspect(index) for index in range(len(dataset))]
            self.plan = GroupedPlan(groups, batch, rank, size, seed, shape=self._shape,
                                    factors=factors)
        else:
            shapes = [self._shape(0, index) for index in range(len(dataset))]
            self.plan = SortedEvalPlan(shapes, batch, rank, size)
        self._loader = Loader(_Rows(self.dataset), self.plan, seed=seed, workers=workers)
        self.steps_per_epoch = self.plan.steps_per_epoch

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def batches(self, start_step=0):
        """Yields DetectionBatches without end, from a global step on."""
        return map(self._stacked, self._loader.batches(start_step))

    def epoch(self, epoch, start_step=0):
        """Yields the DetectionBatches of an epoch."""
        return map(self._stacked, self._loader.epoch(epoch, start_step))

    def rng(self, batch, number):
        """Returns the generator for what is sampled of image `number` of a batch."""
        return random_for(self._seed, batch.epoch, int(batch.indices[number]), "targets")

    def shown(self, batch):
        """Returns the classes on the images of all workers at a batch's step: int64, each once."""
        samples = self.plan.of_all(batch.epoch, batch.step)
        return np.unique(np.concatenate([self.dataset.shown(index) for index in samples]))

    def close(self):
        """Ends the loader processes."""
        self._loader.close()

    def _shape(self, epoch, index):
        """Returns what images of a step are sorted by: orientation, longer side, shorter side."""
        move = self.dataset.move(index, random_for(self._seed, epoch, index))
        return (move.width > move.height, max(move.height, move.width),
                min(move.height, move.width))

    def _stacked(self, batch):
        samples = [unpack(row) or self.dataset[index, random_for(self._seed, batch.epoch, index)]
                   for row, index in zip(*batch.arrays, batch.indices.tolist())]
        images, sizes = stack([sample.image for sample in samples], self.dataset.transform,
                              self._divisor)
        return DetectionBatch(
            images, sizes, np.array([each.original for each in samples], np.int64).reshape(-1, 2),
            [each.objects for each in samples], np.array(batch.indices),
            np.array([self.dataset.image_id(index) for index in batch.indices], np.int64),
            batch.epoch, batch.step, _stacked_labels(samples, images.shape[2:]))


def _stacked_labels(samples, size):
    """Returns the labels of samples, padded to one size, or None if they have none."""
    if not samples or samples[0].labels is None:
        return None
    labels = np.full((len(samples), *size), IGNORED, np.uint8)
    for padded, sample in zip(labels, samples):
        height, width = sample.labels.shape
        padded[:height, :width] = sample.labels
    return labels


def stack(images, transform, divisor=DIVISOR):
    """Normalises images and pads them to one size.

    Args:
      images: list of uint8 (h, w, 3).
      transform: has mean and std.
      divisor: of the padded sides.

    Returns:
      float32 (N, 3, H, W) and int64 (N, 2), heights and widths without padding.
    """
    sizes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
    height, width = -(-sizes.max(axis=0, initial=1) // divisor) * divisor
    batch = np.zeros((len(images), 3, height, width), np.float32)
    # A table of 256 values: measured five times as fast as arithmetic.
    tables = ((np.arange(256)[:, None] - transform.mean) / transform.std).astype(np.float32).T
    for padded, image in zip(batch, images):
        for part, plane, table in zip(padded, cv2.split(image), tables):
            cv2.LUT(plane, table, dst=part[:image.shape[0], :image.shape[1]])
    return batch, sizes


class _Rows:
    """A dataset of samples as rows of bytes, all of one length, as `Loader` wants them."""

    def __init__(self, dataset):
        self._dataset = dataset
        transform = dataset.transform
        self._bytes = 3 * transform.largest_short_px * transform.max_px + _OBJECTS_BYTES

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, key):
        return (pack(self._dataset[key], self._bytes),)

    def name(self, index):
        return self._dataset.name(index)


def pack(sample, length):
    """Returns a DetectionSample as uint8 (length,).

    The length of the head, the head, the pixels. A sample that is too long is left out: the head's
    length is then 0.
    """
    image, (boxes, classes, masks, crowd), original, labels = sample
    codes = None if masks is None else masks.codes
    labels = None if labels is None else zlib.compress(labels.tobytes(), _FAST)
    head = pickle.dumps((image.shape, original, boxes, classes, codes, crowd, labels), protocol=4)
    row, end = np.empty(length, np.uint8), 8 + len(head)
    fits = end + image.size <= length
    row[:8].view(np.int64)[0] = len(head) if fits else 0
    if fits:
        row[8:end] = np.frombuffer(head, np.uint8)
        row[end:end + image.size].reshape(image.shape)[...] = image
    return row


def unpack(row):
    """Returns the DetectionSample of a row, its image a view; None if it did not fit."""
    length = int(row[:8].view(np.int64)[0])
    if not length:
        return None
    shape, original, boxes, classes, codes, crowd, labels = pickle.loads(
        row[8:8 + length].tobytes())
    pixels = row[8 + length:8 + length + int(np.prod(shape))]
    masks = None if codes is None else RunLengthMasks(codes, *shape[:2])
    if labels is not None:
        labels = np.frombuffer(zlib.decompress(labels), np.uint8).reshape(shape[:2])
    return DetectionSample(pixels.reshape(shape), DetectionObjects(boxes, classes, masks, crowd),
                           original, labels)


def longest_px(short_px, max_pixels, divisor=DIVISOR):
    """Returns how long the longer side may be, so that a padded image has at most `max_pixels`.

    Args:
      short_px: largest shorter side.
      max_pixels: height times width of a padded image.
      divisor: of the padded sides.

    Raises:
      UserError: if not even a square of the shorter side has so few.
    """
    short = -(-short_px // divisor) * divisor
    longest = max_pixels // short // divisor * divisor
    if longest < short:
        raise UserError(f"expected max_pixels of at least {short * short} for a shorter side of "
                        f"{short} pixels, got {max_pixels}; raise it or lower the shorter side")
    return longest


def _limited(dataset, max_pixels, divisor):
    """Returns the dataset with the longer side so short that no padded image is too large."""
    if max_pixels is None:
        return dataset
    transform = dataset.transform
    return dataset.transformed(transform.limited(
        longest_px(transform.largest_short_px, max_pixels, divisor)))
