"""What the network should have said: targets for RPN, boxes and masks of one image, with numpy.

Annotations of crowds take no part: a box over a crowd is background, as in Detectron2.
"""
from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np

from gluon_resnest.errors import UserError
from gluon_resnest.models.detection import boxes as box
from gluon_resnest.models.detection.matching import IGNORED, POSITIVE, match
from gluon_resnest.models.detection.sampling import fill, subsample


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one image; there may be none.

    Attributes:
      boxes: float32 (G, 4), corners in pixels of the image as the network sees it.
      classes: int64 (G,), 0..K-1.
      masks: uint8 (G, H, W) of 0 and 1, H and W those of the image or of its padded batch, or
        anything that makes them when asked: `len`, `masks[number]` uint8 (H, W), `masks[rows]` the
        same kind of thing for bool (G,). None if nobody asks for masks.
      crowd: bool (G,); None means that none of them is a crowd.
    """

    boxes: np.ndarray
    classes: np.ndarray
    masks: Optional[np.ndarray] = None
    crowd: Optional[np.ndarray] = None

    def __post_init__(self):
        count = len(self.boxes)
        if np.shape(self.boxes) != (count, 4) or np.shape(self.classes) != (count,):
            raise UserError(f"expected boxes (G, 4) and classes (G,) of the same G objects, got "
                            f"{np.shape(self.boxes)} and {np.shape(self.classes)}")
        for name in ("masks", "crowd"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise UserError(f"expected {name} of all {count} objects, got {len(value)}")

    def learnable(self):
        """Returns the objects that targets are made of: no crowds, no empty boxes."""
        keep = box.area(self.boxes) > 0
        if self.crowd is not None:
            keep &= ~np.asarray(self.crowd, dtype=bool)
        if keep.all():
            return self
        return Objects(self.boxes[keep], self.classes[keep],
                       None if self.masks is None else self.masks[keep])


class AnchorTargets(NamedTuple):
    """Sampled anchors of one image, S = `rpn_samples` of them.

    index: int64 (S,) into all anchors of the pyramid, p2 first. labels: int64 (S,), 1 object, 0
    background, -1 a repeat. deltas: float32 (S, 4), valid where the label is 1.
    """

    index: np.ndarray
    labels: np.ndarray
    deltas: np.ndarray


class RoITargets(NamedTuple):
    """Sampled RoIs of one image, S = `roi_samples` of them.

    rois: float32 (S, 4). classes: int64 (S,), K for background, -1 a repeat. matched: int64 (S,),
    the object that a RoI overlaps most. boxes: float32 (S, 4), that object's, or the RoI itself in
    an image without objects.
    """

    rois: np.ndarray
    classes: np.ndarray
    matched: np.ndarray
    boxes: np.ndarray


def anchor_targets(anchors, objects, conventions, rng):
    """Matches and samples anchors (A, 4) for the losses of the RPN."""
    best, labels = match(box.iou(anchors, objects.boxes), *conventions.rpn_iou,
                         low_quality=conventions.rpn_low_quality)
    positives, negatives = subsample(labels, conventions.rpn_samples, conventions.rpn_positive, rng)
    drawn = np.concatenate([positives, negatives])
    if not len(drawn):      # every anchor lies between the thresholds
        drawn, labels = np.zeros(1, np.int64), np.full(len(anchors), IGNORED)
    index, first = fill(drawn, conventions.rpn_samples)
    labels = np.where(first, labels[index], IGNORED)
    deltas = np.zeros((len(index), 4), dtype=np.float32)
    is_object = labels == POSITIVE
    chosen = index[is_object]
    deltas[is_object] = box.encode(anchors[chosen], objects.boxes[best[chosen]],
                                   conventions.rpn_weights)
    return AnchorTargets(index, labels, deltas)


def roi_targets(proposals, objects, classes, threshold, conventions, rng):
    """Matches and samples RoIs for the losses of the heads.

    Args:
      proposals: float32 (P, 4), not empty boxes; P may be 0. The objects' own boxes join them.
      classes: K.
      threshold: RoIs from this IoU on are objects.
    """
    candidates = np.concatenate([proposals, objects.boxes]).astype(np.float32)
    if not len(candidates):
        candidates, labels = np.array([[0, 0, 32, 32]], np.float32), np.array([IGNORED])
        drawn, best = np.zeros(1, np.int64), np.zeros(1, np.int64)
    else:
        best, labels = match(box.iou(candidates, objects.boxes), threshold, threshold)
        drawn = np.concatenate(subsample(labels, conventions.roi_samples,
                                         conventions.roi_positive, rng))
    index, first = fill(drawn, conventions.roi_samples)
    return _labelled(candidates[index], np.where(first, labels[index], IGNORED), best[index],
                     objects, classes)


def relabelled(rois, ignored, objects, classes, threshold):
    """Makes targets of the refined RoIs (S, 4) of a cascade's later stage, without sampling.

    Args:
      ignored: bool (S,), repeats of the first stage; empty RoIs are ignored, too.
    """
    best, labels = match(box.iou(rois, objects.boxes), threshold, threshold)
    labels = np.where(ignored | (box.area(rois) <= 0), IGNORED, labels)
    return _labelled(rois, labels, best, objects, classes)


def mask_rois(targets, classes, count):
    """Chooses `count` RoIs for the mask head: objects, in their order, then repeats.

    Returns:
      int64 (count,) indices into the RoIs, and bool (count,), which of them count. In an image
      without objects none does, and the first RoI stands in for all.
    """
    objects = np.flatnonzero((targets.classes >= 0) & (targets.classes < classes))[:count]
    if not len(objects):
        return np.zeros(count, np.int64), np.zeros(count, bool)
    return fill(objects, count)


def _labelled(rois, labels, best, objects, classes):
    if len(objects.boxes):
        names, boxes = objects.classes[best], objects.boxes[best]
    else:
        names, boxes = np.full(len(rois), classes), rois
    names = np.where(labels == POSITIVE, names, classes)
    return RoITargets(rois, np.where(labels == IGNORED, IGNORED, names), best,
                      boxes.astype(np.float32))
