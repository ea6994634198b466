"""Feature pyramid (Lin et al. 2017): the same channels at strides that double."""
from mxnet.gluon import nn

from gluon_resnest.errors import UserError
from gluon_resnest.models.detection.conv_norm import XAVIER, ConvNorm, block_list


class FPN(nn.HybridBlock):
    """(c2, c3, c4, c5) to [p2, p3, p4, p5, p6], each (N, channels, H / stride, W / stride).

    Sizes are rounded up. A coarser map is repeated 2x2 and what is beyond the finer one cut off,
    so that images of any size do.

    Args:
      in_channels, strides: of the four maps.
      channels: of all outputs.
      norm: constructor of a normalisation layer after each convolution; None for biases.
      p6: see `Conventions`.

    Attributes:
      channels: as given.
      strides: of the five maps, in pixels of the image.

    Raises:
      UserError: unless each stride is twice the one before.
    """

    def __init__(self, in_channels, strides, *, channels=256, norm=None, p6="pool"):
        super().__init__()
        if any(coarse != 2 * fine for fine, coarse in zip(strides, strides[1:])):
            raise UserError("a feature pyramid needs maps of which each has twice the stride of "
                            f"the one before, got strides {tuple(strides)}; build the backbone "
                            "without output_stride or dilated")
        self.channels, self.strides = channels, (*strides, 2 * strides[-1])
        self.laterals = block_list(
            ConvNorm(channels, 1, in_channels=inputs, init=XAVIER, norm=norm)
            for inputs in in_channels)
        self.outputs = block_list(
            ConvNorm(channels, 3, in_channels=channels, init=XAVIER, norm=norm)
            for _ in in_channels)
        self.p6 = None
        if p6 == "conv":
            self.p6 = ConvNorm(channels, 3, in_channels=channels, init=XAVIER, norm=norm,
                               strides=2)

    def hybrid_forward(self, F, *maps):
        merged = [lateral(c) for lateral, c in zip(self.laterals, maps)]
        for level in reversed(range(len(merged) - 1)):
            coarser = F.UpSampling(merged[level + 1], scale=2, sample_type="nearest")
            merged[level] = merged[level] + F.slice_like(coarser, merged[level], axes=(2, 3))
        pyramid = [output(m) for output, m in zip(self.outputs, merged)]
        if self.p6:
            return pyramid + [self.p6(merged[-1])]
        return pyramid + [F.Pooling(pyramid[-1], kernel=(1, 1), stride=(2, 2), pool_type="max")]


class FeaturePyramid(nn.HybridBlock):
    """Images (N, 3, H, W) to the maps of an `FPN` on a backbone's features.

    Attributes:
      strides: of the maps, in pixels of the image.
    """

    def __init__(self, backbone, fpn):
        super().__init__()
        self.backbone, self.fpn, self.strides = backbone, fpn, fpn.strides

    def hybrid_forward(self, F, x):
        return self.fpn(*self.backbone.features(x))
