"""Trains and evaluates ResNeSt and its baselines on ImageNet-1k from RecordIO (paper, section 5).

    horovodrun -np 64 -H host1:8,host2:8,... python recipes/imagenet.py --model resnest50 \\
        --rec-train train.rec --rec-val val.rec --workdir runs/resnest50

Expected: 81.04 % top-1 at crop 224 after 270 epochs (released weights; the paper says 81.13).
The same file runs alone, without Horovod; running it again on the same workdir continues.

    python recipes/imagenet.py --model resnest50 --smoke             wiring check, no data, a minute
    python recipes/imagenet.py --model resnest50 --data synthetic --workdir runs/speed
    python recipes/imagenet.py --model resnest269 --eval-only --weights FILE --rec-val val.rec
"""
from dataclasses import replace

from gluon_resnest import cli
from gluon_resnest.config import ClassificationRecipe
from gluon_resnest.tasks.classification import Classification

# Paper 4.2 and 5.1 with the commands of dmlc/web-data gluoncv/logs/classification/imagenet/*.sh:
# 64 workers x 128 images, peak 0.1 * 8192 / 256 = 3.2, 270 epochs, fp32, all tricks on.
PAPER = ClassificationRecipe(
    network="resnest50",
    source="GluonCV model zoo, at 320 Table 3; web-data resnest50.sh; Tables 2, 3 have 81.13",
    epochs=270, batch=8192, base_lr=0.1, warmup_epochs=5.0, wd=1e-4, momentum=0.9,
    label_smoothing=0.1, mixup_alpha=0.2, dropblock=0.1, auto_augment="authors", last_gamma=True,
    crop_px=224, eval_px=224, expect_top1=81.04, expect_top1_320=81.82)

# The small nets were trained by 8 workers (web-data resnest14.sh, resnest26.sh): peak 0.4.
SMALL = replace(PAPER, batch=1024, expect_top1_320=None)

# Section 5.2: the same recipe with the average pooling before the 3x3 convolution.
TRAINED_AS_50 = "training as ResNeSt-50 (no command published)"
FAST = replace(PAPER, expect_top1_320=None)

# Table 2 (left), first rows: GluonCV's resnet50_v1d of 120 epochs and 200 with mixup, 8 workers.
RESNET_D = replace(
    SMALL, network="resnet50d", epochs=120, mixup_alpha=0.0, auto_augment="none", dropblock=0.0,
    source="Table 2; GluonCV resnet50_v1d.sh (fp16 there)", expect_top1=78.31)

RESNET_D_MIXUP = replace(RESNET_D, epochs=200, mixup_alpha=0.2)

# Table 3 quotes its other baselines from their papers and names no recipe for them.
QUOTED = replace(RESNET_D, source="Table 3, quoted there; recipe assumed: ResNetD-50's of Table 2")

# The ResNet rows of detection and of segmentation stand on other forms than those of Table 3: the
# first 1x1 convolution strides, or the stem is deep (docs/detection.md, docs/segmentation.md).
BACKBONES = [("resnet50_msra", "Tables 1, 5, 6, 11"), ("resnet101_msra", "Tables 5, 6, 11"),
             ("resnet50_v1s", "Tables 1, 7"), ("resnet101_v1s", "Table 7")]

RECIPES = {
    "resnest50": PAPER,
    "resnest101": replace(
        PAPER, network="resnest101", batch=4096, eval_px=256, expect_top1=82.83,
        expect_top1_320=83.00, source="GluonCV model zoo, at 320 Table 3; web-data resnest101.sh; "
        "the authors' README has 82.81, Table 1 82.8, Table 4 83.0; at 224 Table 3 has 82.27"),
    "resnest200": replace(
        PAPER, network="resnest200", batch=2048, crop_px=256, eval_px=320, expect_top1=83.88,
        expect_top1_320=None, source="the authors' README; web-data resnest200.sh; GluonCV model "
        "zoo has 83.86, Tables 1, 4 have 83.9"),
    "resnest269": replace(
        PAPER, network="resnest269", batch=2048, crop_px=320, eval_px=416, expect_top1=84.53,
        expect_top1_320=None, source="GluonCV model zoo; web-data resnest269.sh; Tables 1, 4 have "
        "84.5"),
    "resnest14": replace(SMALL, network="resnest14", dropblock=0.0, expect_top1=75.75,
                         source="GluonCV model zoo; web-data resnest14.sh"),
    "resnest26": replace(SMALL, network="resnest26", expect_top1=78.68,
                         source="GluonCV model zoo; web-data resnest26.sh"),
    "resnest50_fast_2s1x64d": replace(FAST, network="resnest50_fast_2s1x64d", expect_top1=80.65,
                                      expect_top1_320=81.43, source="ablation.md, at 320 Table "
                                      f"3; Tables 2, 3 have 80.64; {TRAINED_AS_50}"),
    "resnest101_fast_2s1x64d": replace(
        FAST, network="resnest101_fast_2s1x64d", batch=4096, expect_top1=81.97,
        expect_top1_320=82.76, source="Table 3; batch as ResNeSt-101 (no command published)"),
    **{f"resnest50_fast_{variant}": replace(
        FAST, network=f"resnest50_fast_{variant}", expect_top1=top1,
        source=f"{printed}; {TRAINED_AS_50}")
       for variant, top1, printed in [
           # ResNetD-50, printed twice: with AutoAugment, and as radix 0 of the ablation.
           ("0s1x64d", 79.41, "Table 2, left and right; DropBlock assumed"),
           ("1s1x64d", 80.35, "Table 2 and ablation.md"),
           ("4s1x64d", 80.90, "Table 2 and ablation.md"), ("1s2x40d", 80.72, "ablation.md"),
           ("2s2x40d", 80.84, "ablation.md; Table 2 has 81.00"),
           ("4s2x40d", 81.17, "ablation.md"), ("1s4x24d", 80.97, "ablation.md")]},
    "resnet50d": RESNET_D,
    "resnet50d_mixup": replace(RESNET_D_MIXUP, expect_top1=79.15, expect_top1_320=79.70,
                               source="Tables 2, 3; GluonCV resnet50_v1d-mixup.sh (fp16 there)"),
    "resnet101d": replace(RESNET_D_MIXUP, network="resnet101d", expect_top1=80.54,
                          expect_top1_320=81.26,
                          source="Table 3; GluonCV resnet101_v1d.sh (fp16 there)"),
    **{network: replace(QUOTED, network=network, expect_top1=top1, expect_top1_320=top1_320)
       for network, top1, top1_320 in [
           ("resnet50", 76.15, 76.86), ("resnext50_32x4d", 77.77, 78.95),
           ("senet50", 78.88, 80.29), ("sknet50", 79.21, 80.68),
           ("resnet101", 77.37, 78.17), ("resnext101_32x4d", 78.89, 80.14),
           ("senet101", 79.42, 81.39), ("sknet101", 79.81, 81.60)]},
    **{network: replace(
        RESNET_D, network=network, expect_top1=None, source="backbone of the ResNet rows of "
        f"{tables} (no recipe published); assumed: that of ResNetD-50")
       for network, tables in BACKBONES},
}

if __name__ == "__main__":
    cli.main(RECIPES, Classification)
