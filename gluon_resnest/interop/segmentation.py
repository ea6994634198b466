"""Labels every pixel of images with an exported segmentation network or one of the zoo."""
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional, Tuple

import mxnet as mx
import numpy as np

from gluon_resnest import zoo
from gluon_resnest.data import color
from gluon_resnest.errors import UserError
from gluon_resnest.interop import cards
from gluon_resnest.interop.card_values import class_names, number, triple, whole
from gluon_resnest.interop.task_predictor import TaskPredictor
from gluon_resnest.interop.weights import load_parameters
from gluon_resnest.models.segmentation import CLASSES, parse_name
from gluon_resnest.models.whole_image import RULES, WholeImage


@dataclass(frozen=True)
class SegmentationCard(cards.TaskCard):
    """How an exported segmentation network wants its images and what its outputs mean.

    The input is float32 RGB (N, 3, H, W), `(value / 255 - mean) / std`, any N, H and W; the output
    is logits (N, classes, H, W).

    Attributes:
      model: name of the network.
      classes: number of classes.
      crop_px: side of the windows in which large images are labelled.
      base_px: longer side of an image at scale 1; None is the image's own.
      scales, flip, rule: see `models.whole_image.WholeImage`.
      mean, std, class_names, commit, sha256: as in `deployed.Card`.
    """

    task = "segmentation"
    word = "segmentation network"
    lists = ("mean", "std", "scales")

    model: str
    classes: int
    crop_px: int = 480
    base_px: Optional[int] = 520
    scales: Tuple[float, ...] = (1.0,)
    flip: bool = False
    rule: str = "softmax"
    mean: Tuple[float, float, float] = color.MEAN
    std: Tuple[float, float, float] = color.STD
    class_names: Optional[Tuple[str, ...]] = None
    commit: str = ""
    sha256: Optional[dict] = None

    @property
    def input_shape(self):
        """Shape of one window."""
        return (1, 3, self.crop_px, self.crop_px)

    @property
    def output_shape(self):
        """Shape of its logits."""
        return (1, self.classes, self.crop_px, self.crop_px)

    @property
    def summary(self):
        """See `TaskCard`."""
        return f"{self.classes} classes, windows of {self.crop_px} px"

    def name(self, number):
        """Returns what to call a class."""
        return self.class_names[number] if self.class_names else f"class {number}"

    def own_faults(self):
        """See `TaskCard`."""
        return {
            "classes": whole(self.classes, 1, 1 << 16),
            "crop_px": whole(self.crop_px, 8, 4096),
            "base_px": self.base_px is None or whole(self.base_px, 8, 16384),
            "scales": 0 < len(self.scales) < 50 and all(
                number(scale, 0.01, 10) for scale in self.scales),
            "flip": type(self.flip) is bool,
            "rule": self.rule in RULES,
            "mean": triple(self.mean, -10, 10),
            "std": triple(self.std, 1e-6, 1e3),
            "class_names": class_names(self.class_names, self.classes)}


def read_card(prefix):
    """Returns the `SegmentationCard` of an exported pair.

    Raises:
      UserError: if there is none, or it is damaged, or of another task or format.
    """
    return cards.read(prefix, SegmentationCard)


def is_segmenter(name):
    """Returns whether a name spells a segmentation network, {head}_{backbone}[_{data set}]."""
    return parse_name(name) is not None


def from_zoo(name, weights):
    """Builds a segmentation network of the zoo, without its auxiliary head.

    Args:
      name: {head}_{backbone}_{data set}.
      weights: `.params` file; None takes the published ones.

    Returns:
      (net, card).

    Raises:
      UserError: if the name is unknown or names no data set, or the weights are not to be had or
        do not fit.
    """
    spelled = parse_name(name)
    if spelled and not spelled.dataset:
        raise UserError(f"{name!r} names no data set, which says how many classes there are; "
                        f"expected {{head}}_{{backbone}}_{{data set}}, such as {name}_ade; "
                        f"data sets are {', '.join(CLASSES)}")
    net = zoo.get_model(name, pretrained=weights is None)
    if weights is not None:
        load_parameters(net, weights)
    base, crop = (2048, 768) if spelled.dataset == "citys" else (520, 480)
    return net.without_auxiliary(), SegmentationCard(name, spelled.classes, crop, base)


class Labelled(NamedTuple):
    """What a file shows: int32 (H, W), the class of each pixel; or the problem."""

    file: Path
    labels: Optional[np.ndarray]
    problem: Optional[str] = None

    def shares(self):
        """Returns [(class, share of the pixels)], the largest first."""
        numbers, counts = np.unique(self.labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(int(numbers[i]), float(counts[i] / self.labels.size)) for i in order]


class SegmentationPredictor(TaskPredictor):
    """Labels the pixels of images.

    Args:
      net: Block whose parameters lie on `ctx`.
      card: the network's `SegmentationCard`.
      ctx: Context to run on; the CPU by default.
    """

    kind = SegmentationCard

    def __init__(self, net, card, *, ctx=None):
        self.card = card
        net.hybridize(static_alloc=True)
        self._map = color.normalization(card.mean, card.std)
        self._whole = WholeImage(
            net, window_px=card.crop_px, base_px=card.base_px, scales=card.scales, flip=card.flip,
            rule=card.rule, padding=tuple(self._map[:, 3]), ctx=ctx or mx.cpu(),
            name=card.model)

    def labels(self, image):
        """Returns the class of each pixel, int32 (H, W), of a uint8 RGB image (H, W, 3)."""
        return self._whole.labels(color.apply(image, self._map))

    def answered(self, file, image):
        """Returns the `Labelled` of a file's image."""
        return Labelled(file, self.labels(image))

    def failed(self, file, problem):
        """Returns the `Labelled` of a file that cannot be answered."""
        return Labelled(file, None, problem)
