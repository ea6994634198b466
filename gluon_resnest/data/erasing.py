"""Random erasing (Zhong et al. 2017) of normalised images."""
import math
from dataclasses import dataclass

import numpy as np

from gluon_resnest.errors import UserError, check_choice

FILLS = ("zero", "pixel")
AREA = (0.02, 1 / 3)        # share of the image
ASPECT = (0.3, 1 / 0.3)     # height / width
ATTEMPTS = 10


@dataclass(frozen=True)
class RandomErasing:
    """Overwrites a random rectangle of a normalised (3, H, W) image.

    The rectangle's share of the area is uniform in 2..33 %, its aspect ratio log-uniform in
    .3..1/.3. An image in which ten draws do not fit stays as it is.

    Args:
        prob: probability of erasing.
        fill: "zero", the mean colour, or "pixel", standard normal noise for every value.
    """
    prob: float
    fill: str = "zero"

    def __post_init__(self):
        check_choice("erase_fill", self.fill, FILLS)
        if not 0 <= self.prob <= 1:
            raise UserError(f"erase_prob must lie in 0..1, got {self.prob!r}")

    def __call__(self, image, rng):
        if rng.random() >= self.prob:
            return image
        channels, height, width = image.shape
        for _ in range(ATTEMPTS):
            pixels = rng.uniform(*AREA) * height * width
            aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
            rows, columns = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if 0 < rows < height and 0 < columns < width:
                top = rng.integers(0, height - rows + 1)
                left = rng.integers(0, width - columns + 1)
                patch = (0.0 if self.fill == "zero"
                         else rng.standard_normal((channels, rows, columns), dtype=np.float32))
                image = image.copy()
                image[:, top:top + rows, left:left + columns] = patch
                break
        return image
