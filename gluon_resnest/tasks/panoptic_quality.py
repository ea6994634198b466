"""Panoptic quality, counted exactly (Kirillov et al. 2019, Panoptic Segmentation, section 4).

A predicted and a true segment of one category match if their IoU exceeds one half; no segment can
match two. PQ = sum of the matches' IoU / (TP + FP / 2 + FN / 2) = SQ * RQ for each category, then
the mean over the categories that occur. Void pixels of the annotation, and predictions that lie
mostly on void or on a crowd of their category, do not count.
"""
import math
from collections import defaultdict
from typing import NamedTuple, Tuple

import numpy as np

from gluon_resnest.data.panoptic import VOID
from gluon_resnest.errors import UserError

GROUPS = {"": None, "things_": True, "stuff_": False}    # prefix of metrics -> isthing


class Counts(NamedTuple):
    """What one image adds to a category.

    overlaps: (intersection, union) in pixels of each match. false_positives, false_negatives:
    predicted and true segments without a match.
    """

    overlaps: Tuple[Tuple[int, int], ...] = ()
    false_positives: int = 0
    false_negatives: int = 0


def count(truth, found):
    """Compares the segments of one image with what is true.

    Args:
      truth, found: `data.panoptic.Panoptic`s of one size, each in agreement with itself.

    Returns:
      {category_id: Counts}.
    """
    areas, crowds, real = _areas(found), {}, {}
    for segment in truth.segments:
        if segment.get("iscrowd"):
            crowds[segment["category_id"]] = segment["id"]
        else:
            real[segment["id"]] = segment["category_id"]
    true_areas, shared = _areas(truth), _intersections(truth.ids, found.ids)
    kinds = {segment["id"]: segment["category_id"] for segment in found.segments}
    overlaps, matched = defaultdict(list), set()
    for (true, predicted), pixels in sorted(shared.items()):
        if true not in real or real[true] != kinds.get(predicted):
            continue
        union = (areas[predicted] - shared.get((VOID, predicted), 0) + true_areas[true] - pixels)
        if 2 * pixels > union:
            overlaps[real[true]].append((pixels, union))
            matched |= {("true", true), ("found", predicted)}
    missed = [real[number] for number in real if ("true", number) not in matched]
    wrong = []
    for number, kind in kinds.items():
        ignored = shared.get((VOID, number), 0) + shared.get((crowds.get(kind), number), 0)
        if ("found", number) not in matched and 2 * ignored <= areas[number]:
            wrong.append(kind)
    return {kind: Counts(tuple(overlaps[kind]), wrong.count(kind), missed.count(kind))
            for kind in {*overlaps, *missed, *wrong}}


def quality(counts, things):
    """Computes the metrics of what all images added.

    The sums do not depend on the order of the images.

    Args:
      counts: iterable of `count`'s results.
      things: {category_id: whether it is a thing}.

    Returns:
      ({"pq", "sq", "rq", "things_pq", ...} in per cent, those of a group without any segment left
      out; {category_id: (PQ, SQ, RQ) in per cent} of the categories that occur).

    Raises:
      UserError: if there is no segment at all.
    """
    merged = defaultdict(list)
    for image in counts:
        for kind, added in image.items():
            merged[kind].append(added)
    per_category = {kind: _ratios(merged[kind]) for kind in things if kind in merged}
    if not per_category:
        raise UserError("neither the annotations nor the predictions have a segment that counts, "
                        "so there is nothing to compare; give annotated images")
    metrics = {}
    for prefix, wanted in GROUPS.items():
        rows = [row for kind, row in per_category.items()
                if wanted is None or wanted == bool(things[kind])]
        for name, values in zip(("pq", "sq", "rq"), zip(*rows)):
            metrics[prefix + name] = math.fsum(values) / len(values)
    return metrics, per_category


def _ratios(counts):
    """Returns (PQ, SQ, RQ) in per cent of one category's Counts."""
    ious = [pixels / union for each in counts for pixels, union in each.overlaps]
    total, matches = 100 * math.fsum(ious), len(ious)
    unmatched = sum(each.false_positives + each.false_negatives for each in counts)
    segments = matches + unmatched / 2
    return total / segments, total / matches if matches else 0.0, 100 * matches / segments


def _areas(panoptic):
    """Returns {id: pixels} of the segments in a map."""
    numbers, areas = np.unique(panoptic.ids, return_counts=True)
    return dict(zip(numbers.tolist(), areas.tolist()))


def _intersections(true, predicted):
    """Returns {(id in the first map, id in the second): pixels}."""
    pairs, pixels = np.unique(true.astype(np.int64) << 32 | predicted.astype(np.int64),
                              return_counts=True)
    return {(int(pair >> 32), int(pair & 0xffffffff)): int(number)
            for pair, number in zip(pairs, pixels)}
