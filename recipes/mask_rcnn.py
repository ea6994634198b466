"""Trains and evaluates Mask R-CNN with FPN on COCO (paper, section 6.2 and appendix B.2).

    horovodrun -np 8 python recipes/mask_rcnn.py --model resnest50 --device gpu --root coco \\
        --backbone-weights runs/resnest50 --workdir runs/mask50

Expected: 42.81 box AP, 38.14 mask AP on val2017 (Table 6). `coco` holds train2017, val2017 and
annotations as COCO is distributed; --train-annotations and the like take a json of one's own. The
same file runs alone, without Horovod; running it again on the same workdir continues.

    python recipes/mask_rcnn.py --model tiny_coco --smoke          wiring check, no data, a minute
    python recipes/mask_rcnn.py --model shapes --data synthetic --synthetic-steps 400 \\
        --workdir runs/mask_shapes                                 trial on drawn shapes
    python recipes/mask_rcnn.py --workdir runs/mask50 --root coco --eval-only

LVIS (entries with @lvis): `coco` also holds annotations/lvis_v1_train.json and lvis_v1_val.json.

Every evaluation writes boxes.json and masks.json, in COCO's result format, into the workdir
(docs/detection.md).
"""
from dataclasses import replace

from gluon_resnest import cli
from gluon_resnest.config import DetectionRecipe
from gluon_resnest.tasks.detection import Detection

# zhanghang1989/ResNeSt, d2/configs/COCO-InstanceSegmentation, on Detectron2's defaults: 16 images,
# 1x, shorter side one of six, SyncBN in all parts, statistics recomputed over 200 batches.
PAPER = DetectionRecipe(
    network="mask_rcnn_fpn_resnest50_coco", source="Tables 6, 11; d2/configs",
    precise_bn_batches=200, expect_ap=42.81, expect_mask_ap=38.14)

# Detectron2's R_50_FPN_1x and _3x, from which the numbers of ResNet-50 and 101 are; those of
# ResNeSt are taken to be trained alike (decision 0124).
NO_SYNC = replace(PAPER, norm="frozen", box_head="2fc", precise_bn_batches=0,
                  source="Table 11, 1x without SyncBN; Detectron2's baselines")
NO_SYNC_3X = replace(NO_SYNC, length=270000, milestones="210000,250000",
                     source="Table 11, 3x; Detectron2's baselines")

# open-mmlab/mmdetection, configs/resnest: no norm in the pyramid, 12 epochs.
MMDETECTION = replace(
    PAPER, conventions="mmdetection", resize="mmdetection", unit="epochs", length=12,
    milestones="8,11", warmup_iterations=500, decay="all", precise_bn_batches=0,
    source="mmdetection's page of ResNeSt")

# LVIS v1: Table 6's network with what Detectron2's configs/LVISv1-InstanceSegmentation change, in
# half of their 180000 iterations or in all of them, which is 1x and 2x by COCO's names; federated,
# with CenterNet2's loss. The authors' numbers on LVIS are not published (decision 0097).
LVIS = replace(
    PAPER, network="mask_rcnn_fpn_resnest50_lvis", dataset="lvis", classes=1203, detections=300,
    score_threshold=1e-4, repeat_threshold=0.001, expect_ap=None, expect_mask_ap=None,
    source="assumed: Table 6's network, Detectron2's LVISv1, 1x")
LVIS_2X = replace(LVIS, length=180000, milestones="120000,160000",
                  source="assumed: Table 6's network, Detectron2's LVISv1")
LVIS_FEDERATED = replace(LVIS, class_loss="federated",
                         source=LVIS.source + ", CenterNet2's federated loss")

# Trials for the CPU, from scratch: drawn shapes with held-out pictures, and eight images learned by
# heart (docs/detection.md).
SHAPES = DetectionRecipe(
    network="mask_rcnn_fpn_resnest14_coco", source="this project, for trials", classes=3,
    norm="sync", frozen_stages=0, box_head="2fc", mask_convs=2, channels=64, fc_channels=256,
    roi_samples=32, proposals=64, detections=20, unit="epochs", length=6, milestones="5",
    warmup_iterations=50, warmup_from=0.01, batch=4, optimizer="adam", lr=5e-4, wd=0.0,
    short_px="128", max_px=160, eval_px=128, eval_every=1)
BY_HEART = DetectionRecipe(
    network="mask_rcnn_fpn_resnest14_coco", source="this project, for trials", norm="sync",
    frozen_stages=0, channels=64, fc_channels=256, roi_samples=64, proposals=200, unit="epochs",
    length=160, milestones="120,145", warmup_iterations=20, warmup_from=0.1, batch=4,
    optimizer="adam", lr=5e-4, wd=0.0, short_px="256", max_px=320, eval_px=256, flip=False, pick=8,
    eval_every=20)


def of(base, backbone, ap, mask_ap, **changes):
    """Returns an entry: a backbone with its published box and mask AP."""
    return replace(base, network=f"mask_rcnn_fpn_{backbone}_{base.dataset}", expect_ap=ap,
                   expect_mask_ap=mask_ap, **changes)


RECIPES = {
    "resnest50": PAPER,
    "resnest101": of(PAPER, "resnest101", 45.75, 40.65),
    "resnet50": of(PAPER, "resnet50", 39.97, 36.05),
    "resnet101": of(PAPER, "resnet101", 41.78, 37.51),

    "resnest50@nosyncbn": of(NO_SYNC, "resnest50", 40.85, 36.99),
    "resnest101@nosyncbn": of(NO_SYNC, "resnest101", 43.98, None,
                              source=NO_SYNC.source + "; its mask AP is not legible"),
    "resnet50@nosyncbn": of(NO_SYNC, "resnet50", 38.60, 35.20),
    "resnet101@nosyncbn": of(NO_SYNC, "resnet101", 40.79, 36.93),

    "resnest50@3x": of(NO_SYNC_3X, "resnest50", 43.32, 38.91),
    "resnest101@3x": of(NO_SYNC_3X, "resnest101", 45.37, 40.56),
    "resnet50@3x": of(NO_SYNC_3X, "resnet50", 41.00, 37.20),
    "resnet101@3x": of(NO_SYNC_3X, "resnet101", 42.90, 38.60),

    "resnest50@mmdetection": of(MMDETECTION, "resnest50", 42.6, 38.1),
    "resnest101@mmdetection": of(MMDETECTION, "resnest101", 45.2, 40.2),

    "resnest50@lvis": LVIS,
    "resnest101@lvis": of(LVIS, "resnest101", None, None),
    "resnest50@lvis_2x": LVIS_2X,
    "resnest101@lvis_2x": of(LVIS_2X, "resnest101", None, None),
    "resnest50@lvis_federated": LVIS_FEDERATED,
    "resnest101@lvis_federated": of(LVIS_FEDERATED, "resnest101", None, None),

    "shapes": SHAPES,
    "tiny_coco": BY_HEART,
}

if __name__ == "__main__":
    cli.main(RECIPES, Detection)
