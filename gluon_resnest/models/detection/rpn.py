"""Region proposal network: scores and moves anchors, then keeps the best boxes of each image."""
import mxnet as mx
from mxnet.gluon import nn

from gluon_resnest.models.detection import boxes as box
from gluon_resnest.models.detection.anchors import base_anchors, grid_anchors

# The score of what is no box, below every logit; no infinity, which 0 would turn into NaN.
NO_BOX = -1e9


class RPNHead(nn.HybridBlock):
    """A 3x3 convolution and two 1x1, shared by all levels.

    [p2, ..., p6] to a list of logits (N, A_l), of deltas (N, A_l, 4) and of anchors (1, A_l, 4),
    one for each level; A_l counts rows first, then columns, then shapes.

    Args:
      in_channels: of the maps.
      strides: of the maps, in pixels.
      conventions: sizes and shapes of anchors.
    """

    def __init__(self, in_channels, strides, conventions):
        super().__init__()
        self._strides = tuple(strides)
        self._bases = [base_anchors(stride, size, conventions)
                       for stride, size in zip(strides, conventions.anchor_sizes)]
        shapes = len(conventions.anchor_ratios)

        def conv(channels, kernel):
            return nn.Conv2D(channels, kernel, padding=kernel // 2, in_channels=in_channels,
                             weight_initializer=mx.init.Normal(0.01))

        self.conv = conv(in_channels, 3)
        self.relu = nn.Activation("relu")
        self.logits = conv(shapes, 1)
        self.deltas = conv(4 * shapes, 1)

    def hybrid_forward(self, F, *maps):
        logits, deltas, anchors = [], [], []
        for feature_map, stride, base in zip(maps, self._strides, self._bases):
            hidden = self.relu(self.conv(feature_map))
            last = F.transpose(self.logits(hidden), axes=(0, 2, 3, 1))
            logits.append(F.reshape(last, shape=(0, -1)))
            last = F.transpose(self.deltas(hidden), axes=(0, 2, 3, 1))
            deltas.append(F.reshape(last, shape=(0, -1, 4)))
            anchors.append(grid_anchors(F, F.BlockGrad(feature_map), stride, base))
        return logits, deltas, anchors


class Proposals(nn.HybridBlock):
    """Keeps the best boxes: of each level the `pre_nms` highest scores, then NMS on each level,
    then the `post_nms` highest of all levels together. Where `rpn_each_level` is off in the
    conventions, all levels are ranked together and thinned by one NMS.

    Inputs: sizes (N or 1, 2) of the images in the batch as (height, width), and what `RPNHead`
    returns. Outputs: boxes (N, P, 4), clipped to the images, best first, and scores (N, P), logits;
    P is `count`. Where fewer are left, scores are `NO_BOX` and boxes zero.
    """

    def __init__(self, conventions, *, pre_nms, post_nms):
        super().__init__()
        self._conventions, self._pre_nms, self._post_nms = conventions, pre_nms, post_nms

    def count(self, levels):
        """Returns P for so many levels."""
        ranked = levels if self._conventions.rpn_each_level else 1
        return min(self._post_nms, self._pre_nms * ranked)

    def hybrid_forward(self, F, sizes, logits, deltas, anchors):
        levels, count = zip(logits, deltas, anchors), self.count(len(logits))
        if not self._conventions.rpn_each_level:
            levels = [[F.concat(*parts, dim=1) for parts in (logits, deltas, anchors)]]
        rows = F.concat(*[self._level(F, sizes, *level) for level in levels], dim=1)
        scores = F.slice_axis(rows, axis=2, begin=0, end=1)
        rows = box.take_rows(F, rows, F.topk(F.reshape(scores, shape=(0, -1)), k=count, axis=1))
        scores = F.reshape(F.slice_axis(rows, axis=2, begin=0, end=1), shape=(0, -1))
        return F.slice_axis(rows, axis=2, begin=1, end=5), scores

    def _level(self, F, sizes, logits, deltas, anchors):
        """Returns rows (N, pre_nms, 5) of score and corners, what NMS dropped scored `NO_BOX`."""
        conventions = self._conventions
        rows = F.concat(F.broadcast_like(anchors, deltas), deltas, F.expand_dims(logits, axis=2),
                        dim=2)
        rows = best_rows(F, rows, self._pre_nms)
        corners = box.decode(F, F.slice_axis(rows, axis=2, begin=0, end=4),
                             F.slice_axis(rows, axis=2, begin=4, end=8),
                             conventions.rpn_weights, conventions)
        corners = box.clip(F, corners, sizes)
        width, height = box.sides(F, corners)
        scores = F.slice_axis(rows, axis=2, begin=8, end=9)
        scores = F.where((width > 0) * (height > 0), scores, F.ones_like(scores) * NO_BOX)
        # NMS overwrites what it drops with -1, which may be a logit: the first column tells them.
        kept = F.contrib.box_nms(
            F.concat(F.zeros_like(scores), scores, corners, dim=2), valid_thresh=NO_BOX / 2,
            overlap_thresh=conventions.rpn_nms, id_index=0, score_index=1, coord_start=2)
        there = F.slice_axis(kept, axis=2, begin=0, end=1) >= 0
        scores = F.slice_axis(kept, axis=2, begin=1, end=2)
        corners = F.slice_axis(kept, axis=2, begin=2, end=6)
        return F.concat(F.where(there, scores, F.ones_like(scores) * NO_BOX),
                        F.broadcast_mul(corners, there), dim=2)


def best_rows(F, rows, count):
    """Returns the `count` rows of (N, R, C) with the highest value in the last column, best first.

    Where R is less, the rest are zeros with `NO_BOX` in that column; R may be any positive number.
    """
    empty = F.zeros_like(F.slice_axis(rows, axis=1, begin=0, end=1))
    empty = F.broadcast_axis(empty, axis=1, size=count)
    empty = F.concat(F.slice_axis(empty, axis=2, begin=0, end=-1),
                     F.slice_axis(empty, axis=2, begin=-1, end=None) + NO_BOX, dim=2)
    rows = F.concat(rows, empty, dim=1)
    scores = F.slice_axis(rows, axis=2, begin=-1, end=None)
    return box.take_rows(F, rows, F.topk(F.reshape(scores, shape=(0, -1)), k=count, axis=1))
