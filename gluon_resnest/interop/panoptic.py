"""Finds the segments of images with an exported panoptic network or one of the zoo."""
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional, Tuple

import numpy as np

from gluon_resnest.data.detection_transforms import MEAN, RULES, STD
from gluon_resnest.interop import cards
from gluon_resnest.interop.card_values import class_names, number, triple, whole
from gluon_resnest.interop.detection import resize_rule
from gluon_resnest.interop.task_predictor import BoxPredictor
from gluon_resnest.interop.trained import with_weights
from gluon_resnest.models.detection.build import COCO_CLASSES
from gluon_resnest.models.detection.merging import Rules, merge
from gluon_resnest.models.detection.panoptic import COCO_STUFF, detector_name
from gluon_resnest.models.detection.panoptic_inference import in_originals


@dataclass(frozen=True)
class PanopticCard(cards.TaskCard):
    """How an exported panoptic network wants its images and what its outputs mean.

    The input is that of a `detection.DetectionCard`; the outputs are those of
    `models.detection.panoptic.PanopticFPN`, which `merging.merge` makes into segments.

    Attributes:
      model: name of the network.
      classes: number of classes of things. stuff: number of kinds of stuff.
      confidence, overlap, stuff_area: see `merging.Rules`.
      detections, mask_px, short_px, max_px, resize, mean, std: see `detection.DetectionCard`.
      class_names: of the things, then of the stuff.
      commit, sha256: as in `deployed.Card`.
    """

    task = "panoptic"
    word = "panoptic network"

    model: str
    classes: int
    stuff: int
    confidence: float = 0.5
    overlap: float = 0.5
    stuff_area: int = 4096
    detections: int = 100
    mask_px: int = 28
    short_px: int = 800
    max_px: int = 1333
    resize: str = "detectron2"
    mean: Tuple[float, float, float] = MEAN
    std: Tuple[float, float, float] = STD
    class_names: Optional[Tuple[str, ...]] = None
    commit: str = ""
    sha256: Optional[dict] = None

    @property
    def input_shape(self):
        """Shape of a small image to try the files with; any other does."""
        return (1, 3, 160, 224)

    @property
    def output_shapes(self):
        """Shapes of the outputs for one image."""
        objects = tuple((1, self.detections, columns) for columns in (1, 1, 4))
        return (*objects, (1, self.detections, self.mask_px, self.mask_px),
                (1, 1 + self.stuff, *self.input_shape[2:]))

    @property
    def rules(self):
        """The `merging.Rules`."""
        return Rules(self.confidence, self.overlap, self.stuff_area)

    @property
    def summary(self):
        """See `TaskCard`."""
        return f"{self.classes} classes of things, {self.stuff} of stuff, images of any size"

    def own_faults(self):
        """See `TaskCard`."""
        return {
            "classes": whole(self.classes, 1, 1 << 16),
            "stuff": whole(self.stuff, 1, 254),
            "confidence": number(self.confidence, 0, 1),
            "overlap": number(self.overlap, 0, 1),
            "stuff_area": whole(self.stuff_area, 0, 1 << 31),
            "detections": whole(self.detections, 1, 1 << 16),
            "mask_px": whole(self.mask_px, 1, 1024),
            "short_px": whole(self.short_px, 8, 16384),
            "max_px": whole(self.max_px, self.short_px, 1 << 16),
            "resize": self.resize in RULES,
            "mean": triple(self.mean, -1000, 1000),
            "std": triple(self.std, 1e-6, 1e6),
            "class_names": class_names(self.class_names, self.classes + self.stuff)}

    def name(self, segment):
        """Returns what to call a `merging.Segment`."""
        if self.class_names:
            return self.class_names[segment.kind + (0 if segment.thing else self.classes)]
        return f"{'class' if segment.thing else 'stuff'} {segment.kind}"


def card_of(net, name, **fields):
    """Returns the `PanopticCard` of a `PanopticFPN`; `fields` as there."""
    conventions = net.detector.conventions
    return PanopticCard(
        name, len(net.detector.classes), len(net.stuff), detections=net.detector.rows,
        mean=conventions.mean, std=conventions.std,
        **{"resize": resize_rule(conventions), **fields})


def read_card(prefix):
    """Returns the `PanopticCard` of an exported pair; raises as `cards.read`."""
    return cards.read(prefix, PanopticCard)


def is_panoptic(name):
    """Returns whether a name spells a panoptic network."""
    return detector_name(name) is not None


def from_zoo(name, weights, *, ctx=None):
    """Builds a panoptic network of the zoo, for COCO's categories, with the weights of a file.

    Returns:
      (net, card).

    Raises:
      UserError: if the weights are not given or do not fit.
    """
    net = with_weights(name, weights, ctx=ctx)
    return net, card_of(net, name, class_names=COCO_CLASSES + COCO_STUFF)


class Merged(NamedTuple):
    """What a file shows; or the problem.

    ids: int32 (H, W), the segment of each pixel, 0 where there is none.
    segments: list of `merging.Segment`.
    """

    file: Path
    ids: Optional[np.ndarray]
    segments: list
    problem: Optional[str] = None

    def rows(self, card):
        """Returns [{"id", "name", "thing", "area", "share", "score"}], the largest first."""
        return [{"id": each.id, "name": card.name(each), "thing": each.thing, "area": each.area,
                 "share": round(each.area / self.ids.size, 4),
                 "score": each.score if each.score is None else round(each.score, 4)}
                for each in sorted(self.segments, key=lambda each: -each.area)]


class PanopticPredictor(BoxPredictor):
    """Finds the segments of images, one image at a time, at the image's own aspect ratio.

    Args:
      net: Block whose parameters lie on `ctx`.
      card: the network's `PanopticCard`.
      ctx: Context to run on; the CPU by default.
    """

    kind = PanopticCard

    def predict(self, image):
        """Returns the segments of a uint8 RGB image (H, W, 3), as `merging.merge` does.

        Raises: as `BoxPredictor.run`.
        """
        seen, = in_originals(*self.run(image))
        return merge(seen.found, seen.labels, self.card.rules)

    def answered(self, file, image):
        """Returns the `Merged` of a file's image."""
        return Merged(file, *self.predict(image))

    def failed(self, file, problem):
        """Returns the `Merged` of a file that cannot be answered."""
        return Merged(file, None, [], problem)
