"""Renders the table of recipes from the recipes themselves into recipes/README.md.

    python tools/render_results.py            writes the table
    python tools/render_results.py --check    exits with 2 if the file is not up to date
"""
import argparse
import importlib.util
from pathlib import Path

from gluon_resnest.errors import UserError, exit_on_user_error

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "recipes" / "README.md"

HEAD = """# Recipes

One file per kind of training: a docstring, the numbers of the paper as data, one call. `--help` explains every field;
each is a flag. A run directory can be continued by the same command. `--smoke` tries the wiring without data.

Expected values are **published** ones (source in the last column), not measurements of ours. This page is rendered by
`python tools/render_results.py`; a test compares it with the recipes.
"""

CLASSIFICATION = """
## ImageNet classification: [imagenet.py](imagenet.py)

```
horovodrun -np 64 -H HOSTS python recipes/imagenet.py --model NAME --device gpu \\
    --rec-train train.rec --rec-val val.rec --workdir runs/NAME
```

| `--model` | network | epochs | batch | peak lr | train px | test px | top-1 % | at 320 px | source |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def recipes_of(name):
    """Returns the RECIPES of a file in recipes/."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / f"recipes/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RECIPES


def render():
    """Returns the text of recipes/README.md."""
    rows = "".join(
        f"| `{name}` | {recipe.network} | {recipe.epochs} | {recipe.batch} | {recipe.peak_lr:g} | "
        f"{recipe.crop_px} | {recipe.eval_px} | {_percent(recipe.expect_top1)} | "
        f"{_percent(recipe.expect_top1_320)} | {recipe.source} |\n"
        for name, recipe in recipes_of("imagenet").items())
    return HEAD + CLASSIFICATION + rows


def _percent(value):
    return "" if value is None else f"{value:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    text = render()
    if not parser.parse_args().check:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
        raise UserError("recipes/README.md differs from the recipes; run "
                        "`python tools/render_results.py`")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
