"""Builds every model of the zoo, or those of a pattern, and checks it; a CSV row each.

    python tools/validate_zoo.py > zoo.csv
    python tools/validate_zoo.py 'resnest*' --jobs 2 --csv resnests.csv
    python tools/validate_zoo.py 'resnest50*' --weights weights --rec val.rec

A random image goes through each network; parameters and, of classifiers, multiply-accumulates at
224 px are compared with what the zoo declares. With --weights the files {name}.params or
{name}-{hash}.params of a folder are loaded first, and with --rec their accuracy is measured, at the
crop and by the protocol that docs/model_zoo.md prints; 224 and gluon where it prints none. Ends
with 1 if a verdict is not ok.

Columns: name, verdict, parameters, declared_parameters, gmacs, declared_gmacs (at 224 px), outputs
(their shapes), seconds (of the first pass), top1 (per cent).
"""
import argparse
import csv
import dataclasses
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from gluon_resnest import zoo
from gluon_resnest.errors import UserError, exit_on_user_error, nearest
from gluon_resnest.interop.published import EFFICIENTNETS
from gluon_resnest.interop.validation import FIELDS, validate


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern of names "
                        "(default: all)")
    parser.add_argument("--size", type=int, default=64, metavar="PX", help="side of the random "
                        "image, a multiple of 32 (default: %(default)s)")
    parser.add_argument("--weights", metavar="DIR", type=Path, help="folder of parameter files; "
                        "models without one are left out")
    parser.add_argument("--rec", metavar="FILE", help="evaluation images, .rec or a folder of "
                        "class folders")
    parser.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="models at a time (default: %(default)s)")
    parser.add_argument("--csv", metavar="FILE", help="write here instead of to the screen")
    return parser.parse_args(argv)


def chosen(flags):
    """Returns {name: weight file or None} of the models that the flags ask for."""
    if flags.size < 32 or flags.size % 32:
        raise UserError(f"--size must be a multiple of 32, got {flags.size}")
    if flags.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {flags.jobs}")
    if flags.rec and not flags.weights:
        raise UserError("--rec measures the accuracy of --weights, which is missing; give the "
                        "folder of parameter files")
    names = zoo.list_models(flags.pattern)
    if not names:
        raise UserError(f"no model of the zoo matches {flags.pattern!r}"
                        f"{nearest(flags.pattern, zoo.list_models())}")
    if not flags.weights:
        return dict.fromkeys(names)
    if not flags.weights.is_dir():
        raise UserError(f"--weights must be a folder, got {str(flags.weights)!r}")
    files = {name: file_of(name, flags.weights) for name in names}
    found = {name: file for name, file in files.items() if file}
    if not found:
        raise UserError(f"{str(flags.weights)!r} has no file of {', '.join(names[:3])}...; their "
                        "names are {name}.params or {name}-{hash}.params")
    return found


def file_of(name, folder):
    """Returns the parameter file of a model in a folder, or None."""
    spelled = re.compile(re.escape(name) + r"(-[0-9a-f]{8})?\.params")
    return next((file for file in sorted(folder.iterdir()) if spelled.fullmatch(file.name)), None)


def rule_of(name):
    """Returns (crop, protocol) by which a classifier is evaluated; see the docstring above."""
    weights = zoo.variant(name).weights
    if weights:
        return weights.crop_px, weights.protocol
    return next((row.crop_px for row in EFFICIENTNETS if row.model == name), 224), "gluon"


def accuracy(name, weights, rec):
    """Returns the top-1 of a classifier, evaluated by its `rule_of`."""
    crop, protocol = rule_of(name)
    with tempfile.TemporaryDirectory(prefix="validate-zoo-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "gluon_resnest.recipes.imagenet", "--network", name,
             "--eval-px", str(crop), "--eval-protocol", protocol, "--eval-only",
             "--weights", str(weights), "--rec-val", rec, "--workdir", folder],
            capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{name} could not be evaluated: "
                            + (done.stderr.strip().splitlines() or ["it ended"])[-1])
        return json.loads((Path(folder) / "result.json").read_text())["measured"]["top1"]


def look_at(job):
    """Returns the Finding of one model; runs in a process of its own."""
    name, weights, size, rec = job
    found = validate(name, size=(size, size), weights=weights)
    if rec and found.verdict == "ok" and name in zoo.VARIANTS:
        try:
            return dataclasses.replace(found, top1=accuracy(name, weights, rec))
        except UserError as error:
            return dataclasses.replace(found, verdict=str(error))
    return found


def main(argv=None):
    flags = parse(argv)
    with exit_on_user_error():
        jobs = [(name, weights, flags.size, flags.rec) for name, weights in chosen(flags).items()]
        try:
            target = open(flags.csv, "w", newline="") if flags.csv else sys.stdout
        except OSError as error:
            raise UserError(f"--csv {flags.csv} cannot be written: {error.strerror}; give another "
                            "file") from error
        writer, wrong = csv.writer(target), 0
        writer.writerow(FIELDS)
        try:
            with ProcessPoolExecutor(flags.jobs, multiprocessing.get_context("spawn")) as pool:
                for found in tqdm(pool.map(look_at, jobs), "models", len(jobs), disable=None):
                    writer.writerow(["" if value is None else f"{value:.4g}"
                                     if isinstance(value, float) else value
                                     for value in dataclasses.astuple(found)])
                    target.flush()
                    wrong += found.verdict != "ok"
        except BrokenProcessPool as error:
            raise UserError("a process that looks at models was killed, perhaps for want of "
                            "memory; the rows before it are written; give fewer --jobs, or a "
                            "pattern of smaller models") from error
        print(f"{len(jobs)} models, {wrong} not ok", file=sys.stderr)
        if target is not sys.stdout:
            target.close()
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
