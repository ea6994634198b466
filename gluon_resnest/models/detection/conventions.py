"""What tells one framework's detectors from another's, as data: a checkpoint fits only its own.

Sources: Detectron2 defaults and the ResNeSt configs (zhanghang1989/ResNeSt, d2/configs);
mmdetection configs/resnest and the _base_ files they build on; GluonCV 0.10.5,
faster_rcnn_fpn_syncbn_resnest*_coco. docs/detection.md has them side by side.
"""
import math
from dataclasses import dataclass, replace
from typing import Optional, Tuple

from gluon_resnest.errors import check_choice

Weights = Tuple[float, float, float, float]


@dataclass(frozen=True)
class Conventions:
    """How boxes, anchors, targets, losses and post-processing are defined.

    Attributes:
      mean, std: of RGB pixels in 0..255.
      anchor_sizes: square root of the anchors' area at each level p2..p6, in pixels.
      anchor_ratios: height over width.
      legacy_pixels: corners are pixel indices, so that a box is x2 - x1 + 1 wide where anchors
        are made (with centre (stride - 1) / 2 and rounded sides) and where a RoI's level is found.
      symmetric_clamp: the log scale of a box is clamped from below, too.
      max_log_scale: largest dw, dh that is decoded.
      rpn_iou: anchors below the first are background, from the second on objects.
      rpn_low_quality: an object's best anchors are objects from this IoU on, whatever `rpn_iou`
        says; an IoU of 0 never counts.
      rpn_samples, rpn_positive: anchors per image in the loss, and the largest share of objects.
      rpn_normalizer: the RPN's losses are divided by the "quota" of samples or by the "sampled".
      rpn_each_level: proposals are ranked and go through NMS on each level, not all together.
      rpn_nms, pre_nms_train, pre_nms_test, post_nms_train, post_nms_test: of proposals; `pre` is
        for each level or, without `rpn_each_level`, as `post` for each image.
      roi_iou, cascade_iou: RoIs from this IoU on are objects.
      roi_samples, roi_positive: RoIs per image in the losses, and the largest share of objects.
      box_weights, cascade_weights: divisors of the deltas.
      rpn_beta, box_beta, cascade_rpn_beta, cascade_box_beta: of smooth L1; 0 is L1.
      aligned, sampling_ratio: of ROIAlign; sampling ratio 0 adapts to the RoI.
      cascade_post_nms_train: `post_nms_train` of cascades.
      stage_losses: weight of the losses of each stage of a cascade.
      scale_gradient: divide the gradient that a cascade's stages send into the pyramid by their
        number.
      resample: each stage of a cascade samples anew, the objects' own boxes among the candidates.
      mask_each_stage: a cascade has one mask head for each stage, averaged in inference, instead
        of one that is trained on the RoIs of the first.
      average: the stages' "probability" or "logit" is averaged in inference.
      class_scores: a box's probabilities are the "softmax" over classes and background, or the
        "sigmoid" of each class, see `by_sigmoid`.
      score_threshold, nms, detections: of the final detections; NMS is for each class.
      p6: "pool" subsamples p5, "conv" strides on p5's lateral.
      fpn_norm: the pyramid's convolutions are normalised rather than biased.
      fpn_norm_eps: of those norms; None is the layer's own.
      mask_extra_norm: the mask head normalises after its deconvolution, too, and has biases
        before norms.
    """

    name: str
    mean: Tuple[float, float, float] = (123.68, 116.779, 103.939)
    std: Tuple[float, float, float] = (58.393, 57.12, 57.375)
    anchor_sizes: Tuple[int, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: Tuple[float, ...] = (0.5, 1.0, 2.0)
    legacy_pixels: bool = False
    symmetric_clamp: bool = False
    max_log_scale: float = math.log(1000 / 16)
    rpn_iou: Tuple[float, float] = (0.3, 0.7)
    rpn_low_quality: float = 0.0
    rpn_samples: int = 256
    rpn_positive: float = 0.5
    rpn_normalizer: str = "quota"
    rpn_each_level: bool = True
    rpn_nms: float = 0.7
    pre_nms_train: int = 2000
    pre_nms_test: int = 1000
    post_nms_train: int = 1000
    post_nms_test: int = 1000
    roi_iou: float = 0.5
    cascade_iou: Tuple[float, ...] = (0.5, 0.6, 0.7)
    roi_samples: int = 512
    roi_positive: float = 0.25
    rpn_weights: Weights = (1.0, 1.0, 1.0, 1.0)
    box_weights: Weights = (10.0, 10.0, 5.0, 5.0)
    cascade_weights: Tuple[Weights, ...] = (
        (10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
    rpn_beta: float = 0.0
    box_beta: float = 0.0
    cascade_rpn_beta: float = 0.0
    cascade_box_beta: float = 0.0
    aligned: bool = True
    sampling_ratio: int = 0
    cascade_post_nms_train: int = 2000
    stage_losses: Tuple[float, ...] = (1.0, 1.0, 1.0)
    scale_gradient: bool = True
    resample: bool = False
    mask_each_stage: bool = False
    average: str = "probability"
    class_scores: str = "softmax"
    score_threshold: float = 0.05
    nms: float = 0.5
    detections: int = 100
    p6: str = "pool"
    fpn_norm: bool = True
    fpn_norm_eps: Optional[float] = None
    mask_extra_norm: bool = False

    def __post_init__(self):
        check_choice("p6", self.p6, ("pool", "conv"))
        check_choice("average", self.average, ("probability", "logit"))
        check_choice("class_scores", self.class_scores, ("softmax", "sigmoid"))
        check_choice("rpn_normalizer", self.rpn_normalizer, ("quota", "sampled"))

    @property
    def max_mask_rois(self):
        """RoIs per image in the mask loss."""
        return int(self.roi_samples * self.roi_positive)


DETECTRON2 = Conventions("detectron2")
MMDETECTION = Conventions(
    "mmdetection", symmetric_clamp=True, rpn_low_quality=0.3, rpn_normalizer="sampled",
    cascade_rpn_beta=1 / 9, cascade_box_beta=1.0,
    cascade_weights=tuple((1 / xy, 1 / xy, 1 / wh, 1 / wh)
                          for xy, wh in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))),
    stage_losses=(1.0, 0.5, 0.25), scale_gradient=False, resample=True, mask_each_stage=True,
    average="logit", fpn_norm=False)
GLUONCV = Conventions(
    "gluoncv", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), legacy_pixels=True,
    max_log_scale=4.14, rpn_normalizer="sampled", rpn_beta=0.001, box_beta=0.001,
    rpn_each_level=False, pre_nms_train=12000, pre_nms_test=6000, post_nms_train=2000,
    aligned=False, sampling_ratio=2, p6="conv", fpn_norm_eps=1e-3, mask_extra_norm=True)

_KNOWN = {each.name: each for each in (DETECTRON2, MMDETECTION, GLUONCV)}
NAMES = tuple(_KNOWN)
_BY_SIGMOID = "+sigmoid"


def by_sigmoid(base):
    """Returns conventions whose classes are scored by sigmoids; files declare their own name."""
    return replace(base, name=base.name + _BY_SIGMOID, class_scores="sigmoid")


def conventions(name="detectron2"):
    """Returns the `Conventions` of a name; an object of that class is returned as it is.

    A name with "+sigmoid" behind it is that of `by_sigmoid`.

    Raises:
      UserError: if the name is unknown.
    """
    if isinstance(name, Conventions):
        return name
    if name.endswith(_BY_SIGMOID):
        return by_sigmoid(conventions(name[:-len(_BY_SIGMOID)]))
    check_choice("conventions", name, NAMES)
    return _KNOWN[name]
