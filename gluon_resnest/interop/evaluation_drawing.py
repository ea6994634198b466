"""Draws what a classifier got right and wrong: the confusion matrix, and the wrong images."""
import math
from typing import NamedTuple

import numpy as np

from gluon_resnest.data import images
from gluon_resnest.interop.drawing import MAX_DRAWN, check_picture, literal, save

_COLUMNS, _CELL_INCHES = 6, (2.0, 2.3)
_MAX_NAMED, _MAX_COUNTED = 40, 30       # classes that are named; that are counted, too,
_MAX_COUNT = 9999                       # up to this number


class Mistake(NamedTuple):
    """A wrongly classified image: its file, class names, and how sure the network was."""

    file: str
    true: str
    predicted: str
    probability: float


def draw_confusion(path, counts, names=None):
    """Draws a confusion matrix: the share of each true class that is called each class.

    Args:
      path: picture to write, see `drawing.check_picture`.
      counts: int (K, K); [t, p] images or pixels of true class t were called p.
      names: of the classes; None numbers them.

    Raises:
      UserError: if the picture cannot be written.
    """
    check_picture(path)
    from matplotlib.figure import Figure
    counts = np.asarray(counts)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    names = list(map(literal, names or map(str, range(len(counts)))))
    side = min(20, 2.5 + 0.5 * len(names))
    figure = Figure(figsize=(side + 1.5, side), layout="constrained", facecolor="white")
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    accuracies = [f"{name}  {100 * shares[number, number]:.1f} %" if totals[number] else name
                  for number, name in enumerate(names)]
    axes.set(xlabel="predicted", ylabel="true, with its accuracy")
    if len(names) <= _MAX_NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), accuracies)
    if len(names) <= _MAX_COUNTED and counts.max() <= _MAX_COUNT:
        for (true, predicted), count in np.ndenumerate(counts):
            if count:
                axes.text(predicted, true, str(count), ha="center", va="center",
                          color="white" if shares[true, predicted] > 0.5 else "black", fontsize=8)
    figure.colorbar(shown, label="share of the true class", shrink=0.8)
    save(figure, path, dpi=110)


def draw_mistakes(path, mistakes):
    """Draws a contact sheet of the first MAX_DRAWN mistakes.

    Args:
      path: picture to write.
      mistakes: list of `Mistake`, in the order in which they are drawn; none draws a sentence.

    Raises:
      UserError: if the picture cannot be written, or an image read.
    """
    check_picture(path)
    from matplotlib.figure import Figure
    drawn = mistakes[:MAX_DRAWN]
    rows = max(1, math.ceil(len(drawn) / _COLUMNS))
    width, height = _CELL_INCHES
    figure = Figure(figsize=(width * _COLUMNS, height * rows + 0.4), layout="constrained",
                    facecolor="white")
    figure.suptitle(f"{len(drawn)} of {len(mistakes)} wrongly classified images, the surest first"
                    if drawn else "no image was classified wrongly", fontsize=10)
    for axes in figure.subplots(rows, _COLUMNS, squeeze=False).flat:
        axes.set_axis_off()
    for axes, mistake in zip(figure.axes, drawn):
        axes.imshow(images.load(mistake.file))
        axes.set_title(literal(f"{mistake.predicted} {100 * mistake.probability:.0f} %\n"
                               f"true: {mistake.true}"), fontsize=7.5)
    save(figure, path, dpi=110)
