"""Draws images beside their predicted classes."""
import math
import os
from pathlib import Path

import numpy as np

from gluon_resnest.data import images
from gluon_resnest.errors import MissingExtra, UserError

FORMATS = (".png", ".pdf", ".svg", ".jpg")
MAX_DRAWN = 24

_CELL_INCHES = (4.6, 2.0)       # of one image with its bars
OPACITY = 0.6                   # of the colours that lie on a picture
_IMAGE_INCHES = 4.2             # of one image alone
_INK, _GREY, _TRACK = "#1f2933", "#7b8794", "#e4e7eb"
_FIRST, _OTHER = "#0b6e99", "#9fb3c8"
_MAX_LABEL = 34
_BLANK = 235                    # grey in place of a picture that is left out


def check_picture(path):
    """Raises a UserError unless a picture of this name can be drawn; call it before the work."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"cannot draw {str(path)!r}; expected a name ending in "
                        f"{', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtra("matplotlib") from None
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
        raise UserError(f"cannot write {str(path)!r}; choose a file in an existing, writable "
                        "folder")


def check_opacity(opacity):
    """Raises a UserError unless an opacity is within 0..1."""
    if not 0 <= opacity <= 1:
        raise UserError(f"the opacity of the colours must be within 0..1, got {opacity}")


def literal(text):
    """Returns a name for matplotlib to draw as it is: what is between two $ would be a formula."""
    return text.replace("$", r"\$")


def save(figure, path, dpi=150):
    """Writes a matplotlib figure.

    Raises:
      UserError: if the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=dpi)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}; choose a writable folder "
                        "with space") from error


def draw_images(path, answers, draw):
    """Draws the first MAX_DRAWN images that were read, in a grid.

    Args:
      path: picture to write, of one of FORMATS.
      answers: list of what has a `problem`, None if the image was read; the others are left out.
      draw: called with matplotlib axes and an answer.

    Raises:
      UserError: if no image could be read, or the picture cannot be written.
    """
    check_picture(path)
    from matplotlib.figure import Figure
    drawn = [answer for answer in answers if answer.problem is None][:MAX_DRAWN]
    if not drawn:
        raise UserError(f"there is nothing to draw in {str(path)!r}: no image could be read")
    columns = min(len(drawn), 1 if len(drawn) == 1 else 2 if len(drawn) < 7 else 3)
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(_IMAGE_INCHES * columns, _IMAGE_INCHES * rows), facecolor="white")
    for position, answer in enumerate(drawn, 1):
        axes = figure.add_subplot(rows, columns, position)
        axes.set_axis_off()
        draw(axes, answer)
    figure.tight_layout(pad=0.3)
    save(figure, path)


def background(file, opacity):
    """Returns the image to draw on, uint8 (H, W, 3); it is left out below colours of opacity 1."""
    image = images.load(file)
    return np.full_like(image, _BLANK) if opacity == 1 else image


def draw_answers(path, answers):
    """Draws the first MAX_DRAWN answered images in a grid, each with a bar for every guess.

    Args:
      path: picture to write, of one of FORMATS.
      answers: list of `predictor.Answer`; those with a problem are left out.

    Raises:
      UserError: if no answer has guesses, or the picture cannot be written.
    """
    check_picture(path)
    from matplotlib.figure import Figure
    drawn = [answer for answer in answers if answer.guesses][:MAX_DRAWN]
    if not drawn:
        raise UserError(f"there is nothing to draw in {str(path)!r}: no image could be classified")
    columns = 1 if len(drawn) < 3 else 2 if len(drawn) < 9 else 3
    rows = math.ceil(len(drawn) / columns)
    width, height = _CELL_INCHES
    figure = Figure(figsize=(width * columns, height * rows + 0.2), facecolor="white")
    # Columns come in threes: image, bars, and a gap to the next image.
    grid = figure.add_gridspec(rows, 3 * columns, width_ratios=[1, 1.35, 0.1] * columns,
                               left=0.02, right=1, wspace=0.08, hspace=0.1,
                               top=1 - 0.1 / (height * rows), bottom=0.1 / (height * rows))
    for position, answer in enumerate(drawn):
        row, column = divmod(position, columns)
        _draw_image(figure.add_subplot(grid[row, 3 * column]), answer)
        _draw_bars(figure.add_subplot(grid[row, 3 * column + 1]), answer)
    save(figure, path)


def _draw_image(axes, answer):
    image = images.load(answer.file)
    axes.imshow(image, interpolation="nearest" if max(image.shape) < 100 else "antialiased")
    axes.set_axis_off()
    axes.set_anchor("C")


def _draw_bars(axes, answer):
    """Draws a thin bar for each guess, its name and per cent above it."""
    axes.set(xlim=(0, 1), ylim=(max(5, len(answer.guesses)) + 0.05, -0.75))
    axes.set_axis_off()
    axes.text(0, -0.45, literal(_short(answer.file.name)), color=_GREY, fontsize=7, va="center")
    for rank, guess in enumerate(answer.guesses):
        color, weight = (_FIRST, "bold") if rank == 0 else (_OTHER, "normal")
        style = {"fontsize": 8.5, "va": "center", "color": _INK, "weight": weight}
        axes.text(0, rank + 0.3, literal(_short(guess.label)), **style)
        axes.text(1, rank + 0.3, f"{100 * guess.probability:.1f} %", ha="right", **style)
        axes.barh(rank + 0.72, 1, height=0.16, color=_TRACK)
        axes.barh(rank + 0.72, guess.probability, height=0.16, color=color)


def _short(text):
    return text if len(text) <= _MAX_LABEL else text[:_MAX_LABEL - 1] + "\u2026"
