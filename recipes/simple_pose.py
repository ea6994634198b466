"""Trains and evaluates SimplePose with ResNeSt backbones on COCO keypoints (paper, appendix B.1).

    horovodrun -np 8 python recipes/simple_pose.py --model resnest50 --device gpu \\
        --backbone-weights runs/resnest50 \\
        --train-annotations annotations/person_keypoints_train2017.json --train-images train2017 \\
        --val-annotations annotations/person_keypoints_val2017.json --val-images val2017 \\
        --workdir runs/pose_resnest50

Expected: 73.4 OKS AP with flip test on ground-truth boxes (72.3 with --eval-flip none), Table 8.
The same file runs alone, without Horovod; running it again on the same workdir continues.

    python recipes/simple_pose.py --model resnest50 --smoke       wiring check, no data, a minute
    python recipes/simple_pose.py --workdir runs/pose_resnest50 --eval-only \\
        --detections person_boxes.json --val-annotations FILE --val-images DIR

Every evaluation writes keypoints.json, in COCO's result format, into the workdir.
"""
from dataclasses import replace

from gluon_resnest import cli
from gluon_resnest.config import PoseRecipe
from gluon_resnest.tasks.pose import Pose

# Paper B.1 with GluonCV's train_simple_pose.py and simple_pose_resnet50_v1b_coco.sh: 8 GPUs of 32
# persons, Adam .001 without decay, a tenth after 90 and 120 of 140 epochs, no warm-up.
PAPER = PoseRecipe(
    network="resnest50", source="Table 8; GluonCV simple_pose_resnet50_v1b_coco.sh",
    epochs=140, batch=256, lr=0.001, decay_epochs="90,120", wd=0.0, height=256, width=192,
    sigma=2.0, scale=0.3, rotation=40.0, rotate_prob=0.6, expect_ap=73.4, expect_ap_no_flip=72.3)

# The paper's text says "batch size 32", which is that of one GPU (decision 0090).
TEXT = replace(PAPER, batch=32, source="Table 8; batch as in the text of B.1, read as global",
               expect_ap=None, expect_ap_no_flip=None)

# Not in the paper; Gaussians grow with the map, as in Xiao et al. 2018 (table 2).
LARGE = replace(PAPER, height=384, width=288, sigma=3.0, expect_ap=None, expect_ap_no_flip=None,
                source="not in the paper: Table 8 at 384x288")

RECIPES = {
    "resnest50": PAPER,
    "resnest101": replace(PAPER, network="resnest101", expect_ap=74.6, expect_ap_no_flip=73.6,
                          source="Table 8"),
    "resnet50": replace(PAPER, network="resnet50", expect_ap=72.2, expect_ap_no_flip=71.0,
                        source="Table 8; GluonCV's resnet50_v1b"),
    "resnet101": replace(PAPER, network="resnet101", expect_ap=73.6, expect_ap_no_flip=72.6,
                         source="Table 8; GluonCV's resnet101_v1b has 73.7 and 72.4"),
    "resnest50@batch32": TEXT,
    "resnest101@batch32": replace(TEXT, network="resnest101"),
    **{f"{network}@384x288": replace(LARGE, network=network)
       for network in ("resnest50", "resnest101", "resnet50", "resnet101")},
}

if __name__ == "__main__":
    cli.main(RECIPES, Pose)
