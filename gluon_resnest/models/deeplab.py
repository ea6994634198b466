"""Heads of DeepLabV3 and DeepLabV3+ (Chen et al. 2017, section 3.3; 2018, section 3.1).

A segmentation head names the maps of `features` it looks at in `levels` (0 to 3), is called with
these and returns logits at the resolution of the first of them; resizing to the image is not its
business. Names of children are those of GluonCV's parameter files.
"""
from mxnet.gluon import nn
from mxnet.gluon.contrib.nn import HybridConcurrent

from gluon_resnest.models.dropout import Dropout

RATES = (12, 24, 36)    # at stride 8; half of them at stride 16 (2017, section 4.1)
CHANNELS = 256          # inside the heads, as published


def conv_norm(channels, kernel, *, in_channels, norm, dilation=1):
    """Builds a convolution that keeps the size, its normalisation and a ReLU."""
    block = nn.HybridSequential()
    block.add(nn.Conv2D(channels, kernel, 1, kernel // 2 * dilation, dilation, use_bias=False,
                        in_channels=in_channels),
              norm(in_channels=channels),
              nn.Activation("relu"))
    return block


def resize_like(F, x, like):
    """Resizes maps (N, C, h, w) bilinearly to the (H, W) of `like` (N, any, H, W).

    The corners stay where they are, as in GluonCV. The size is looked up when the graph runs, so it
    holds for any. `like` gets no gradient: MXNet's operator would return uninitialised memory.
    """
    return F.contrib.BilinearResize2D(x, F.BlockGrad(like), mode="like")


class ImagePooling(nn.HybridBlock):
    """Gives every pixel the transformed mean of the whole map."""

    def __init__(self, channels, *, in_channels, norm):
        super().__init__()
        self.gap = nn.HybridSequential()
        self.gap.add(nn.GlobalAvgPool2D(),
                     nn.Conv2D(channels, 1, use_bias=False, in_channels=in_channels),
                     norm(in_channels=channels),
                     nn.Activation("relu"))

    def hybrid_forward(self, F, x):
        return F.broadcast_like(self.gap(x), x, lhs_axes=(2, 3), rhs_axes=(2, 3))


class ASPP(nn.HybridBlock):
    """Atrous spatial pyramid pooling: (N, C, H, W) to (N, channels, H, W).

    Args:
      channels: of each branch and of the result.
      in_channels: C.
      norm: constructor of normalisation layers.
      stride: of the map within the image, 8 or 16; decides the dilation rates.
    """

    def __init__(self, channels, *, in_channels, norm, stride, dropout=True):
        super().__init__()
        self.concurent = HybridConcurrent(axis=1)       # spelled as in the files
        self.concurent.add(conv_norm(channels, 1, in_channels=in_channels, norm=norm))
        for rate in RATES:
            self.concurent.add(conv_norm(channels, 3, in_channels=in_channels, norm=norm,
                                         dilation=rate * 8 // stride))
        self.concurent.add(ImagePooling(channels, in_channels=in_channels, norm=norm))
        self.project = conv_norm(channels, 1, in_channels=5 * channels, norm=norm)
        self.project.add(Dropout(0.5 * dropout))

    def hybrid_forward(self, F, x):
        return self.project(self.concurent(x))


class DeepLabHead(nn.HybridBlock):
    """DeepLabV3: ASPP over the last map.

    Args:
      channels, strides: of the four feature maps.
      classes: length of the logits.
      norm: constructor of normalisation layers.
      inner: channels inside.
      dropout: whether there is dropout, as published.
      prefix: of the names in `collect_params()`.
    """

    levels = (3,)

    def __init__(self, channels, strides, classes, *, norm, inner=CHANNELS, dropout=True,
                 prefix="head_"):
        super().__init__(prefix=prefix)
        with self.name_scope():
            self.aspp = ASPP(inner, in_channels=channels[3], norm=norm, stride=strides[3],
                             dropout=dropout)
            self.block = conv_norm(inner, 3, in_channels=inner, norm=norm)
            self.block.add(Dropout(0.1 * dropout), nn.Conv2D(classes, 1, in_channels=inner))

    def hybrid_forward(self, F, x):
        return self.block(self.aspp(x))


class DeepLabPlusHead(nn.HybridBlock):
    """DeepLabV3+: ASPP over the last map, refined by the first; logits at the first's resolution.

    Arguments as in `DeepLabHead`.
    """

    levels = (0, 3)

    def __init__(self, channels, strides, classes, *, norm, inner=CHANNELS, dropout=True,
                 prefix="head_"):
        super().__init__(prefix=prefix)
        with self.name_scope():
            self.aspp = ASPP(inner, in_channels=channels[3], norm=norm, stride=strides[3],
                             dropout=dropout)
            self.low = conv_norm(48, 1, in_channels=channels[0], norm=norm)
            self.block = conv_norm(inner, 3, in_channels=inner + 48, norm=norm)
            self.block.add(Dropout(0.5 * dropout),
                           conv_norm(inner, 3, in_channels=inner, norm=norm),
                           Dropout(0.1 * dropout),
                           nn.Conv2D(classes, 1, in_channels=inner))

    def hybrid_forward(self, F, fine, coarse):
        return self.block(F.concat(resize_like(F, self.aspp(coarse), fine), self.low(fine), dim=1))
