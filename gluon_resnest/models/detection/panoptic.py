"""Panoptic FPN: a detector and a head for the class of every pixel on one feature pyramid.

Kirillov et al. 2019; the names, the class 0 of all things and the loss weight are Detectron2's.
"""
import re

from mxnet import nd

from gluon_resnest.errors import UserError, nearest
from gluon_resnest.models.detection.build import COCO_CLASSES, detector, norms_of
from gluon_resnest.models.detection.rcnn import CANDIDATES, names_of
from gluon_resnest.models.detection.semantic_head import (
    LEVELS, SemanticHead, semantic_loss, upsampled)
from gluon_resnest.models.detection.sized import SizedImages, sizes_of
from gluon_resnest.models.norm import norm_layer

# Family of the name -> that of the detector.
FAMILIES = {"panoptic": "mask_rcnn", "panoptic_cascade": "cascade_mask_rcnn"}
NAMES = tuple(f"{family}_fpn_{backbone}_coco" for family in FAMILIES
              for backbone in ("resnest50", "resnest101", "resnest200"))

COCO_STUFF = tuple((
    "banner, blanket, bridge, cardboard, counter, curtain, door-stuff, floor-wood, flower, fruit, "
    "gravel, house, light, mirror-stuff, net, pillow, platform, playingfield, railroad, river, "
    "road, roof, sand, sea, shelf, snow, stairs, tent, towel, wall-brick, wall-stone, wall-tile, "
    "wall-wood, water-other, window-blind, window-other, tree-merged, fence-merged, "
    "ceiling-merged, sky-other-merged, cabinet-merged, table-merged, floor-other-merged, "
    "pavement-merged, mountain-merged, grass-merged, dirt-merged, paper-merged, "
    "food-other-merged, building-other-merged, rock-merged, wall-other-merged, "
    "rug-merged").split(", "))

_GRAMMAR = re.compile(rf"({'|'.join(FAMILIES)})(_fpn_\w+?_coco)")


class PanopticFPN(SizedImages):
    """A detector that also says the class of every pixel; any image size and any batch size.

    Called with images (N, 3, H, W) and maybe their sizes (N, 2), as an `RCNN`, it returns

      ids, scores, bboxes, masks: of the detector;
      logits (N, 1 + S, H, W): of the pixels; class 0 is any thing, then the kinds of stuff.

    Args:
      detector: an `RCNN` with mask heads.
      semantic: a `SemanticHead` on its pyramid.
      stuff: names of the kinds of stuff, S of them.
      weight: of the head's loss; those of the detector have weight 1.

    Attributes:
      detector, semantic, stuff: as given.
    """

    def __init__(self, detector, semantic, stuff, *, weight=0.5):
        super().__init__()
        self.detector, self.semantic = detector, semantic
        self.stuff, self._weight = tuple(stuff), weight

    @property
    def features(self):
        """The detector's `FeaturePyramid`."""
        return self.detector.features

    @property
    def conventions(self):
        """The detector's `Conventions`."""
        return self.detector.conventions

    def set_nms(self, nms_thresh=0.5, nms_topk=CANDIDATES, post_nms=100, *, score_thresh=None):
        """Changes the final post-processing of the detector; see `RCNN.set_nms`."""
        self.detector.set_nms(nms_thresh, nms_topk, post_nms, score_thresh=score_thresh)
        self._clear_cached_op()

    def reset_class(self, classes, reuse_weights=None):
        """Replaces the layers that know the classes of things; see `RCNN.reset_class`."""
        self.detector.reset_class(classes, reuse_weights)
        self._clear_cached_op()

    def losses(self, images, sizes, objects, rngs, labels, *counted):
        """Returns the losses of one batch by name; see `training.losses`.

        Args:
          images, sizes, objects, rngs, counted: see there.
          labels: numpy (N, H, W), the class of each pixel or `semantic_head.VOID`; H and W are
            those of the padded images.

        Returns:
          {name: Loss}, those of the detector and "semantic".
        """
        maps = self.features(images)
        results = self.detector.losses_on(maps, sizes, objects, rngs, *counted)
        loss = semantic_loss(self.semantic(*maps[:LEVELS]), labels, self.features.strides[0])
        return {**results, "semantic": loss._replace(total=loss.total * self._weight)}

    def pixels(self, x):
        """Returns the logits of the pixels alone, for test-time augmentation."""
        return self._pixels(nd, x, self.features(x))

    def hybrid_forward(self, F, x, sizes=None):
        maps = self.features(x)
        found = self.detector.detections(F, maps, sizes_of(F, x, sizes))
        return (*found, self._pixels(F, x, maps))

    def _pixels(self, F, x, maps):
        logits = upsampled(F, self.semantic(*maps[:LEVELS]), self.features.strides[0])
        return F.slice_like(logits, x, axes=(2, 3))


def detector_name(name):
    """Returns the name of the detector in {panoptic|panoptic_cascade}_fpn_{backbone}[_dcn]_coco.

    None if `name`, in any case, does not spell a panoptic network.
    """
    found = _GRAMMAR.fullmatch(name.lower())
    return FAMILIES[found.group(1)] + found.group(2) if found else None


def panoptic(name, get_model, *, classes=COCO_CLASSES, stuff=COCO_STUFF, semantic_channels=128,
             semantic_weight=0.5, norms="batch", norm_kwargs=None, **options):
    """Builds a panoptic network by name, with its backbone.

    Args:
      name: as `detector_name` reads it.
      get_model: builds the backbone, `zoo.get_model`.
      classes: names of the things, or their number.
      stuff: names of the kinds of stuff, or their number.
      semantic_channels: of the semantic head's convolutions.
      semantic_weight: of its loss.
      norms: see `build.detector`; those of the heads are the semantic head's, too.
      norm_kwargs: see `norm_layer`; "sync" needs `workers`.
      options: further arguments of `build.detector`.

    Raises:
      UserError: if the name is no panoptic network's or an argument does not fit.
    """
    inner = detector_name(name)
    if inner is None:
        raise UserError(f"expected a panoptic network's name such as panoptic_fpn_resnest50_coco, "
                        f"got {name!r}{nearest(name, NAMES)}")
    stuff = names_of("the number of kinds of stuff", stuff, word="stuff")
    norms = norms_of(norms)
    found = detector(inner, get_model, classes=classes, norms=norms, norm_kwargs=norm_kwargs,
                     **options)
    head = SemanticHead(found.features.fpn.channels, 1 + len(stuff), channels=semantic_channels,
                        norm=norm_layer(norms.heads, norm_kwargs) if norms.heads else None)
    return PanopticFPN(found, head, stuff, weight=semantic_weight)
