"""Opens the published segmentation data sets, and one's own, by the layout of their folders.

    ade20k           images/{training,validation}/*.jpg     annotations/{training,validation}/*.png
    cityscapes       leftImg8bit/{train,val}/CITY/*_leftImg8bit.png    gtFine/..._labelIds.png
    pascal_context   JPEGImages/*.jpg   SegmentationClassContext/*.png (0 other, 1 to 59)
                     ImageSets/SegmentationContext/{train,val}.txt
    coco             {train,val}2017/*.jpg   annotations/instances_{train,val}2017.json
    folder           images[/{train,val}]/**   masks[/{train,val}]/**.png of the same names,
                     values 0 to classes - 1, ignored 255 (65535 from 256 classes on); classes.txt

Where a folder has no subfolder of any split, all of it is taken. A file {train,val}.rec in the root
that tools/pack_masks.py wrote takes the place of any layout.
"""
from pathlib import Path

from gluon_resnest.data import images, label_maps
from gluon_resnest.data.classification import read_class_names
from gluon_resnest.data.coco_masks import CROWD, CocoMasks
from gluon_resnest.data.mask_packing import PackedPairs
from gluon_resnest.data.recordio import CLASS_NAMES, sidecar
from gluon_resnest.data.segmentation import FilePairs, SegmentationDataset
from gluon_resnest.data.text_files import text_lines
from gluon_resnest.errors import UserError, check_choice

SPLITS = ("train", "val")
_FOLDERS = ("train", "training", "val", "validation", "test", "testing")    # of splits


def open_segmentation(layout, root, split, *, classes=None, transform=None):
    """Opens one split of a segmentation data set.

    Args:
      layout: a name of LAYOUTS.
      root: folder of the data set.
      split: "train" or "val".
      classes: number of classes of the network; a data set of more is refused, and one that names
        another number of them. None takes as many as a published layout has; the layout folder and
        packed files do not say.
      transform: see `SegmentationDataset`.

    Raises:
      UserError: if there is no such data, or an image lacks its labels.
    """
    check_choice("layout", layout, LAYOUTS)
    check_choice("split", split, SPLITS)
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; expected the root of a data set of the layout "
                        f"{layout}")
    packed = root / f"{split}.rec"
    if classes is None and (layout == "folder" or packed.is_file()):
        raise UserError(f"--classes K is missing; say how many classes {root} has")
    if packed.is_file():
        names = _names(sidecar(packed, CLASS_NAMES))
        source = PackedPairs(packed)
        labels = label_maps.counted_from_zero(classes, names, source.ignored)
    else:
        source, labels = LAYOUTS[layout](root, split, classes)
    classes = labels.count if classes is None else classes
    known = len(labels.names) if labels.names else labels.count
    if known > classes or labels.names and known < classes:
        raise UserError(f"{root} has {known} classes, the network {classes}; set --classes {known}"
                        f"{', or name all classes' if known < classes else ''}")
    return SegmentationDataset(source, labels, transform)


def _ade20k(root, split, classes):
    part = {"train": "training", "val": "validation"}[split]
    names = _ade20k_names(root / "objectInfo150.txt")
    return (FilePairs(_partners(_part(root / "images", part), _part(root / "annotations", part))),
            label_maps.counted_from_one(150, names))


def _ade20k_names(path):
    """Returns the first word of each class in the list that comes with the data set, or None."""
    if not path.is_file():
        return None
    rows = path.read_text(encoding="utf-8").splitlines()[1:]
    return tuple(row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip())


def _cityscapes(root, split, classes):
    pairs = _partners(_part(root / "leftImg8bit", split), _part(root / "gtFine", split),
                      partner=lambda stem: stem.replace("_leftImg8bit", "_gtFine_labelIds"))
    return FilePairs(pairs), label_maps.CITYSCAPES


def _pascal_context(root, split, classes):
    listing = root / "ImageSets/SegmentationContext" / f"{split}.txt"
    try:
        stems = [stem for line in text_lines(listing.read_bytes()) for stem in line.split()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listing} cannot be read ({error}); expected the list of the split's "
                        "images, one name a line") from error
    pairs = [(root / f"JPEGImages/{stem}.jpg", root / f"SegmentationClassContext/{stem}.png")
             for stem in stems]
    _require([file for pair in pairs for file in pair if not file.is_file()], listing)
    return FilePairs(pairs), label_maps.counted_from_one(59, label_maps.PASCAL_CONTEXT_NAMES)


def _coco(root, split, classes):
    source = CocoMasks(root / f"annotations/instances_{split}2017.json", root / f"{split}2017")
    count = len(source.names)
    labels = label_maps.Labels(count, {**{value: value for value in range(count)},
                                       CROWD: label_maps.IGNORED}, source.names)
    return source, labels


def _folder(root, split, classes):
    pairs = _partners(_part(root / "images", split), _part(root / "masks", split))
    return FilePairs(pairs), label_maps.counted_from_zero(classes, _names(root / "classes.txt"))


LAYOUTS = {"ade20k": _ade20k, "cityscapes": _cityscapes, "pascal_context": _pascal_context,
           "coco": _coco, "folder": _folder}


def _names(path):
    return tuple(read_class_names(path)) if path.is_file() else None


def _part(folder, split):
    """Returns the split's subfolder, or the folder itself where there is none of any split."""
    if (folder / split).is_dir():
        return folder / split
    others = [name for name in _FOLDERS if (folder / name).is_dir()]
    if others:
        raise UserError(f"there is no folder {folder / split}, only {', '.join(others)} beside it; "
                        "rename or add it")
    return folder


def _partners(image_folder, label_folder, partner=lambda stem: stem):
    """Lists (image, labels) for every image below a folder, sorted; hidden ones are left out.

    Args:
      partner: from the stem of an image's name to that of its label file, a PNG at the same place
        below the other folder.
    """
    files = sorted(file for file in image_folder.rglob("*")
                   if file.suffix.lower() in images.SUFFIXES
                   and not any(name.startswith(".")
                               for name in file.relative_to(image_folder).parts))
    if not files:
        raise UserError(f"there is no image in {image_folder}; expected files with "
                        f"{' '.join(images.SUFFIXES)}")
    pairs = [(file, label_folder / file.relative_to(image_folder).with_name(
        partner(file.stem) + ".png")) for file in files]
    _require([labels for _, labels in pairs if not labels.is_file()], image_folder)
    return pairs


def _require(missing, whose):
    """Raises a UserError if files are missing."""
    if missing:
        more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}{more} of {whose} cannot be found; give every image its "
                        "labels, or take it away")
