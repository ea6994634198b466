"""Draws images with their segments: things and stuff in colours, outlined and named."""
import numpy as np

from gluon_resnest.data import images
from gluon_resnest.interop.drawing import OPACITY, check_opacity, draw_images, literal
from gluon_resnest.interop.segmentation_drawing import overlay, palette

_LEAST_SHARE = 0.002        # of the picture: smaller segments are not named


def draw_segments(path, answers, card, opacity=OPACITY):
    """Draws images, each with its segments; see `drawing.draw_images`.

    Args:
      path: picture to write, of one of `drawing.FORMATS`.
      answers: list of `panoptic.Merged`; those with a problem are left out.
      card: the network's `PanopticCard`.
      opacity: of the colours, 0..1.

    Raises:
      UserError: if no image could be read, the picture cannot be written, or the opacity is out
        of range.
    """
    check_opacity(opacity)
    draw_images(path, answers, lambda axes, answer: draw_merged(axes, answer, card, opacity))


def draw_merged(axes, answer, card, opacity=OPACITY):
    """Draws one image on matplotlib axes with its segments; pixels without one stay as they are."""
    image = images.load(answer.file)
    kinds = palette(1 + card.classes + card.stuff)
    colors = np.array([kinds[0]] + [
        kinds[1 + each.kind + (0 if each.thing else card.classes)] for each in answer.segments])
    tinted = overlay(image, answer.ids, colors, opacity)
    tinted[answer.ids == 0] = image[answer.ids == 0]
    tinted[outlines(answer.ids)] = 255
    axes.imshow(tinted)
    axes.autoscale(False)
    for each in answer.segments:
        if each.area >= _LEAST_SHARE * answer.ids.size:
            row, column = inner_pixel(answer.ids == each.id)
            label = card.name(each)[:24] + (f" {each.score:.2f}" if each.thing else "")
            axes.text(column, row, literal(label), fontsize=6, ha="center", va="center",
                      color="black", clip_on=True, bbox={"facecolor": "white", "edgecolor": "none",
                                                         "pad": 0.6, "alpha": 0.75})


def outlines(ids):
    """Returns the pixels (H, W) whose right or lower neighbour is of another segment."""
    edges = np.zeros(ids.shape, bool)
    edges[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    edges[:-1] |= ids[:-1] != ids[1:]
    return edges


def inner_pixel(mask):
    """Returns (row, column) of a pixel of a mask far from its border, where a label may stand.

    Of the pixels farthest from what is outside, in steps to neighbours, the middle one.
    """
    steps = np.pad(mask, 1) * np.int32(sum(mask.shape))     # more than there can be
    for axis in (0, 1):
        along = np.expand_dims(np.arange(steps.shape[axis], dtype=np.int32), 1 - axis)
        for _ in ("forth", "back"):
            steps = np.flip(np.minimum.accumulate(steps - along, axis=axis) + along, axis)
    rows, columns = np.nonzero(steps[1:-1, 1:-1] == steps.max())
    return int(rows[len(rows) // 2]), int(columns[len(rows) // 2])
