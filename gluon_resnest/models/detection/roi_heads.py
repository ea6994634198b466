"""What is said about a RoI: its class, its box, its mask."""
import math

import mxnet as mx
from mxnet.gluon import nn

from gluon_resnest.models.detection.conv_norm import MSRA, XAVIER, ConvNorm, block_list


class BoxHead(nn.HybridBlock):
    """Pooled RoIs (R, C, size, size) to features (R, fc_channels).

    Args:
      in_channels, size: C and the side of pooled RoIs.
      convs, conv_channels: 3x3 convolutions, each with norm and ReLU.
      fcs, fc_channels: dense layers, each with ReLU.
      norm: constructor of a normalisation layer, or None for biased convolutions.
    """

    def __init__(self, in_channels, *, size=7, convs=0, conv_channels=256, fcs=2,
                 fc_channels=1024, norm=None):
        super().__init__()
        channels = [in_channels] + [conv_channels] * convs
        self.convs = block_list(
            ConvNorm(conv_channels, 3, in_channels=inputs, init=MSRA, norm=norm)
            for inputs in channels[:-1])
        units = [channels[-1] * size ** 2] + [fc_channels] * fcs
        self.fcs = block_list(nn.Dense(fc_channels, in_units=inputs, weight_initializer=XAVIER)
                              for inputs in units[:-1])
        self.channels = units[-1]

    def hybrid_forward(self, F, x):
        for layer in (*self.convs, *self.fcs):
            x = F.relu(layer(x))
        return x


class BoxPredictor(nn.HybridBlock):
    """Features (R, C) to logits (R, K + 1), background last, and deltas (R, B, 4).

    Args:
      in_channels: C.
      classes: K.
      agnostic: one box for all classes (B = 1) instead of one for each (B = K).
      prior: the sigmoid of a fresh logit, so that thousands of classes that are not there are
        little of the first losses (Lin et al. 2017, "Focal loss", 3.3); 0.5 is a bias of zero.

    Attributes:
      in_channels, agnostic, prior: as given.
    """

    def __init__(self, in_channels, classes, *, agnostic=False, prior=0.5):
        super().__init__()
        self.in_channels, self.agnostic, self.prior = in_channels, agnostic, prior
        self.logits = nn.Dense(classes + 1, in_units=in_channels,
                               weight_initializer=mx.init.Normal(0.01),
                               bias_initializer=mx.init.Constant(math.log(prior / (1 - prior))))
        self.deltas = nn.Dense(4 * (1 if agnostic else classes), in_units=in_channels,
                               weight_initializer=mx.init.Normal(0.001))

    def hybrid_forward(self, F, x):
        return self.logits(x), F.reshape(self.deltas(x), shape=(0, -1, 4))


class BoxStage(nn.HybridBlock):
    """One stage of a detector: pooled RoIs to logits (R, K + 1) and deltas (R, B, 4).

    Args:
      head, predictor: a `BoxHead` and a `BoxPredictor`.
      threshold: RoIs from this IoU on are objects.
      weights: of the deltas, see `boxes.encode`.
      gradient: factor of the gradient that goes back into the pooled RoIs.
      loss: weight of this stage's losses.
    """

    def __init__(self, head, predictor, *, threshold, weights, gradient=1.0, loss=1.0):
        super().__init__()
        self.head, self.predictor = head, predictor
        self.threshold, self.weights, self.loss = threshold, weights, loss
        self._gradient = gradient

    def hybrid_forward(self, F, pooled):
        if self._gradient != 1:     # the value stays exactly the same
            still = F.BlockGrad(pooled)
            pooled = still + (pooled - still) * self._gradient
        return self.predictor(self.head(pooled))


class MaskHead(nn.HybridBlock):
    """Pooled RoIs (R, C, size, size) to mask logits (R, K, 2 size, 2 size).

    Args:
      in_channels: C.
      classes: K.
      convs, channels: 3x3 convolutions, each with norm and ReLU; the 2x2 deconvolution has as many
        channels.
      norm: constructor of a normalisation layer, or None for biased convolutions.
      extra_norm: see `Conventions.mask_extra_norm`.
    """

    def __init__(self, in_channels, classes, *, convs=4, channels=256, norm=None,
                 extra_norm=False):
        super().__init__()
        inputs = [in_channels] + [channels] * convs
        self.convs = block_list(
            ConvNorm(channels, 3, in_channels=c, init=MSRA, norm=norm, bias=extra_norm)
            for c in inputs[:-1])
        self.deconv = nn.Conv2DTranspose(channels, 2, 2, in_channels=inputs[-1],
                                         weight_initializer=MSRA)
        self.norm = norm(in_channels=channels) if norm and extra_norm else None
        self._channels = channels
        self.logits = self.predictor(classes)

    def predictor(self, classes):
        """Returns a fresh last layer for so many classes."""
        return nn.Conv2D(classes, 1, in_channels=self._channels,
                         weight_initializer=mx.init.Normal(0.001))

    def hybrid_forward(self, F, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        x = self.deconv(x)
        if self.norm:
            x = self.norm(x)
        return self.logits(F.relu(x))


def keep_rows(old, new, sources, *, rows=1, tail=0):
    """Copies what a layer knows about some classes to the layer for another list of classes.

    Args:
      old, new: layers whose parameters have the classes on their first axis.
      sources: for each new class the index of the old one, or None for a fresh class.
      rows: of each class.
      tail: classes behind the others on both sides, the background.
    """
    for before, after in ((old.weight, new.weight), (old.bias, new.bias)):
        values, known = after.data().copy(), before.data()
        ends = len(values) - tail, len(known) - tail
        for number, source in enumerate(sources):
            if source is not None:
                values[number * rows:(number + 1) * rows] = \
                    known[source * rows:(source + 1) * rows]
        if tail:
            values[ends[0]:] = known[ends[1]:]
        after.set_data(values)
