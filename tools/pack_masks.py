"""Packs a segmentation data set into RecordIO: one file for each split, read as the folders were.

    python tools/pack_masks.py ade20k ADEChallengeData2016 --split train
    python tools/pack_masks.py folder mine --split val --classes 4 --out packed

writes OUT/SPLIT.rec with its index, checksum and class names; recipes/deeplabv3.py takes them by
--root OUT. Every label is checked on the way.
"""
import argparse
from pathlib import Path

from gluon_resnest.data.mask_packing import pack_masks
from gluon_resnest.data.segmentation_layouts import LAYOUTS, SPLITS, open_segmentation
from gluon_resnest.errors import UserError, exit_on_user_error


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", choices=LAYOUTS, help="how the folder is laid out")
    parser.add_argument("root", metavar="ROOT", help="folder of the data set")
    parser.add_argument("--split", choices=SPLITS, default="train",
                        help="which part to pack (default: %(default)s)")
    parser.add_argument("--classes", type=int, metavar="K", help="number of classes (default: "
                        "that of the published set; a folder has none)")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: ROOT)")
    return parser.parse_args(argv)


def main(argv=None):
    flags = parse(argv)
    with exit_on_user_error():
        if flags.classes is not None and flags.classes < 1:
            raise UserError(f"--classes must be at least 1, got {flags.classes}")
        rec = Path(flags.out or flags.root) / f"{flags.split}.rec"
        if rec.exists():
            raise UserError(f"{rec} exists already; remove it, or give another --out")
        dataset = open_segmentation(flags.layout, flags.root, flags.split,
                                    classes=flags.classes)
        try:
            rec.parent.mkdir(parents=True, exist_ok=True)
            from tqdm import tqdm
            count = sum(1 for _ in tqdm(pack_masks(dataset, rec), "packing", len(dataset),
                                        leave=False))
        except OSError as error:
            raise UserError(f"cannot write {rec}: {error.strerror}; choose a writable folder with "
                            "space") from error
        print(f"wrote {rec}: {count} pairs, {rec.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
