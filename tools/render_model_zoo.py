"""Writes docs/model_zoo.md, docs/model_zoo.png and docs/model_cards.md from the table of the zoo.

    python tools/render_model_zoo.py
    python tools/render_model_zoo.py --out FOLDER
"""
import argparse
from pathlib import Path

from gluon_resnest.errors import UserError, exit_on_user_error


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FOLDER", type=Path,
                        default=Path(__file__).resolve().parents[1] / "docs",
                        help="existing folder (default: docs)")
    flags = parser.parse_args(argv)
    with exit_on_user_error():
        if not flags.out.is_dir():
            raise UserError(f"--out must be an existing folder, got {str(flags.out)!r}")
        from gluon_resnest.interop import model_cards, zoo_page
        from gluon_resnest.recipes.deeplabv3 import RECIPES
        zoo_page.write_page(flags.out)
        cards = model_cards.render(RECIPES.values())
        (flags.out / model_cards.PAGE).write_text(cards, encoding="utf-8")
        print(f"wrote {zoo_page.PAGE}, {zoo_page.PLOT} and {model_cards.PAGE} in {flags.out}")


if __name__ == "__main__":
    main()
