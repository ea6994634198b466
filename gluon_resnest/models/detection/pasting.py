"""Masks of detections at the image's size, and COCO's run-length code of them; numpy only.

A mask lies on its box: its value at a pixel is bilinear between the centres of the mask's cells,
which divide the box evenly, and zero beyond; from THRESHOLD on the pixel belongs to the object
(He et al. 2017, section 3; the rule of Detectron2's paste_masks_in_image).

Down a column of pixels the value is linear from one cell to the next. So it is not computed for
every pixel: where it passes the threshold follows from the cells, and these places are what the
code of COCO, which runs down the columns, stores.
"""
import numpy as np

THRESHOLD = 0.5


def paste(mask, box, height, width):
    """Returns the pixels of one object, bool (height, width).

    Args:
      mask: (S, S), probabilities.
      box: (4,), corners in pixels of the image; may reach beyond it or be empty.
      height, width: of the image.
    """
    runs = _runs(_changes(mask, box, height, width), height * width)
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return pixels.reshape(width, height).T


def encode(mask, box, height, width):
    """Returns what `paste` returns as COCO's {"size": [height, width], "counts": str}."""
    return _code(_changes(mask, box, height, width), height, width)


def encode_pixels(pixels):
    """Returns COCO's code of any mask, bool or uint8 (H, W)."""
    height, width = pixels.shape
    flat = np.ascontiguousarray(pixels.T).astype(bool).ravel()
    return _code(np.flatnonzero(np.diff(flat, prepend=False)), height, width)


def compress(runs):
    """Returns run lengths, int64 (n,), as COCO's text.

    From the fourth on, a run is written as its difference to the one before the last. A number is
    written in groups of five bits, lowest first, two's complement, with a sixth bit where more
    follow; 48 is added to each group to make it a letter.
    """
    numbers = np.array(runs, np.int64)
    numbers[3:] -= runs[1:-2]
    groups, going = [], np.ones(len(numbers), bool)
    while going.any():
        group = numbers & 31
        numbers = numbers >> 5
        more = numbers != np.where(group & 16, -1, 0)
        groups.append(np.where(going, group + 32 * more + 48, 0))
        going = going & more
    letters = np.stack(groups, axis=1).ravel()
    return letters[letters > 0].astype(np.uint8).tobytes().decode("ascii")


def _code(changes, height, width):
    counts = compress(_runs(changes, height * width))
    return {"size": [int(height), int(width)], "counts": counts}


def _runs(changes, length):
    """Returns the lengths of the runs of zeros and ones, in turn, zeros first."""
    if not len(changes) or changes[-1] != length:
        changes = np.append(changes, length)
    return np.diff(changes, prepend=0)


def _changes(mask, box, height, width):
    """Returns where the pixels, column after column, change from outside to inside and back."""
    cells = len(mask)
    left, top, right, bottom = (float(edge) for edge in box)
    # A pixel reaches the threshold only if its centre lies in the box.
    columns = np.arange(max(0, int(np.ceil(left - 0.5))),
                        min(width, int(np.floor(right - 0.5)) + 1))
    if right <= left or bottom <= top or not len(columns):
        return np.zeros(0, np.int64)
    place = (columns + 0.5 - left) / (right - left) * cells - 0.5
    across = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells)))
    values = np.pad(across @ np.asarray(mask, float).T, ((0, 0), (1, 1)))
    inside = values >= THRESHOLD
    column, cell = np.nonzero(inside[:, 1:] != inside[:, :-1])
    above, below = values[column, cell], values[column, cell + 1]
    row = cell - 1 + (THRESHOLD - above) / (below - above)                   # in cells
    row = (row + 0.5) / cells * (bottom - top) + top - 0.5                   # in pixels
    # The first pixel that is inside, or the first that is not any more.
    row = np.where(above < THRESHOLD, np.ceil(row), np.floor(row) + 1)
    row = np.clip(row, 0, height).astype(np.int64)
    places, times = np.unique(columns[column] * height + row, return_counts=True)
    return places[times % 2 == 1]       # to and fro between two pixels is no change
