"""From a panoptic network's outputs to what an image of the original size shows."""
from typing import NamedTuple

import numpy as np
from mxnet import nd

from gluon_resnest.models.detection.inference import Found, detect_views
from gluon_resnest.models.detection.inference import in_originals as found_in_originals
from gluon_resnest.models.resizing import resized


class Seen(NamedTuple):
    """What one image shows, before `merging.merge`.

    found: `inference.Found`.
    labels: int32 (H, W), the class of each pixel of the original image, 0 for any thing.
    """

    found: Found
    labels: np.ndarray


def look(net, images, sizes, originals, ctx=None):
    """Returns the `Seen` of each image.

    Args:
      net: `PanopticFPN` whose parameters lie on `ctx`.
      images, sizes, originals: see `inference.detect`.
    """
    outputs = net(nd.array(images, ctx=ctx), nd.array(sizes, ctx=ctx))
    return in_originals(outputs, sizes, originals)


def in_originals(outputs, sizes, originals):
    """Returns the `Seen` of each image from what a `PanopticFPN` returns; see `look`."""
    *objects, logits = outputs
    found = found_in_originals([part.astype("float32", copy=False).asnumpy() for part in objects],
                               sizes, originals)
    labels = [classes(enlarged(one, size, original))
              for one, size, original in zip(logits, sizes, originals)]
    return [Seen(*each) for each in zip(found, labels)]


def look_views(net, views, original, *, ctx=None):
    """Returns the `Seen` of one image from several views of it (test-time augmentation).

    Objects are those of `inference.detect_views`; of pixels, the probabilities of all views are
    averaged.

    Args:
      net: `PanopticFPN` whose parameters lie on `ctx`.
      views: list of `inference.View`.
      original: (height, width) of the file.
    """
    total = 0
    for view in views:
        logits = net.pixels(nd.array(view.image[None], ctx=ctx))[0]
        probabilities = nd.softmax(enlarged(logits, view.size, original), axis=0)
        total = total + (nd.flip(probabilities, axis=2) if view.flipped else probabilities)
    return Seen(detect_views(net.detector, views, original, ctx=ctx), classes(total))


def enlarged(logits, size, original):
    """Returns logits NDArray (C, H, W) of a padded image at the size of its file.

    Args:
      size: (height, width) of the image without its padding. original: of the file.
    """
    height, width = (int(side) for side in size)
    cut = logits[:, :height, :width].astype("float32", copy=False).expand_dims(0)
    return resized(cut, int(original[0]), int(original[1]), align_corners=False)[0]


def classes(values):
    """Returns the class of the largest value of each pixel: NDArray (C, H, W) to int32 (H, W)."""
    return nd.argmax(values, axis=0).asnumpy().astype(np.int32)
