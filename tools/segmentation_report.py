"""Prints each class's accuracy and IoU of a segmentation run, and draws its confusion matrix.

    python tools/segmentation_report.py runs/deeplab50 --save confusion.png

Reads RUN/confusion.npy, which every evaluation writes, and RUN/classes.txt.
"""
import argparse
from pathlib import Path

import numpy as np

from gluon_resnest.errors import UserError, exit_on_user_error
from gluon_resnest.run_directory import CLASS_NAMES


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--save", metavar="PICTURE", help="draw the confusion matrix")
    return parser.parse_args(argv)


def load(run):
    """Returns (confusion matrix, class names or None) of a run directory."""
    from gluon_resnest.data.classification import read_class_names
    from gluon_resnest.tasks.segmentation import CONFUSION
    file, names = Path(run) / CONFUSION, Path(run) / CLASS_NAMES
    try:
        pixels = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); give the --workdir of a segmentation "
                        "recipe that has been evaluated") from error
    if pixels.ndim != 2 or pixels.shape[0] != pixels.shape[1] or pixels.dtype.kind != "i":
        raise UserError(f"{file} holds {pixels.dtype} of shape {pixels.shape}, expected a square "
                        "matrix of counts; evaluate the run again")
    names = read_class_names(names, distinct=False) if names.exists() else None
    if names and len(names) != len(pixels):
        raise UserError(f"{run} has {len(names)} names in {CLASS_NAMES} and {len(pixels)} classes "
                        f"in {CONFUSION}; mend or remove {CLASS_NAMES}")
    return pixels, names


def print_table(pixels, names):
    """Prints a row for each class: its share of the true pixels, accuracy and IoU, in per cent."""
    from gluon_resnest.metrics import intersection_over_union, pixel_accuracy
    true = pixels.sum(axis=1)
    overlaps = intersection_over_union(pixels)
    print(f"{'class':28s} {'share':>9s} {'accuracy':>9s} {'IoU':>9s}")
    for number, overlap in enumerate(overlaps):
        name = names[number] if names else str(number)
        share = true[number] / max(1, true.sum())
        accuracy = pixels[number, number] / true[number] if true[number] else np.nan
        cells = [f"{100 * value:9.2f}" if np.isfinite(value) else " " * 8 + "-"
                 for value in (share, accuracy, overlap)]
        print(f"{name[:28]:28s}", *cells)
    print(f"mIoU {100 * np.nanmean(overlaps):.2f} %, pixel accuracy "
          f"{100 * pixel_accuracy(pixels):.2f} %")


def main(argv=None):
    flags = parse(argv)
    with exit_on_user_error():
        pixels, names = load(flags.run)
        print_table(pixels, names)
        if flags.save:
            from gluon_resnest.interop.evaluation_drawing import draw_confusion
            draw_confusion(flags.save, pixels, names)
            print(f"drew {flags.save}")


if __name__ == "__main__":
    main()
