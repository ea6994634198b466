"""Trains and evaluates Faster R-CNN with FPN on COCO (paper, section 6.1).

    horovodrun -np 8 python recipes/faster_rcnn.py --model resnest50 --device gpu --root coco \\
        --backbone-weights runs/resnest50 --workdir runs/faster50

Expected: 42.33 box AP on val2017 (Table 5). `coco` holds train2017, val2017 and annotations as
COCO is distributed; --train-annotations and the like take a json of one's own. The same file runs
alone, without Horovod; running it again on the same workdir continues.

    python recipes/faster_rcnn.py --model tiny_coco --smoke        wiring check, no data, a minute
    python recipes/faster_rcnn.py --workdir runs/faster50 --root coco --eval-only
    python recipes/faster_rcnn.py --root coco --eval-only --results runs/faster50/boxes.json

Every evaluation writes boxes.json, in COCO's result format, into the workdir (docs/detection.md).
"""
from dataclasses import replace

from gluon_resnest import cli
from gluon_resnest.config import DetectionRecipe
from gluon_resnest.tasks.detection import Detection

# zhanghang1989/ResNeSt, d2/configs/COCO-Detection, on Detectron2's defaults: 16 images, 1x, shorter
# side any of 640 to 800, SyncBN in all parts, statistics recomputed over 200 batches.
PAPER = DetectionRecipe(
    network="faster_rcnn_fpn_resnest50_coco", source="Tables 1, 5; d2/configs", short_px="640,800",
    sampling="range", precise_bn_batches=200, expect_ap=42.33)

# open-mmlab/mmdetection, configs/resnest: no norm in the pyramid, 12 epochs.
MMDETECTION = replace(
    PAPER, conventions="mmdetection", resize="mmdetection", unit="epochs", length=12,
    milestones="8,11", warmup_iterations=500, decay="all", precise_bn_batches=0, expect_ap=42.0,
    source="mmdetection's page of ResNeSt")

# dmlc/web-data, gluoncv/logs/detection/faster_rcnn_fpn_syncbn_resnest*_coco.sh: 26 epochs. GluonCV
# resizes as mmdetection does: OpenCV's bilinear interpolation, both limits at once.
GLUONCV = replace(
    PAPER, conventions="gluoncv", resize="mmdetection", unit="epochs", length=26,
    milestones="20,24", warmup_iterations=500, warmup_from=0.3333, frozen_stages=0, decay="all",
    precise_bn_batches=0, expect_ap=42.7, source="GluonCV model zoo; web-data")

# A trial for the CPU: eight images learned by heart (docs/detection.md).
BY_HEART = DetectionRecipe(
    network="faster_rcnn_fpn_resnest14_coco", source="this project, for trials", norm="sync",
    frozen_stages=0, channels=64, fc_channels=256, roi_samples=64, proposals=200, unit="epochs",
    length=160, milestones="120,145", warmup_iterations=20, warmup_from=0.1, batch=4,
    optimizer="adam", lr=5e-4, wd=0.0, short_px="256", max_px=320, eval_px=256, flip=False, pick=8,
    eval_every=20)

RECIPES = {
    "resnest50": PAPER,
    "resnest101": replace(PAPER, network="faster_rcnn_fpn_resnest101_coco", expect_ap=44.72,
                          source="Table 5; d2/configs"),
    "resnest50_dcn": replace(PAPER, network="faster_rcnn_fpn_resnest50_dcn_coco", expect_ap=44.11,
                             source="the authors' d2/README; d2/configs"),
    "resnet50": replace(PAPER, network="faster_rcnn_fpn_resnet50_coco", expect_ap=39.25),
    "resnet101": replace(PAPER, network="faster_rcnn_fpn_resnet101_coco", expect_ap=41.37,
                         source="Table 5; d2/configs"),

    "resnest50@mmdetection": MMDETECTION,
    "resnest101@mmdetection": replace(MMDETECTION, network="faster_rcnn_fpn_resnest101_coco",
                                      expect_ap=44.5),

    "resnest50@gluoncv": GLUONCV,
    "resnest101@gluoncv": replace(GLUONCV, network="faster_rcnn_fpn_resnest101_coco",
                                  expect_ap=44.9),
    "resnest269@gluoncv": replace(
        GLUONCV, network="faster_rcnn_fpn_resnest269_coco", batch=8, lr=0.01,
        warmup_iterations=1000, short_px="640,864", max_px=1440, eval_px=864, expect_ap=46.5),

    "tiny_coco": BY_HEART,
}

if __name__ == "__main__":
    cli.main(RECIPES, Detection)
