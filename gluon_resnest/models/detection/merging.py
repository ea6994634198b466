"""Objects and the class of every pixel become segments, each pixel in one at most; numpy only.

Kirillov et al. 2019 (Panoptic Segmentation, section 6), in the form of Detectron2's Panoptic FPN.
"""
from typing import NamedTuple, Optional

import numpy as np

from gluon_resnest.errors import UserError
from gluon_resnest.models.detection.pasting import paste


class Rules(NamedTuple):
    """When something becomes a segment.

    confidence: objects score at least this.
    overlap: largest share of an object that better ones may already cover.
    stuff_area: smallest number of pixels of a kind of stuff.
    """

    confidence: float = 0.5
    overlap: float = 0.5
    stuff_area: int = 4096


class Segment(NamedTuple):
    """A part of an image.

    id: its number in the map, from 1 on. thing: an object, or else stuff. kind: class of things
    0..K-1, of stuff 0..S-1. area: pixels. score: of an object, None for stuff.
    """

    id: int
    thing: bool
    kind: int
    area: int
    score: Optional[float]


def check_rules(rules):
    """Raises a UserError unless the rules make sense."""
    if not (0 <= rules.confidence <= 1 and 0 <= rules.overlap <= 1 and rules.stuff_area >= 0):
        raise UserError(f"expected confidence and overlap in 0..1 and a stuff_area from 0 on, got "
                        f"{rules.confidence}, {rules.overlap} and {rules.stuff_area}")


def merge(found, labels, rules=Rules()):
    """Puts objects one over the other, the best first, and stuff where no object is.

    Args:
      found: `inference.Found` of an image, with masks.
      labels: int (H, W), the class of each pixel: 0 any thing, 1 + s stuff of kind s.
      rules: Rules.

    Returns:
      int32 (H, W), the ids of segments, 0 where there is none; and a list of Segments by id.

    Raises:
      UserError: if the rules make no sense.
    """
    check_rules(rules)
    ids, segments = np.zeros(labels.shape, np.int32), []

    def add(inside, area, **what):
        segments.append(Segment(id=len(segments) + 1, area=int(area), **what))
        ids[inside] = len(segments)

    for number in np.argsort(-found.scores, kind="stable"):
        if found.scores[number] < rules.confidence:
            break
        inside = paste(found.masks[number], found.boxes[number], *labels.shape)
        free = inside & (ids == 0)
        area, left = inside.sum(), free.sum()
        if area and (area - left) / area <= rules.overlap:
            add(free, left, thing=True, kind=int(found.classes[number]),
                score=float(found.scores[number]))
    for label in np.unique(labels[labels > 0]).tolist():
        free = (labels == label) & (ids == 0)
        area = free.sum()
        if area and area >= rules.stuff_area:
            add(free, area, thing=False, kind=label - 1, score=None)
    return ids, segments
