"""Segmentation data: an image and a class for each of its pixels.

A source says where pairs come from: `len`, `read(index) -> (image, values)`, `image_bytes(index)`,
`name(index)`. A `SegmentationDataset` adds what the values mean and what becomes of a pair.
"""
from concurrent.futures import ThreadPoolExecutor

from gluon_resnest.data import images
from gluon_resnest.errors import UserError


class SegmentationDataset:
    """Images with a class for every pixel.

    `dataset[index, rng] -> transform(image, labels, rng)`; see `read` for what that gets.

    Args:
      source: where the pairs come from.
      labels: `label_maps.Labels`, what the source's values mean.
      transform: callable (image, labels, rng) -> tuple of arrays; None returns the pair.

    Attributes:
      class_names: list of str, or None.
      classes: number of classes.
    """

    def __init__(self, source, labels, transform=None):
        self.source = source
        self._labels, self._transform = labels, transform
        self.classes = labels.count
        self.class_names = list(labels.names) if labels.names else None

    def __len__(self):
        return len(self.source)

    def __getitem__(self, key):
        index, rng = key
        pair = self.read(index)
        return pair if self._transform is None else self._transform(*pair, rng)

    def name(self, index):
        """Returns what an error message calls this sample."""
        return self.source.name(index)

    def read(self, index):
        """Returns (image uint8 (H, W, 3) RGB, labels int32 (H, W), IGNORED where there is none).

        Raises:
          UserError: if a file is damaged, the sizes differ, or a value is no class.
        """
        image, values = self.source.read(index)
        if image.shape[:2] != values.shape:
            raise UserError(f"{self.name(index)} has {values.shape[0]} x {values.shape[1]} labels "
                            f"for an image of {image.shape[0]} x {image.shape[1]} pixels (height "
                            "x width); label every pixel of the image as it is stored")
        return image, self._labels.translate(values, self.name(index))


class FilePairs:
    """A source of image files and label files.

    Args:
      pairs: list of (image, labels), paths.
    """

    def __init__(self, pairs):
        self._pairs = list(pairs)

    def __len__(self):
        return len(self._pairs)

    def read(self, index):
        image, labels = self._pairs[index]
        return images.load(image), load_labels(labels)

    def image_bytes(self, index):
        return images.read_file(self._pairs[index][0])

    def name(self, index):
        return str(self._pairs[index][1])


def load_labels(path):
    """Reads a label file: integers (H, W).

    Raises:
      UserError: if it cannot be read or decoded.
    """
    try:
        return images.decode_labels(images.read_file(path))
    except images.BadImage as error:
        raise UserError(f"{path}: {error}; replace or remove it") from error


def read_ahead(dataset, indices, threads):
    """Yields `dataset.read(index)` for each index in order; `threads` read ahead meanwhile.

    For evaluation, whose images have sizes of their own.
    """
    if not threads:
        yield from map(dataset.read, indices)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting = []
        for index in indices:
            waiting.append(pool.submit(dataset.read, index))
            if len(waiting) > threads:
                yield waiting.pop(0).result()
        for pair in waiting:
            yield pair.result()
