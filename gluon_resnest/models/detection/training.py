"""The losses of a detector on one batch: the network's graph and targets made on the host, in turn.

Every step runs every layer on arrays of the same size, whatever the images show, so that workers
with synchronised batch norm never wait for one that had nothing to learn.
"""
import numpy as np
from mxnet import autograd, nd

from gluon_resnest.models.detection import boxes as box
from gluon_resnest.models.detection.losses import Loss, box_losses, mask_loss, rpn_losses
from gluon_resnest.models.detection.roi_pooling import SMALLEST_SIDE
from gluon_resnest.models.detection.rpn import NO_BOX
from gluon_resnest.models.detection.targets import (
    anchor_targets, mask_rois, relabelled, roi_targets)


def losses(net, maps, sizes, objects, rngs, counted=None):
    """Computes all losses; called under `autograd.record()`.

    Args:
      net: `RCNN`.
      maps: what `net.features` says of images (N, 3, H, W), padded to one size.
      sizes: numpy (N, 2), (height, width) of each image without its padding.
      objects: N `targets.Objects`; with masks if the net has mask heads.
      rngs: N numpy Generators, keyed by (seed, epoch, image).
      counted: numpy (K,) of 0 and 1, the classes in the loss where they are scored by sigmoids;
        None: all of them.

    Returns:
      {name: `losses.Loss`}: "rpn_class", "rpn_box", "class", "box", and "mask" with mask heads; a
      cascade has "class_1", "box_1", "class_2" and so on. Their sum is minimised. Weights of
      stages are in the totals.
    """
    objects = [each.learnable() for each in objects]
    logits, deltas, anchors = net.rpn(*maps)
    sizes = nd.array(sizes, ctx=maps[0].context)
    with autograd.pause():
        proposals, scores = net.train_proposals(sizes, logits, deltas, anchors)
    results = _rpn(net, logits, deltas, anchors, objects, rngs)
    proposals, there = proposals.asnumpy(), scores.asnumpy() > NO_BOX / 2
    proposals = [boxes[kept] for boxes, kept in zip(proposals, there)]
    results.update(_heads(net, maps[:-1], sizes, proposals, objects, rngs, counted))
    return results


def _rpn(net, logits, deltas, anchors, objects, rngs):
    conventions = net.conventions
    anchors = np.concatenate([level.asnumpy()[0] for level in anchors])
    targets = [anchor_targets(anchors, each, conventions, rng)
               for each, rng in zip(objects, rngs)]
    place = _on(logits[0].context)
    index, labels, wanted = (np.stack(part) for part in zip(*targets))
    image = np.broadcast_to(np.arange(len(index))[:, None], index.shape)
    rows = place(np.stack([image.ravel(), index.ravel()]))
    beta = conventions.cascade_rpn_beta if len(net.stages) > 1 else conventions.rpn_beta
    totals = rpn_losses(nd.gather_nd(nd.concat(*logits, dim=1), rows),
                        nd.gather_nd(nd.concat(*deltas, dim=1), rows),
                        place(labels.ravel()), place(wanted.reshape(-1, 4)), beta=beta)
    count = labels.size if conventions.rpn_normalizer == "quota" else (labels >= 0).sum()
    return dict(zip(("rpn_class", "rpn_box"), [Loss(total, float(count)) for total in totals]))


def _heads(net, maps, sizes, proposals, objects, rngs, counted):
    """Returns the losses of all stages and mask heads."""
    conventions, stages = net.conventions, len(net.stages)
    classes, place = len(net.classes), _on(maps[0].context)
    results = {}
    if conventions.class_scores == "softmax":
        counted = None
    else:
        counted = place(np.ones(classes) if counted is None else counted)
    for number, stage in enumerate(net.stages):
        if number == 0 or conventions.resample:
            targets = [roi_targets(rois, each, classes, stage.threshold, conventions, rng)
                       for rois, each, rng in zip(proposals, objects, rngs)]
        else:
            targets = [relabelled(rois, before.classes < 0, each, classes, stage.threshold)
                       for rois, each, before in zip(proposals, objects, targets)]
        suffix = f"_{number}" if number else ""
        rois = place(np.stack([each.rois for each in targets]))
        logits, deltas = stage(net.box_pooling(rois, *maps))
        named = np.concatenate([each.classes for each in targets])
        totals = box_losses(logits, deltas, place(named), place(_deltas(targets, stage)),
                            beta=conventions.cascade_box_beta if stages > 1
                            else conventions.box_beta, counted=counted)
        for name, total in zip(("class", "box"), totals):
            results[name + suffix] = Loss(total * stage.loss, float((named >= 0).sum()))
        if number < len(net.mask_heads):
            results["mask" + suffix] = _mask(net, net.mask_heads[number], maps, targets, objects,
                                             stage.loss)
        if number + 1 < stages:
            with autograd.pause():
                refined = net.refine(nd, stage, rois, deltas.reshape((len(targets), -1, 1, 4)),
                                     sizes)
            proposals = list(refined[:, :, 0].asnumpy())
    return results


def _deltas(targets, stage):
    """Returns what the stage's deltas should be: float32 (N * S, 4); zeros for empty RoIs."""
    rois = np.concatenate([each.rois for each in targets])
    boxes = np.concatenate([each.boxes for each in targets])
    there = box.area(rois) > 0
    deltas = np.zeros_like(rois)
    deltas[there] = box.encode(rois[there], boxes[there], stage.weights)
    return deltas


def _mask(net, head, maps, targets, objects, weight):
    """Returns the loss of one mask head on the objects among the RoIs."""
    classes, count = len(net.classes), net.conventions.max_mask_rois
    chosen = [mask_rois(each, classes, count) for each in targets]
    place = _on(maps[0].context)
    rois = np.stack([each.rois[index] for each, (index, _) in zip(targets, chosen)])
    logits = head(net.mask_pooling(place(rois), *maps))
    named = np.concatenate([each.classes[index] for each, (index, _) in zip(targets, chosen)])
    valid = np.concatenate([each for _, each in chosen])
    wanted = [mask_targets(each.masks, found.matched[index], found.rois[index], real,
                           logits.shape[-1])
              for each, found, (index, real) in zip(objects, targets, chosen)]
    total = mask_loss(logits, place(np.where(valid, named, 0)), place(np.concatenate(wanted)),
                      place(valid))
    return Loss(total * weight, float(valid.sum() * logits.shape[-1] ** 2))


def mask_targets(masks, matched, rois, valid, side):
    """Cuts objects' masks out at RoIs: ROIAlign, then at least one half.

    One mask is looked at at a time, and only around its RoIs: all masks of a large image as floats
    would take hundreds of MB.

    Args:
      masks: G masks uint8 (H, W); see `targets.Objects`.
      matched: int64 (R,), which of them. rois: float32 (R, 4).
      valid: bool (R,); the others get zeros.
      side: of the targets.

    Returns:
      float32 (R, side, side) of 0 and 1.
    """
    targets = np.zeros((len(rois), side, side), dtype=np.float32)
    real = valid & (np.minimum(*(rois[:, 2:] - rois[:, :2]).T) >= SMALLEST_SIDE)
    for number in np.unique(matched[real]):
        rows = np.flatnonzero(real & (matched == number))
        mask, corner = _around(masks[number], rois[rows])
        moved = np.column_stack([np.zeros(len(rows)), rois[rows] - np.tile(corner, 2)])
        pooled = nd.contrib.ROIAlign(
            nd.array(mask[None, None], dtype="float32"), nd.array(moved),
            pooled_size=(side, side), spatial_scale=1.0, sample_ratio=-1, aligned=True)
        targets[rows] = pooled.asnumpy()[:, 0] >= 0.5
    return targets


def _around(mask, rois):
    """Returns the part of a mask that ROIAlign looks at, and its left top corner (x, y).

    Samples lie up to half a pixel outside of a RoI, and their neighbours a pixel further.
    """
    height, width = mask.shape
    left, top = np.floor(rois[:, :2].min(axis=0)).astype(int) - 2
    right, bottom = np.ceil(rois[:, 2:].max(axis=0)).astype(int) + 2
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return mask[top:max(bottom, top + 1), left:max(right, left + 1)], (left, top)


def _on(ctx):
    """Returns what puts a numpy array on a device as float32."""
    return lambda array: nd.array(array, ctx=ctx, dtype="float32")
