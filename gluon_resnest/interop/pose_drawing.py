"""Draws persons' skeletons on their images."""
import math

from gluon_resnest.data import images
from gluon_resnest.errors import UserError
from gluon_resnest.interop.drawing import MAX_DRAWN, check_picture

_LEFT, _RIGHT, _MIDDLE, _BOX = "#0b6e99", "#d9480f", "#2b8a3e", "#ffffff"
_CELL_INCHES = 4.2


def draw_poses(path, answers, card, *, threshold=0.2):
    """Draws the first MAX_DRAWN images that were read, with boxes and skeletons.

    Args:
      path: picture to write, of one of `drawing.FORMATS`.
      answers: list of `pose.PoseAnswer`; those with a problem are left out.
      card: `pose.PoseCard` that says which joints are connected.
      threshold: joints of a lower score are left out.

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
    figure = Figure(figsize=(_CELL_INCHES * columns, _CELL_INCHES * rows), facecolor="white")
    for position, answer in enumerate(drawn, 1):
        axes = figure.add_subplot(rows, columns, position)
        axes.imshow(images.load(answer.file))
        axes.set_axis_off()
        axes.autoscale(False)
        for box, joints in zip(answer.boxes, answer.joints):
            _draw_person(axes, box, joints, card, threshold)
    figure.tight_layout(pad=0.3)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}; choose a writable folder "
                        "with space") from error


def _draw_person(axes, box, joints, card, threshold):
    x, y, width, height = box
    axes.plot([x, x + width, x + width, x, x], [y, y, y + height, y + height, y], color=_BOX,
              linewidth=0.8, alpha=0.7)
    seen = joints[:, 2] > threshold
    for first, second in card.skeleton:
        if seen[first] and seen[second]:
            axes.plot(joints[[first, second], 0], joints[[first, second], 1], linewidth=2,
                      color=_colour(card, first, second), solid_capstyle="round")
    axes.scatter(joints[seen, 0], joints[seen, 1], s=9, color="white", edgecolors="black",
                 linewidths=0.5, zorder=3)


def _colour(card, *joints):
    """Returns the colour of a bone: its side's, if both ends are of one."""
    names = [card.joints[joint] for joint in joints]
    if all(name.startswith("left") for name in names):
        return _LEFT
    return _RIGHT if all(name.startswith("right") for name in names) else _MIDDLE
