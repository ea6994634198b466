"""Boxes: corners (x1, y1, x2, y2) in pixels, continuous, so that a box is x2 - x1 wide.

Targets are made with numpy, on the host; what the network decodes is part of its graph, where F is
`mxnet.nd` or `mxnet.sym`.
"""
import numpy as np


def area(boxes):
    """Returns the areas (...,) of boxes (..., 4), at least 0."""
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def iou(ours, theirs):
    """Returns intersection over union of every pair: float32 (R, 4), (G, 4) to (R, G).

    A pair without any union, two empty boxes, has 0.
    """
    ours, theirs = (np.asarray(boxes, dtype=np.float32) for boxes in (ours, theirs))
    common = np.ones((len(ours), len(theirs)), dtype=np.float32)
    for axis in (0, 1):     # one axis after the other: no (R, G, 2) in memory
        low = np.maximum(ours[:, None, axis], theirs[None, :, axis])
        high = np.minimum(ours[:, None, axis + 2], theirs[None, :, axis + 2])
        common *= np.maximum(high - low, 0)
    union = area(ours)[:, None] + area(theirs)[None] - common
    return np.where(union > 0, common / np.where(union > 0, union, 1), 0)


def encode(anchors, boxes, weights):
    """Encodes boxes relative to anchors, the inverse of `decode` (Faster R-CNN, eq. 2).

    Args:
      anchors, boxes: (R, 4); anchors are not empty. An empty box gives the smallest finite scale.
      weights: factors of dx, dy, dw, dh.

    Returns:
      float32 (R, 4) as (dx, dy, dw, dh): dx, dy in anchor widths and heights, dw, dh natural
      logarithms.
    """
    sides, targets = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    shifts = (boxes[:, :2] + targets / 2 - anchors[:, :2] - sides / 2) / sides
    scales = np.log(np.maximum(targets / sides, np.finfo(np.float32).tiny))
    return (np.concatenate([shifts, scales], axis=1) * np.asarray(weights)).astype(np.float32)


def decode(F, anchors, deltas, weights, conventions):
    """Decodes deltas relative to anchors; shapes (..., 4) that broadcast.

    Args:
      anchors: corners in pixels.
      deltas: (dx, dy, dw, dh) times `weights`.
      weights: as for `encode`.
      conventions: tells the clamps of dw and dh.

    Returns:
      Corners in pixels, not clipped to an image.
    """
    x1, y1, x2, y2 = F.split(anchors, num_outputs=4, axis=-1)
    dx, dy, dw, dh = F.split(deltas, num_outputs=4, axis=-1)
    low, high = [], []
    for start, end, shift, scale, (by_shift, by_scale) in (
            (x1, x2, dx, dw, (weights[0], weights[2])), (y1, y2, dy, dh, (weights[1], weights[3]))):
        scale = F.minimum(scale / by_scale, conventions.max_log_scale)
        if conventions.symmetric_clamp:
            scale = F.maximum(scale, -conventions.max_log_scale)
        side = end - start
        centre = F.broadcast_add(F.broadcast_mul(shift / by_shift, side), start + side / 2)
        half = F.broadcast_mul(F.exp(scale), side) / 2
        low.append(centre - half)
        high.append(centre + half)
    return F.concat(*low, *high, dim=-1)


def clip(F, boxes, sizes):
    """Clips boxes (N, R, 4) to images of sizes (N, 2) or (1, 2), as (height, width)."""
    height, width = F.split(F.expand_dims(sizes, axis=1), num_outputs=2, axis=-1)
    return F.maximum(F.broadcast_minimum(boxes, F.concat(width, height, width, height, dim=-1)), 0)


def sides(F, boxes):
    """Returns the widths and the heights (..., 1) of boxes (..., 4)."""
    x1, y1, x2, y2 = F.split(boxes, num_outputs=4, axis=-1)
    return x2 - x1, y2 - y1


def take_rows(F, values, index):
    """Returns, for each image, the rows `index` (N, k) of `values` (N, R, ...)."""
    image = F.broadcast_like(F.reshape(F.contrib.arange_like(index, axis=0), shape=(-1, 1)), index)
    return F.gather_nd(values, F.stack(image, index, axis=0))
