"""Checkpoints of other systems' detectors for tests of conversion, with random values.

The names are spelled a second time here, in loops instead of rules.
"""
import numpy as np

TINY = "resnest_tiny"
CLASSES, CHANNELS, UNITS = 3, 16, 24        # 4 and 12 rows in the predictors
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean",
        "running_var": "running_var"}


class Listing:
    """Collects (their name, our name, shape)."""

    def __init__(self):
        self.rows = []

    def layer(self, theirs, ours, shape, bias=True):
        self.rows.append((theirs + ".weight", ours + ".weight", shape))
        if bias:
            self.rows.append((theirs + ".bias", ours + ".bias", shape[:1]))

    def norm(self, theirs, ours, channels):
        self.rows += [(f"{theirs}.{a}", f"{ours}.{b}", (channels,)) for a, b in NORM.items()]


def list_backbone(out, layout, dcn=False):
    """Lists the tiny network: stem 8, one bottleneck of width 8, 16, 32, 64 in each stage."""
    d2, before = layout == "detectron2", "features.backbone."
    stem = [("conv1_1", "0", "1", 3, 8), ("conv1_2", "3", "4", 8, 8), ("conv1_3", "6", "7", 8, 16)]
    root = "backbone.bottom_up." if d2 else "backbone."
    for name, conv, norm, inputs, channels in stem:
        out.layer(f"{root}stem.{name}" if d2 else f"{root}stem.{conv}", f"{before}conv1.{conv}",
                  (channels, inputs, 3, 3), bias=False)
        out.norm(f"{root}stem.{name}.norm" if d2 else f"{root}stem.{norm}",
                 f"{before}bn1" if norm == "7" else f"{before}conv1.{norm}", channels)
    inputs = 16
    for stage, width in ((1, 8), (2, 16), (3, 32), (4, 64)):
        theirs = f"{root}res{stage + 1}.0." if d2 else f"{root}layer{stage}.0."
        ours, hidden = f"{before}layer{stage}.0.", 32
        for number, shape in ((1, (width, inputs, 1, 1)), (3, (4 * width, width, 1, 1))):
            out.layer(f"{theirs}conv{number}", f"{ours}conv{number}", shape, bias=False)
            out.norm(f"{theirs}conv{number}.norm" if d2 else f"{theirs}bn{number}",
                     f"{ours}bn{number}", shape[0])
        out.layer(f"{theirs}conv2.conv", f"{ours}conv2.conv", (2 * width, width // 2, 3, 3), False)
        if dcn and stage > 1:
            out.layer(f"{theirs}conv2_offset", f"{ours}conv2.conv.offset",
                      (54, width // 2, 3, 3))
        out.norm(f"{theirs}conv2.bn0", f"{ours}conv2.bn", 2 * width)
        out.layer(f"{theirs}conv2.fc1", f"{ours}conv2.fc1", (hidden, width, 1, 1))
        out.norm(f"{theirs}conv2.bn1", f"{ours}conv2.bn1", hidden)
        out.layer(f"{theirs}conv2.fc2", f"{ours}conv2.fc2", (2 * width, hidden, 1, 1))
        out.layer(f"{theirs}shortcut" if d2 else f"{theirs}downsample.1", f"{ours}downsample.1",
                  (4 * width, inputs, 1, 1), bias=False)
        out.norm(f"{theirs}shortcut.norm" if d2 else f"{theirs}downsample.2",
                 f"{ours}downsample.2", 4 * width)
        inputs = 4 * width


def list_conv(out, layout, theirs, ours, shape, normed):
    """Lists a convolution with its norm, which is within the convolution or beside it."""
    d2 = layout == "detectron2"
    out.layer(theirs if d2 else theirs + ".conv", ours + ".conv", shape, bias=not normed)
    if normed:
        out.norm(theirs + (".norm" if d2 else ".bn"), ours + ".norm", shape[0])


def listed(layout, family, box_head="4conv1fc", norms="batch", dcn=False):
    """Returns the (their name, our name, shape) of every tensor of a detector."""
    d2, out = layout == "detectron2", Listing()
    cascade, normed = family.startswith("cascade"), norms == "batch"
    list_backbone(out, layout, dcn)
    for level, inputs in enumerate((32, 64, 128, 256)):
        for ours, theirs, shape in (
                ("laterals", f"backbone.fpn_lateral{level + 2}" if d2
                 else f"neck.lateral_convs.{level}", (CHANNELS, inputs, 1, 1)),
                ("outputs", f"backbone.fpn_output{level + 2}" if d2
                 else f"neck.fpn_convs.{level}", (CHANNELS, CHANNELS, 3, 3))):
            list_conv(out, layout, theirs, f"features.fpn.{ours}.{level}", shape, d2 and normed)
    rpn = ("proposal_generator.rpn_head.conv", "proposal_generator.rpn_head.objectness_logits",
           "proposal_generator.rpn_head.anchor_deltas") if d2 else (
               "rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg")
    for theirs, ours, shape in zip(rpn, ("conv", "logits", "deltas"), (
            (CHANNELS, CHANNELS, 3, 3), (3, CHANNELS, 1, 1), (12, CHANNELS, 1, 1))):
        out.layer(theirs, f"rpn.{ours}", shape)
    for stage in range(3 if cascade else 1):
        number = f".{stage}" if cascade else ""
        head = f"roi_heads.box_head{number}" if d2 else f"roi_head.bbox_head{number}"
        predictor = f"roi_heads.box_predictor{number}" if d2 else head
        ours = f"stages.{stage}"
        for conv in range(4 if box_head == "4conv1fc" else 0):
            theirs = f"{head}.conv{conv + 1}" if d2 else f"{head}.shared_convs.{conv}"
            list_conv(out, layout, theirs, f"{ours}.head.convs.{conv}",
                      (CHANNELS, CHANNELS, 3, 3), normed)
        for dense in range(1 if box_head == "4conv1fc" else 2):
            out.layer(f"{head}.fc{dense + 1}" if d2 else f"{head}.shared_fcs.{dense}",
                      f"{ours}.head.fcs.{dense}", (UNITS, UNITS if dense else CHANNELS * 49))
        out.layer(f"{predictor}.cls_score" if d2 else f"{predictor}.fc_cls",
                  f"{ours}.predictor.logits", (CLASSES + 1, UNITS))
        out.layer(f"{predictor}.bbox_pred" if d2 else f"{predictor}.fc_reg",
                  f"{ours}.predictor.deltas", (4 if cascade else 4 * CLASSES, UNITS))
    for mask in range((1 if d2 or not cascade else 3) if "mask" in family else 0):
        number = f".{mask}" if cascade and not d2 else ""
        head = "roi_heads.mask_head" if d2 else f"roi_head.mask_head{number}"
        for conv in range(4):
            list_conv(out, layout, f"{head}.mask_fcn{conv + 1}" if d2 else f"{head}.convs.{conv}",
                      f"mask_heads.{mask}.convs.{conv}", (CHANNELS, CHANNELS, 3, 3), normed)
        out.layer(f"{head}.deconv" if d2 else f"{head}.upsample", f"mask_heads.{mask}.deconv",
                  (CHANNELS, CHANNELS, 2, 2))
        out.layer(f"{head}.predictor" if d2 else f"{head}.conv_logits", f"mask_heads.{mask}.logits",
                  (CLASSES, CHANNELS, 1, 1))
    return out.rows


def checkpoint(layout, family="mask_rcnn", **options):
    """Returns a checkpoint of random numbers, and {our name: array} of what it means."""
    rows = listed(layout, family, **options)
    theirs = {name: np.random.randn(*shape).astype(np.float32) for name, _, shape in rows}
    return theirs, {ours: theirs[name] for name, ours, _ in rows}


def equal(found, expected):
    """Says whether two {name: array} hold the same bits."""
    return {name: value.tobytes() for name, value in found.items()} == {
        name: value.tobytes() for name, value in expected.items()}
