"""Trains and evaluates Cascade R-CNN and Cascade Mask R-CNN with FPN on COCO (paper, sections 6.1,
6.2 and appendix B.2).

    horovodrun -np 8 python recipes/cascade_rcnn.py --model resnest50 --device gpu --root coco \\
        --backbone-weights runs/resnest50 --workdir runs/cascade50

Expected: 45.41 box AP on val2017 (Table 5); with --model mask_resnest50, 46.19 box AP and 39.55
mask AP (Table 6). `coco` holds train2017, val2017 and annotations as COCO is distributed. The same
file runs alone, without Horovod; running it again on the same workdir continues.

    python recipes/cascade_rcnn.py --model tiny_coco --smoke       wiring check, no data, a minute
    python recipes/cascade_rcnn.py --workdir runs/cascade50 --root coco --eval-only
    python recipes/cascade_rcnn.py ... --eval-only --eval-scales 400,600,800,1000,1200 \\
        --eval-flip true                                           test-time augmentation

LVIS (entries with @lvis): `coco` also holds annotations/lvis_v1_train.json and lvis_v1_val.json.

On images without annotations, image_info_test-dev2017.json, --eval-only writes boxes.json and
masks.json for COCO's server (docs/detection.md).
"""
from dataclasses import replace

from gluon_resnest import cli
from gluon_resnest.config import DetectionRecipe
from gluon_resnest.tasks.detection import Detection

# zhanghang1989/ResNeSt, d2/configs, on Detectron2's defaults: 16 images, 1x, SyncBN in all parts,
# statistics recomputed over 200 batches; shorter sides as in Faster and in Mask R-CNN.
BOXES = DetectionRecipe(
    network="cascade_rcnn_fpn_resnest50_coco", source="Table 5; d2/configs", short_px="640,800",
    sampling="range", precise_bn_batches=200, expect_ap=45.41)
MASKS = DetectionRecipe(
    network="cascade_mask_rcnn_fpn_resnest50_coco", source="Tables 6, 11; d2/configs",
    precise_bn_batches=200, expect_ap=46.19, expect_mask_ap=39.55)

# Tables 9, 10 and 12 have no configuration; DCNv2 is in those of ResNeSt-50 and 200 alone.
ASSUMED_DCN = "assumed: d2/configs of ResNeSt-101 with the DCNv2 of its others"

# d2/configs/..._all_tricks_3x: crops, 8 convolutions in the mask head, larger training images, 3x.
TRICKS = replace(
    MASKS, length=270000, milestones="240000,255000", short_px="640,864", sampling="range",
    max_px=1440, eval_max_px=1333, crop=0.9, mask_convs=8,
    source="the authors' d2/README, all tricks 3x")
TEST_DEV_SCALES = "400,500,600,700,800,900,1000,1100,1200"      # Detectron2's TEST.AUG

# Detectron2's baselines, from which the numbers of ResNet-50 are; those of ResNeSt are taken to be
# trained alike (decision 0124).
NO_SYNC = replace(MASKS, norm="frozen", box_head="2fc", precise_bn_batches=0,
                  source="Table 11, 1x without SyncBN; Detectron2's baselines")
NO_SYNC_3X = replace(NO_SYNC, length=270000, milestones="210000,250000",
                     source="Table 11, 3x; Detectron2's baselines")

# open-mmlab/mmdetection, configs/resnest: no norm in the pyramid, 12 epochs.
_MMDETECTION = dict(
    conventions="mmdetection", resize="mmdetection", unit="epochs", length=12, milestones="8,11",
    warmup_iterations=500, decay="all", precise_bn_batches=0,
    source="mmdetection's page of ResNeSt")

# LVIS v1: Table 6's network with what Detectron2's configs/LVISv1-InstanceSegmentation change, in
# half of their 180000 iterations or in all of them, which is 1x and 2x by COCO's names; federated,
# with CenterNet2's loss. The authors' numbers on LVIS are not published (decision 0097).
LVIS = replace(
    MASKS, network="cascade_mask_rcnn_fpn_resnest50_lvis", dataset="lvis", classes=1203,
    detections=300, score_threshold=1e-4, repeat_threshold=0.001, expect_ap=None,
    expect_mask_ap=None, source="assumed: Table 6's network, Detectron2's LVISv1, 1x")
LVIS_2X = replace(LVIS, length=180000, milestones="120000,160000",
                  source="assumed: Table 6's network, Detectron2's LVISv1")
LVIS_FEDERATED = replace(LVIS, class_loss="federated",
                         source=LVIS.source + ", CenterNet2's federated loss")

# A trial for the CPU: eight images learned by heart (docs/detection.md).
BY_HEART = DetectionRecipe(
    network="cascade_mask_rcnn_fpn_resnest14_coco", source="this project, for trials", norm="sync",
    box_head="2fc", frozen_stages=0, channels=64, fc_channels=256, roi_samples=64, proposals=200,
    unit="epochs", length=240, milestones="210,230", warmup_iterations=20, warmup_from=0.1, batch=4,
    optimizer="adam", beta2=0.98, lr=5e-4, wd=0.0, short_px="256", max_px=320, eval_px=256,
    flip=False, pick=8, eval_every=20)


def of(base, backbone, ap, mask_ap=None, **changes):
    """Returns an entry: a backbone with its published box and mask AP."""
    family = "cascade_mask_rcnn" if "mask" in base.network else "cascade_rcnn"
    return replace(base, network=f"{family}_fpn_{backbone}_{base.dataset}", expect_ap=ap,
                   expect_mask_ap=mask_ap, **changes)


RECIPES = {
    "resnest50": BOXES,
    "resnest101": of(BOXES, "resnest101", 47.50),
    "resnest200": of(BOXES, "resnest200", 49.03),
    "resnet50": of(BOXES, "resnet50", 42.52),
    "resnet101": of(BOXES, "resnet101", 44.03),
    "resnest101_dcn": of(BOXES, "resnest101_dcn", 49.2, expect_on="test-dev",
                         source=f"Table 9, test-dev; {ASSUMED_DCN}"),

    "mask_resnest50": MASKS,
    "mask_resnest101": of(MASKS, "resnest101", 48.30, 41.56,
                          source="Tables 6, 11, 12; d2/configs"),
    "mask_resnet50": of(MASKS, "resnet50", 43.06, 37.19),
    "mask_resnet101": of(MASKS, "resnet101", 44.79, 38.52),
    "mask_resnest101_dcn": of(MASKS, "resnest101_dcn", 49.39, 42.56,
                              source=f"Table 12; {ASSUMED_DCN}"),
    "mask_resnest101_dcn@test-dev": of(
        MASKS, "resnest101_dcn", 50.0, 43.0, expect_on="test-dev",
        source=f"Table 10, test-dev; {ASSUMED_DCN}; 43.1 masks in the text"),

    "mask_resnest200@tricks": of(TRICKS, "resnest200", 50.54, 44.21),
    "mask_resnest200_dcn@tricks": of(TRICKS, "resnest200_dcn", 50.91, 44.50),
    "mask_resnest200_dcn@test-dev": of(
        TRICKS, "resnest200_dcn", 53.30, 47.10, expect_on="test-dev", eval_flip=True,
        eval_scales=TEST_DEV_SCALES,
        source=TRICKS.source + ", multi-scale test-dev; scales are Detectron2's defaults"),

    "mask_resnest50@nosyncbn": of(NO_SYNC, "resnest50", 44.56, 38.27),
    "mask_resnest101@nosyncbn": of(NO_SYNC, "resnest101", None, None,
                                   source=NO_SYNC.source + "; its numbers are not legible"),
    "mask_resnet50@nosyncbn": of(NO_SYNC, "resnet50", 42.10, 36.40),
    "mask_resnet101@nosyncbn": of(NO_SYNC, "resnet101", 44.00, 38.08),

    "mask_resnest50@3x": of(NO_SYNC_3X, "resnest50", 46.39, 39.99),
    "mask_resnest101@3x": of(NO_SYNC_3X, "resnest101", 47.70, 41.16),
    "mask_resnet50@3x": of(NO_SYNC_3X, "resnet50", None, 38.5,
                           source=NO_SYNC_3X.source + " (44.3 boxes; not legible in the table)"),
    "mask_resnet101@3x": of(NO_SYNC_3X, "resnet101", 45.57, 39.54),

    "resnest50@mmdetection": of(replace(BOXES, **_MMDETECTION), "resnest50", 44.5),
    "resnest101@mmdetection": of(replace(BOXES, **_MMDETECTION), "resnest101", 46.8),
    "mask_resnest50@mmdetection": of(replace(MASKS, **_MMDETECTION), "resnest50", 45.4, 39.5),
    "mask_resnest101@mmdetection": of(replace(MASKS, **_MMDETECTION), "resnest101", 47.7, 41.4),

    "mask_resnest50@lvis": LVIS,
    "mask_resnest101@lvis": of(LVIS, "resnest101", None),
    "mask_resnest50@lvis_2x": LVIS_2X,
    "mask_resnest101@lvis_2x": of(LVIS_2X, "resnest101", None),
    "mask_resnest50@lvis_federated": LVIS_FEDERATED,
    "mask_resnest101@lvis_federated": of(LVIS_FEDERATED, "resnest101", None),

    "tiny_coco": BY_HEART,
}

if __name__ == "__main__":
    cli.main(RECIPES, Detection)
