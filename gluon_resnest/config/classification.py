"""The recipe of classification."""
import dataclasses
from dataclasses import dataclass
from typing import Optional

from gluon_resnest.config.fields import REQUIRED, Recipe, setting, with_update_settings
from gluon_resnest.errors import UserError


@dataclass(frozen=True)
@with_update_settings
class ClassificationRecipe(Recipe):
    """Numbers of one classification experiment. Durations are epochs, the batch is global."""

    network: str = setting(REQUIRED, "network by its zoo name")
    source: str = setting(REQUIRED, "where the numbers come from")
    classes: int = setting(1000, "number of classes", low=1)
    # schedule
    epochs: int = setting(270, "passes over the training set (paper, 5.1)", low=1)
    batch: int = setting(8192, "images per step over all workers (paper, 5.1)", low=1)
    base_lr: float = setting(0.1, "learning rate per 256 images; the peak is base_lr * batch / "
                             "256 (paper, 4.2)", low=0.0)
    lr: Optional[float] = setting(None, "peak learning rate instead of base_lr * batch / 256",
                                  low=0.0)
    warmup_epochs: float = setting(5.0, "epochs of linear warm-up from zero (paper, 4.2)", low=0.0)
    schedule: str = setting("cosine", "learning rate after the warm-up: half a cosine to zero "
                            "(paper, 4.2), or constant", choices=("cosine", "constant"))
    optimizer: str = setting("nag", "update rule", choices=("nag", "sgd", "adam"))
    momentum: float = setting(0.9, "momentum of nag and sgd (paper, 5.1)", low=0.0, high=1.0)
    wd: float = setting(1e-4, "weight decay (paper, 5.1)", low=0.0)
    decay_bias_and_norm: bool = setting(False, "decay gamma, beta and biases too (paper, 4.2: no)")
    last_gamma: bool = setting(True, "start the last gamma of each block at zero (paper, 4.2)")
    norm: str = setting("batch", "statistics of batch norms: of each worker's images, of all "
                        "workers' (sync), or the running ones, not trained (frozen)",
                        choices=("batch", "sync", "frozen"))
    seed: int = setting(0, "seed of every random choice", low=0)
    freeze_stages: int = setting(0, "leave the first stages as they are: 1 the stem, 2 and layer1, "
                                 "... 5 all but the head", low=0, high=5)
    # regularisation of the network
    dropblock: float = setting(0.1, "DropBlock probability of stages 3 and 4 at the end of the "
                               "linear ramp from 0", low=0.0, high=0.5)
    dropblock_rule: str = setting("published", "seed rate of DropBlock (decision 0001)",
                                  choices=("published", "exact"))
    dropblock_mask: str = setting("batch", "one DropBlock mask per batch or per sample",
                                  choices=("batch", "sample"))
    final_drop: Optional[float] = setting(None, "dropout before the classifier; none: the "
                                          "network's own (0.2 for 200 and 269)", low=0.0, high=0.9)
    # targets
    label_smoothing: float = setting(0.1, "eta of label smoothing (paper, eq. 5)", low=0.0,
                                     high=1.0)
    smoothing_formula: str = setting("uniform", "uniform: eta/K everywhere, as the released "
                                     "weights; paper: eq. 5", choices=("uniform", "paper"))
    mixup_alpha: float = setting(0.2, "mixup: lambda ~ Beta(alpha, alpha); 0 is off (paper, 4.2)",
                                 low=0.0)
    mixup_mode: str = setting("batch", "batch: one lambda per worker and step, as the released "
                              "weights; example: one per image, as the paper says",
                              choices=("batch", "example"))
    mixup_off_epochs: int = setting(0, "last epochs without mixup and CutMix", low=0)
    cutmix_alpha: float = setting(0.0, "CutMix: lambda ~ Beta(alpha, alpha); 0 is off", low=0.0)
    class_weights: str = setting("none", "balanced: an image counts by how rare its class is among "
                                 "the training images", choices=("none", "balanced"))
    # images
    crop_px: int = setting(224, "side of a training image", low=8)
    auto_augment: str = setting("authors", "policy: the list of the authors' code, the AutoAugment "
                                "paper's, RandAugment, or none",
                                choices=("authors", "paper", "randaugment", "none"))
    crop_rule: str = setting("auto", "random crop: gluon, efficientnet, auto (efficientnet from "
                             "320 px), pad (the image shifted by up to an eighth), or whole (none)",
                             choices=("auto", "gluon", "efficientnet", "pad", "whole"))
    crop_scale: Optional[float] = setting(None, "smallest share of the image's area in a random "
                                          "crop; none: the crop rule's, 0.08 or 0.1", low=0.01,
                                          high=1.0)
    jitter: float = setting(0.4, "brightness, contrast and saturation jitter", low=0.0, high=1.0)
    lighting: float = setting(0.1, "PCA lighting noise, standard deviation", low=0.0)
    erase_prob: float = setting(0.0, "probability of random erasing", low=0.0, high=1.0)
    flip: bool = setting(True, "mirror half of the training images")
    data_order: str = setting("global", "global: one permutation per epoch over all workers; "
                              "shards: fixed shards, reshuffled inside (paper, 5.1)",
                              choices=("global", "shards"))
    remainder: str = setting("fill", "last step of an epoch: filled from the next permutation, or "
                             "discarded", choices=("fill", "discard"))
    hold_out: int = setting(0, "training images, chosen by the seed, that are evaluated instead "
                            "of the evaluation set; 0: none, but finetune.py a fifth of a "
                            "folder that has no such set", low=0)
    # distillation
    teacher: str = setting("", "zoo name of a teacher network; empty: no distillation")
    temperature: float = setting(20.0, "softening of the distillation", low=1e-3)
    hard_weight: float = setting(0.5, "share of the true labels in distillation", low=0.0,
                                 high=1.0)
    # evaluation
    eval_px: int = setting(224, "crop of an evaluation image (paper, Tables 1 and 4)", low=8)
    eval_protocol: str = setting("gluon", "resize rule before the evaluation crop",
                                 choices=("gluon", "torch", "paper", "whole"))
    eval_every: int = setting(5, "epochs between evaluations", low=1)
    expect_top1: Optional[float] = setting(None, "published top-1 at eval_px in percent", low=0.0,
                                           high=100.0)
    expect_top1_320: Optional[float] = setting(None, "published top-1 at crop 320 in percent "
                                               "(Table 3)", low=0.0, high=100.0)
    tolerance: float = setting(0.3, "accepted distance below expect_top1, in points", low=0.0)

    def __post_init__(self):
        super().__post_init__()
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"warmup_epochs (={self.warmup_epochs:g}) must be smaller than epochs "
                            f"(={self.epochs}); lower it, for example to 0")
        if self.mixup_alpha and self.cutmix_alpha and self.mixup_mode == "example":
            raise UserError("mixup and CutMix together draw one of them per batch; use "
                            "mixup_mode=batch, or set one alpha to 0")

    @property
    def expected(self):
        """The published top-1 in percent at `eval_px`, or None."""
        if self.eval_px == 320 and self.expect_top1_320 is not None:
            return self.expect_top1_320
        return self.expect_top1

    @property
    def judged_at(self):
        """See `Recipe`."""
        return {"expect_top1": ("eval_px", "eval_protocol", "hold_out"),
                "expect_top1_320": ("eval_protocol", "hold_out")}

    @property
    def peak_lr(self):
        """The learning rate after warm-up: `lr`, or base_lr * batch / 256 (paper, 4.2)."""
        return self.base_lr * self.batch / 256 if self.lr is None else self.lr

    @property
    def overruled(self):
        """See `Recipe`."""
        return {} if self.lr is None else {"base_lr": "lr"}

    @property
    def per_worker(self):
        """What depends on how many workers share a batch; see `Recipe`."""
        mixes = self.mixup_alpha or self.cutmix_alpha
        return tuple(phrase for phrase, holds in (
            ("which images a batch norm sees", self.norm == "batch"),
            ("how many mixup weights a batch has", mixes and self.mixup_mode == "batch"),
            ("what DropBlock and dropout draw", self.dropblock or self.final_drop != 0),
            ("the order of the images", self.data_order == "shards")) if holds)

    def smoke(self, workers):
        """Returns the wiring check of this recipe: two epochs of one tiny step for `workers`."""
        return dataclasses.replace(self, epochs=2, warmup_epochs=1.0, batch=4 * workers,
                                   crop_px=64, eval_px=64, eval_every=1, expect_top1=None,
                                   hold_out=0, class_weights="none")
