"""Classification of small images that are kept in memory, so that the network sets the pace."""
from gluon_resnest.data import cifar10
from gluon_resnest.data.in_memory import MemoryLoader, PadAndMirror
from gluon_resnest.data.splitting import split
from gluon_resnest.errors import UserError
from gluon_resnest.tasks.classification import Classification

# What is done to single images elsewhere, and must be off here.
_OFF = {"auto_augment": "none", "jitter": 0.0, "lighting": 0.0, "erase_prob": 0.0,
        "eval_protocol": "whole"}


class SmallImages(Classification):
    """Trains and evaluates one network on CIFAR-10; see `Classification`.

    Raises:
      UserError: if the recipe asks for what images in memory do not get.
    """

    data_flag = dict(metavar="PATH", help="CIFAR-10: a folder with train/ and test/, with the "
                     "python batches, or with train.rec and test.rec; an archive of one of the "
                     "first two; or synthetic: generated images")

    def __init__(self, recipe, run, comm):
        self._parts = None
        if run.data != "synthetic":
            _check(recipe)
            if run.data is None:
                raise UserError("--data PATH is missing; give the folder or archive of CIFAR-10, "
                                "or --data synthetic")
            self._parts = cifar10.read(run.data)
            if recipe.hold_out:
                images = self._parts["train"]
                kept, held = split(images.labels, recipe.hold_out, recipe.seed,
                                   class_names=images.class_names)
                self._parts = {"train": images.take(kept), "test": images.take(held)}
        super().__init__(recipe, run, comm)

    @staticmethod
    def add_paths(parser):
        """Adds nothing: --data is the only path."""

    def open_training(self, run):
        """Returns the loader of the training images."""
        if self._parts is None:
            return super().open_training(run)
        recipe, images = self._recipe, self._parts["train"]
        padding = recipe.crop_px // 8 if recipe.crop_rule == "pad" else 0
        augment = PadAndMirror(padding, recipe.flip) if padding or recipe.flip else None
        return MemoryLoader(images, self._train_plan(images), seed=recipe.seed, augment=augment)

    def open_evaluation(self, run):
        """Returns the loader of the evaluation images."""
        if self._parts is None:
            return super().open_evaluation(run)
        images = self._parts["test"]
        return MemoryLoader(images, self._eval_plan(images, run), seed=self._recipe.seed)


def _check(recipe):
    for name, off in _OFF.items():
        if getattr(recipe, name) != off:
            raise UserError(f"{name} (={getattr(recipe, name)}) is not offered for images in "
                            f"memory; set it to {off}, or use recipes/imagenet.py on class folders")
    if recipe.crop_rule not in ("pad", "whole"):
        raise UserError(f"crop_rule (={recipe.crop_rule}) is not offered for images in memory; "
                        "take pad or whole")
    for name in ("crop_px", "eval_px"):
        if getattr(recipe, name) != cifar10.SIDE:
            raise UserError(f"{name} (={getattr(recipe, name)}) must be {cifar10.SIDE}, the side "
                            "of CIFAR-10's images; a larger one is for --plan only")
