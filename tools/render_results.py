"""Renders recipes/README.md from the recipes, and docs/reproduce.md from the results that are kept.

    python tools/render_results.py                  writes both
    python tools/render_results.py runs/cifar10/*   keeps these runs, if finished, in docs/results
    python tools/render_results.py --check          exits with 2 if a file is not up to date

Of a run, config.json, result.json and curves.png are kept, paths of this machine left out. It
belongs to a row of a published table if it has the row's recipe, data and first weights, whatever
the seed. One that belongs to none, or is to replace another, ends the command before it copies.
"""
import argparse
from pathlib import Path

from gluon_resnest.errors import UserError, exit_on_user_error
from gluon_resnest.reproduction import page, results, rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results"

HEAD = """# Recipes

One file per kind of training: a docstring, the numbers of the paper as data, one call. `--help`
explains every field; each is a flag. The same command continues a run directory. `--smoke` tries
the wiring without data.

Expected values are **published** ones (source in the last column; those of "this project" are its
aims), not measurements of ours. This page is rendered by `python tools/render_results.py`; a test
compares it with the recipes.
"""


def percent(value):
    return "" if value is None else f"{value:.2f}"


def detection(title, name, masks=True):
    """Returns the page of a detection recipe."""
    where = {"val": "", "test-dev": " (test-dev)"}
    columns = [
        ("network", lambda recipe: recipe.network),
        ("length", lambda recipe: f"{recipe.length} {recipe.unit}"),
        ("batch", lambda recipe: recipe.batch),
        ("lr", lambda recipe: f"{recipe.lr:g}"),
        ("shorter sides", lambda recipe: recipe.short_px.replace(
            ",", "-" if recipe.sampling == "range" else ", ")),
        ("norm", lambda recipe: recipe.norm),
        ("box AP", lambda recipe: percent(recipe.expect_ap)
         + (where[recipe.expect_on] if recipe.expect_ap else ""))]
    if masks:
        columns.append(("mask AP", lambda recipe: percent(recipe.expect_mask_ap)
                        + (where[recipe.expect_on] if recipe.expect_mask_ap else "")))
    return name, title, columns


def panoptic(title, name):
    """Returns the page of a panoptic recipe."""
    *_, columns = detection(title, name)
    return name, title, [*columns[:-2], ("PQ", lambda recipe: percent(recipe.expect_pq)),
                         *columns[-2:]]


# File of recipes/, title, and the columns between the entry's name and its source.
PAGES = [
    ("imagenet", "ImageNet classification", [
        ("network", lambda recipe: recipe.network),
        ("epochs", lambda recipe: recipe.epochs),
        ("batch", lambda recipe: recipe.batch),
        ("peak lr", lambda recipe: f"{recipe.peak_lr:g}"),
        ("train px", lambda recipe: recipe.crop_px),
        ("test px", lambda recipe: recipe.eval_px),
        ("top-1 %", lambda recipe: percent(recipe.expect_top1)),
        ("at 320 px", lambda recipe: percent(recipe.expect_top1_320)),
    ]),
    ("cifar10", "CIFAR-10, the report's Tables I and II", [
        ("network", lambda recipe: recipe.network),
        ("epochs", lambda recipe: recipe.epochs),
        ("batch", lambda recipe: recipe.batch),
        ("lr", lambda recipe: f"{recipe.lr:g}"),
        ("schedule", lambda recipe: recipe.schedule),
        ("px", lambda recipe: recipe.crop_px),
        ("accuracy %", lambda recipe: percent(recipe.expect_top1)),
    ]),
    detection("Object detection, Faster R-CNN", "faster_rcnn", masks=False),
    detection("Instance segmentation, Mask R-CNN", "mask_rcnn"),
    detection("Cascade R-CNN and Cascade Mask R-CNN", "cascade_rcnn"),
    panoptic("Panoptic FPN", "panoptic_fpn"),
    ("finetune", "Fine-tuning on folders; for any network of the zoo", [
        ("network", lambda recipe: recipe.network),
        ("epochs", lambda recipe: recipe.epochs),
        ("batch", lambda recipe: recipe.batch),
        ("lr", lambda recipe: f"{recipe.lr:g}"),
        ("factors", lambda recipe: recipe.lr_factors),
        ("schedule", lambda recipe: recipe.schedule),
        ("wd", lambda recipe: f"{recipe.wd:g}"),
    ]),
    ("deeplabv3", "Semantic segmentation", [
        ("network", lambda recipe: recipe.network),
        ("epochs", lambda recipe: recipe.epochs),
        ("batch", lambda recipe: recipe.batch),
        ("lr", lambda recipe: f"{recipe.lr:g}"),
        ("crop", lambda recipe: recipe.crop_px),
        ("mIoU %", lambda recipe: percent(recipe.expect_miou)),
        ("pixel accuracy %", lambda recipe: percent(recipe.expect_pixacc)),
    ]),
    ("simple_pose", "Pose estimation", [
        ("network", lambda recipe: recipe.network),
        ("epochs", lambda recipe: recipe.epochs),
        ("batch", lambda recipe: recipe.batch),
        ("lr", lambda recipe: f"{recipe.lr:g}"),
        ("crop", lambda recipe: f"{recipe.height}x{recipe.width}"),
        ("AP with flip", lambda recipe: percent(recipe.expect_ap)),
        ("AP without", lambda recipe: percent(recipe.expect_ap_no_flip)),
    ]),
]


def recipes_of(name):
    """Returns the RECIPES of a file in recipes/, or those of them that it says to show."""
    module = rows.module_of(name)
    return {name: module.RECIPES[name] for name in getattr(module, "SHOWN", module.RECIPES)}


def render():
    """Returns the text of recipes/README.md."""
    return HEAD + "".join(_page(*page) for page in PAGES)


def _page(name, title, columns):
    titles = ["`--model`", *(column for column, _ in columns), "source"]
    body = [[f"`{entry}`", *(str(value(recipe)) for _, value in columns), recipe.source]
            for entry, recipe in recipes_of(name).items()]
    lines = [titles, ["---"] * len(titles), *body]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"\n## {title}: [{name}.py]({name}.py)\n\n{table}"


def keep(runs):
    """Keeps the finished ones of the runs, all or none; tells which are left out."""
    finished = [run for run in runs if (Path(run) / results.RESULT).is_file()]
    places = {}
    for run in finished or runs:
        _, target = results.place(run, page.TABLES, RESULTS)
        if target in places:
            raise UserError(f"{places[target]} and {run} are of one row and seed; leave one out")
        places[target] = run
    for run in runs:
        print(f"kept {results.keep(run, page.TABLES, RESULTS)}" if run in finished else
              f"left out {run}: it is not finished, there is no {results.RESULT}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="directory of a finished run")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    flags = parser.parse_args()
    if flags.check and flags.runs:
        raise UserError("--check compares and writes nothing, so that it keeps no runs; leave one "
                        "of both out")
    keep(flags.runs)
    for name, text in (("recipes/README.md", render()),
                       ("docs/reproduce.md", page.render(RESULTS))):
        target = ROOT / name
        if not flags.check:
            target.write_text(text, encoding="utf-8")
        elif not target.is_file() or target.read_text(encoding="utf-8") != text:
            raise UserError(f"{name} is not what its sources give; run "
                            "`python tools/render_results.py`")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
