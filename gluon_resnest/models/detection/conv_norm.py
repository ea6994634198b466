"""The convolution that all parts of a detector are made of, and how its weights begin."""
import mxnet as mx
from mxnet.gluon import nn

# Caffe2's fills, which Detectron2 uses. Uniform, variance 1 / fan in:
XAVIER = mx.init.Xavier(rnd_type="uniform", factor_type="in", magnitude=3)
# normal, variance 2 / fan out:
MSRA = mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2)


class ConvNorm(nn.HybridBlock):
    """A convolution that keeps the size, divided by `strides`, and its norm, if there is one.

    Args:
      channels, kernel, strides, in_channels: of the convolution.
      init: initializer of its weight.
      norm: constructor of a normalisation layer, or None; without one the convolution is biased.
      bias: have a bias also before a norm.
    """

    def __init__(self, channels, kernel, *, in_channels, init, norm=None, strides=1, bias=False):
        super().__init__()
        self.conv = nn.Conv2D(channels, kernel, strides, kernel // 2, in_channels=in_channels,
                              use_bias=bias or norm is None, weight_initializer=init)
        self.norm = norm(in_channels=channels) if norm else None

    def hybrid_forward(self, F, x):
        x = self.conv(x)
        return self.norm(x) if self.norm else x


def block_list(blocks):
    """Returns a registered sequence of blocks that is iterated over, never called."""
    sequence = nn.HybridSequential(prefix="")
    sequence.add(*blocks)
    return sequence
