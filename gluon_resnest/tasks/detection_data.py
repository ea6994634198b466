"""The data of a detection run: training batches, evaluation images, and what is true of them."""
from pathlib import Path

from gluon_resnest.data.classification import first_difference, read_class_names
from gluon_resnest.data.coco import CocoInstances, read_instances
from gluon_resnest.data.detection import DetectionDataset, DetectionLoader
from gluon_resnest.data.detection_transforms import EvalTransform, TrainTransform
from gluon_resnest.data.instances import ground_truth
from gluon_resnest.data.lvis import exhaustive, read_lvis
from gluon_resnest.data.picking import Picked, pick_clear
from gluon_resnest.data.repeat_factor import repeat_factors
from gluon_resnest.data.shapes import KINDS, ShapeInstances
from gluon_resnest.data.synthetic import SyntheticDetection
from gluon_resnest.data.text_files import read_json
from gluon_resnest.data.voc import CLASSES, read_voc
from gluon_resnest.errors import UserError
from gluon_resnest.models.detection.conventions import conventions as conventions_of
from gluon_resnest.tasks.detection_evaluation import with_masks

HELD_OUT = 200      # drawn pictures at most that are evaluated

# Data set -> its reader; places of its annotations and images below --root.
_FILES = {"coco": (read_instances, "annotations/instances_{}2017.json", "{}2017"),
          "lvis": (read_lvis, "annotations/lvis_v1_{}.json", "")}


def add_flags(parser):
    """Adds the flags that say where the images are."""
    parser.add_argument("--root", metavar="DIR", help="folder with COCO's train2017, val2017 and "
                        "annotations/instances_*.json, whose parts the four flags below replace; "
                        "or one in VOC's layout, with classes.txt if the classes are other ones; "
                        "for LVIS, annotations/lvis_v1_*.json")
    for split in ("train", "val"):
        parser.add_argument(f"--{split}-annotations", metavar="FILE", help=f"instances of {split}, "
                            "COCO's json or one of your own in its format")
        parser.add_argument(f"--{split}-images", metavar="DIR", help="folder of its images")


class DetectionData:
    """Opens what a recipe and the command line name.

    Args:
      recipe: a DetectionRecipe.
      run: the command line's other flags.
      comm: this worker's Comm.
      masks: whether masks are learnt.
    """

    labels = False      # whether the class of each pixel is learnt, too

    def __init__(self, recipe, run, comm, masks):
        self._recipe, self._run, self._comm, self._masks = recipe, run, comm, masks
        conventions = conventions_of(recipe.conventions)
        self._pixels = {"mean": conventions.mean, "std": conventions.std, "rule": recipe.resize}
        self._sources = {}

    @property
    def has_annotations(self):
        """Whether the evaluation images come with what is true of them."""
        source = self._source("val")
        return any(len(source.objects(index).ids) for index in range(len(source)))

    def check_masks(self):
        """Refuses, if masks are learnt, evaluation objects without one, or with a broken one."""
        if self._masks and self._run.data != "synthetic":
            with_masks(self.truth(), "segm")

    def train(self):
        """Returns a loader of training batches."""
        recipe, run = self._recipe, self._run
        self._check_categories()
        transform = TrainTransform(
            recipe.short_sides, recipe.sampling, recipe.max_px, flip=recipe.flip,
            crop=recipe.crop and (recipe.crop, recipe.crop), **self._pixels)
        dataset = DetectionDataset(self._source("train"), transform, masks=self._masks,
                                   skip_empty=recipe.skip_empty, labels=self.labels)
        factors = repeat_factors(list(map(dataset.shown, range(len(dataset)))), recipe.classes,
                                 recipe.repeat_threshold) if recipe.repeat_threshold else None
        return DetectionLoader(
            dataset, batch=recipe.batch, rank=self._comm.rank, size=self._comm.size,
            seed=recipe.seed, workers=run.data_workers, factors=factors,
            max_pixels=recipe.max_pixels)

    def evaluation(self):
        """Returns a loader of evaluation images, without masks, each once."""
        run = self._run
        return DetectionLoader(
            self.view(self._recipe.eval_px, self._recipe.longest_eval_px), seed=0, train=False,
            batch=run.eval_batch * self._comm.size, rank=self._comm.rank, size=self._comm.size,
            workers=run.data_workers)

    def view(self, short_px, max_px, flip=False):
        """Returns the evaluation images of one size, as a dataset."""
        transform = EvalTransform(short_px, max_px, flip=flip, **self._pixels)
        return DetectionDataset(self._source("val"), transform, masks=False, skip_empty=False)

    def truth(self):
        """Returns what is true of the evaluation images, as the content of an annotation file."""
        source = self._source("val")
        if isinstance(source, CocoInstances):
            return read_json(self._files("val")[0])
        if isinstance(source, Picked) and isinstance(source.source, CocoInstances):
            return source.part_of(read_json(self._files("train")[0]))
        truth = ground_truth(source)
        return exhaustive(truth) if self._recipe.dataset == "lvis" else truth

    def _check_categories(self):
        """Refuses other classes in training than in evaluation: a class is its place among them."""
        found = first_difference(*(self._categories(self._source(split))
                                   for split in ("train", "val")))
        if found:
            _, train, val = found
            raise UserError("the annotations of train and val must have the same categories with "
                            f"the same ids, but {_told(train)} of train is {_told(val)} in val; "
                            "number them alike")

    def _categories(self, source):
        """Returns [(id, name)] of a source's classes in their order."""
        return list(zip(source.category_ids.tolist(), source.class_names))

    def _source(self, split):
        if split not in self._sources:
            self._sources[split] = self._opened(split)
        return self._sources[split]

    def _opened(self, split):
        recipe, run = self._recipe, self._run
        if run.data == "synthetic":
            return self._generated(split)
        split = "train" if recipe.pick else split
        if run.root and (Path(run.root) / "ImageSets").is_dir():
            source = self._voc(split)
        else:
            source = _FILES[recipe.dataset][0](*self._files(split))
        if len(source.class_names) != recipe.classes:
            raise UserError(f"the annotations of {split} have {len(source.class_names)} "
                            f"categories, the recipe {recipe.classes}; give --classes "
                            f"{len(source.class_names)}")
        if not recipe.pick:
            return source
        return pick_clear(source, recipe.pick,
                          EvalTransform(recipe.eval_px, recipe.longest_eval_px, **self._pixels))

    def _generated(self, split):
        """Returns drawn shapes, or coloured rectangles where there are more classes than shapes."""
        recipe, (images, size) = self._recipe, self._drawn(split)
        if recipe.classes > len(KINDS):
            return SyntheticDetection(images, size, recipe.classes,
                                      seed=recipe.seed + (split == "val"))
        return ShapeInstances(images, size, recipe.classes, seed=recipe.seed,
                              split="train" if split == "train" else "held-out")

    def _drawn(self, split):
        """Returns the number and the (height, width) of the drawn pictures of a split."""
        recipe, side = self._recipe, max(self._recipe.short_sides)
        images = recipe.batch * self._run.synthetic_steps
        if split == "val":
            images = max(1, min(HELD_OUT, images // 2))
        return images, (side, min(side * 5 // 4, recipe.max_px))

    def _voc(self, split):
        """Opens a folder in VOC's layout; classes.txt there names other classes than VOC's."""
        if self._masks:
            raise UserError(f"{self._run.root} has VOC's layout, whose objects have no masks; use "
                            "a recipe of Faster or Cascade R-CNN, or COCO's format")
        names = Path(self._run.root) / "classes.txt"
        return read_voc(self._run.root, split,
                        tuple(read_class_names(names)) if names.exists() else CLASSES)

    def _files(self, split):
        """Returns the annotation file and the image folder of a split."""
        root, given = self._run.root, vars(self._run)
        files = []
        for part, place in zip(("annotations", "images"), _FILES[self._recipe.dataset][1:]):
            path = given[f"{split}_{part}"] or (root and str(Path(root) / place.format(split)))
            if not path:
                raise UserError(f"--root DIR is missing; give the folder of COCO, or "
                                f"--{split}-annotations FILE and --{split}-images DIR, or use "
                                "--data synthetic")
            files.append(path)
        return files


def _told(category):
    return "nothing" if category is None else f"category {category[0]} ({category[1]!r})"
