"""Draws labelled images with a legend."""
import numpy as np

from gluon_resnest.data import images
from gluon_resnest.errors import UserError
from gluon_resnest.interop.drawing import (
    MAX_DRAWN, OPACITY, check_opacity, check_picture, literal, save)

_LEGEND = 12            # classes an image's legend names
_CELL_INCHES = (3.0, 2.4)


def palette(count):
    """Returns colours that tell classes apart, uint8 (count, 3); the first is black.

    The bits of a class's number are dealt to red, green and blue, highest first, as in the Pascal
    VOC development kit: neighbours in number are far apart in colour.
    """
    numbers, colors = np.arange(count), np.zeros((count, 3), np.int64)
    for place in range(8):
        for channel in range(3):
            colors[:, channel] |= (numbers >> (3 * place + channel) & 1) << (7 - place)
    return colors.astype(np.uint8)


def overlay(image, labels, colors, opacity=OPACITY):
    """Returns an image uint8 (H, W, 3) tinted with the colours (K, 3) of its labels (H, W)."""
    return (image * (1 - opacity) + colors[labels] * opacity).round().astype(np.uint8)


def draw_labelled(path, answers, card, opacity=OPACITY):
    """Draws the first MAX_DRAWN images, each with its overlay and the names of its classes.

    Args:
      path: picture to write, of one of `drawing.FORMATS`.
      answers: list of `segmentation.Labelled`; those with a problem are left out.
      card: the network's `SegmentationCard`.
      opacity: of the colours, 0..1; at 1, which hides the images, they are left out.

    Raises:
      UserError: if there is nothing to draw, the picture cannot be written, or the opacity is
        out of range.
    """
    check_picture(path)
    check_opacity(opacity)
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    drawn = [answer for answer in answers if answer.labels is not None][:MAX_DRAWN]
    if not drawn:
        raise UserError(f"there is nothing to draw in {str(path)!r}: no image could be labelled")
    colors = palette(card.classes)
    width, height = _CELL_INCHES
    columns = 3 if opacity < 1 else 2
    figure = Figure(figsize=(columns * width, height * len(drawn)), facecolor="white")
    axes = figure.subplots(len(drawn), columns, squeeze=False)
    for row, answer in zip(axes, drawn):
        image = images.load(answer.file)
        if opacity < 1:
            row[0].imshow(image)
        row[-2].imshow(overlay(image, answer.labels, colors, opacity))
        row[0].set_title(literal(answer.file.name[:40]), fontsize=7, color="#7b8794", loc="left")
        patches = [Patch(color=colors[number] / 255,
                         label=f"{literal(card.name(number)[:28])} {100 * share:.1f} %")
                   for number, share in answer.shares()[:_LEGEND]]
        row[-1].legend(handles=patches, loc="center left", fontsize=7, frameon=False)
        for cell in row:
            cell.set_axis_off()
    figure.tight_layout(pad=0.4)
    save(figure, path, dpi=120)
