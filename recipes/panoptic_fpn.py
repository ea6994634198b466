"""Trains and evaluates Panoptic FPN on COCO: objects and stuff, a segment for every pixel.

    horovodrun -np 8 python recipes/panoptic_fpn.py --model resnest200 --device gpu --root coco \\
        --backbone-weights runs/resnest200 --workdir runs/panoptic200

Expected: PQ 47.90, 51.00 box AP and 43.68 mask AP on val2017 (the authors' slides and d2/README).
`coco` holds train2017, val2017 and annotations as COCO is distributed, the panoptic PNGs in
annotations/panoptic_train2017 and panoptic_val2017. The same file runs alone, without Horovod;
running it again on the same workdir continues.

    python recipes/panoptic_fpn.py --model shapes --smoke          wiring check, no data, a minute
    python recipes/panoptic_fpn.py --model shapes --data synthetic --synthetic-steps 400 \\
        --workdir runs/landscapes                                  trial on drawn shapes
    python recipes/panoptic_fpn.py --workdir runs/panoptic200 --root coco --eval-only
    python recipes/panoptic_fpn.py --root coco --eval-only --results runs/panoptic200/panoptic.json

Every evaluation writes panoptic.json and a folder of PNGs, in COCO's format, beside boxes.json and
masks.json into the workdir (docs/panoptic.md).
"""
from dataclasses import replace

from gluon_resnest import cli
from gluon_resnest.config import PanopticRecipe
from gluon_resnest.tasks.panoptic import PanopticSegmentation

# zhanghang1989/ResNeSt, d2/configs, Panoptic FPN with all tricks, on Detectron2's defaults:
# Cascade, SyncBN in all parts but the mask head, 3x, larger images in training; the semantic head's
# loss has weight 0.5.
PAPER = PanopticRecipe(
    network="panoptic_cascade_fpn_resnest200_coco", source="d2/configs, panoptic tricks 3x",
    length=270000, milestones="240000,255000", short_px="400,1000", sampling="range", max_px=1440,
    eval_max_px=1333, norm="sync,sync,sync,none", precise_bn_batches=200, expect_pq=47.90,
    expect_ap=51.00, expect_mask_ap=43.68)
UNPUBLISHED = replace(PAPER, source="as resnest200; no number published", expect_pq=None,
                      expect_ap=None, expect_mask_ap=None)

# Detectron2's TEST.AUG, on in d2/configs; there it is of boxes and masks alone (decision 0084).
TEST_TIME = dict(eval_scales="400,500,600,700,800,900,1000,1100,1200", eval_flip=True)

# A trial for the CPU, from scratch: drawn shapes before drawn stuff, with held-out pictures.
SHAPES = PanopticRecipe(
    network="panoptic_fpn_resnest14_coco", source="this project, for trials", classes=3, stuff=3,
    norm="sync", frozen_stages=0, box_head="2fc", mask_convs=2, channels=64, fc_channels=256,
    semantic_channels=32, roi_samples=32, proposals=64, detections=20, stuff_area=64,
    unit="epochs", length=6, milestones="5", warmup_iterations=50, warmup_from=0.01, batch=4,
    optimizer="adam", lr=5e-4, wd=0.0, short_px="128", max_px=160, eval_px=128, eval_every=1)

RECIPES = {
    "resnest200": PAPER,
    "resnest200@tta": replace(UNPUBLISHED, source=PAPER.source + ", test-time augmentation; no "
                              "number of its own published", **TEST_TIME),
    "resnest101": replace(UNPUBLISHED, network="panoptic_cascade_fpn_resnest101_coco"),
    "resnest50": replace(UNPUBLISHED, network="panoptic_fpn_resnest50_coco",
                         source="Mask R-CNN instead of Cascade, else as resnest200; no number "
                         "published"),
    "shapes": SHAPES,
}

if __name__ == "__main__":
    cli.main(RECIPES, PanopticSegmentation)
