"""Detectors by name: a backbone in, the finished network out."""
import re
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional, Union

from gluon_resnest.errors import UserError, check_choice, nearest
from gluon_resnest.models.detection.conventions import conventions as conventions_of
from gluon_resnest.models.detection.fpn import FPN, FeaturePyramid
from gluon_resnest.models.detection.rcnn import BOX_SIZE, RCNN, names_of
from gluon_resnest.models.detection.roi_heads import BoxHead, BoxPredictor, BoxStage, MaskHead
from gluon_resnest.models.detection.rpn import RPNHead
from gluon_resnest.models.norm import freeze_stages, norm_layer, with_defaults

FAMILIES = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
BACKBONES = ("resnest14", "resnest26", "resnest50", "resnest101", "resnest200", "resnest269",
             "resnet50", "resnet101")
NAMES = (*(f"{family}_fpn_{backbone}_coco" for family in FAMILIES for backbone in BACKBONES),
         *(f"{family}_fpn_{backbone}_lvis" for family in FAMILIES if "mask" in family
           for backbone in ("resnest50", "resnest101")))

_GRAMMAR = re.compile(rf"({'|'.join(FAMILIES)})_fpn_(\w+?)(_dcn)?_(coco|lvis)")
# Detectron2's baselines stride in the 1x1 (paper, text of table 6).
_BACKBONE_FORMS = {"resnet50": "resnet50_msra", "resnet101": "resnet101_msra"}
SIGMOID_PRIOR = 0.01        # CenterNet2's
BOX_HEADS = {"2fc": dict(convs=0, fcs=2), "4conv1fc": dict(convs=4, fcs=1)}

COCO_CLASSES = tuple((
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, "
    "fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, "
    "bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, "
    "sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, "
    "bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, "
    "dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, "
    "toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, "
    "toothbrush").split(", "))

CLASSES = {"coco": COCO_CLASSES, "lvis": 1203}      # that the ends of names stand for; LVIS v1

Policy = Union[str, Callable]   # see `norm.norm_layer`


@dataclass(frozen=True)
class Norms:
    """Norm policies, see `models.norm`, of the parts; None is no norm, biases instead.

    `NORMS` has the named ones: "frozen" is that of the rows without SyncBN (paper, table 11).
    Mask heads have that of the heads, unless `masks` is another.
    """

    backbone: Policy
    fpn: Optional[Policy]
    heads: Optional[Policy]
    masks: Optional[Policy] = "heads"


NORMS = {"batch": Norms("batch", "batch", "batch"), "sync": Norms("sync", "sync", "sync"),
         "frozen": Norms("frozen", None, None)}


class Name(NamedTuple):
    """What {family}_fpn_{backbone}[_dcn]_{coco|lvis} spells."""

    family: str
    backbone: str
    deformable: bool
    dataset: str


def parse(name):
    """Returns the `Name` that {family}_fpn_{backbone}[_dcn]_{coco|lvis} spells, or None.

    Case does not matter. A plain ResNet is the paper's form: it strides in the first 1x1
    convolution of a bottleneck.
    """
    found = _GRAMMAR.fullmatch(name.lower())
    if not found:
        return None
    family, backbone, deformable, dataset = found.groups()
    return Name(family, _BACKBONE_FORMS.get(backbone, backbone), bool(deformable), dataset)


def detector(name, get_model, *, classes=None, norms="batch", norm_kwargs=None, dropblock=0.0,
             **options):
    """Builds a detector by name, with its backbone.

    Args:
      name: as `parse` reads it; with _dcn, stages 3 to 5 are deformable.
      get_model: builds the backbone, `zoo.get_model`.
      classes: names of the objects' classes, or their number; None: those of the data set.
      norms: `Norms`, a name in `NORMS` or a constructor of norms.
      norm_kwargs: see `norm_layer`; "sync" needs `workers`.
      dropblock: probability in the backbone; the published runs had none.
      options: further arguments of `rcnn`.

    Raises:
      UserError: if the name is no detector's or an argument does not fit.
    """
    found = parse(name)
    if found is None:
        raise UserError(f"expected a detector's name such as mask_rcnn_fpn_resnest50_coco, got "
                        f"{name!r}{nearest(name, NAMES)}")
    norms = norms_of(norms)
    stages = {"deform_stages": (3, 4, 5)} if found.deformable else {}
    backbone = get_model(found.backbone, norm_layer=norms.backbone, norm_kwargs=norm_kwargs,
                         dropblock=dropblock, features_only=True, **stages)
    return rcnn(found.family, backbone, norms=norms, norm_kwargs=norm_kwargs,
                classes=CLASSES[found.dataset] if classes is None else classes, **options)


def rcnn(family, backbone, *, classes=COCO_CLASSES, conventions="detectron2", norms=NORMS["batch"],
         norm_kwargs=None, box_head="4conv1fc", mask_convs=4, frozen_stages=2,
         channels=256, fc_channels=1024):
    """Builds a detector of a family on a backbone.

    Args:
      family: one of `FAMILIES`.
      backbone: has `features`, its norms already as `norms.backbone` says.
      classes: names of the objects' classes, or their number.
      conventions: a name or `Conventions`.
      norms: `Norms` or a name in `NORMS`; of its parts, those of the pyramid and the heads.
      norm_kwargs: see `norm_layer`; "sync" needs `workers`.
      box_head: a name in `BOX_HEADS`; convolutions are normalised.
      mask_convs: convolutions of the mask head, 4 or, in the paper's largest model, 8.
      frozen_stages: how many of stem, stage 1, ... learn nothing and keep their statistics; see
        `norm.freeze_stages`.
      channels: of the pyramid and of the heads' convolutions.
      fc_channels: of the box head's dense layers.
    """
    check_choice("detector family", family, FAMILIES)
    check_choice("box head", box_head, tuple(BOX_HEADS))
    norms, conventions = norms_of(norms), conventions_of(conventions)
    classes = names_of("classes", classes)
    cascade, masks = family.startswith("cascade"), "mask" in family
    fpn_norm = norm_layer(norms.fpn, norm_kwargs) if norms.fpn and conventions.fpn_norm else None
    if fpn_norm and conventions.fpn_norm_eps:
        fpn_norm = with_defaults(fpn_norm, epsilon=conventions.fpn_norm_eps)
    head_norm = norm_layer(norms.heads, norm_kwargs) if norms.heads else None
    mask_norm = head_norm if norms.masks == "heads" else (
        norm_layer(norms.masks, norm_kwargs) if norms.masks else None)
    freeze_stages(backbone, frozen_stages)
    features = FeaturePyramid(backbone, FPN(backbone.feature_channels, backbone.feature_strides,
                                            channels=channels, norm=fpn_norm, p6=conventions.p6))
    stages = _stages(conventions, len(classes), cascade, lambda: BoxHead(
        channels, size=BOX_SIZE, conv_channels=channels, fc_channels=fc_channels, norm=head_norm,
        **BOX_HEADS[box_head]))
    heads = len(stages) if conventions.mask_each_stage else 1
    return RCNN(features, RPNHead(channels, features.strides, conventions), stages,
                classes=classes, conventions=conventions,
                mask_heads=[MaskHead(channels, len(classes), convs=mask_convs, channels=channels,
                                     norm=mask_norm, extra_norm=conventions.mask_extra_norm)
                            for _ in range(heads if masks else 0)],
                post_nms_train=conventions.cascade_post_nms_train if cascade else None)


def norms_of(norms):
    """Returns the `Norms` of a name in `NORMS` or of a constructor, or `norms` if it is one."""
    if isinstance(norms, Norms):
        return norms
    if callable(norms):
        return Norms(norms, norms, norms)
    check_choice("norm of a detector", norms, tuple(NORMS))
    return NORMS[norms]


def _stages(conventions, classes, cascade, head):
    """Returns the box stages; `head` builds a head."""
    prior = SIGMOID_PRIOR if conventions.class_scores == "sigmoid" else 0.5
    if not cascade:
        first = head()
        return [BoxStage(first, BoxPredictor(first.channels, classes, prior=prior),
                         threshold=conventions.roi_iou, weights=conventions.box_weights)]
    stages = []
    for threshold, weights, loss in zip(conventions.cascade_iou, conventions.cascade_weights,
                                        conventions.stage_losses):
        each = head()
        stages.append(BoxStage(
            each, BoxPredictor(each.channels, classes, agnostic=True, prior=prior),
            threshold=threshold, weights=weights, loss=loss,
            gradient=1 / len(conventions.cascade_iou) if conventions.scale_gradient else 1.0))
    return stages
