"""The recipe of semantic segmentation."""
import dataclasses
import math
from dataclasses import dataclass
from typing import Optional

from gluon_resnest.config.fields import REQUIRED, Recipe, setting, with_update_settings
from gluon_resnest.errors import UserError


@dataclass(frozen=True)
@with_update_settings
class SegmentationRecipe(Recipe):
    """Numbers of one segmentation experiment. Durations are epochs, the batch is global."""

    network: str = setting(REQUIRED, "network by its zoo name, {head}_{backbone}[_{data set}]")
    source: str = setting(REQUIRED, "where the numbers come from")
    dataset: str = setting(REQUIRED, "layout of the data set's folders", choices=(
        "ade20k", "cityscapes", "pascal_context", "coco", "folder"))
    classes: int = setting(REQUIRED, "number of classes", low=2)
    output_stride: int = setting(8, "stride of the last feature map (paper, 6.3)", choices=(8, 16))
    norm: str = setting("sync", "batch norm over the images of all workers (paper, 6.3), of each "
                        "worker, or frozen", choices=("sync", "batch", "frozen"))
    head_channels: Optional[int] = setting(None, "channels inside the head; none: as published",
                                           low=1)
    head_dropout: bool = setting(True, "dropout in the heads, as published")
    # schedule
    epochs: int = setting(120, "passes over the training set (paper, 6.3)", low=1)
    batch: int = setting(16, "images per step over all workers", low=1)
    lr: float = setting(0.01, "learning rate of the backbone (decision 0070)", low=0.0)
    head_lr_factor: float = setting(10.0, "the heads learn faster by this factor", low=0.0)
    power: float = setting(0.9, "exponent of the polynomial decay", low=0.01)
    warmup_epochs: float = setting(0.0, "epochs of linear warm-up from zero", low=0.0)
    optimizer: str = setting("sgd", "update rule", choices=("nag", "sgd", "adam"))
    momentum: float = setting(0.9, "momentum of nag and sgd", low=0.0, high=1.0)
    beta2: float = setting(0.999, "decay of adam's second moments; .98 forgets in 50 steps how "
                           "large gradients once were", low=0.0, high=0.9999)
    wd: float = setting(1e-4, "weight decay", low=0.0)
    decay_bias_and_norm: bool = setting(True, "decay gamma, beta and biases too, as published")
    seed: int = setting(0, "seed of every random choice", low=0)
    # loss
    aux_weight: float = setting(0.5, "weight of the auxiliary head's loss (decision 0071)",
                                low=0.0)
    ohem_easy: Optional[float] = setting(None, "pixels whose class already has this probability "
                                         "are left out of the loss; none: all count", low=0.01,
                                         high=0.99)
    ohem_keep: int = setting(256, "hardest pixels of an image that always count", low=1)
    # images
    base_px: int = setting(520, "longer side of an image at scale 1", low=8)
    crop_px: int = setting(480, "side of a training crop and of an evaluation window", low=8)
    scale_low: float = setting(0.5, "smallest random scale", low=0.01)
    scale_high: float = setting(2.0, "largest random scale", low=0.01)
    flip: bool = setting(True, "mirror half of the training images")
    blur: float = setting(0.5, "probability of a Gaussian blur", low=0.0, high=1.0)
    # evaluation
    eval_scales: str = setting("0.5,0.75,1,1.25,1.5,1.75", "scales whose scores are added up")
    eval_flip: bool = setting(True, "look at mirror images too (paper, 6.3)")
    eval_rule: str = setting("exp", "scores: exponential of the logits, as published, or softmax",
                             choices=("exp", "softmax"))
    eval_every: int = setting(10, "epochs between evaluations", low=1)
    expect_miou: Optional[float] = setting(None, "published mIoU in per cent, multi-scale with "
                                           "flip", low=0.0, high=100.0)
    expect_pixacc: Optional[float] = setting(None, "published pixel accuracy in per cent, likewise",
                                             low=0.0, high=100.0)
    tolerance: float = setting(0.5, "accepted distance below expect_miou, in points", low=0.0)

    def __post_init__(self):
        super().__post_init__()
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"warmup_epochs (={self.warmup_epochs:g}) must be smaller than epochs "
                            f"(={self.epochs}); lower it, for example to 0")
        if self.scale_low > self.scale_high:
            raise UserError(f"scale_low (={self.scale_low:g}) must not exceed scale_high "
                            f"(={self.scale_high:g})")
        try:
            wrong = not all(0 < scale < math.inf for scale in self.scales)
        except ValueError:
            wrong = True
        if wrong:
            raise UserError("eval_scales must be positive numbers with commas between, such as "
                            f"0.5,1,1.5, got {self.eval_scales!r}")

    @property
    def scales(self):
        """The numbers of `eval_scales`."""
        return tuple(float(word) for word in self.eval_scales.split(","))

    @property
    def expected(self):
        """The published mIoU in per cent, or None where the evaluation is another one."""
        return self.expect_miou if self.eval_flip and len(self.scales) > 1 else None

    @property
    def judged_at(self):
        """See `Recipe`; windows and scale 1 of the evaluation are those of the training."""
        return dict.fromkeys(("expect_miou", "expect_pixacc"), (
            "base_px", "crop_px", "eval_scales", "eval_flip", "eval_rule"))

    @property
    def per_worker(self):
        """What depends on how many workers share a batch; see `Recipe`."""
        batch = ("which images a batch norm sees",) if self.norm == "batch" else ()
        dropout = ("what the heads' dropout draws",) if self.head_dropout else ()
        return (*batch, *dropout)

    def smoke(self, workers):
        """Returns the wiring check of this recipe: two epochs of one tiny step for `workers`."""
        return dataclasses.replace(self, epochs=2, warmup_epochs=0.0, batch=2 * workers,
                                   base_px=72, crop_px=64, eval_scales="0.75,1", eval_every=1,
                                   expect_miou=None, expect_pixacc=None)
