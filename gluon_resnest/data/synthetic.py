"""Images made on the spot: for wiring checks and for measuring speed without a disk."""
import numpy as np

from ..errors import UserError
from .sampling import random_for


class SyntheticClassification:
    """A dataset whose class can be seen: every class is one plaid of colour, under noise.

    Deterministic: sample i depends on (seed, i) only. The label of sample i is i mod classes.

    Args:
      length: number of samples.
      size: height and width in pixels, one number or (height, width).
      classes: number of classes.
      seed: chooses patterns and noise.
      transform: None, or a callable (image, rng) applied to the uint8 (H, W, 3) image; without
        one, images are scaled to about [-1, 1].
    """

    def __init__(self, length, size, classes, seed=0, transform=None):
        height, width = (size, size) if np.isscalar(size) else size
        if min(length, height, width, classes) < 1:
            raise UserError(f"expected a positive length, size and number of classes, got "
                            f"{length}, {size} and {classes}")
        self._length, self._seed, self._transform = length, seed, transform
        self._shape = (height, width)
        self._classes = classes
        self.class_names = [f"class {number}" for number in range(classes)]

    def __len__(self):
        return self._length

    def __getitem__(self, key):
        """Returns (image float32 (3, H, W), label int64) for `dataset[index, rng]`."""
        index, rng = key
        label = index % self._classes
        image = self._image(index, label)
        if self._transform is not None:
            return self._transform(image, rng), np.int64(label)
        chw = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
        return chw / np.float32(127.5) - np.float32(1), np.int64(label)

    def name(self, index):
        """Returns what an error message calls this sample."""
        return f"synthetic sample {index}"

    def _image(self, index, label):
        """Returns uint8 (H, W, 3): a horizontal and a vertical wave per colour, plus noise."""
        height, width = self._shape
        waves = random_for(self._seed, 0, label, "synthetic class").uniform(
            [1, 1, 0], [4, 4, 1], size=(3, 3))               # per colour: cycles y, x, phase
        y = np.arange(height, dtype=np.float32) / height
        x = np.arange(width, dtype=np.float32) / width
        plaid = [np.sin(2 * np.pi * (fy * y + phase))[:, None] + np.cos(2 * np.pi * fx * x)
                 for fy, fx, phase in waves.astype(np.float32)]
        noise = random_for(self._seed, 0, index, "synthetic noise").integers(
            -24, 25, size=(height, width, 3), dtype=np.int16)
        image = 128 + 50 * np.stack(plaid, axis=-1) + noise
        return image.clip(0, 255).astype(np.uint8)
