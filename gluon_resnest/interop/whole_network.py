"""Which detector or pose network a weight file holds, read off its tensors."""
from typing import Dict, NamedTuple, Optional, Tuple

import numpy as np

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop.head_names import DETECTOR, WholeNaming
from gluon_resnest.models.detection import build
from gluon_resnest.models.detection.anchors import base_anchors
from gluon_resnest.models.detection.conventions import Conventions
from gluon_resnest.models.detection.conventions import conventions as conventions_of

_DEFORMABLE = (3, 4, 5)     # stages of the networks with _dcn in their names


class WholeNetwork(NamedTuple):
    """A network and how to build it.

    Attributes:
      model: its name.
      call: Python that builds it.
      shapes: of its parameters, by structural name.
      conventions: of a detector.
    """

    model: str
    call: str
    shapes: Dict[str, Tuple[int, ...]]
    conventions: Optional[Conventions] = None


def recognise(tensors: Dict[str, np.ndarray], naming: WholeNaming, backbone: str,
              deform_stages: Tuple[int, ...], conventions=None) -> WholeNetwork:
    """Recognises the network whose heads have these shapes.

    Args:
      tensors: of the file.
      naming: of the file.
      backbone: name of the network inside.
      deform_stages: its deformable stages.
      conventions: `Conventions` or their name, where the naming does not tell them.

    Raises:
      UserError: if a tensor that tells them is absent, or no network has such heads.
    """
    def shape(ours):
        theirs = naming.theirs(ours)
        if theirs not in tensors or tensors[theirs].ndim < 2 or not tensors[theirs].size:
            raise UserError(f"{theirs} is absent or no weight, so the file is no complete "
                            f"{naming.heads.system} {naming.heads.kind}; --backbone converts its "
                            "backbone")
        return tensors[theirs].shape

    def has(ours):
        return naming.theirs(ours) in tensors

    if naming.heads.kind == DETECTOR:
        conventions = _conventions(naming, conventions)
        _check_pixels(tensors, naming, conventions)
        _check_anchors(tensors, naming, conventions)
        return _detector(naming.cascade, shape, has, backbone, deform_stages, conventions)
    joints = shape("final_layer.weight")[0]
    net = zoo.pose_model(backbone, joints)
    return WholeNetwork(zoo.POSE + backbone, f"pose_model({backbone!r}, {joints})", _shapes(net))


def _conventions(naming, given):
    """Returns the file's `Conventions`; they may be changed, but not another system's."""
    own = naming.heads.conventions
    if given is None and own is None:
        raise UserError("the file does not say which conventions its detector has; name them with "
                        "--conventions")
    conventions = conventions_of(given or own)
    if own not in (None, conventions.name):
        raise UserError(f"a file of {naming.heads.system} has the conventions {own!r}, not "
                        f"{conventions.name!r}; leave out --conventions")
    return conventions


def _detector(cascade, shape, has, backbone, deform_stages, conventions):
    """Recognises a detector; `shape` and `has` look up our names in the file."""
    if deform_stages not in ((), _DEFORMABLE):
        raise UserError(f"the file has the deformable stages {deform_stages}, detectors here have "
                        f"{_DEFORMABLE} or none; --backbone converts its backbone")
    rows = shape("stages.0.predictor.logits.weight")[0]
    if rows < 2:
        raise UserError(f"the file's classifier has {rows} row, expected the background and at "
                        "least one class; --backbone converts its backbone")
    masks, mask_convs = has("mask_heads.0.logits.weight"), 0
    while has(f"mask_heads.0.convs.{mask_convs}.conv.weight"):
        mask_convs += 1
    options = {"classes": rows - 1, "conventions": conventions.name,
               "norms": _norms(has, conventions),
               "box_head": "2fc" if has("stages.0.head.fcs.1.weight") else "4conv1fc"}
    sizes = {"mask_convs": (mask_convs if masks else 4, 4),
             "channels": (shape("rpn.conv.weight")[0], 256),
             "fc_channels": (shape("stages.0.head.fcs.0.weight")[0], 1024)}
    options.update({key: size for key, (size, usual) in sizes.items() if size != usual})
    family = {(False, False): "faster_rcnn", (False, True): "mask_rcnn",
              (True, False): "cascade_rcnn", (True, True): "cascade_mask_rcnn"}[cascade, masks]
    name = f"{family}_fpn_{backbone}{'_dcn' if deform_stages else ''}_coco"
    net = build.detector(name, zoo.get_model, **{**options, "conventions": conventions})
    said = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return WholeNetwork(name, f"detector({name!r}, get_model, {said})", _shapes(net), conventions)


def _norms(has, conventions):
    """Returns the norm policies of training; "frozen" where biases replace all that tell."""
    def normalised(conv):
        """Says whether a convolution is; None if there is none."""
        return has(f"{conv}.norm.gamma") if has(f"{conv}.conv.weight") else None

    fpn = normalised("features.fpn.laterals.0") if conventions.fpn_norm else None
    boxes, masks = map(normalised, ("stages.0.head.convs.0", "mask_heads.0.convs.0"))
    if False not in (fpn, boxes, masks):
        return "batch"
    if True not in (fpn, boxes, masks):
        return "frozen"
    heads = masks if boxes is None else boxes
    parts = (fpn, heads) if masks in (None, heads) else (fpn, heads, masks)
    return build.Norms("batch", *(None if part is False else "batch" for part in parts))


def _check_pixels(tensors, naming, conventions):
    """Raises a UserError if the file says its pixels and they are not those of the conventions."""
    root = naming.backbone.prefix[:-len(naming.heads.before)]
    for key, expected in (("mean", conventions.mean), ("std", conventions.std)):
        found = tensors.get(f"{root}pixel_{key}")
        if found is not None and (found.size != 3 or not np.allclose(
                found.ravel(), expected, rtol=0, atol=1e-2)):
            numbers = ", ".join(f"{value:g}" for value in found.ravel()[:3])
            raise UserError(
                f"the file says pixel_{key} ({numbers}), the conventions {conventions.name!r} say "
                f"{expected} for RGB; --backbone converts its backbone, convert.to_gluon takes "
                "other Conventions")


def _check_anchors(tensors, naming, conventions):
    """Raises a UserError if the file holds anchors and they are other ones.

    Those of GluonCV are (..., 4 A) of all positions, those of old detectron2 (A, 4) of one.
    """
    root = naming.backbone.prefix[:-len(naming.heads.before)]
    for level, size in enumerate(conventions.anchor_sizes):
        expected = base_anchors(4 << level, size, conventions)
        grid = tensors.get(f"rpn.anchor_generator.{level}.anchors")
        cell = tensors.get(f"{root}proposal_generator.anchor_generator.cell_anchors.{level}")
        if not ((grid is None or grid.shape[-1:] == (expected.size,) and np.allclose(
                    grid.reshape(-1, expected.size)[0], expected.ravel(), atol=1e-2))
                and (cell is None or cell.shape == (expected.size // 4, 4) and np.allclose(
                    cell, expected.reshape(-1, 4), atol=1e-2))):
            raise UserError(
                f"the file's anchors of level p{level + 2} differ from those of the conventions "
                f"{conventions.name!r}, {conventions.anchor_sizes} pixels of height over width "
                f"{conventions.anchor_ratios}; convert.to_gluon takes other Conventions")


def _shapes(net):
    return {name: param.shape for name, param in net._collect_params_with_prefix().items()}
