"""Averages the weights of several checkpoints of one network into a .params file.

    python tools/average_checkpoints.py runs/resnest50 --last 5 --out averaged.params
    python tools/average_checkpoints.py a.params b.params runs/x/checkpoints/step-00001250 \\
        --out averaged.params
    python recipes/imagenet.py --model resnest50 --eval-only --weights averaged.params --rec-val ...

Parameters and running statistics are averaged in float64. The average of running statistics is
not what the averaged weights would see; a sentence reminds of it.
"""
import argparse
import logging

from gluon_resnest.errors import UserError, exit_on_user_error


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH",
                        help="a run directory; or .params files and checkpoint directories")
    parser.add_argument("--last", type=int, metavar="K",
                        help="of a run directory: its K newest checkpoints (default: all)")
    parser.add_argument("--out", required=True, metavar="FILE", help=".params file to write")
    flags = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    with exit_on_user_error():
        if flags.last is not None and flags.last < 1:
            raise UserError(f"--last must be at least 1, got {flags.last}")
        from gluon_resnest.tasks import averaging
        models = averaging.read_models(flags.paths, flags.last)
        averaging.write_model(averaging.average([model for _, model in models]), flags.out)
        for path, _ in models:
            print(f"averaged {path}")
        print(f"wrote {flags.out}, the mean of {len(models)}")


if __name__ == "__main__":
    main()
