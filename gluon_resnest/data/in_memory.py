"""Small images that are kept in memory: whole batches are cut, mirrored and normalised at once.

Takes the place of a dataset and its `loader.Loader` where an image costs less than the Python that
would fetch it. There are no processes, and one copy of the images, as uint8.
"""
import functools
import itertools
from dataclasses import dataclass, replace
from typing import Optional, Tuple

import numpy as np

from gluon_resnest.data import color
from gluon_resnest.data.loader import Batch
from gluon_resnest.data.sampling import random_for


@dataclass(frozen=True)
class Images:
    """Labelled images of one size.

    Attributes:
      pixels: uint8 (N, H, W, 3), RGB.
      labels: int64 (N,).
      class_names: in the order of the labels, or None.
    """

    pixels: np.ndarray
    labels: np.ndarray
    class_names: Optional[Tuple[str, ...]] = None

    def __len__(self):
        return len(self.labels)

    def take(self, indices):
        """Returns copies of some of them."""
        return replace(self, pixels=self.pixels[indices], labels=self.labels[indices])


@dataclass(frozen=True)
class PadAndMirror:
    """Shifts each image by up to `padding` pixels, black coming in, and mirrors half of them.

    What happens to an image depends on the seed, the epoch and its number only.
    """

    padding: int
    mirror: bool

    def __call__(self, pixels, indices, seed, epoch, length):
        """Changes a batch.

        Args:
          pixels: uint8 (N, H, W, 3).
          indices: their numbers (N,) in a set of `length`.

        Returns:
          uint8 (N, H, W, 3), new.
        """
        corners, mirrored = self.draw(seed, epoch, length)
        height, width = pixels.shape[1:3]
        edge = (self.padding, self.padding)
        padded = np.pad(pixels, ((0, 0), edge, edge, (0, 0)))
        columns = np.where(mirrored[indices, None], np.arange(width)[::-1], np.arange(width))
        top, left = corners[indices].T[:, :, None]
        return padded[np.arange(len(pixels))[:, None, None],
                      (top + np.arange(height))[:, :, None], (left + columns)[:, None, :]]

    @functools.lru_cache(maxsize=2)     # the batches of an epoch ask again; one may end another
    def draw(self, seed, epoch, length):
        """Draws for every image of a set.

        Returns (not to be changed):
          (corners, mirrored): row and column int64 (length, 2) where the cut begins in the padded
          image, 0 to twice the padding; bool (length,).
        """
        rng = random_for(seed, epoch, 0, "pad and mirror")
        corners = rng.integers(0, 2 * self.padding + 1, size=(length, 2))
        return corners, rng.random(length) < (0.5 if self.mirror else 0.0)


class MemoryLoader:
    """Batches of `Images` as a plan names them; the interface of `loader.Loader`.

    Args:
      dataset: `Images`.
      plan: a `sampling.TrainPlan` or `sampling.EvalPlan`.
      seed: the run's seed.
      augment: `PadAndMirror`, or None.
      mean, std: of the normalisation, RGB in 0..1.
    """

    def __init__(self, dataset, plan, *, seed, augment=None, mean=color.MEAN, std=color.STD):
        self.dataset, self.steps_per_epoch = dataset, plan.steps_per_epoch
        self._plan, self._seed, self._augment = plan, seed, augment
        mapped = color.normalization(mean, std).astype(np.float32)
        self._scale, self._shift = np.diag(mapped)[:, None, None], mapped[:, 3, None, None]

    def epoch(self, epoch, start_step=0):
        """Yields the batches of one epoch in order, beginning with `start_step`."""
        return (self._batch(epoch, step) for step in range(start_step, self.steps_per_epoch))

    def batches(self, start_step=0):
        """Yields batches without end, from a global step on."""
        return (self._batch(*divmod(step, self.steps_per_epoch))
                for step in itertools.count(start_step))

    def close(self):
        """Does nothing: there are no processes."""

    def _batch(self, epoch, step):
        indices = self._plan.indices(epoch, step)
        pixels = self.dataset.pixels[indices]
        if self._augment is not None:
            pixels = self._augment(pixels, indices, self._seed, epoch, len(self.dataset))
        images = np.multiply(pixels.transpose(0, 3, 1, 2), self._scale, dtype=np.float32,
                             order="C")
        images += self._shift
        return Batch((images, self.dataset.labels[indices]), indices, epoch, step)
