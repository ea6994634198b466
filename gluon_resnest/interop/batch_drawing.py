"""Draws training batches, a picture for each image with what the network shall say of it."""
import math
from typing import Callable, NamedTuple

import numpy as np

from gluon_resnest.data import color
from gluon_resnest.data.keypoints import SKELETON
from gluon_resnest.interop.drawing import check_picture, literal, save
from gluon_resnest.interop.segmentation_drawing import overlay, palette
from gluon_resnest.models.detection.conventions import conventions

_CELL_INCHES = 3.4
_SHARE = 0.02           # of a mixed label that is named
_LINES = 3              # of classes above a picture
_LEGEND = 6             # classes of pixels that are named
_INK, _JOINT, _BONE = "#1f2933", "#d9480f", "#0b6e99"


class Panel(NamedTuple):
    """One image of a batch.

    image: uint8 (H, W, 3). title: str of some lines. paint: draws on matplotlib's axes.
    """

    image: np.ndarray
    title: str
    paint: Callable = None


def draw_batch(path, recipe, batch, *, names=None, most=8):
    """Draws the first images of a training batch of any task; returns how many.

    Args:
      path: picture to write, of one of `drawing.FORMATS`.
      recipe: the recipe, whose class says what kind of batch it is.
      batch: what the task's `batches` yields.
      names: of the classes, or None.
      most: largest number of images.

    Raises:
      UserError: if the picture cannot be written.
    """
    check_picture(path)
    panels = _PANELS[type(recipe).__name__](recipe, batch, names, most)
    _draw(path, panels)
    return len(panels)


def to_pixels(images, mean, std):
    """Undoes the normalisation: float (N, 3, H, W) to uint8 (N, H, W, 3); mean, std in 0..255."""
    pixels = np.asarray(images, np.float32).transpose(0, 2, 3, 1) * std + mean
    return pixels.round().clip(0, 255).astype(np.uint8)


def class_panels(recipe, batch, names, most):
    """Images and soft labels (N, K): the shares of the classes."""
    images, targets = (_numpy(part, most) for part in batch)
    panels = []
    for image, target in zip(_photographs(images), targets):
        order = [number for number in np.argsort(-target)[:_LINES] if target[number] > _SHARE]
        panels.append(Panel(image, "\n".join(f"{100 * target[number]:.0f} % "
                                             f"{_name(names, number)}" for number in order)))
    return panels


def pixel_panels(recipe, batch, names, most):
    """Images and labels (N, H, W), -1 where there is none, which stays as it is."""
    images, labels = (_numpy(part, most) for part in batch[:2])
    colors = palette(recipe.classes + 1)
    panels = []
    for image, values in zip(_photographs(images), labels.astype(int)):
        tinted = np.where((values >= 0)[..., None], overlay(image, values + 1, colors), image)
        numbers, counts = np.unique(values[values >= 0], return_counts=True)
        shown = numbers[np.argsort(-counts)][:_LEGEND]
        panels.append(Panel(tinted, f"{100 * (values >= 0).mean():.0f} % labelled",
                            _legend([(_name(names, number), colors[number + 1] / 255)
                                     for number in shown])))
    return panels


def joint_panels(recipe, batch, names, most):
    """Images, heat maps (N, J, h, w) and their weights: the maps' maxima, joined by bones."""
    images, maps, weights = (_numpy(part, most) for part in batch)
    panels = []
    for image, heat, weight in zip(_photographs(images), maps, weights):
        scale = image.shape[0] / heat.shape[1]
        places = heat.reshape(len(heat), -1).argmax(axis=1)
        rows, columns = np.unravel_index(places, heat.shape[1:])
        there = weight.reshape(len(heat), -1).max(axis=1) > 0
        points = (np.stack([columns, rows], axis=1) + 0.5) * scale - 0.5
        panels.append(Panel(image, _count(there.sum(), "joint"), _skeleton(points, there)))
    return panels


def object_panels(recipe, batch, names, most):
    """Padded images, their sizes and `Objects`: boxes with names, masks."""
    images, sizes, objects = batch[:3]
    rules, colors = conventions(recipe.conventions), palette(recipe.classes + 1)
    panels = []
    for image, size, found in zip(to_pixels(_numpy(images, most), rules.mean, rules.std), sizes,
                                  objects):
        height, width = (int(side) for side in size)
        image[height:], image[:, width:] = 255, 255             # padding is white, not grey
        for number in range(len(found.boxes) if found.masks is not None else 0):
            mask = np.asarray(found.masks[number])[:height, :width].astype(bool)
            part = image[:height, :width]
            part[mask] = overlay(part[mask], found.classes[number] + 1, colors)
        panels.append(Panel(image, f"{height} x {width}, {_count(len(found.boxes), 'object')}",
                            _boxes(found, names, colors)))
    return panels


def segment_panels(recipe, batch, names, most):
    """As `object_panels`, on the classes of the pixels; things, which are 0 there, stay."""
    panels, labels = object_panels(recipe, batch, names, most), batch[4]
    colors = palette(1 + recipe.classes + recipe.stuff)
    stuff = np.concatenate([colors[:1], colors[1 + recipe.classes:]])
    tinted = []
    for panel, values in zip(panels, labels):
        there = (values > 0) & (values <= recipe.stuff)
        image = panel.image.copy()
        image[there] = overlay(image[there], values[there], stuff)
        shown = np.unique(values[there])
        title = panel.title + "\n" + ", ".join(
            literal(names[recipe.classes + number - 1]) if names else f"stuff {number - 1}"
            for number in shown.tolist())
        tinted.append(panel._replace(image=image, title=title))
    return tinted


_PANELS = {"ClassificationRecipe": class_panels, "SegmentationRecipe": pixel_panels,
           "PoseRecipe": joint_panels, "DetectionRecipe": object_panels,
           "PanopticRecipe": segment_panels}


def _numpy(array, most):
    return array[:most].astype("float32").asnumpy()


def _photographs(images):
    return to_pixels(images, 255 * np.array(color.MEAN), 255 * np.array(color.STD))


def _name(names, number):
    return literal((names[number] if names else f"class {number}")[:28])


def _count(number, what):
    return f"{number} {what}{'s' if number != 1 else ''}"


def _legend(entries):
    def paint(axes):
        from matplotlib.patches import Patch
        axes.legend(handles=[Patch(color=shade, label=name) for name, shade in entries],
                    fontsize=6, loc="lower left", framealpha=0.8)
    return paint


def _skeleton(points, there):
    def paint(axes):
        for first, second in SKELETON:
            if there[first] and there[second]:
                axes.plot(*points[[first, second]].T, color=_BONE, linewidth=1.5)
        axes.scatter(*points[there].T, s=12, color=_JOINT, edgecolors="white", linewidths=0.5,
                     zorder=3)
    return paint


def _boxes(objects, names, colors):
    def paint(axes):
        from matplotlib.patches import Rectangle
        crowd = np.zeros(len(objects.boxes), bool) if objects.crowd is None else objects.crowd
        for (left, top, right, bottom), kind, is_crowd in zip(objects.boxes, objects.classes,
                                                              crowd):
            shade = colors[kind + 1] / 255
            axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top,
                                     fill=False, edgecolor=shade,
                                     linestyle=":" if is_crowd else "-"))
            axes.text(left, top, _name(names, kind) + (" (crowd)" if is_crowd else ""), fontsize=6,
                      color="white", va="bottom",
                      bbox={"facecolor": shade, "edgecolor": "none", "pad": 0.8})
    return paint


def _draw(path, panels):
    from matplotlib.figure import Figure
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(_CELL_INCHES * columns, _CELL_INCHES * rows), facecolor="white",
                    constrained_layout=True)
    for position, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, position)
        axes.imshow(panel.image)
        axes.set_title(panel.title, fontsize=8, color=_INK, loc="left")
        axes.set_axis_off()
        axes.autoscale(False)
        if panel.paint:
            panel.paint(axes)
    save(figure, path)
