"""Plots several runs into one picture and prints a table of them, finished or not.

    python tools/compare_runs.py runs/mask50 runs/mask50_nosync --save comparison.png
    python tools/compare_runs.py runs/* --metric mask_ap --save comparison.png
"""
import argparse

from gluon_resnest.errors import exit_on_user_error


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories of recipes")
    parser.add_argument("--metric", metavar="NAME", help="of the evaluations, such as top1 or ap "
                        "(default: the first three that all runs have)")
    parser.add_argument("--save", metavar="PICTURE", help="draw losses and metrics over epochs "
                        "(.png, .pdf, .svg)")
    return parser.parse_args(argv)


def main(argv=None):
    flags = parse(argv)
    with exit_on_user_error():
        from gluon_resnest.tasks import comparison
        runs = comparison.open_runs(flags.runs)
        metrics = comparison.metrics_of(runs, flags.metric)
        rows = comparison.comparison_table(runs, metrics)
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        if flags.save:
            comparison.draw_comparison(flags.save, runs, metrics)
            print(f"drew {flags.save}")


if __name__ == "__main__":
    main()
