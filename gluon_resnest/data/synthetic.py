"""Images made on the spot: for wiring checks and for measuring speed without a disk."""
import numpy as np

from gluon_resnest.data.instances import Annotations, DrawnPictures
from gluon_resnest.data.sampling import random_for
from gluon_resnest.errors import UserError


class SyntheticClassification:
    """A dataset whose class can be seen: every class is one plaid of colour, under noise.

    `dataset[index, rng] -> (image float32 (3, H, W), about -3 to 3, label int64)`. Deterministic:
    sample i depends on (seed, i) only, whatever rng is. The label of sample i is i mod classes. Two
    datasets of different seeds show the same classes under different noise: training and test set.

    Args:
      length: number of samples.
      size: height and width in pixels, one number or (height, width).
      classes: number of classes.
      seed: chooses the noise.

    Attributes:
      class_names: list of str.
      labels: int64 (length,).

    Raises:
      UserError: if a number is not positive.
    """

    def __init__(self, length, size, classes, seed=0):
        height, width = (size, size) if np.isscalar(size) else size
        if min(length, height, width, classes) < 1:
            raise UserError(f"expected a positive length, size and number of classes, got "
                            f"{length}, {size} and {classes}")
        self._length, self._seed = length, seed
        self._height, self._width = height, width
        self.class_names = [f"class {number}" for number in range(classes)]
        self.labels = np.arange(length, dtype=np.int64) % classes
        self._noise = random_for(seed, 0, 0, "synthetic noise").normal(
            scale=0.3, size=(3, 2 * height, 2 * width)).astype(np.float32)

    def __len__(self):
        return self._length

    def __getitem__(self, key):
        index, _ = key
        label = index % len(self.class_names)
        own = random_for(self._seed, 0, index, "synthetic sample")
        top, left = own.integers(0, self._height), own.integers(0, self._width)
        noise = self._noise[:, top:top + self._height, left:left + self._width]
        rows, columns = self._waves(label)
        return rows + columns + noise * np.float32(own.uniform(0.5, 1.5)), np.int64(label)

    def name(self, index):
        """Returns what an error message calls this sample."""
        return f"synthetic sample {index}"

    def _waves(self, label):
        """Returns the class's waves down (3, H, 1) and across (3, 1, W) in each colour."""
        cycles_y, cycles_x, phase = random_for(0, 0, label, "synthetic class").uniform(
            [[1], [1], [0]], [[4], [4], [1]], size=(3, 3)).astype(np.float32)[..., None]
        y = np.arange(self._height, dtype=np.float32) / self._height
        x = np.arange(self._width, dtype=np.float32) / self._width
        turn = np.float32(2 * np.pi)
        rows = np.sin(turn * (cycles_y * y + phase)) / 2
        columns = np.cos(turn * cycles_x * x) / 2
        return rows[:, :, None], columns[:, None, :]


class SyntheticDetection(DrawnPictures):
    """Coloured rectangles on noise, each class its colour: a source of images with objects.

    See `instances`. Picture i depends on (seed, i) only; it has one to four rectangles that do not
    overlap. Fast: nothing is read or decoded.

    Args:
      length: number of images.
      size: height and width in pixels, one number or (height, width); exchanged in odd pictures.
      classes: number of classes.
      seed: chooses the rectangles.

    Raises:
      UserError: if a number is not positive or the size is less than 16.
    """

    def __init__(self, length, size, classes, seed=0):
        super().__init__(length, size, [f"class {number}" for number in range(classes)])
        if min(length, classes) < 1 or min(self._size) < 16:
            raise UserError(f"expected a positive length and number of classes and a size of at "
                            f"least 16, got {length}, {classes} and {size}")
        self._seed = seed
        self._colours = random_for(0, 0, 0, "object colours").integers(60, 256, (classes, 3))
        side = max(self._size)
        self._noise = random_for(seed, 0, 0, "synthetic noise").integers(
            0, 50, (side, side, 3)).astype(np.uint8)

    def name(self, index):
        return f"synthetic picture {index}"

    def read(self, index):
        height, width = self.size(index)
        image = self._noise[:height, :width].copy()
        objects = self.objects(index)
        for (left, top, right, bottom), kind in zip(objects.boxes.astype(int), objects.classes):
            image[top:bottom, left:right] = self._colours[kind]
        return image

    def objects(self, index):
        draw = random_for(self._seed, 0, index, "synthetic objects")
        height, width = self.size(index)
        half = np.array([width // 2, height // 2])
        quarters = draw.permutation(4)[:int(draw.integers(1, 5))]
        corners = half * np.stack([quarters % 2, quarters // 2], axis=1)
        low = draw.integers(0, half // 4, (len(quarters), 2))
        high = draw.integers(half // 2, half, (len(quarters), 2))
        boxes = np.concatenate([corners + low, corners + high], axis=1).astype(np.float32)
        areas = (high - low).prod(axis=1).astype(np.float64)
        return Annotations(
            4 * index + 1 + np.arange(len(quarters)), boxes,
            draw.integers(0, len(self.class_names), len(quarters)), np.zeros(len(quarters), bool),
            areas, [[box[[0, 1, 2, 1, 2, 3, 0, 3]]] for box in boxes])
