"""The recipe of detection and instance segmentation."""
import dataclasses
from dataclasses import dataclass
from typing import Optional

from gluon_resnest.config.fields import REQUIRED, Recipe, setting, with_update_settings
from gluon_resnest.errors import UserError

# What is looked at, how large, and what becomes of what is found.
_EVALUATION = ("pick", "resize", "eval_px", "longest_eval_px", "eval_scales", "eval_scales_max_px",
               "eval_flip", "conventions", "proposals", "detections", "score_threshold")


@dataclass(frozen=True)
@with_update_settings
class DetectionRecipe(Recipe):
    """Numbers of one experiment with Faster, Mask or Cascade R-CNN. The batch is global.

    Detection's schedules are published in iterations or in epochs; `unit` says in which this
    recipe counts `length` and `milestones` (decision 0122).
    """

    network: str = setting(REQUIRED, "network by its zoo name, {family}_fpn_{backbone}[_dcn]_"
                           "{coco|lvis}")
    source: str = setting(REQUIRED, "where the numbers come from")
    dataset: str = setting("coco", "whose annotation files are read and whose AP judges; coco: "
                           "those in COCO's format and VOC's layout, too", choices=("coco", "lvis"))
    classes: int = setting(80, "number of classes of objects", low=1)
    conventions: str = setting("detectron2", "framework whose definitions of anchors, targets, "
                               "losses and post-processing hold",
                               choices=("detectron2", "mmdetection", "gluoncv"))
    norm: str = setting("sync", "batch norm over the images of all workers (sync), of each worker "
                        "(batch), or the backbone's statistics kept and no other norm (frozen); or "
                        "those of backbone, pyramid, heads and maybe, where they differ, mask "
                        "heads, such as frozen,sync,none")
    frozen_stages: int = setting(2, "of the backbone, stem first, learn nothing", low=0, high=5)
    box_head: str = setting("4conv1fc", "layers of the box head", choices=("4conv1fc", "2fc"))
    mask_convs: int = setting(4, "convolutions of the mask head", low=1)
    channels: int = setting(256, "of the pyramid and of the heads' convolutions", low=1)
    fc_channels: int = setting(1024, "of the box head's dense layers", low=1)
    roi_samples: Optional[int] = setting(None, "RoIs of an image in the losses; none: as the "
                                         "conventions say", low=4)
    proposals: Optional[int] = setting(None, "boxes of an image that the RPN passes on; none: as "
                                       "the conventions say", low=1)
    detections: Optional[int] = setting(None, "detections of an image that are kept; none: as the "
                                        "conventions say", low=1)
    score_threshold: Optional[float] = setting(None, "detections score higher; none: as the "
                                               "conventions say", low=0.0, high=1.0)
    class_loss: str = setting("softmax", "classes of RoIs are learnt and scored by softmax, by a "
                              "sigmoid for each, or so with a loss over some of the classes, those "
                              "of the images of a step and others drawn (federated)",
                              choices=("softmax", "sigmoid", "federated"))
    federated_classes: int = setting(50, "classes in the federated loss", low=1)
    dropblock: float = setting(0.0, "DropBlock probability of stages 3 and 4", low=0.0, high=0.5)
    # schedule
    unit: str = setting("iterations", "in which length and milestones count",
                        choices=("iterations", "epochs"))
    length: int = setting(90000, "of the training, in units (Detectron2's 1x)", low=1)
    milestones: str = setting("60000,80000", "units after which the rate is divided by 10")
    warmup_iterations: int = setting(1000, "of linear warm-up", low=0)
    warmup_from: float = setting(0.001, "share of the rate at which the warm-up begins", low=0.0,
                                 high=1.0)
    batch: int = setting(16, "images per step over all workers", low=1)
    lr: float = setting(0.02, "learning rate", low=0.0)
    optimizer: str = setting("sgd", "update rule", choices=("nag", "sgd", "adam"))
    momentum: float = setting(0.9, "momentum of nag and sgd", low=0.0, high=1.0)
    beta2: float = setting(0.999, "decay of adam's second moments; .98 forgets in 50 steps how "
                           "large gradients once were", low=0.0, high=0.9999)
    wd: float = setting(1e-4, "weight decay", low=0.0)
    decay: str = setting("no_norms", "what decays: all, all but norms (Detectron2), or weights "
                         "alone", choices=("all", "no_norms", "weights"))
    normalize: str = setting("global", "what losses are divided by: counts of all workers, so that "
                             "N workers equal one, or of each one (local), as published",
                             choices=("global", "local"))
    seed: int = setting(0, "seed of every random choice", low=0)
    # images
    short_px: str = setting("640,672,704,736,768,800", "shorter sides of training images")
    sampling: str = setting("choice", "the shorter side is one of them, or any number in their "
                            "range", choices=("choice", "range"))
    max_px: int = setting(1333, "limit of the longer side", low=32)
    resize: str = setting("detectron2", "framework whose resizing it is; GluonCV's as mmdetection",
                          choices=("detectron2", "mmdetection"))
    flip: bool = setting(True, "mirror half of the training images")
    crop: Optional[float] = setting(None, "random crops keep at least this share of height and "
                                    "width; none: no crops", low=0.1, high=1.0)
    skip_empty: bool = setting(True, "leave out training images without objects")
    max_pixels: Optional[int] = setting(None, "largest height times width of a padded image",
                                        low=1024)
    repeat_threshold: float = setting(0.0, "images with a class that is on a smaller share of the "
                                      "images come more often (repeat-factor sampling); 0: none",
                                      low=0.0, high=1.0)
    pick: int = setting(0, "train and evaluate on the first so many training images without a "
                        "crowd and without a box below 16 px on a side as resized; 0: on all",
                        low=0)
    # evaluation
    eval_px: int = setting(800, "shorter side of evaluation images", low=32)
    eval_max_px: Optional[int] = setting(None, "limit of their longer side; none: max_px", low=32)
    eval_scales: str = setting("", "shorter sides of test-time augmentation, such as 400,600,800; "
                               "empty: none")
    eval_scales_max_px: int = setting(4000, "limit of their longer sides", low=32)
    eval_flip: bool = setting(False, "test-time augmentation looks at mirror images too")
    eval_every: int = setting(4, "epochs between evaluations", low=1)
    expect_ap: Optional[float] = setting(None, "published box AP in per cent", low=0.0, high=100.0)
    expect_mask_ap: Optional[float] = setting(None, "published mask AP in per cent", low=0.0,
                                              high=100.0)
    expect_on: str = setting("val", "images of the published AP: val2017, or test-dev, which only "
                             "COCO's server judges", choices=("val", "test-dev"))
    tolerance: float = setting(0.5, "accepted distance below expect_ap, in points", low=0.0)

    def __post_init__(self):
        super().__post_init__()
        sizes, scales = self._numbers("short_px"), self._numbers("eval_scales", empty=True)
        if min(sizes) < 1 or max(sizes) > self.max_px:
            raise UserError(f"short_px must lie between 1 and max_px (={self.max_px}), got "
                            f"{self.short_px}")
        if self.eval_px > self.longest_eval_px:
            raise UserError("eval_px must not exceed eval_max_px, or max_px without one "
                            f"(={self.longest_eval_px}), got {self.eval_px}")
        if scales and (min(scales) < 1 or max(scales) > self.eval_scales_max_px):
            raise UserError("eval_scales must lie between 1 and eval_scales_max_px "
                            f"(={self.eval_scales_max_px}), got {self.eval_scales}")
        if self.eval_flip and not scales:
            raise UserError("eval_flip belongs to test-time augmentation; give its eval_scales, "
                            f"for example {self.eval_px}")
        decays = self._numbers("milestones", empty=True)
        if list(decays) != sorted(set(decays)) or any(not 0 < at < self.length for at in decays):
            raise UserError(f"milestones must ascend and lie within length (={self.length}), got "
                            f"{self.milestones!r}")
        words = self.norm.split(",")
        if len(words) not in (1, 3, 4) or words[0] == "none" or not set(words) <= {
                "sync", "batch", "frozen", "none"}:
            raise UserError("norm must be sync, batch or frozen, or three or four of sync, batch, "
                            "frozen and none (not for the backbone) with commas, got "
                            f"{self.norm!r}")

    def _numbers(self, name, *, empty=False):
        """Returns the whole numbers of a field with commas between them."""
        text = getattr(self, name)
        words = [word for word in text.split(",") if word.strip()]
        if not all(word.strip().isdecimal() for word in words) or not (words or empty):
            raise UserError(f"{name} must be whole numbers with commas between, such as 640,800, "
                            f"got {text!r}")
        return tuple(map(int, words))

    @property
    def longest_eval_px(self):
        """The limit of the longer side of evaluation images."""
        return self.max_px if self.eval_max_px is None else self.eval_max_px

    @property
    def short_sides(self):
        """The numbers of `short_px`."""
        return self._numbers("short_px")

    @property
    def scales(self):
        """The numbers of `eval_scales`."""
        return self._numbers("eval_scales", empty=True)

    @property
    def norms(self):
        """The norm policies of backbone, pyramid, heads and maybe mask heads; None is no norm."""
        words = self.norm.split(",")
        if len(words) == 1:
            words = [self.norm] + 2 * ["none" if self.norm == "frozen" else self.norm]
        return tuple(None if word == "none" else word for word in words)

    def steps(self, steps_per_epoch):
        """Returns how many updates the training is."""
        return self.length * self.steps_per_unit(steps_per_epoch)

    def decay_steps(self, steps_per_epoch):
        """Returns the updates after which the rate falls."""
        unit = self.steps_per_unit(steps_per_epoch)
        return tuple(at * unit for at in self._numbers("milestones", empty=True))

    def steps_per_unit(self, steps_per_epoch):
        """Returns how many updates a unit of `length` and `milestones` is."""
        return steps_per_epoch if self.unit == "epochs" else 1

    @property
    def expected(self):
        """The published value in per cent, or None where this evaluation is another one."""
        return self._published if self.expect_on == "val" and not self.scales else None

    @property
    def judged_at(self):
        """See `Recipe`."""
        return dict.fromkeys(("expect_ap", "expect_mask_ap"), _EVALUATION)

    @property
    def _published(self):
        return self.expect_ap

    @property
    def per_worker(self):
        """What depends on how many workers share a batch; see `Recipe`."""
        return tuple(phrase for phrase, holds in (
            ("which images a batch norm sees", "batch" in self.norms),
            ("how images are padded", True),
            ("what losses are divided by", self.normalize == "local"),
            ("what DropBlock draws", self.dropblock)) if holds)

    def smoke(self, workers):
        """Returns the wiring check of this recipe: two epochs of one tiny step for `workers`."""
        return dataclasses.replace(
            self, unit="epochs", length=2, milestones="", warmup_iterations=0, batch=2 * workers,
            short_px="64", eval_px=64, max_px=96, eval_max_px=None, eval_scales="",
            eval_flip=False, max_pixels=None, pick=0, roi_samples=8, proposals=16, detections=8,
            eval_every=1, lr=1e-4, expect_ap=None, expect_mask_ap=None,
            precise_bn_batches=min(1, self.precise_bn_batches))
