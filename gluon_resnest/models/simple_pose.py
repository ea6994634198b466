"""SimplePose (Xiao et al. 2018): a backbone, three deconvolutions, a heat map for each joint.

Beside the network stand the two maps between joints and heat maps, `encode` and `decode`, which
invert each other within half a heat map pixel, and what mirroring does to a heat map.
"""
import mxnet as mx
import numpy as np
from mxnet import nd
from mxnet.gluon import nn

from gluon_resnest.errors import UserError
from gluon_resnest.models.graphs import TwoGraphs
from gluon_resnest.models.norm import norm_layer

STRIDE = 4          # input pixels of a heat map pixel: a backbone of stride 32, upsampled by 8
REACH = 3           # a joint's Gaussian is cut off at so many sigma
CHANNELS = 256


class SimplePose(TwoGraphs):
    """Images (N, 3, H, W) to heat maps (N, joints, H / 4, W / 4); H and W multiples of 32.

    Parameter files of GluonCV's `simple_pose_*` networks load too: `name_aliases` says how their
    names map to these.

    Args:
      backbone: `FeatureExtractor` of one map of stride 32.
      joints: number of heat maps.
      norm: constructor of normalisation layers, see `norm.norm_layer`.

    Raises:
      UserError: if the backbone's map has another stride.
    """

    # Beginnings of parameter names in GluonCV's files -> ours.
    name_aliases = {"resnet.0.": "backbone.conv1.", "resnet.1.": "backbone.bn1.",
                    **{f"resnet.{stage + 3}.": f"backbone.layer{stage}." for stage in range(1, 5)}}

    def __init__(self, backbone, joints=17, norm=norm_layer(), prefix="simplepose_"):
        super().__init__(prefix=prefix)
        if tuple(backbone.feature_strides) != (8 * STRIDE,):
            raise UserError(f"SimplePose needs a backbone with one feature map of stride "
                            f"{8 * STRIDE}, got strides {backbone.feature_strides}")
        small = mx.init.Normal(0.001)
        with self.name_scope():
            self.backbone = backbone
            self.deconv_layers = nn.HybridSequential(prefix="deconv_")
            inputs = backbone.feature_channels[0]
            with self.deconv_layers.name_scope():
                for _ in range(3):
                    self.deconv_layers.add(
                        nn.Conv2DTranspose(CHANNELS, 4, 2, 1, use_bias=False, in_channels=inputs,
                                           weight_initializer=small),
                        norm(in_channels=CHANNELS),
                        nn.Activation("relu"))
                    inputs = CHANNELS
            self.final_layer = nn.Conv2D(joints, 1, in_channels=inputs, weight_initializer=small)

    def hybrid_forward(self, F, x):
        return self.final_layer(self.deconv_layers(self.backbone.features(x)[0]))


def encode(joints, height, width, sigma, *, exact=False):
    """Draws a Gaussian of height 1 around each joint (Xiao et al. 2018, section 2).

    Args:
      joints: NDArray (N, J, 3): x and y in pixels of the network's input, and 1 where the joint is
        labelled, else 0.
      height, width: of a heat map.
      sigma: of the Gaussian, in heat map pixels.
      exact: centre it on the joint itself instead of the nearest pixel, as published.

    Returns:
      (heat maps (N, J, height, width), weights (N, J, 1, 1)): the weight is 0 for a joint that is
      not labelled, or so far outside that no part of its Gaussian is on the map.
    """
    reach = REACH * sigma

    def profile(position, length):
        """Returns a Gaussian along one axis, (N, J, length), and whether any of it is inside."""
        if not exact:
            position = nd.floor(position + 0.5)
        pixels = nd.arange(length, ctx=joints.context).reshape((1, 1, length))
        away = nd.broadcast_sub(pixels, position.expand_dims(2))
        near = away.abs() <= reach
        return nd.exp(-nd.square(away) / (2 * sigma ** 2)) * near, near.max(axis=2)

    across, inside_x = profile(joints[:, :, 0] / STRIDE, width)
    down, inside_y = profile(joints[:, :, 1] / STRIDE, height)
    weights = (joints[:, :, 2] > 0) * inside_x * inside_y
    weights = weights.reshape((0, 0, 1, 1))
    maps = nd.broadcast_mul(down.expand_dims(3), across.expand_dims(2))
    return nd.broadcast_mul(maps, weights), weights


def decode(heatmaps):
    """Finds each joint at its heat map's maximum, moved a quarter pixel to the higher neighbour.

    Inverts `encode` within half a heat map pixel (two input pixels) for joints inside the map, and
    within a quarter if it was drawn with `exact`. On the border there is no quarter pixel. The last
    3 input pixels of a crop lie outside of the map: joints there are found on its border, up to 7/8
    of a heat map pixel away.

    Args:
      heatmaps: numpy (N, J, H, W).

    Returns:
      numpy float32 (N, J, 3): x and y in pixels of the network's input, and the maximum.
    """
    count, joints, height, width = heatmaps.shape
    flat = heatmaps.reshape(count, joints, -1)
    best = flat.argmax(axis=2)
    y, x = np.divmod(best, width)

    def value(dy, dx):
        """Returns the map's values beside the maxima, at the border those of the border."""
        beside = np.clip(y + dy, 0, height - 1) * width + np.clip(x + dx, 0, width - 1)
        return np.take_along_axis(flat, beside[..., None], axis=2)[..., 0]

    step_x = np.sign(value(0, 1) - value(0, -1)) * ((0 < x) & (x < width - 1))
    step_y = np.sign(value(1, 0) - value(-1, 0)) * ((0 < y) & (y < height - 1))
    found = np.stack([(x + step_x / 4) * STRIDE, (y + step_y / 4) * STRIDE, value(0, 0)], axis=2)
    return found.astype(np.float32)


def mirror_heatmaps(heatmaps, partners, *, shift=False):
    """Turns the heat maps of a mirrored image into those of the image.

    Args:
      heatmaps: numpy (N, J, H, W).
      partners: for each joint the one it is seen as in a mirror, (J,).
      shift: also move them one pixel to the right, which centres them better: input pixel x is
        at x / 4, but at (W - 1) - ((4 * W - 1) - x) / 4 = x / 4 - 3/4 after two mirrors.
    """
    mirrored = heatmaps[:, partners, :, ::-1]
    if not shift:
        return mirrored
    return np.concatenate([mirrored[..., :1], mirrored[..., :-1]], axis=3)


def mirror_joints(joints, partners, width):
    """Turns the joints (N, J, 3) of a mirrored image of `width` pixels into those of the image."""
    mirrored = joints[:, partners].copy()
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    return mirrored


FLIP_TESTS = ("none", "heatmaps", "shifted", "coordinates")


def predict_joints(forward, images, partners, flip="none"):
    """Finds the joints of person crops, looking at their mirror images too.

    Args:
      forward: numpy (N, 3, H, W) to heat maps, numpy.
      images: float32 numpy (N, 3, H, W).
      partners: see `mirror_heatmaps`.
      flip: "none"; "heatmaps" averages heat maps; "shifted" too, those of the mirror image moved
        by one pixel (GluonCV's code); "coordinates" averages the joints (the paper's appendix B.1).

    Returns:
      As `decode`.
    """
    maps = forward(images)
    if flip == "none":
        return decode(maps)
    others = forward(np.ascontiguousarray(images[..., ::-1]))
    if flip == "coordinates":
        return (decode(maps) + mirror_joints(decode(others), partners, images.shape[3])) / 2
    return decode((maps + mirror_heatmaps(others, partners, shift=flip == "shifted")) / 2)
