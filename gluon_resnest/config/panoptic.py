"""The recipe of panoptic segmentation: that of detection, and what a semantic head adds."""
import dataclasses
from dataclasses import dataclass
from typing import Optional

from gluon_resnest.config.detection import DetectionRecipe
from gluon_resnest.config.fields import setting
from gluon_resnest.errors import UserError


@dataclass(frozen=True)
class PanopticRecipe(DetectionRecipe):
    """Numbers of one experiment with Panoptic FPN; `classes` are the things. The batch is global.

    The norm of the heads is the semantic head's, too.
    """

    stuff: int = setting(53, "number of kinds of stuff", low=1, high=254)
    semantic_channels: int = setting(128, "of the semantic head's convolutions", low=1)
    semantic_weight: float = setting(0.5, "of the semantic head's loss", low=0.0)
    confidence: float = setting(0.5, "objects that become segments score at least this", low=0.0,
                                high=1.0)
    overlap: float = setting(0.5, "largest share of an object that better ones may cover", low=0.0,
                             high=1.0)
    stuff_area: int = setting(4096, "smallest segment of stuff in pixels", low=0)
    expect_pq: Optional[float] = setting(None, "published PQ in per cent", low=0.0, high=100.0)

    def __post_init__(self):
        super().__post_init__()
        if self.pick:
            raise UserError("pick is not offered for panoptic recipes; give a json of the images "
                            f"to learn instead of pick={self.pick}")
        if self.class_loss == "federated":
            raise UserError("class_loss=federated is not offered for panoptic recipes; use sigmoid "
                            "or softmax")

    @property
    def judged_at(self):
        """See `Recipe`."""
        objects = super().judged_at
        return {**objects, "expect_pq": (*objects["expect_ap"], "confidence", "overlap",
                                         "stuff_area")}

    @property
    def _published(self):
        return self.expect_pq

    def smoke(self, workers):
        """Returns the wiring check of this recipe; see `DetectionRecipe.smoke`."""
        return dataclasses.replace(super().smoke(workers), stuff_area=16, expect_pq=None)
