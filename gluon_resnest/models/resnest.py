"""ResNeSt and the bottleneck network it shares with ResNet-D (paper, section 3 and 4)."""
import functools
from dataclasses import dataclass
from typing import Optional, Tuple

import mxnet as mx
from mxnet.gluon import nn

from gluon_resnest.errors import UserError, check_count
from gluon_resnest.models.deform import DeformableConv2D
from gluon_resnest.models.dropblock import DropBlock
from gluon_resnest.models.dropout import Dropout
from gluon_resnest.models.graphs import TwoGraphs
from gluon_resnest.models.norm import norm_layer
from gluon_resnest.models.split_attention import SplitAttention

# Kaiming normal, fan in: weights keep the variance of the activations through ReLUs (section 5.1).
KAIMING = mx.init.Xavier(rnd_type="gaussian", factor_type="in", magnitude=2)
EXPANSION = 4


@dataclass(frozen=True)
class Architecture:
    """What tells the members of the family apart.

    Attributes:
      depths: bottlenecks in each of the four stages.
      stem_width: channels of the stem's first two convolutions; its third has twice as many.
      radix: splits; 0 is the plain convolution of ResNet-D.
      cardinality, bottleneck_width: groups, and channels of a group in stage 1, as in ResNeXt.
      pool: where a 3x3 average pooling takes over the striding of a bottleneck: "before" or
        "after" its 3x3 convolution, or None, where the convolution strides itself.
      pool_first: pool (stride 1) in the first bottleneck of stage 1 as well.
      dropblock: final probability of DropBlock in stages 3 and 4.
      final_drop: dropout before the classifier.
      stem_stride: of the stem's first convolution; 1 keeps twice the resolution throughout, for
        images of 32 pixels.
      widths: inner channels of the four stages; their outputs have `EXPANSION` times as many.
      deform_stages: stages, numbered 2 to 5 as their outputs c2 to c5, whose split attention
        samples by a deformable convolution (paper, tables 9, 10 and 12).
      deform_groups: channel groups of those that share their samples.
    """

    depths: Tuple[int, int, int, int]
    stem_width: int = 32
    radix: int = 2
    cardinality: int = 1
    bottleneck_width: int = 64
    pool: Optional[str] = "after"
    pool_first: bool = False
    dropblock: float = 0.1
    final_drop: float = 0.0
    stem_stride: int = 2
    widths: Tuple[int, int, int, int] = (64, 128, 256, 512)
    deform_stages: Tuple[int, ...] = ()
    deform_groups: int = 2

    def __post_init__(self):
        if self.deform_stages and (not self.radix or not set(self.deform_stages) <= {2, 3, 4, 5}):
            raise UserError(f"deformable stages are among 2, 3, 4, 5 and need split attention, got "
                            f"{self.deform_stages!r} with radix {self.radix}")


def stage_plan(output_stride):
    """Returns (stride, first dilation, dilation) for each of the four stages.

    Once `output_stride` is reached, a stage dilates instead of striding; its first 3x3
    convolution still has the dilation of the stage before (Yu and Koltun 2016).

    Raises:
      UserError: if `output_stride` is not 8, 16 or 32.
    """
    if output_stride not in (8, 16, 32):
        raise UserError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")
    plan, reached, dilation = [], 4, 1
    for stage in range(4):
        stride, first = (1 if stage == 0 else 2), dilation
        if reached * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        plan.append((stride, first, dilation))
    return plan


class Bottleneck(nn.HybridBlock):
    """1x1, transformation, 1x1, added to a shortcut (paper, figure 2).

    Args:
      width: channels between the two 1x1 convolutions.
      channels: channels of the output.
      in_channels: channels of the input.
      transform: builds the block in the middle, norm and ReLU included, from `(strides=...)`;
        None is a plain grouped 3x3 convolution.
      strides, dilation: of the middle.
      first_strides: of the first 1x1 convolution.
      pool: "before" or "after" the middle, see `Architecture`; None lets the middle stride.
      gate: block that weights the result before it is added, or None.
      shortcut: block on the other branch, or None for the identity.
      dropblock: probability, or None for no DropBlock.
    """

    def __init__(self, width, channels, *, in_channels, norm, transform=None, cardinality=1,
                 strides=1, dilation=1, first_strides=1, pool=None, gate=None, shortcut=None,
                 zero_last_gamma=False, dropblock=None):
        super().__init__()

        def drop():
            return None if dropblock is None else DropBlock(dropblock)

        middle_strides = 1 if pool else strides
        self._pool_before = pool == "before"
        self.conv1 = nn.Conv2D(width, 1, first_strides, use_bias=False, in_channels=in_channels)
        self.bn1 = norm(in_channels=width)
        self.dropblock1 = drop()
        self.relu1 = nn.Activation("relu")
        if transform:
            self.conv2 = transform(width, in_channels=width, strides=middle_strides,
                                   dilation=dilation)
            self.bn2 = self.relu2 = None
        else:
            self.conv2 = nn.Conv2D(width, 3, middle_strides, dilation, dilation,
                                   groups=cardinality, use_bias=False, in_channels=width)
            self.bn2 = norm(in_channels=width)
            self.relu2 = nn.Activation("relu")
        self.dropblock2 = drop()
        self.pool = nn.AvgPool2D(3, strides, padding=1) if pool else None
        self.conv3 = nn.Conv2D(channels, 1, use_bias=False, in_channels=width)
        self.bn3 = norm(in_channels=channels,
                        gamma_initializer="zeros" if zero_last_gamma else "ones")
        self.gate = gate
        self.dropblock3 = drop()
        self.relu3 = nn.Activation("relu")
        self.downsample = shortcut

    def hybrid_forward(self, F, x):
        # A factor of DropBlock is not negative, so that it may follow the ReLU, where the published
        # code has it before; norm and ReLU then share a layout (decision 0107).
        residual = chain(x, self.conv1, self.bn1, self.relu1, self.dropblock1,
                         self.pool if self._pool_before else None,
                         self.conv2, self.bn2, self.relu2, self.dropblock2,
                         None if self._pool_before else self.pool,
                         self.conv3, self.bn3, self.gate, self.dropblock3)
        return self.relu3(residual + chain(x, self.downsample))


def chain(x, *layers):
    """Applies the layers that are there, in order."""
    for layer in layers:
        if layer is not None:
            x = layer(x)
    return x


class Backbone(TwoGraphs):
    """What classifiers of four stages have in common; a subclass builds the children.

    Its children are conv1, bn1, relu, maxpool (the stem), layer1 to layer4, and avgpool, flat,
    drop, fc; maxpool and drop may be None.

    Attributes:
      feature_channels, feature_strides: of the four maps that `features` returns.
    """

    def features(self, x):
        """Returns (c2, c3, c4, c5), the outputs of the four stages.

        Their channels are `feature_channels`; the map of stride s has ceil(H/s) by ceil(W/s)
        pixels. Images of 32 by 32 pixels are large enough; a map of one pixel cannot be halved.
        """
        c2 = self.layer1(chain(x, self.conv1, self.bn1, self.relu, self.maxpool))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def hybrid_forward(self, F, x):
        return chain(self.features(x)[-1], self.avgpool, self.flat, self.drop, self.fc)

    def reset_classifier(self, classes):
        """Replaces the classifier by a fresh one of the same type, initialised if the old one was.

        Raises:
          UserError: if `classes` is no length of logits.
        """
        check_count("classes", classes)
        old = self.fc
        self.fc = nn.Dense(classes, in_units=old.weight.shape[1], dtype=old.weight.dtype,
                           prefix=old.prefix)
        if old.weight._data is not None:
            self.fc.initialize(KAIMING, ctx=old.weight.list_ctx())


class ResNeSt(Backbone):
    """Split-attention network: images (N, in_channels, H, W) to logits (N, classes).

    Names of children are those of the published parameter files, and the order in which blocks
    are created fixes the names of nodes in exported graphs; both are contracts.

    Args:
      arch: the `Architecture`.
      classes: length of the logits.
      in_channels: channels of the image.
      output_stride: 8, 16 or 32, see `stage_plan`.
      norm: constructor of normalisation layers, see `norm.norm_layer`.
      zero_last_gamma: start each residual branch at zero.
      dropblock, final_drop: probabilities; None takes those of `arch`.
      prefix: of the names in `collect_params()`.
    """

    def __init__(self, arch, *, classes=1000, in_channels=3, output_stride=32, norm=norm_layer(),
                 zero_last_gamma=False, dropblock=None, final_drop=None, prefix="resnest_"):
        super().__init__(prefix=prefix)
        plan = stage_plan(output_stride)
        self.feature_channels = tuple(width * EXPANSION for width in arch.widths)
        self.feature_strides = tuple(min(stride, output_stride) * arch.stem_stride // 2
                                     for stride in (4, 8, 16, 32))
        dropblock = arch.dropblock if dropblock is None else dropblock
        final_drop = arch.final_drop if final_drop is None else final_drop
        inputs = (2 * arch.stem_width,) + self.feature_channels[:3]
        with self.name_scope():
            self.conv1 = deep_stem(arch.stem_width, in_channels, norm, arch.stem_stride)
            self.bn1 = norm(in_channels=2 * arch.stem_width)
            self.relu = nn.Activation("relu")
            self.maxpool = nn.MaxPool2D(3, 2, padding=1)
            for stage in range(4):
                setattr(self, f"layer{stage + 1}", _stage(
                    stage, arch, plan[stage], in_channels=inputs[stage], norm=norm,
                    zero_last_gamma=zero_last_gamma, dropblock=dropblock if stage > 1 else None))
            self.avgpool = nn.GlobalAvgPool2D()
            self.flat = nn.Flatten()
            self.drop = Dropout(final_drop) if final_drop else None
            self.fc = nn.Dense(classes, in_units=self.feature_channels[-1])


class FeatureExtractor(TwoGraphs):
    """A backbone without its classifier: image to a tuple of the chosen maps of `features`.

    It takes over the children that it needs, under their names, and no others: a trainer would
    complain of parameters without gradients.

    Args:
      backbone: the `Backbone`.
      out_indices: which of the four maps, ascending.

    Raises:
      UserError: if there are no such maps.
    """

    def __init__(self, backbone, out_indices=(0, 1, 2, 3)):
        super().__init__(prefix=backbone.prefix)
        if not out_indices or not set(out_indices) <= {0, 1, 2, 3}:
            raise UserError(f"out_indices must be chosen from 0, 1, 2, 3, got {out_indices!r}")
        self._indices = tuple(sorted(out_indices))
        self.feature_channels = tuple(backbone.feature_channels[i] for i in self._indices)
        self.feature_strides = tuple(backbone.feature_strides[i] for i in self._indices)
        self._stages = [f"layer{i + 1}" for i in range(self._indices[-1] + 1)]
        for name in ("conv1", "bn1", "relu", "maxpool", *self._stages):
            setattr(self, name, getattr(backbone, name))

    def features(self, x):
        """Returns the chosen maps; see `Backbone.features`."""
        x, maps = chain(x, self.conv1, self.bn1, self.relu, self.maxpool), []
        for stage in self._stages:
            x = getattr(self, stage)(x)
            maps.append(x)
        return tuple(maps[i] for i in self._indices)

    def hybrid_forward(self, F, x):
        return self.features(x)


def initialize(net, ctx=None):
    """Initialises a network as the paper does: Kaiming normal, biases zero, BN at identity."""
    net.initialize(KAIMING, ctx=ctx)


def deep_stem(width, in_channels, norm, strides=2):
    """Three 3x3 convolutions in place of the 7x7 one (He et al. 2019, ResNet-C)."""
    stem = nn.HybridSequential(prefix="conv1")
    for inputs, stride in ((in_channels, strides), (width, 1)):
        stem.add(nn.Conv2D(width, 3, stride, 1, use_bias=False, in_channels=inputs),
                 norm(in_channels=width),
                 nn.Activation("relu"))
    stem.add(nn.Conv2D(2 * width, 3, 1, 1, use_bias=False, in_channels=width))
    return stem


def _average_shortcut(stage, strides, channels, in_channels, norm):
    """Average pooling, then 1x1: the shortcut that loses nothing (He et al. 2019, ResNet-D)."""
    shortcut = nn.HybridSequential(prefix=f"down{stage + 1}_")
    with shortcut.name_scope():
        shortcut.add(nn.AvgPool2D(strides, strides, ceil_mode=True, count_include_pad=False),
                     nn.Conv2D(channels, 1, use_bias=False, in_channels=in_channels),
                     norm(in_channels=channels))
    return shortcut


def _stage(index, arch, plan, *, in_channels, norm, zero_last_gamma, dropblock):
    """Builds stage `index` (0..3) of a network; `plan` is its entry of `stage_plan`."""
    strides, first_dilation, dilation = plan
    channels = arch.widths[index] * EXPANSION
    shortcut = None
    if strides != 1 or in_channels != channels:
        shortcut = _average_shortcut(index, strides, channels, in_channels, norm)
    pools = strides > 1 or first_dilation != dilation or (arch.pool_first and index == 0)
    bottleneck = functools.partial(
        Bottleneck, int(arch.widths[index] * arch.bottleneck_width / 64) * arch.cardinality,
        channels, norm=norm, transform=_transform(arch, norm, index + 2),
        cardinality=arch.cardinality, zero_last_gamma=zero_last_gamma, dropblock=dropblock)
    stage = nn.HybridSequential(prefix=f"layers{index + 1}_")
    with stage.name_scope():
        stage.add(bottleneck(in_channels=in_channels, strides=strides, dilation=first_dilation,
                             pool=arch.pool if pools else None, shortcut=shortcut))
        for _ in range(1, arch.depths[index]):
            stage.add(bottleneck(in_channels=channels, dilation=dilation))
    return stage


def _transform(arch, norm, stage):
    """Returns the constructor of the bottleneck's middle, or None for a plain convolution."""
    if arch.radix == 0:
        return None
    conv = nn.Conv2D
    if stage in arch.deform_stages:
        conv = functools.partial(DeformableConv2D, deformable_groups=arch.deform_groups)
    return functools.partial(SplitAttention, norm=norm, radix=arch.radix,
                             cardinality=arch.cardinality, conv=conv)
