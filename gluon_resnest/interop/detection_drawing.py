"""Draws the objects that were found in images: boxes, labels and masks."""
import numpy as np

from gluon_resnest.interop.drawing import OPACITY, background, check_opacity, draw_images, literal
from gluon_resnest.interop.segmentation_drawing import palette
from gluon_resnest.models.detection.boxes import area

_LIGHT = 96         # added to dark colours of the palette


def draw_detected(path, answers, card, opacity=OPACITY):
    """Draws images, each with what was found; see `drawing.draw_images`.

    Args:
      path: picture to write, of one of `drawing.FORMATS`.
      answers: list of `detection.Detected`; those with a problem are left out.
      card: the network's `DetectionCard`.
      opacity: of the masks' colours, 0..1; at 1 the images themselves are left out.

    Raises:
      UserError: if no image could be read, the picture cannot be written, or the opacity is out
        of range.
    """
    check_opacity(opacity)
    draw_images(path, answers, lambda axes, answer: draw_objects(axes, answer, card, opacity))


def draw_objects(axes, answer, card, opacity=OPACITY):
    """Draws one image on matplotlib axes with its objects, small ones on top."""
    image, found = background(answer.file, opacity).copy(), answer.found
    colors = (palette(card.classes + 1)[1:].astype(int) + _LIGHT).clip(0, 255)
    order = np.argsort(-area(found.boxes), kind="stable")
    if found.masks is not None:
        for number in order:
            inside = answer.pixels(number)
            image[inside] = (image[inside] * (1 - opacity)
                             + colors[found.classes[number]] * opacity).astype(image.dtype)
    axes.imshow(image)
    axes.autoscale(False)
    for number in order:
        left, top, right, bottom = found.boxes[number]
        color = colors[found.classes[number]] / 255
        axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=color,
                  linewidth=1.2)
        label = f"{card.name(int(found.classes[number]))[:24]} {found.scores[number]:.2f}"
        axes.text(left, top, literal(label), fontsize=6, va="bottom", color="black", clip_on=True,
                  bbox={"facecolor": color, "edgecolor": "none", "pad": 0.6, "alpha": 0.85})
