"""From a detector's outputs to detections in the pixels of the original image."""
from typing import NamedTuple, Optional

import numpy as np
from mxnet import nd

from gluon_resnest.models.detection import boxes as box


class Found(NamedTuple):
    """The detections of one image, best first; there may be none.

    boxes: float32 (D, 4), corners in pixels of the original image, none of them empty.
    classes: int64 (D,), 0..K-1. scores: float32 (D,), in [0, 1].
    masks: float32 (D, S, S), probabilities inside of the box, see `pasting`; None without heads.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    masks: Optional[np.ndarray]


class View(NamedTuple):
    """One prepared image, for test-time augmentation.

    image: float32 (3, H, W), padded. size: (height, width) without padding. flipped: mirrored.
    """

    image: np.ndarray
    size: tuple
    flipped: bool


def detect(net, images, sizes, originals, ctx=None):
    """Returns the `Found` of each image.

    Args:
      net: `RCNN` whose parameters lie on `ctx`.
      images: float32 (N, 3, H, W), padded to one size.
      sizes: int (N, 2), heights and widths without padding.
      originals: int (N, 2), heights and widths of the files.
    """
    outputs = net(nd.array(images, ctx=ctx), nd.array(sizes, ctx=ctx))
    return in_originals([part.astype("float32", copy=False).asnumpy() for part in outputs],
                        sizes, originals)


def in_originals(outputs, sizes, originals):
    """Returns the `Found` of each image from what an `RCNN` returns, as numpy; see `detect`."""
    found = []
    for number, (size, original) in enumerate(zip(sizes, originals)):
        ids, scores, boxes, *masks = (part[number] for part in outputs)
        scale = np.tile(np.asarray(original, np.float32)[::-1] / np.asarray(size)[::-1], 2)
        limits = np.tile(np.asarray(original, np.float32)[::-1], 2)
        boxes = np.clip(boxes * scale, 0, limits).astype(np.float32)
        there = (ids[:, 0] >= 0) & (box.area(boxes) > 0)
        found.append(Found(boxes[there], ids[there, 0].astype(np.int64), scores[there, 0],
                           masks[0][there] if masks else None))
    return found


def detect_views(net, views, original, *, ctx=None):
    """Returns the `Found` of one image from several views of it (test-time augmentation).

    As in Detectron2: every view is detected on its own, all boxes meet in one NMS within each
    class, the best stay, and the masks of these boxes are averaged over all views.

    Args:
      net: `RCNN` whose parameters lie on `ctx`.
      views: list of `View`.
      original: (height, width) of the file.
    """
    each = []
    for view in views:
        found, = detect(net, view.image[None], [view.size], [original], ctx)
        each.append(found._replace(
            boxes=mirrored(found.boxes, original[1]) if view.flipped else found.boxes))
    boxes, classes, scores = (np.concatenate(part) for part in list(zip(*each))[:3])
    kept = suppress(boxes, classes, scores, net.nms)[:net.rows]
    boxes, classes, scores = boxes[kept], classes[kept], scores[kept]
    if not len(net.mask_heads) or not len(kept):
        return Found(boxes, classes, scores, each[0].masks)
    total = 0
    for view in views:
        masks = _masks_in(net, view, boxes, classes, original, ctx)
        total = total + (masks[:, :, ::-1] if view.flipped else masks)
    return Found(boxes, classes, scores, total / len(views))


def suppress(boxes, classes, scores, threshold):
    """Returns the rows, best first, that no better row of their class overlaps too much.

    Args:
      boxes: (R, 4). classes, scores: (R,). threshold: largest IoU with a better row.
    """
    kept = []
    for kind in np.unique(classes):
        queue = np.flatnonzero(classes == kind)
        queue = queue[np.argsort(-scores[queue], kind="stable")]
        while len(queue):
            first, queue = queue[0], queue[1:]
            kept.append(first)
            queue = queue[box.iou(boxes[first:first + 1], boxes[queue])[0] <= threshold]
    kept = np.array(kept, np.int64)
    return kept[np.argsort(-scores[kept], kind="stable")]


def mirrored(boxes, width):
    """Returns boxes (R, 4) as they are in the mirror image."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _masks_in(net, view, boxes, classes, original, ctx):
    """Returns the masks (D, S, S) that a view shows in boxes of the original image."""
    if view.flipped:
        boxes = mirrored(boxes, original[1])
    scale = np.tile(np.asarray(view.size, np.float32)[::-1] / np.asarray(original)[::-1], 2)
    masks = net.masks_at(nd.array(view.image[None], ctx=ctx),
                         nd.array(classes.reshape(1, -1, 1), ctx=ctx),
                         nd.array((boxes * scale)[None], ctx=ctx))
    return masks[0].astype("float32", copy=False).asnumpy()
