"""The class of every pixel from a feature pyramid (Kirillov et al. 2019, figure 3)."""
import numpy as np
from mxnet import nd
from mxnet.gluon import nn

from gluon_resnest.models.detection.conv_norm import MSRA, ConvNorm, block_list
from gluon_resnest.models.detection.losses import Loss
from gluon_resnest.models.pixel_loss import PixelCrossEntropy

LEVELS = 4              # p2 to p5
VOID = 255              # label of a pixel that neither trains nor counts


class SemanticHead(nn.HybridBlock):
    """[p2, ..., p5] to logits (N, classes, h, w), where p2 is (N, C, h, w).

    Each map comes to the size of p2 by 3x3 convolutions with norm and ReLU, each followed by
    twofold bilinear upsampling; p2 has one convolution and no upsampling. Their sum is classified.
    What is beyond a finer map is cut off, so that images of any size do. Enlarged by the stride of
    p2, the logits have the size of the image.

    Args:
      in_channels: C.
      classes: length of the logits.
      channels: of the convolutions.
      norm: constructor of a normalisation layer, or None for biased convolutions.
    """

    def __init__(self, in_channels, classes, *, channels=128, norm=None):
        super().__init__()
        self.levels = block_list(
            block_list(ConvNorm(channels, 3, in_channels=channels if number else in_channels,
                                init=MSRA, norm=norm) for number in range(max(1, level)))
            for level in range(LEVELS))
        self.logits = nn.Conv2D(classes, 1, in_channels=channels, weight_initializer=MSRA)

    def hybrid_forward(self, F, *maps):
        total = None
        for level, (convs, x) in enumerate(zip(self.levels, maps)):
            for conv in convs:
                x = F.relu(conv(x))
                if level:
                    x = upsampled(F, x, 2)
            total = x if total is None else total + F.slice_like(x, total, axes=(2, 3))
        return self.logits(total)


def upsampled(F, x, factor):
    """Returns maps `factor` times as high and wide, bilinear between the centres of pixels."""
    return F.contrib.BilinearResize2D(x, mode="size", scale_height=factor, scale_width=factor,
                                      align_corners=False)


def semantic_loss(logits, labels, stride):
    """Returns the `Loss` of all pixels but VOID: the sum of their cross entropies, their number.

    Args:
      logits: NDArray (N, K, h, w), before upsampling.
      labels: numpy (N, H, W), 0..K-1 or VOID; at most `stride` times as high and wide.
      stride: of the logits, in pixels of the image.
    """
    valid = labels != VOID
    whole = np.full((len(labels), *(stride * side for side in logits.shape[2:])), -1, np.float32)
    whole[:, :labels.shape[1], :labels.shape[2]] = np.where(valid, labels, -1)
    total = _ENTROPY(logits, nd.array(whole, ctx=logits.context))
    return Loss(total, float(valid.sum()))


_ENTROPY = PixelCrossEntropy(corners=False)
