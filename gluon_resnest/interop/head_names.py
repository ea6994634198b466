"""Names of what stands around a backbone, in detectors and pose networks, as ordered rules.

The rules are those of `torch_names`: from our structural names to those of the other system. The
backbone inside is named by its own layout. In all of these systems deltas are (dx, dy, dw, dh) for
each class or anchor, anchors are ordered by height over width, dense layers see a RoI as (channel,
row, column), and offsets of deformable convolutions come before the weights' logits, as (y, x);
GluonCV alone has the background first.
"""
import re
from typing import Iterable, NamedTuple, Optional

import numpy as np

from gluon_resnest.errors import UserError
from gluon_resnest.interop.torch_names import (
    BATCH_NORM, BY_NAME, COUNTERS, PIXELS, Dropped, Naming, Rules, reason_to_drop, translate)

DETECTOR, POSE = "detector", "pose"
# Of our files: what stands before the backbone's names, and a name that tells the kind.
_BEFORE = {DETECTOR: "features.backbone.", POSE: "backbone."}
_MARKERS = {DETECTOR: "rpn.logits.weight", POSE: "final_layer.weight"}
_SECOND_STAGE = "stages.1.predictor.logits.weight"


class Heads(NamedTuple):
    """How the files of one system name a whole network.

    Attributes:
      system: what users call it.
      kind: `DETECTOR` or `POSE`.
      layout: name of the layout of the backbone's names.
      before: what stands before the backbone's names.
      rules: for all other names; see `WholeNaming.theirs`.
      conventions: of the system's detectors; None where the file itself says them.
      background_first: whether the background is the classifier's first row; ours is the last.
      fixed_scales: pattern of our names whose stored values it ignores, for 1.
      dropped: as in `Layout`.
    """

    system: str
    kind: str
    layout: str
    before: str
    rules: Rules
    conventions: Optional[str] = None
    background_first: bool = False
    fixed_scales: Optional[str] = None
    dropped: Dropped = COUNTERS + PIXELS


_DETECTRON2: Rules = (
    # Its norms are children of the convolution.
    (r"^((?:features\.fpn|stages|mask_heads)\..*)\.conv\.(\w+)$", r"\1.\2"),
    *((rf"^features\.fpn\.{ours}\.{level}\.", f"backbone.{theirs}{level + 2}.")
      for ours, theirs in (("laterals", "fpn_lateral"), ("outputs", "fpn_output"))
      for level in range(4)),
    (r"^rpn\.conv\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.deltas\.", "proposal_generator.rpn_head.anchor_deltas."),
    *((rf"^stages\.(\d\.)?head\.{ours}\.{number}\.",
       rf"roi_heads.box_head.\g<1>{theirs}{number + 1}.")
      for ours, theirs in (("convs", "conv"), ("fcs", "fc")) for number in range(4)),
    (r"^stages\.(\d\.)?predictor\.logits\.", r"roi_heads.box_predictor.\1cls_score."),
    (r"^stages\.(\d\.)?predictor\.deltas\.", r"roi_heads.box_predictor.\1bbox_pred."),
    # One mask head also in cascades.
    *((rf"^mask_heads\.(?:0\.)?convs\.{number}\.", f"roi_heads.mask_head.mask_fcn{number + 1}.")
      for number in range(8)),
    (r"^mask_heads\.(?:0\.)?deconv\.", "roi_heads.mask_head.deconv."),
    (r"^mask_heads\.(?:0\.)?logits\.", "roi_heads.mask_head.predictor."),
) + BATCH_NORM

_MMDETECTION: Rules = (
    (r"^features\.fpn\.laterals\.", "neck.lateral_convs."),
    (r"^features\.fpn\.outputs\.", "neck.fpn_convs."),
    (r"^rpn\.conv\.", "rpn_head.rpn_conv."),
    (r"^rpn\.logits\.", "rpn_head.rpn_cls."),
    (r"^rpn\.deltas\.", "rpn_head.rpn_reg."),
    (r"^stages\.(\d\.)?head\.(convs|fcs)\.", r"roi_head.bbox_head.\1shared_\2."),
    (r"^stages\.(\d\.)?predictor\.logits\.", r"roi_head.bbox_head.\1fc_cls."),
    (r"^stages\.(\d\.)?predictor\.deltas\.", r"roi_head.bbox_head.\1fc_reg."),
    (r"^mask_heads\.(\d\.)?convs\.", r"roi_head.mask_head.\1convs."),
    (r"^mask_heads\.(\d\.)?deconv\.", r"roi_head.mask_head.\1upsample."),
    (r"^mask_heads\.(\d\.)?logits\.", r"roi_head.mask_head.\1conv_logits."),
    (r"\.norm\.", ".bn."),
) + BATCH_NORM


# Its published detectors; the custom ones average RoIs of twice the size, which no rule can undo.
_GLUONCV: Rules = (
    *((rf"^features\.fpn\.{ours}\.", f"features.P{level + 2}_{theirs}_") for level in range(4)
      for ours, theirs in ((rf"laterals\.{level}\.conv", "conv_lat"),
                           (rf"laterals\.{level}\.norm", "lat_bn" if level == 3 else "conv1_bn"),
                           (rf"outputs\.{level}\.conv", "conv1"),
                           (rf"outputs\.{level}\.norm", "bn"))),
    (r"^features\.fpn\.p6\.norm\.", "features.P6_pre_bn_"),
    (r"^features\.fpn\.p6\.conv\.", "features.P6_conv1_"),
    (r"^(features\.P\d\w*_)running_", r"\1moving_"),
    (r"^rpn\.conv\.", "rpn.rpn_head.conv1.0."),
    (r"^rpn\.logits\.", "rpn.rpn_head.score."),
    (r"^rpn\.deltas\.", "rpn.rpn_head.loc."),
    # The sequence counts activations, too.
    *((rf"^stages\.head\.convs\.{number}\.{child}\.", f"box_features.{3 * number + at}.")
      for number in range(4) for at, child in enumerate(("conv", "norm"))),
    (r"^stages\.head\.fcs\.0\.", "box_features.12."),
    (r"^stages\.predictor\.logits\.", "class_predictor."),
    (r"^stages\.predictor\.deltas\.", "box_predictor."),
)
_ANCHORS: Dropped = ((r"^rpn\.anchor_generator\.\d\.anchors$", "made by the network"),)

_CELLS: Dropped = ((r"^proposal_generator\.anchor_generator\.cell_anchors\.\d$",
                    "made by the network"),)

HEADS = (
    Heads("detectron2", DETECTOR, "detectron2", "backbone.bottom_up.", _DETECTRON2, "detectron2",
          dropped=COUNTERS + PIXELS + _CELLS),
    Heads("mmdetection", DETECTOR, "mmdet", "backbone.", _MMDETECTION, "mmdetection"),
    Heads("GluonCV", DETECTOR, "gluon-symbol-sync", "features.resnest_", _GLUONCV, "gluoncv",
          background_first=True, fixed_scales=r"^features\.fpn\..*\.gamma$", dropped=_ANCHORS),
    Heads("gluon_resnest", DETECTOR, "gluon", _BEFORE[DETECTOR], ()),
    Heads("mmpose", POSE, "mmpretrain", "backbone.",
          ((r"^(deconv_layers|final_layer)\.", r"head.\1."),) + BATCH_NORM),
    Heads("mmpose 0", POSE, "mmpretrain", "backbone.",
          ((r"^(deconv_layers|final_layer)\.", r"keypoint_head.\1."),) + BATCH_NORM),
    Heads("gluon_resnest", POSE, "gluon", _BEFORE[POSE], ()),
)


class WholeNaming(NamedTuple):
    """The naming of a whole network in a certain file.

    Attributes:
      heads: the system's names.
      backbone: naming of the backbone.
      cascade: whether there are several stages.
    """

    heads: Heads
    backbone: Naming
    cascade: bool

    def theirs(self, ours: str) -> str:
        """Translates one of our structural names to the full name in the file."""
        if ours.startswith(_BEFORE[self.heads.kind]):
            return self.backbone.theirs(ours[len(_BEFORE[self.heads.kind]):])
        root = self.backbone.prefix[:-len(self.heads.before)]
        if not self.cascade and self.heads.rules:       # the others number stages of cascades only
            ours = re.sub(r"^(stages|mask_heads)\.0\.", r"\1.", ours)
        return root + translate(self.heads.rules, ours)

    def drops(self, theirs: str) -> Optional[str]:
        """Returns why a name of the file has no use here, or None if that is not known."""
        return reason_to_drop(self.heads.dropped, theirs)

    def ours(self, name: str, value: np.ndarray) -> np.ndarray:
        """Returns the value that our tensor of a name has where theirs has `value`."""
        if self.heads.fixed_scales and re.search(self.heads.fixed_scales, name):
            return np.ones_like(value)
        return np.roll(value, -1, axis=0) if self._has_background_first(name) else value

    def value(self, name: str, ours: np.ndarray) -> np.ndarray:
        """Returns the value of theirs, the inverse of `ours`."""
        return np.roll(ours, 1, axis=0) if self._has_background_first(name) else ours

    def _has_background_first(self, name):
        return self.heads.background_first and ".predictor.logits." in name


def detect(names: Iterable[str], backbone: Naming) -> Optional[WholeNaming]:
    """Recognises the whole network around a backbone of a known naming; None if there is none."""
    names = set(names)
    for heads in HEADS:
        if heads.layout == backbone.layout.name and backbone.prefix.endswith(heads.before):
            naming = WholeNaming(heads, backbone, False)
            if naming.theirs(_MARKERS[heads.kind]) in names:
                cascade = naming._replace(cascade=True)
                return cascade if cascade.theirs(_SECOND_STAGE) in names else naming
    return None


def written(names: Iterable[str], layout: str) -> Optional[WholeNaming]:
    """Returns the naming to write a whole network with; None if the names are a classifier's.

    Args:
      names: our structural names.
      layout: of the backbone's names, or "gluoncv".

    Raises:
      UserError: if the layout knows no such networks.
    """
    names = set(names)
    kind = next((kind for kind, marker in _MARKERS.items() if marker in names), None)
    if kind is None:
        return None
    layout = "gluon-symbol-sync" if layout == "gluoncv" else layout
    for heads in HEADS:
        if (heads.kind, heads.layout) == (kind, layout):
            return WholeNaming(heads, Naming(BY_NAME[layout], heads.before),
                               _SECOND_STAGE in names)
    known = ", ".join(dict.fromkeys(heads.layout for heads in HEADS if heads.kind == kind))
    raise UserError(f"the file holds a {kind}, for which the layout {layout} has no names; choose "
                    f"one of {known}, or convert the backbone alone with --backbone")
