"""Finds objects in images with an exported detector or one of the zoo."""
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional, Tuple

from gluon_resnest.data.detection_transforms import MEAN, RULES, STD
from gluon_resnest.interop import cards
from gluon_resnest.interop.card_values import class_names, triple, whole
from gluon_resnest.interop.task_predictor import BoxPredictor
from gluon_resnest.interop.trained import with_weights
from gluon_resnest.models.detection.build import parse
from gluon_resnest.models.detection.inference import Found, in_originals
from gluon_resnest.models.detection.pasting import encode, paste


@dataclass(frozen=True)
class DetectionCard(cards.TaskCard):
    """How an exported detector wants its images and what its outputs mean.

    The input is float32 RGB (N, 3, H, W), `(value - mean) / std` of values in 0..255, any N, H and
    W. The outputs are those of `models.detection.rcnn.RCNN`: ids, scores and boxes in pixels of
    the input, and with `mask_px` masks inside of the boxes.

    Attributes:
      model: name of the network.
      classes: number of classes.
      detections: rows of the outputs for each image.
      mask_px: side of a mask, 0 for networks without masks.
      short_px, max_px, resize: see `data.detection_transforms.EvalTransform`.
      mean, std: of RGB in 0..255.
      class_names, commit, sha256: as in `deployed.Card`.
    """

    task = "detection"
    word = "detector"

    model: str
    classes: int
    detections: int = 100
    mask_px: int = 0
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
        masks = ((1, self.detections, self.mask_px, self.mask_px),) if self.mask_px else ()
        return tuple((1, self.detections, columns) for columns in (1, 1, 4)) + masks

    @property
    def summary(self):
        """See `TaskCard`."""
        return f"{self.classes} classes, images of any size"

    def own_faults(self):
        """See `TaskCard`."""
        return {
            "classes": whole(self.classes, 1, 1 << 16),
            "detections": whole(self.detections, 1, 1 << 16),
            "mask_px": whole(self.mask_px, 0, 1024),
            "short_px": whole(self.short_px, 8, 16384),
            "max_px": whole(self.max_px, self.short_px, 1 << 16),
            "resize": self.resize in RULES,
            "mean": triple(self.mean, -1000, 1000),
            "std": triple(self.std, 1e-6, 1e6),
            "class_names": class_names(self.class_names, self.classes)}

    def name(self, number):
        """Returns what to call a class."""
        return self.class_names[number] if self.class_names else f"class {number}"


def card_of(net, name, **fields):
    """Returns the `DetectionCard` of an `RCNN`; `fields` as there."""
    conventions = net.conventions
    return DetectionCard(
        name, len(net.classes), net.rows, 28 if len(net.mask_heads) else 0,
        mean=conventions.mean, std=conventions.std,
        **{"resize": resize_rule(conventions), **fields})


def resize_rule(conventions):
    """Returns whose resizing belongs to conventions; GluonCV's is OpenCV's, too."""
    return "detectron2" if conventions.name.startswith("detectron2") else "mmdetection"


def read_card(prefix):
    """Returns the `DetectionCard` of an exported pair; raises as `cards.read`."""
    return cards.read(prefix, DetectionCard)


def is_detector(name):
    """Returns whether a name spells a detector, {family}_fpn_{backbone}[_dcn]_{coco|lvis}."""
    return parse(name) is not None


def from_zoo(name, weights, *, ctx=None):
    """Builds a detector of the zoo, for its data set's classes, with the weights of a file.

    Returns:
      (net, card).

    Raises:
      UserError: if the weights are not given or do not fit.
    """
    net = with_weights(name, weights, ctx=ctx)
    return net, card_of(net, name, class_names=net.classes)


class Detected(NamedTuple):
    """What a file shows: its (height, width) and `Found` in its pixels; or the problem."""

    file: Path
    size: Tuple[int, int]
    found: Optional[Found]
    problem: Optional[str] = None

    def rows(self, card):
        """Returns [{"index", "name", "score", "box": corners, "mask": COCO's code, if any}]."""
        rows = []
        for number, kind in enumerate(self.found.classes.tolist()):
            box = self.found.boxes[number]
            row = {"index": kind, "name": card.name(kind),
                   "score": round(float(self.found.scores[number]), 4),
                   "box": [round(edge, 1) for edge in box.tolist()]}
            if self.found.masks is not None:
                row["mask"] = encode(self.found.masks[number], box, *self.size)
            rows.append(row)
        return rows

    def pixels(self, number):
        """Returns the mask of a detection at the image's size, bool (H, W)."""
        return paste(self.found.masks[number], self.found.boxes[number], *self.size)


class DetectionPredictor(BoxPredictor):
    """Finds objects in images, one image at a time, at the image's own aspect ratio.

    Args:
      net: Block whose parameters lie on `ctx`.
      card: the network's `DetectionCard`.
      threshold: detections score at least this.
      ctx: Context to run on; the CPU by default.
    """

    kind = DetectionCard

    def __init__(self, net, card, *, threshold=0.5, ctx=None):
        super().__init__(net, card, ctx=ctx)
        self._threshold = threshold

    def predict(self, image):
        """Returns the `Found` of a uint8 RGB image (H, W, 3); raises as `BoxPredictor.run`."""
        outputs, sizes, originals = self.run(image)
        found, = in_originals([output.asnumpy() for output in outputs], sizes, originals)
        sure = found.scores >= self._threshold
        return Found(*(part if part is None else part[sure] for part in found))

    def answered(self, file, image):
        """Returns the `Detected` of a file's image."""
        return Detected(file, image.shape[:2], self.predict(image))

    def failed(self, file, problem):
        """Returns the `Detected` of a file that cannot be answered."""
        return Detected(file, (0, 0), None, problem)
