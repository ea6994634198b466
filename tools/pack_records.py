"""Packs images into a record file (.rec), or checks one.

    python tools/pack_records.py PICTURES/train train.rec

packs PICTURES/train/CLASS/*.jpg, classes numbered in the order of their names, and writes

    train.rec .idx        the images and their positions; MXNet's own readers take them too
    train.classes.txt     the class names, one a line
    train.names.txt       the file each record was made from, so that errors can name it
    train.pack.json       the options, so that the same command can continue
    train.sha256          checksums: `sha256sum -c train.sha256`

Interrupted? The same command continues, and the file becomes the same, bit for bit. More examples:

    python tools/pack_records.py PICTURES/val val.rec --classes train.classes.txt
        numbers the classes as the training set does, even where a folder is missing
    python tools/pack_records.py val.lst val.rec --root PICTURES/val
        packs what a list says: index, tab, label, tab, path on each line, as MXNet's im2rec
    python tools/pack_records.py PICTURES/train train.rec --processes 8 --resize-short 480
        shrinks larger images, which halves ImageNet's bytes; smaller images are kept as they are
    python tools/pack_records.py --check train.rec
        reads and decodes everything: count, label range, index, checksum, images that are broken,
        greyscale or CMYK, by name; exit code 2 if anything is wrong

RGB and greyscale JPEGs are stored byte for byte unless they are shrunk (or --reencode is given);
anything else, such as PNG or CMYK, becomes an RGB JPEG of the given --quality.
"""
import argparse
import os
import sys

from tqdm import tqdm

from gluon_resnest.data.checking import check
from gluon_resnest.data.classification import read_class_names
from gluon_resnest.data.packing import PackOptions, folder_items, list_items, pack
from gluon_resnest.errors import UserError, exit_on_user_error

_SHOWN = 20                                                   # names of a kind that are printed


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", metavar="FOLDER|LIST.lst",
                        help="folder with a folder of images for each class, or an im2rec list")
    parser.add_argument("rec", nargs="?", metavar="FILE.rec", help="the record file to be")
    parser.add_argument("--check", metavar="FILE.rec", help="check this file instead of packing")
    parser.add_argument("--root", metavar="DIR", help="folder the paths of a list are relative to "
                        "(default: the list's own)")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line; their numbers "
                        "are the labels of folders, and the range that --check expects")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="processes that decode and encode (default: %(default)s, the cores)")
    defaults = PackOptions()
    parser.add_argument("--resize-short", type=int, metavar="PX",
                        help="shrink images whose shorter side is longer than this")
    parser.add_argument("--quality", type=int, default=defaults.quality, metavar="Q",
                        help="JPEG quality where images are encoded (default: %(default)s)")
    parser.add_argument("--reencode", action="store_true", help="encode all images, instead of "
                        "passing the bytes of JPEGs through")
    parser.add_argument("--shuffle", action="store_true", help="store in random order; recipes "
                        "shuffle anyway, other readers may not")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of --shuffle")
    parser.add_argument("--skip-broken", action="store_true",
                        help="leave images out that cannot be read, instead of stopping there")
    return parser.parse_args(argv)


def pack_images(flags):
    """Packs what the flags name and prints what came of it."""
    options = PackOptions(flags.resize_short, flags.quality, flags.reencode, flags.shuffle,
                          flags.seed)
    names = flags.classes and read_class_names(flags.classes)
    if os.path.isdir(flags.source):
        if flags.root is not None:
            raise UserError(f"--root belongs to a list, but {flags.source} is a folder; leave it "
                            "out")
        root = flags.source
        items, names = folder_items(root, names)
    else:
        root = flags.root or os.path.dirname(flags.source)
        items = list_items(flags.source)
    with Progress("packing") as progress:
        summary = pack(items, root, flags.rec, options, class_names=names,
                       processes=flags.processes, skip_broken=flags.skip_broken,
                       progress=progress)
    print(f"{flags.rec}: {summary.count} images, {os.path.getsize(flags.rec) / 1e6:.1f} MB"
          + (f", {summary.before} of them were there before" if summary.before else ""))
    show("left out", summary.skipped)


def check_file(flags):
    """Checks a record file and prints the report."""
    classes = flags.classes and len(read_class_names(flags.classes))
    with Progress("checking") as progress:
        report = check(flags.check, classes, processes=flags.processes, progress=progress)
    print(f"{flags.check}: {report.count} records, {os.path.getsize(flags.check) / 1e6:.1f} MB")
    if report.labels:
        print("labels {:g} to {:g}".format(*report.labels))
    if report.multiple:
        print(f"{report.multiple} records have several labels")
    for (kind, mode), count in sorted(report.formats.items()):
        print(f"{count} images are {kind} {mode}")
    show("greyscale", report.greyscale)
    show("CMYK", report.cmyk)
    for note in report.notes:
        print(f"note: {note}")
    show("problem", report.problems)
    if report.problems:
        raise UserError(f"{flags.check} has {len(report.problems)} problems, named above; pack it "
                        f"again from whole images")
    print("all is well")


def show(what, names):
    """Prints the names of one kind, each on a line, and how many there are."""
    if names:
        print(f"{what}: {len(names)}")
        for name in names[:_SHOWN]:
            print(f"  {name}")
        if len(names) > _SHOWN:
            print(f"  and {len(names) - _SHOWN} more")


class Progress:
    """A progress bar that is told (done, total)."""

    def __init__(self, title):
        self._bar = tqdm(desc=title, unit="img", disable=None)

    def __call__(self, done, total):
        if self._bar.total is None:
            self._bar.total, self._bar.initial, self._bar.n = total, done - 1, done - 1
        self._bar.update(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()


def main(argv=None):
    flags = parse(argv)
    with exit_on_user_error():
        try:
            if flags.check and not flags.source:
                check_file(flags)
            elif flags.source and flags.rec and not flags.check:
                pack_images(flags)
            else:
                raise UserError("give what to pack and the file to be, or --check FILE.rec; see "
                                "--help")
        except KeyboardInterrupt:
            print("stopped; the same command continues where this one ended", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main()
