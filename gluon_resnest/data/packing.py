"""Packs image files into a record file: the same bytes however often it was interrupted."""
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image

from gluon_resnest.data import images
from gluon_resnest.data.classification import list_folder
from gluon_resnest.data.processes import in_order
from gluon_resnest.data.recordio import RecordWriter, sidecar, write_class_names, write_whole
from gluon_resnest.data.sampling import random_for
from gluon_resnest.data.text_files import text_lines
from gluon_resnest.errors import UserError

_MAX_LABEL = 1 << 24            # labels are float32, which counts no further
_CHUNK = 16                                                   # images a process gets at a time


@dataclasses.dataclass(frozen=True)
class PackOptions:
    """How images are stored; part of what makes a record file.

    resize_short: images whose shorter side is longer are shrunk to this many pixels; None: never.
    quality: of JPEGs that have to be encoded, 1..100.
    reencode: encodes all images; otherwise RGB and greyscale JPEGs keep their bytes.
    shuffle: stores the images in a random order.
    seed: of that order.
    """
    resize_short: Optional[int] = None
    quality: int = 95
    reencode: bool = False
    shuffle: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.resize_short is not None and self.resize_short < 1:
            raise UserError(f"expected a shorter side of at least 1 px, got {self.resize_short}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"expected a JPEG quality from 1 to 100, got {self.quality}")


class Item(NamedTuple):
    """An image to be packed: its label or labels, its key, and its path below the root."""
    label: object
    key: int
    file: str


class Summary(NamedTuple):
    """What packing did: number of records, how many were there before, files left out."""
    count: int
    before: int
    skipped: tuple


def folder_items(root, class_names=None):
    """Returns ([Item, ...], class names) of a folder-per-class tree; see `list_folder`."""
    labelled, names = list_folder(root, class_names)
    return [Item(label, key, file) for key, (label, file) in enumerate(labelled)], names


def list_items(path):
    """Returns the Items of an im2rec list: index, tab, label or labels, tab, path on each line.

    Raises:
      UserError: names the line that is not like that.
    """
    try:
        lines = text_lines(Path(path).read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {path} cannot be read ({error})") from error
    items, lines_of = [], {}
    for number, line in enumerate(lines, start=1):
        columns = line.split("\t")
        try:
            if len(columns) < 3 or not columns[-1]:
                raise ValueError
            key, labels = int(columns[0]), [float(column) for column in columns[1:-1]]
            if not 0 <= key < 2 ** 63 or not np.isfinite(labels).all():
                raise ValueError
        except ValueError:
            raise UserError(f"line {number} of {path} should be an index, a tab, a label, a tab "
                            f"and a path, got {line[:60]!r}") from None
        if max(map(abs, labels)) > _MAX_LABEL:
            raise UserError(f"line {number} of {path} has a label beyond {_MAX_LABEL}, which a "
                            f"record file cannot hold exactly, got {line[:60]!r}; number the "
                            f"classes from 0")
        if key in lines_of:
            raise UserError(f"lines {lines_of[key]} and {number} of {path} have the same index "
                            f"{key}, expected a different one for each image")
        lines_of[key] = number
        items.append(Item(labels[0] if len(labels) == 1 else labels, key, columns[-1]))
    if not items:
        raise UserError(f"the list {path} is empty; expected a line for each image")
    return items


def pack(items, root, rec, options=PackOptions(), *, class_names=None, processes=1,
         skip_broken=False, progress=None):
    """Packs images into REC, with .idx, .names.txt, .pack.json, .sha256 and .classes.txt beside it.

    The record file is written in order and appears when it is complete. If a former attempt was
    interrupted, however rudely, its whole records are kept; the result is bit for bit the same, as
    it is for any number of processes. If REC is already the result of these arguments, it stays.

    Args:
      items: what to pack; keys are unique.
      root: folder the items' files are relative to.
      rec: the record file to be.
      options: how to store the images.
      class_names: written to .classes.txt if given; otherwise one that is there is removed.
      processes: how many encode.
      skip_broken: leaves broken and missing images out instead of stopping at the first.
      progress: None, or a callable (done, total), called after each image.

    Returns:
      Summary.

    Raises:
      UserError: if an image is broken, REC is something else already, or cannot be written.
    """
    if not str(rec).endswith(".rec"):
        raise UserError(f"expected a record file whose name ends in .rec, got {rec}")
    if options.shuffle:
        order = random_for(options.seed, 0, 0, "pack").permutation(len(items))
        items = [items[number] for number in order]
    recipe = _recipe(items, options, class_names, skip_broken)
    with _writing(rec):
        if _is_done(rec, recipe, _recipe(items, options, class_names, False)):
            lines = len(sidecar(rec, ".idx").read_text().splitlines())
            return Summary(lines, lines, ())
        with RecordWriter(rec, resume=True) as writer:
            before = len(writer.keys)
            start = _position_after(writer.keys, items, rec)
            encoded = _encoded(items[start:], root, options, processes)
            for number, (item, (data, problem)) in enumerate(zip(items[start:], encoded), start):
                if data is not None:
                    writer.write(item.label, data, item.key)
                elif not skip_broken:
                    raise UserError(f"{problem}; replace it, or leave such images out with "
                                    f"--skip-broken (the images before it are packed)")
                if progress:
                    progress(number + 1, len(items))
            if not writer.keys:
                raise UserError(f"none of the {len(items)} images can be read; nothing is packed")
            written = set(writer.keys)
            write_whole(sidecar(rec, ".names.txt"), "".join(
                f"{item.file}\n" for item in items if item.key in written))
            write_class_names(rec, class_names)
    skipped = tuple(item.file for item in items if item.key not in written)
    return Summary(len(written), before, skipped)


def encode(path, options):
    """Returns the bytes to be stored for an image file; the image has been decoded completely.

    Raises:
      UserError: if the file cannot be read or decoded.
    """
    data = images.read_file(path)
    try:
        pixels = images.decode(data)
        kind = images.kind(data)
    except images.BadImage as error:
        raise UserError(f"{path}: {error}") from error
    height, width = pixels.shape[:2]
    shrink = options.resize_short is not None and min(height, width) > options.resize_short
    if not shrink and not options.reencode and kind in (("JPEG", "RGB"), ("JPEG", "L")):
        return data
    image = Image.fromarray(pixels)
    if shrink:
        scale = options.resize_short / min(height, width)
        image = image.resize((round(width * scale), round(height * scale)), Image.LANCZOS)
    stored = io.BytesIO()
    try:
        image.save(stored, "JPEG", quality=options.quality)
    except OSError as error:
        raise UserError(f"{path} of {image.width} x {image.height} pixels cannot be stored as a "
                        f"JPEG ({error})") from error
    return stored.getvalue()


def _encoded(items, root, options, processes):
    """Yields (bytes, None) or (None, problem) for each item, in order."""
    paths = iter([Path(root) / item.file for item in items])
    chunks = iter(lambda: list(itertools.islice(paths, _CHUNK)), [])
    work = functools.partial(_encode_all, options=options)
    return itertools.chain.from_iterable(in_order(work, chunks, processes))


def _encode_all(paths, options):
    results = []
    for path in paths:
        try:
            results.append((encode(path, options), None))
        except UserError as error:
            results.append((None, str(error)))
    return results


def _recipe(items, options, class_names, skip_broken):
    """Returns what determines the bytes of a record file, as JSON text."""
    listed = hashlib.sha256(repr(class_names).encode())
    for item in items:
        try:
            listed.update(f"{item.key}\t{item.label}\t{item.file}\n".encode())
        except UnicodeEncodeError:
            raise UserError(f"the name of {item.file!a} is no UTF-8, as which names are kept "
                            "beside a record file; rename the file or its folder") from None
    return json.dumps(dict(dataclasses.asdict(options), skip_broken=skip_broken, images=len(items),
                           list_sha256=listed.hexdigest()), indent=1) + "\n"


def _is_done(rec, recipe, strict):
    """Tells whether REC is there as wanted; makes sure that what is there belongs to `recipe`.

    `strict` is the recipe that stops at a broken image: what it packed, ours would have too.
    """
    recipe_file, partial = sidecar(rec, ".pack.json"), Path(f"{rec}.partial")
    found = recipe_file.read_text() if recipe_file.is_file() else None
    for file in (Path(rec), partial):
        if file.exists() and found not in (recipe, strict):
            raise UserError(f"{file} is there already, made from other images or options; choose "
                            f"another name, or delete it")
    if Path(rec).exists():
        return True
    write_whole(recipe_file, recipe)
    return False


def _position_after(keys, items, rec):
    """Returns the position behind the last item that is in the partial file."""
    if not keys:
        return 0
    positions = {item.key: position for position, item in enumerate(items)}
    found = [positions.get(key, -1) for key in keys]
    if min(found) < 0 or sorted(found) != found:
        raise UserError(f"{rec}.partial holds other records than expected; delete it")
    return found[-1] + 1


@contextlib.contextmanager
def _writing(rec):
    """Makes a sentence of a disk that is full or cannot be written to."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{rec} cannot be written ({error.strerror or error}); mend that and run "
                        f"the same command again, it continues where it stopped") from error
