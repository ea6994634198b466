"""Recipes as frozen dataclasses: checked when made, every field a flag, a JSON round trip.

A recipe holds the numbers of an experiment, nothing about a machine or a path. One that differs is
`dataclasses.replace(RECIPES["resnest50"], crop_px=256)`; nothing is inherited or merged.
"""
import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Optional

from gluon_resnest.errors import UserError, nearest


def setting(default, help, *, choices=None, low=None, high=None):
    """Declares a recipe field: its default, the sentence `--help` shows, and what it may be.

    Args:
      default: value, or `dataclasses.MISSING` where every recipe must say.
      help: one sentence with unit and source.
      choices: allowed values.
      low, high: inclusive range of a number.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


REQUIRED = dataclasses.MISSING


class Recipe:
    """Behaviour shared by the recipe dataclasses: checks, overrides, JSON."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))

    def to_json(self):
        """Returns a dict of plain values that `from_json` turns back into an equal recipe."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values):
        """Makes a recipe from `to_json`'s dict; an unknown or missing key is an error."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise UserError(f"{cls.__name__} has no field {name!r}{nearest(name, known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"{cls.__name__} cannot be made from the given fields: "
                            f"{error}") from error


def _plain_type(field):
    """Returns (type, may be None) of a field annotated `T` or `Optional[T]`."""
    arguments = typing.get_args(field.type)
    if arguments:
        return arguments[0], True
    return field.type, False


def _check(field, value):
    kind, optional = _plain_type(field)
    if value is None and optional:
        return
    number = (int, float) if kind is float else kind
    if not isinstance(value, number) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{field.name} must be {kind.__name__}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{field.name} must be finite, got {value!r}")
    rule = field.metadata
    if rule.get("choices") and value not in rule["choices"]:
        raise UserError(f"{field.name} must be one of {', '.join(map(str, rule['choices']))}, "
                        f"got {value!r}{nearest(value, rule['choices'])}")
    if rule.get("low") is not None and value < rule["low"]:
        raise UserError(f"{field.name} must be at least {rule['low']}, got {value!r}")
    if rule.get("high") is not None and value > rule["high"]:
        raise UserError(f"{field.name} must be at most {rule['high']}, got {value!r}")


def parse(field, text):
    """Returns the value that `text`, a word of the command line, means for `field`."""
    kind, optional = _plain_type(field)
    if optional and text.lower() == "none":
        return None
    if kind is bool:
        truth = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in truth:
            raise UserError(f"{field.name} must be true or false, got {text!r}")
        return truth[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{field.name} must be {kind.__name__}, got {text!r}") from None


def override(recipe, texts):
    """Returns a copy of `recipe` with the fields of `texts` (name -> word) replaced and checked."""
    fields = {field.name: field for field in dataclasses.fields(recipe)}
    for name in texts:
        if name not in fields:
            raise UserError(f"{type(recipe).__name__} has no field {name!r}"
                            f"{nearest(name, fields)}")
    return dataclasses.replace(
        recipe, **{name: parse(fields[name], text) for name, text in texts.items()})


# What every kind of training offers; `engine.update.make_update` reads these (docs/training.md).
_UPDATE_SETTINGS = (
    ("accumulate", int, setting(1, "equal parts in which a worker's batch goes through the network "
                                "before one update", low=1)),
    ("clip_norm", float, setting(0.0, "largest Euclidean norm of the gradient; 0: any", low=0.0)),
    ("ema_decay", float, setting(0.0, "decay per update of the moving average of the weights, "
                                 "which is then what is evaluated and saved; 0: none", low=0.0,
                                 high=0.999999)),
    ("lr_factors", str, setting("", "factors on the learning rate by parts of the network, such "
                                "as fc=10,layer1=0.1")),
    ("precision", str, setting("float32", "numbers in convolutions and matrix products",
                               choices=("float32", "bfloat16", "float16"))),
    ("compression", str, setting("none", "fp16: gradients travel between workers in float16",
                                 choices=("none", "fp16"))),
)


def with_update_settings(cls):
    """Class decorator of recipes: adds the fields of the update behind the class's own."""
    for name, kind, field in _UPDATE_SETTINGS:
        cls.__annotations__[name] = kind
        setattr(cls, name, dataclasses.field(default=field.default, metadata=field.metadata))
    return cls


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
    # images
    crop_px: int = setting(224, "side of a training image", low=8)
    auto_augment: str = setting("authors", "policy: the list of the authors' code, the AutoAugment "
                                "paper's, RandAugment, or none",
                                choices=("authors", "paper", "randaugment", "none"))
    crop_rule: str = setting("auto", "random crop: gluon, efficientnet, or auto (efficientnet "
                             "from 320 px)", choices=("auto", "gluon", "efficientnet"))
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
    # distillation
    teacher: str = setting("", "zoo name of a teacher network; empty: no distillation")
    temperature: float = setting(20.0, "softening of the distillation", low=1e-3)
    hard_weight: float = setting(0.5, "share of the true labels in distillation", low=0.0,
                                 high=1.0)
    # evaluation
    eval_px: int = setting(224, "crop of an evaluation image (paper, Tables 1 and 4)", low=8)
    eval_protocol: str = setting("gluon", "resize rule before the evaluation crop",
                                 choices=("gluon", "torch", "paper"))
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
    def peak_lr(self):
        """The learning rate after warm-up: `lr`, or base_lr * batch / 256 (paper, 4.2)."""
        return self.base_lr * self.batch / 256 if self.lr is None else self.lr

    def smoke(self, workers):
        """Returns the wiring check of this recipe: two epochs of one tiny step for `workers`."""
        return dataclasses.replace(self, epochs=2, warmup_epochs=1.0, batch=4 * workers,
                                   crop_px=64, eval_px=64, eval_every=1, expect_top1=None)


@dataclass(frozen=True)
@with_update_settings
class PoseRecipe(Recipe):
    """Numbers of one SimplePose experiment. Durations are epochs, the batch is global."""

    network: str = setting(REQUIRED, "backbone by its zoo name")
    source: str = setting(REQUIRED, "where the numbers come from")
    # schedule
    epochs: int = setting(140, "passes over the training persons (GluonCV's command)", low=1)
    batch: int = setting(256, "persons per step over all workers: 32 on each of 8 GPUs (decision "
                              "0090)", low=1)
    lr: float = setting(0.001, "learning rate (paper, B.1)", low=0.0)
    decay_epochs: str = setting("90,120", "epochs after which the rate is divided by 10 (paper, "
                                "B.1)")
    warmup_epochs: float = setting(0.0, "epochs of linear warm-up from zero", low=0.0)
    optimizer: str = setting("adam", "update rule (paper, B.1)", choices=("nag", "sgd", "adam"))
    wd: float = setting(0.0, "weight decay (paper, B.1: none)", low=0.0)
    dropblock: float = setting(0.0, "DropBlock probability of stages 3 and 4", low=0.0, high=0.5)
    seed: int = setting(0, "seed of every random choice", low=0)
    # persons and heat maps
    height: int = setting(256, "height of a person's crop (paper, B.1)", low=32)
    width: int = setting(192, "width of a person's crop (paper, B.1)", low=32)
    margin: float = setting(1.25, "side of a crop by that of the person's box", low=0.5)
    sigma: float = setting(2.0, "of a joint's Gaussian, in heat map pixels", low=0.5)
    centre: str = setting("rounded", "centre of a Gaussian: the nearest pixel, as published, or "
                          "the joint itself", choices=("rounded", "exact"))
    scale: float = setting(0.3, "random size: normal, cut off at this distance from 1", low=0.0,
                           high=0.9)
    rotation: float = setting(40.0, "random turn in degrees: normal, cut off at twice this",
                              low=0.0, high=180.0)
    rotate_prob: float = setting(0.6, "share of the persons that are turned", low=0.0, high=1.0)
    flip: bool = setting(True, "mirror half of the training persons")
    remainder: str = setting("discard", "last step of an epoch: discarded, as published, or filled "
                             "from the next permutation", choices=("discard", "fill"))
    # evaluation
    eval_flip: str = setting("shifted", "look at the mirror image too: no, average heat maps, "
                             "those of the mirror shifted by a pixel (GluonCV), or coordinates "
                             "(paper, B.1)",
                             choices=("none", "heatmaps", "shifted", "coordinates"))
    joint_threshold: float = setting(0.2, "joints above count for the score of a person", low=0.0)
    min_box_score: float = setting(0.0, "detected boxes below are left out", low=0.0, high=1.0)
    oks_nms: float = setting(0.9, "of detected persons more alike than this the better stays; 1: "
                             "all stay", low=0.0, high=1.0)
    eval_every: int = setting(10, "epochs between evaluations", low=1)
    expect_ap: Optional[float] = setting(None, "published OKS AP in per cent, with a flip test",
                                         low=0.0, high=100.0)
    expect_ap_no_flip: Optional[float] = setting(None, "the same without", low=0.0, high=100.0)
    tolerance: float = setting(0.5, "accepted distance below the published AP, in points", low=0.0)

    def __post_init__(self):
        super().__post_init__()
        for name in ("height", "width"):
            if getattr(self, name) % 32:
                raise UserError(f"{name} must be a multiple of 32, got {getattr(self, name)}")
        try:
            milestones = self.milestones
        except ValueError:
            raise UserError(f"decay_epochs must be epochs with commas between, such as 90,120, got "
                            f"{self.decay_epochs!r}") from None
        if list(milestones) != sorted(set(milestones)) or any(
                epoch <= self.warmup_epochs for epoch in milestones):
            raise UserError("decay_epochs must ascend and lie behind the warm-up, got "
                            f"{self.decay_epochs!r}")

    @property
    def milestones(self):
        """The epochs of `decay_epochs` as integers."""
        return tuple(int(word) for word in self.decay_epochs.split(",") if word.strip())

    @property
    def expected(self):
        """The published OKS AP in per cent with this flip test, or None."""
        return self.expect_ap_no_flip if self.eval_flip == "none" else self.expect_ap

    def smoke(self, workers):
        """Returns the wiring check of this recipe: two epochs of one tiny step for `workers`."""
        return dataclasses.replace(self, epochs=2, batch=8 * workers, height=64, width=64,
                                   eval_every=1, expect_ap=None, expect_ap_no_flip=None)


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
    # schedule
    epochs: int = setting(120, "passes over the training set (paper, 6.3)", low=1)
    batch: int = setting(16, "images per step over all workers", low=1)
    lr: float = setting(0.01, "learning rate of the backbone (decision 0070)", low=0.0)
    head_lr_factor: float = setting(10.0, "the heads learn faster by this factor", low=0.0)
    power: float = setting(0.9, "exponent of the polynomial decay", low=0.01)
    warmup_epochs: float = setting(0.0, "epochs of linear warm-up from zero", low=0.0)
    optimizer: str = setting("sgd", "update rule", choices=("nag", "sgd", "adam"))
    momentum: float = setting(0.9, "momentum of nag and sgd", low=0.0, high=1.0)
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
            wrong = min(self.scales) <= 0
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

    def smoke(self, workers):
        """Returns the wiring check of this recipe: two epochs of one tiny step for `workers`."""
        return dataclasses.replace(self, epochs=2, warmup_epochs=0.0, batch=2 * workers,
                                   base_px=72, crop_px=64, eval_scales="0.75,1", eval_every=1,
                                   expect_miou=None, expect_pixacc=None)
