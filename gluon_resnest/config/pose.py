"""The recipe of pose estimation."""
import dataclasses
from dataclasses import dataclass
from typing import Optional

from gluon_resnest.config.fields import REQUIRED, Recipe, setting, with_update_settings
from gluon_resnest.errors import UserError


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
    expect_ap: Optional[float] = setting(None, "published OKS AP in per cent, on annotated boxes "
                                         "with a flip test", low=0.0, high=100.0)
    expect_ap_no_flip: Optional[float] = setting(None, "the same without", low=0.0, high=100.0)
    tolerance: float = setting(0.5, "accepted distance below the published AP, in points", low=0.0)

    def __post_init__(self):
        super().__post_init__()
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"warmup_epochs (={self.warmup_epochs:g}) must be smaller than epochs "
                            f"(={self.epochs}); lower it, for example to 0")
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
    def unreached(self):
        """See `Recipe`."""
        if not any(epoch >= self.epochs for epoch in self.milestones):
            return ""
        return (f"decay_epochs must lie within epochs (={self.epochs}), got {self.decay_epochs!r}; "
                "give others, or an empty word for a constant rate")

    @property
    def milestones(self):
        """The epochs of `decay_epochs` as integers."""
        return tuple(int(word) for word in self.decay_epochs.split(",") if word.strip())

    @property
    def expected(self):
        """The published OKS AP in per cent with this flip test, or None."""
        return self.expect_ap_no_flip if self.eval_flip == "none" else self.expect_ap

    @property
    def judged_at(self):
        """See `Recipe`; `eval_flip` chooses between the two, and papers differ in how to mirror."""
        return dict.fromkeys(("expect_ap", "expect_ap_no_flip"), (
            "height", "width", "margin", "joint_threshold"))

    @property
    def per_worker(self):
        """What depends on how many workers share a batch; see `Recipe`."""
        drawn = ("what DropBlock draws",) if self.dropblock else ()
        return ("which images a batch norm sees", *drawn)

    def smoke(self, workers):
        """Returns the wiring check of this recipe: two epochs of one tiny step for `workers`."""
        return dataclasses.replace(self, epochs=2, warmup_epochs=0.0, batch=8 * workers, height=64,
                                   width=64, eval_every=1, expect_ap=None, expect_ap_no_flip=None)
