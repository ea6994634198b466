"""Fine-tunes a trained network on one's own pictures, a folder for each class (docs/finetuning.md).

    python recipes/finetune.py --data pictures --model resnest50 --weights resnest50.params \\
        --workdir runs/mine
    python recipes/finetune.py --data pictures --model resnest14_2s1x64d --crop-px 64 \\
        --eval-px 64 --weights runs/cifar10/resnest14_2s1x64d --workdir runs/mine
    python recipes/finetune.py --data hotdog --model resnest50@report --weights resnest50.params \\
        --workdir runs/hotdog

NAME is a network of the zoo; NAME@report takes the settings of the CIFAR-10 report's section IV.C.
--weights is a parameter file, the run directory of a classification recipe, or: published.
"""
from dataclasses import replace

from gluon_resnest import cli
from gluon_resnest.config import ClassificationRecipe
from gluon_resnest.tasks.finetuning import NETWORKS, FineTuning

# Chosen by this project for some hundred pictures (decision 0131).
OURS = ClassificationRecipe(
    network="resnest50", source="this project", classes=2, epochs=30, batch=32, lr=0.002,
    lr_factors="fc=10", warmup_epochs=1.0, optimizer="nag", momentum=0.9, wd=1e-4,
    last_gamma=False, dropblock=0.0, final_drop=0.2, label_smoothing=0.1, mixup_alpha=0.0,
    class_weights="balanced", auto_augment="none", crop_scale=0.35, jitter=0.4, lighting=0.1,
    eval_every=1, patience=10)

# Section IV.C: SGD, 5e-5 and ten times that for the new layer, weight decay 0.001, 5 epochs,
# "standard normalization and data augmentation". Batch, crops and no momentum as in Dive into Deep
# Learning, section 14.2, which the report follows; it adds the losses of a batch up, so that its
# rates mean 128 times ours (decision 0131).
REPORT = replace(
    OURS, source="CIFAR-10 report, IV.C; 95.0 % with ResNeSt-50 from ImageNet", tolerance=2.0,
    epochs=5, batch=128,
    lr=5e-5, warmup_epochs=0.0, schedule="constant", optimizer="sgd", momentum=0.0, wd=1e-3,
    decay_bias_and_norm=True, final_drop=0.0, label_smoothing=0.0, class_weights="none",
    crop_scale=0.08, jitter=0.0, lighting=0.0, patience=0)

RECIPES = {f"{name}{ending}": replace(preset, network=name)
           for ending, preset in (("", OURS), ("@report", REPORT)) for name in
           ("resnest50", *(name for name in NETWORKS if name != "resnest50"))}
SHOWN = ("resnest50", "resnest50@report")       # in recipes/README.md

if __name__ == "__main__":
    cli.main(RECIPES, FineTuning)
