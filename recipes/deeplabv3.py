"""Trains and evaluates DeepLabV3 on ADE20K, Cityscapes and Pascal Context (paper, section 6.3).

    horovodrun -np 8 python recipes/deeplabv3.py --model resnest50_ade --workdir runs/deeplab50 \\
        --root ADEChallengeData2016 --backbone-weights resnest50.params

Expected: 45.12 % mIoU, 81.17 % pixel accuracy on ADE20K's validation set, six scales and flip.
The same file runs alone, without Horovod; running it again on the same workdir continues.

    python recipes/deeplabv3.py --smoke                              wiring check, no data, a minute
    python recipes/deeplabv3.py --model shapes --data synthetic --workdir runs/seg_shapes    trial
    python recipes/deeplabv3.py --model resnest101_ade --root DIR --eval-only --weights FILE
    python recipes/deeplabv3.py ... --eval-only --eval-scales 1 --eval-flip false    single scale
"""
from dataclasses import replace

from gluon_resnest import cli
from gluon_resnest.config import SegmentationRecipe
from gluon_resnest.tasks.segmentation import Segmentation

# Of PyTorch-Encoding's docs/source/model_zoo/segmentation.rst, on train_dist.py's defaults: a
# rate of 0.01 for ADE20K and 0.001 for Pascal Context at batch 16, an auxiliary loss that acts.
ENCODING = "PyTorch-Encoding's command"
ENCODING_AUX_WEIGHT = 0.2
ASSUMED = "no command published: assumed from the psp/danet siblings (dmlc/web-data)"

# dmlc/web-data gluoncv/logs/segmentation/deeplab_resnest*_ade.sh, 8 GPUs; the rest are the
# defaults of GluonCV's scripts/segmentation/train.py.
ADE = SegmentationRecipe(
    network="deeplab_resnest50_ade", source="Tables 1, 7; web-data deeplab_resnest50_ade.sh",
    dataset="ade20k", classes=150, epochs=120, batch=16, lr=0.01, base_px=520, crop_px=480,
    expect_miou=45.12, expect_pixacc=81.17)

CITYSCAPES = replace(
    ADE, network="deeplab_resnest50_citys", source=f"Table 7; {ASSUMED}", dataset="cityscapes",
    classes=19, epochs=240, base_px=2048, crop_px=768, expect_miou=79.87, expect_pixacc=None)

# GluonCV has no Pascal Context; numbers and commands are of the same authors' PyTorch-Encoding.
PASCAL_CONTEXT = replace(
    ADE, network="deeplab_resnest50_pcontext", source=ENCODING, dataset="pascal_context",
    classes=59, epochs=80, lr=0.001, aux_weight=ENCODING_AUX_WEIGHT, expect_miou=53.19,
    expect_pixacc=80.41)

# Trials for the CPU, of every part of the family in small: drawn shapes with held-out pictures, and
# a handful of images learned by heart (docs/segmentation.md).
SHAPES = SegmentationRecipe(
    network="deeplabplus_resnest_tiny", source="this project, for trials", dataset="folder",
    classes=6, head_channels=64, head_dropout=False, epochs=20, batch=32, norm="batch",
    optimizer="adam", lr=0.006, head_lr_factor=1.0, warmup_epochs=0.5, base_px=120, crop_px=96,
    scale_low=0.75, scale_high=1.25, blur=0.0, eval_scales="1", eval_flip=False,
    eval_rule="softmax", eval_every=2)
# Whole images, always the same batch: its statistics are those of the evaluation.
BY_HEART = replace(SHAPES, dataset="ade20k", classes=150, head_channels=32, epochs=400, batch=3,
                   warmup_epochs=20.0, base_px=400, crop_px=400, scale_low=1.0, scale_high=1.0,
                   flip=False, eval_every=100)

RECIPES = {
    "resnest50_ade": ADE,
    "resnest101_ade": replace(
        ADE, network="deeplab_resnest101_ade", expect_miou=46.91, expect_pixacc=82.07,
        source="Table 7; web-data deeplab_resnest101_ade.sh; 180 epochs in PyTorch-Encoding"),
    "resnest101_ade@180": replace(
        ADE, network="deeplab_resnest101_ade", epochs=180, aux_weight=ENCODING_AUX_WEIGHT,
        expect_miou=46.91, expect_pixacc=82.07, source=f"Table 7; {ENCODING}"),
    "resnest200_ade": replace(
        ADE, network="deeplab_resnest200_ade", epochs=180, aux_weight=ENCODING_AUX_WEIGHT,
        expect_miou=48.36, expect_pixacc=82.45,
        source=f"GluonCV model zoo; {ENCODING}, none in web-data"),
    "resnest269_ade": replace(
        ADE, network="deeplab_resnest269_ade", expect_miou=47.60, expect_pixacc=82.62,
        source="GluonCV model zoo; web-data deeplab_resnest269_ade.sh"),
    "resnet50_ade": replace(
        ADE, network="deeplab_resnet50_ade", expect_miou=42.10, expect_pixacc=80.39,
        source="Tables 1, 7; web-data deeplab_resnet50_ade.sh (4 GPUs); GluonCV model zoo has "
        "42.5, 80.5"),
    "resnet101_ade": replace(
        ADE, network="deeplab_resnet101_ade", expect_miou=44.14, expect_pixacc=81.11,
        source="Table 7; web-data deeplab_resnet101_ade.sh (4 GPUs)"),
    "fcn_resnest50_ade": replace(
        ADE, network="fcn_resnest50_ade", aux_weight=ENCODING_AUX_WEIGHT, expect_miou=42.94,
        expect_pixacc=80.18, source=ENCODING),

    "resnest50_citys": CITYSCAPES,
    "resnest101_citys": replace(CITYSCAPES, network="deeplab_resnest101_citys", expect_miou=80.42),
    **{f"{backbone}_citys": replace(
        CITYSCAPES, network=f"deeplab_{backbone}_citys", expect_miou=miou, expect_pixacc=pixacc,
        source=f"Table 7, pixel accuracy GluonCV model zoo; {ASSUMED}")
       for backbone, pixacc, miou in [("resnet50", 96.3, 78.72), ("resnet101", 96.4, 79.42)]},
    **{f"{backbone}_citys": replace(CITYSCAPES, network=f"deeplab_{backbone}_citys",
                                    expect_miou=None, source=f"{ASSUMED}; no number published")
       for backbone in ("resnest200", "resnest269")},
    "deeplabplus_resnest200_citys": replace(
        CITYSCAPES, network="deeplabplus_resnest200_citys", expect_miou=82.70,
        source=f"the authors' slides and README; {ASSUMED}"),

    "resnest50_pcontext": PASCAL_CONTEXT,
    **{f"{backbone}_pcontext": replace(
        PASCAL_CONTEXT, network=f"deeplab_{backbone}_pcontext", expect_miou=miou,
        expect_pixacc=pixacc)
       for backbone, pixacc, miou in [("resnest101", 81.91, 56.49), ("resnest200", 82.50, 58.37),
                                      ("resnest269", 83.06, 58.92)]},
    "fcn_resnest50_pcontext": replace(
        PASCAL_CONTEXT, network="fcn_resnest50_pcontext", expect_miou=51.98, expect_pixacc=79.19),

    "shapes": SHAPES,
    # Adam with a short memory and mined pixels: some of its 15 classes are 150 to 340 pixels.
    "ade20k_sample": replace(BY_HEART, wd=0.0, head_channels=64, lr=0.005, beta2=0.98, epochs=1000,
                             warmup_epochs=10.0, ohem_easy=0.5, ohem_keep=300, eval_every=50),
    "cityscapes_sample": replace(BY_HEART, dataset="cityscapes", classes=19, batch=1,
                                 base_px=768, crop_px=768),
}

if __name__ == "__main__":
    cli.main(RECIPES, Segmentation)
