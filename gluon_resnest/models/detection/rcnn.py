"""Faster, Mask and Cascade R-CNN: one composition; what they are made of makes the difference.

Ren et al. 2015; He et al. 2017; Cai and Vasconcelos 2018; on a pyramid, Lin et al. 2017.
"""
from mxnet import nd

from gluon_resnest.errors import UserError, check_choice, check_count
from gluon_resnest.models.detection import boxes as box
from gluon_resnest.models.detection import training
from gluon_resnest.models.detection.conv_norm import block_list
from gluon_resnest.models.detection.losses import own_class
from gluon_resnest.models.detection.roi_heads import BoxPredictor, keep_rows
from gluon_resnest.models.detection.roi_pooling import RoIPooling
from gluon_resnest.models.detection.rpn import NO_BOX, Proposals
from gluon_resnest.models.detection.sized import SizedImages, sizes_of

BOX_SIZE, MASK_SIZE = 7, 14     # sides of pooled RoIs; masks have twice MASK_SIZE

# Pairs of a box and a class that enter the final NMS: its time grows with their square, and the
# detections that are kept are hardly ever below the hundreds (docs/detection.md).
CANDIDATES = 3000
_CANDIDATES_PER_DETECTION = 30      # at least: LVIS keeps 300


class RCNN(SizedImages):
    """Two-stage detector; any image size and any batch size, also in exported files.

    Called with images (N, 3, H, W), it returns, best first, with D = `rows` rows each:

      ids (N, D, 1): classes 0..K-1, -1 where there is no further detection;
      scores (N, D, 1): in [0, 1], -1 as above;
      bboxes (N, D, 4): corners in pixels of the input, -1 as above;
      masks (N, D, 28, 28), with mask heads only: probabilities inside of the box, 0 as above.

    The second input `sizes` (N, 2) holds (height, width) of the images in a padded batch, to which
    boxes are clipped; without it, all images are as large as the batch.

    Args:
      features: `FeaturePyramid`.
      rpn: `RPNHead` on its maps.
      stages: `BoxStage`s; several are a cascade, whose boxes are class-agnostic.
      mask_heads: none, one, or one for each stage.
      classes: names of the objects' classes, K of them.
      conventions: `Conventions`.
      post_nms_train: see `Conventions`.

    Attributes:
      conventions, classes, features, rpn, stages, mask_heads: as given.
      nms: see `set_nms`, whose last `nms_thresh` it is.
    """

    def __init__(self, features, rpn, stages, *, classes, conventions, mask_heads=(),
                 post_nms_train=None):
        super().__init__()
        if len(mask_heads) not in (0, 1, len(stages)):
            raise UserError(f"expected no mask head, one, or one for each of the {len(stages)} "
                            f"stages, got {len(mask_heads)}")
        if not all(stage.predictor.agnostic for stage in stages[:-1]):
            raise UserError("expected class-agnostic boxes in all stages of a cascade but the last;"
                            " build their predictors with agnostic=True")
        self.conventions, self.classes = conventions, tuple(classes)
        self.features, self.rpn = features, rpn
        self.stages, self.mask_heads = block_list(stages), block_list(mask_heads)
        self.train_proposals = Proposals(
            conventions, pre_nms=conventions.pre_nms_train,
            post_nms=post_nms_train or conventions.post_nms_train)
        self.test_proposals = Proposals(conventions, pre_nms=conventions.pre_nms_test,
                                        post_nms=conventions.post_nms_test)
        strides = features.strides[:-1]
        self.box_pooling = RoIPooling(BOX_SIZE, strides, conventions)
        self.mask_pooling = RoIPooling(MASK_SIZE, strides, conventions) if mask_heads else None
        self._proposals = self.test_proposals.count(len(features.strides))
        self.set_nms(conventions.nms,
                     max(CANDIDATES, _CANDIDATES_PER_DETECTION * conventions.detections),
                     conventions.detections)

    def set_nms(self, nms_thresh=0.5, nms_topk=CANDIDATES, post_nms=100, *, score_thresh=None):
        """Changes the final post-processing (GluonCV's names).

        Args:
          nms_thresh: a box is dropped if its IoU with a better one of its class is above this.
          nms_topk: how many pairs of box and class enter the NMS.
          post_nms: how many detections are kept.
          score_thresh: detections score higher than this; None is that of the conventions.
        """
        if not 0 < nms_thresh <= 1 or nms_topk < 1 or post_nms < 1:
            raise UserError(f"expected an IoU in (0, 1] and counts of at least 1, got nms_thresh="
                            f"{nms_thresh}, nms_topk={nms_topk}, post_nms={post_nms}")
        self.nms, self._candidates, self._detections = nms_thresh, nms_topk, post_nms
        self._score_threshold = (self.conventions.score_threshold if score_thresh is None
                                 else score_thresh)
        self._clear_cached_op()

    @property
    def rows(self):
        """How many detections of an image are returned, those that are not there included."""
        return min(self._detections, self._pairs)

    @property
    def _pairs(self):
        """How many pairs of a box and a class enter the NMS."""
        return min(self._candidates, self._proposals * len(self.classes))

    def reset_class(self, classes, reuse_weights=None):
        """Replaces the layers that know the classes (GluonCV's name), before fine-tuning.

        Args:
          classes: names of the new classes, or their number.
          reuse_weights: new classes that keep the weights of old ones: names that both have, or
            {new name: old name}. None begins afresh. The background is kept if any class is.

        Raises:
          UserError: if there are no such classes, or a name to reuse is unknown.
        """
        classes = names_of("classes", classes)
        reuse = reuse_weights or {}
        reuse = dict(reuse) if isinstance(reuse, dict) else {name: name for name in reuse}
        for names, known in ((reuse, classes), (reuse.values(), self.classes)):
            for name in names:
                check_choice("class to reuse", name, known)
        sources = [self.classes.index(reuse[name]) if name in reuse else None for name in classes]
        for stage in self.stages:
            old = stage.predictor
            stage.predictor = self._like(old.logits, BoxPredictor(
                old.in_channels, len(classes), agnostic=old.agnostic, prior=old.prior))
            if reuse:
                keep_rows(old.logits, stage.predictor.logits, sources, tail=1)
                keep_rows(old.deltas, stage.predictor.deltas,
                          [0] if old.agnostic else sources, rows=4)
        for head in self.mask_heads:
            old = head.logits
            head.logits = self._like(old, head.predictor(len(classes)))
            if reuse:
                keep_rows(old, head.logits, sources)
        self.classes = classes
        self._clear_cached_op()

    @staticmethod
    def _like(layer, block):
        """Initialises a block where a layer has its values, if it has any."""
        if layer.weight._data is not None:
            block.initialize(ctx=layer.weight.list_ctx())
        return block

    def losses(self, images, sizes, objects, rngs, counted=None):
        """Returns the losses of one batch by name; see `training.losses`."""
        return self.losses_on(self.features(images), sizes, objects, rngs, counted)

    def losses_on(self, maps, sizes, objects, rngs, counted=None):
        """As `losses`, from the maps of the pyramid."""
        return training.losses(self, maps, sizes, objects, rngs, counted)

    def proposals(self, x, sizes):
        """Returns what the RPN alone says in inference: boxes (N, P, 4), best first, and their
        scores (N, P), `rpn.NO_BOX` where there is no further one."""
        return self.test_proposals(sizes, *self.rpn(*self.features(x)))

    def masks_at(self, x, ids, bboxes):
        """Returns the masks (N, D, 28, 28) of given detections, for test-time augmentation."""
        return self._masks(nd, ids, bboxes, self.features(x)[:-1])

    def hybrid_forward(self, F, x, sizes=None):
        return self.detections(F, self.features(x), sizes_of(F, x, sizes))

    def detections(self, F, maps, sizes):
        """Returns what the network returns, from the maps of the pyramid."""
        rois, scores = self.test_proposals(sizes, *self.rpn(*maps))
        probabilities, boxes = self._boxes(F, rois, maps[:-1], sizes)
        there = F.expand_dims(scores > NO_BOX / 2, axis=2)
        ids, scores, boxes = self._detect(F, F.broadcast_mul(probabilities, there), boxes)
        if not len(self.mask_heads):
            return ids, scores, boxes
        return ids, scores, boxes, self._masks(F, ids, boxes, maps[:-1])

    def _boxes(self, F, rois, maps, sizes):
        """Returns the probabilities (N, P, K) of objects and boxes (N, P, B, 4), B is 1 or K."""
        mean_of_logits = self.conventions.average == "logit"
        outputs = []
        for number, stage in enumerate(self.stages):
            logits, deltas = stage(self.box_pooling(rois, *maps))
            outputs.append(logits if mean_of_logits else self._probabilities(F, logits))
            boxes = self.refine(F, stage, rois, F.reshape(deltas, (-4, -1, self._proposals, 0, 0)),
                                sizes)
            if number + 1 < len(self.stages):
                rois = F.reshape(boxes, shape=(0, 0, -1))
        mean = F.add_n(*outputs) / len(outputs)
        if mean_of_logits:
            mean = self._probabilities(F, mean)
        mean = F.reshape(mean, (-4, -1, self._proposals, 0))
        return F.slice_axis(mean, axis=2, begin=0, end=len(self.classes)), boxes

    def _probabilities(self, F, logits):
        """Returns the probabilities (R, K + 1) that logits stand for."""
        if self.conventions.class_scores == "sigmoid":
            return F.sigmoid(logits)
        return F.softmax(logits, axis=1)

    def refine(self, F, stage, rois, deltas, sizes):
        """Returns the clipped boxes (N, R, B, 4) that a stage makes of RoIs (N, R, 4)."""
        boxes = box.decode(F, F.expand_dims(rois, axis=2), deltas, stage.weights,
                           self.conventions)
        return F.reshape_like(box.clip(F, F.reshape(boxes, shape=(0, -1, 4)), sizes), boxes)

    def _detect(self, F, probabilities, boxes):
        """Returns ids, scores and bboxes after NMS within each class."""
        classes = len(self.classes)
        scores = F.reshape(probabilities, shape=(0, -1))                          # (N, P * K)
        scores, index = F.topk(scores, k=self._pairs, axis=1, ret_typ="both")
        roi = F.floor(index / classes)
        ids = index - roi * classes
        row = roi if self.stages[-1].predictor.agnostic else index
        rows = box.take_rows(F, F.reshape(boxes, shape=(0, -1, 4)), row)
        rows = F.concat(F.expand_dims(ids, axis=2), F.expand_dims(scores, axis=2), rows, dim=2)
        kept = F.contrib.box_nms(rows, overlap_thresh=self.nms, valid_thresh=self._score_threshold,
                                 id_index=0, score_index=1, coord_start=2)
        kept = F.slice_axis(kept, axis=1, begin=0, end=self.rows)
        return (F.slice_axis(kept, axis=2, begin=0, end=1),
                F.slice_axis(kept, axis=2, begin=1, end=2),
                F.slice_axis(kept, axis=2, begin=2, end=6))

    def _masks(self, F, ids, boxes, maps):
        """Returns the probabilities (N, D, 28, 28) of the masks of detections."""
        pooled = self.mask_pooling(boxes, *maps)
        classes = F.reshape(F.maximum(ids, 0), shape=(-1,))
        masks = [F.sigmoid(own_class(F, head(pooled), classes)) for head in self.mask_heads]
        masks = F.reshape_like(F.expand_dims(F.add_n(*masks) / len(masks), axis=0), ids,
                               lhs_begin=0, lhs_end=2, rhs_begin=0, rhs_end=2)
        return F.broadcast_mul(masks, F.expand_dims(ids >= 0, axis=3))


def names_of(what, classes, word="class"):
    """Returns a tuple of names, as given or, for a number of classes, "{word} 0", "{word} 1", ...

    Raises:
      UserError: if `classes` are neither names nor a number from 1 on; `what` says whose they are.
    """
    if isinstance(classes, (tuple, list)) and classes \
            and all(isinstance(name, str) for name in classes):
        return tuple(classes)
    check_count(what, classes)
    return tuple(f"{word} {number}" for number in range(classes))
