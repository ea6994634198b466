"""Draws persons' skeletons on their images."""
from gluon_resnest.interop.drawing import OPACITY, background, check_opacity, draw_images

_LEFT, _RIGHT, _MIDDLE, _BOX = "#0b6e99", "#d9480f", "#2b8a3e", "#ffffff"


def draw_poses(path, answers, card, opacity=OPACITY, *, threshold=0.2):
    """Draws images with boxes and skeletons; see `drawing.draw_images`.

    Args:
      path: picture to write, of one of `drawing.FORMATS`.
      answers: list of `pose.PoseAnswer`; those with a problem are left out.
      card: `pose.PoseCard` that says which joints are connected.
      opacity: of the bones, 0..1; at 1 the images themselves are left out.
      threshold: joints of a lower score are left out.

    Raises:
      UserError: if no image could be read, the picture cannot be written, or the opacity is out
        of range.
    """
    check_opacity(opacity)
    draw_images(path, answers,
                lambda axes, answer: _draw_persons(axes, answer, card, opacity, threshold))


def _draw_persons(axes, answer, card, opacity, threshold):
    axes.imshow(background(answer.file, opacity))
    axes.autoscale(False)
    for box, joints in zip(answer.boxes, answer.joints):
        _draw_person(axes, box, joints, card, opacity, threshold)


def _draw_person(axes, box, joints, card, opacity, threshold):
    x, y, width, height = box
    axes.plot([x, x + width, x + width, x, x], [y, y, y + height, y + height, y], color=_BOX,
              linewidth=0.8, alpha=0.7)
    seen = joints[:, 2] > threshold
    for first, second in card.skeleton:
        if seen[first] and seen[second]:
            axes.plot(joints[[first, second], 0], joints[[first, second], 1], linewidth=2,
                      alpha=opacity, color=_colour(card, first, second), solid_capstyle="round")
    axes.scatter(joints[seen, 0], joints[seen, 1], s=9, color="white", edgecolors="black",
                 linewidths=0.5, zorder=3)


def _colour(card, *joints):
    """Returns the colour of a bone: its side's, if both ends are of one."""
    names = [card.joints[joint] for joint in joints]
    if all(name.startswith("left") for name in names):
        return _LEFT
    return _RIGHT if all(name.startswith("right") for name in names) else _MIDDLE
