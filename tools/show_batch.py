"""Draws what a network is fed: a training batch as it leaves the input pipeline.

Name a file of recipes/ and give the flags you would train with; nothing is trained. Crops, colours,
mirrors, mixed labels, boxes and masks are those of that step of that run.

    python tools/show_batch.py imagenet --rec-train train.rec --save batch.png
    python tools/show_batch.py imagenet --model resnest50 --rec-train photos/ --mixup-alpha 0.4
    python tools/show_batch.py deeplabv3 --root ADEChallengeData2016 --step 100
    python tools/show_batch.py simple_pose --train-annotations FILE --train-images DIR ...
    python tools/show_batch.py mask_rcnn --root coco --batch 4
    python tools/show_batch.py mask_rcnn --model shapes --data synthetic

Above each picture is what the network shall say of it: classes with their shares; colours of
classes, which a legend names; joints; boxes with names and masks. `python recipes/NAME.py --help`
lists the flags of a recipe. --batch 8 keeps a run for many workers small here.
"""
import argparse
import dataclasses
from pathlib import Path

from gluon_resnest import cli
from gluon_resnest.errors import UserError, check_choice, exit_on_user_error
from gluon_resnest.interop.drawing import MAX_DRAWN, check_picture
from gluon_resnest.reproduction.rows import program_of

FOLDER = Path(__file__).resolve().parents[1] / "recipes"
_NO_TRAINING = ("eval_only", "smoke", "test_io", "plan")     # what a recipe may do instead


def parse(argv=None):
    """Returns this tool's flags, and the words that belong to the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join(recipe_names())}")
    parser.add_argument("--save", default="batch.png", metavar="PICTURE",
                        help=".png, .pdf or .svg (default: %(default)s)")
    parser.add_argument("--step", type=int, default=0, metavar="N",
                        help="step of the run, from 0 (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=8, metavar="N",
                        help="largest number of pictures; larger batches are made as small, unless "
                        "--batch is given (default: %(default)s)")
    return parser.parse_known_args(argv)


def recipe_names():
    """Returns the names of the files in recipes/."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__")


def load(name):
    """Returns (RECIPES, task class) of a file in recipes/."""
    check_choice("recipe", name, recipe_names())
    return program_of(name)


def check_trains(run):
    """Raises a UserError if the flags of a recipe ask for something else than training."""
    for name in _NO_TRAINING:
        if getattr(run, name):
            raise UserError(f"--{name.replace('_', '-')} is not training, whose batches are drawn; "
                            "leave it out")


def main(argv=None):
    flags, words = parse(argv)
    with exit_on_user_error():
        if flags.step < 0 or not 1 <= flags.pictures <= MAX_DRAWN:
            raise UserError(f"expected a step from 0 on and 1 to {MAX_DRAWN} pictures, got "
                            f"{flags.step} and {flags.pictures}")
        check_picture(flags.save)
        recipes, task_class = load(flags.recipe)
        recipe, run = cli.parse(recipes, task_class, words)
        check_trains(run)
        if "batch" not in run.changes and recipe.batch > flags.pictures:
            recipe = dataclasses.replace(recipe, batch=flags.pictures)
        from gluon_resnest.engine.comm import connect
        from gluon_resnest.interop.batch_drawing import draw_batch
        task = task_class(recipe, run, connect())
        try:
            batch = next(iter(task.batches(flags.step)))
            count = draw_batch(flags.save, recipe, batch, names=task.class_names,
                               most=flags.pictures)
        finally:
            task.close()
        print(f"drew {count} pictures of step {flags.step} in {flags.save}")


if __name__ == "__main__":
    main()
