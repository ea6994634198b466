"""Images made on the spot: for wiring checks and for measuring speed without a disk."""
import numpy as np

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
