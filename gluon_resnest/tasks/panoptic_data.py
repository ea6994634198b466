"""The data of a panoptic run: that of a detection run, with the class of every pixel."""
from pathlib import Path

from gluon_resnest.data.coco_panoptic import read_coco_panoptic
from gluon_resnest.data.landscapes import STUFF, ShapeLandscapes
from gluon_resnest.data.shapes import KINDS
from gluon_resnest.errors import UserError
from gluon_resnest.tasks import detection_data


def add_flags(parser):
    """Adds the flags that say where the annotations of pixels are."""
    for split in ("train", "val"):
        parser.add_argument(f"--{split}-panoptic", metavar="FILE", help="panoptic json of "
                            f"{split}, its PNGs in a folder of the same name (default: "
                            f"annotations/panoptic_{split}2017.json in --root)")


class PanopticData(detection_data.DetectionData):
    """Opens what a recipe and the command line name; see `DetectionData`."""

    labels = True

    def __init__(self, recipe, run, comm):
        super().__init__(recipe, run, comm, masks=True)

    @property
    def source(self):
        """The evaluation images, with what is true of them."""
        return self._source("val")

    def _categories(self, source):
        return [*super()._categories(source), *zip(source.stuff_ids.tolist(), source.stuff_names)]

    def _opened(self, split):
        recipe = self._recipe
        if self._run.data == "synthetic":
            return self._landscapes(split)
        source = read_coco_panoptic(*self._files(split), self._panoptic_file(split))
        for flag, kind, names, count in (
                ("classes", "things", source.class_names, recipe.classes),
                ("stuff", "kinds of stuff", source.stuff_names, recipe.stuff)):
            if len(names) != count:
                raise UserError(f"the annotations of {split} have {len(names)} {kind}, the recipe "
                                f"{count}; give --{flag} {len(names)}")
        return source

    def _landscapes(self, split):
        """Returns drawn shapes before drawn stuff; classes beyond these never occur."""
        recipe, (images, size) = self._recipe, self._drawn(split)
        if recipe.stuff < len(STUFF):
            raise UserError(f"drawn pictures have {len(STUFF)} kinds of stuff, the recipe "
                            f"{recipe.stuff}; give --stuff {len(STUFF)}")
        return ShapeLandscapes(images, size, min(recipe.classes, len(KINDS)), seed=recipe.seed,
                               split="train" if split == "train" else "held-out")

    def _panoptic_file(self, split):
        given, root = vars(self._run)[f"{split}_panoptic"], self._run.root
        if not given and not root:
            raise UserError("--root DIR is missing; give the folder of COCO, or "
                            f"--{split}-panoptic FILE beside the other annotations, or use --data "
                            "synthetic")
        return given or str(Path(root) / f"annotations/panoptic_{split}2017.json")
