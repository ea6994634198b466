"""Anchors: boxes of fixed shapes at every position of a feature map."""
import numpy as np


def base_anchors(stride, size, conventions):
    """Returns the anchors of the position at the map's origin: (A, 4) corners in pixels.

    Their area is size^2, their shape one of `conventions.anchor_ratios` each. The centre is the
    image's corner, which is where ROIAlign's pixel 0 begins; with legacy pixels it is the centre of
    a pixel-index window of `stride`, whose sides are rounded before they are scaled to `size`.
    """
    ratios = np.asarray(conventions.anchor_ratios)
    if conventions.legacy_pixels:
        widths = np.round(np.sqrt(stride ** 2 / ratios))
        heights = np.round(widths * ratios)
        half = (np.stack([widths, heights], axis=1) * (size / stride) - 1) / 2
        centre = (stride - 1) / 2
    else:
        widths = size / np.sqrt(ratios)
        half = np.stack([widths, widths * ratios], axis=1) / 2
        centre = 0
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


def grid_anchors(F, feature_map, stride, base):
    """Returns the anchors of all positions of a map, whatever its size.

    Args:
      feature_map: (N, C, H, W); only its size matters.
      stride: pixels of the image between two positions.
      base: numpy (A, 4), see `base_anchors`.

    Returns:
      (1, H * W * A, 4), rows first, then columns, then shapes.
    """
    columns = F.contrib.arange_like(feature_map, axis=3) * stride
    rows = F.contrib.arange_like(feature_map, axis=2) * stride
    columns, rows = F.reshape(columns, shape=(1, -1)), F.reshape(rows, shape=(-1, 1))
    x = F.broadcast_add(F.zeros_like(rows), columns)
    y = F.broadcast_add(rows, F.zeros_like(columns))
    corners = [(x, y)[i % 2] + float(value) for shape in base for i, value in enumerate(shape)]
    return F.reshape(F.stack(*corners, axis=-1), shape=(1, -1, 4))
