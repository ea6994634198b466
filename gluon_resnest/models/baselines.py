"""The residual networks the paper compares with (tables 2 to 4), on ResNeSt's own bottleneck.

ResNet-D is not here: it is a ResNeSt of radix 0.
"""
import functools
from dataclasses import dataclass
from typing import Callable, Optional, Tuple

from mxnet.gluon import nn

from gluon_resnest.models.dropblock import DropBlock
from gluon_resnest.models.dropout import Dropout
from gluon_resnest.models.gated import Gated
from gluon_resnest.models.norm import norm_layer
from gluon_resnest.models.resnest import (
    EXPANSION, Backbone, Bottleneck, chain, deep_stem, stage_plan)


@dataclass(frozen=True)
class ResNetArchitecture:
    """What tells these networks apart; all have a strided 1x1 shortcut.

    Attributes:
      depths: blocks in each of the four stages.
      basic: two 3x3 convolutions in a block instead of a bottleneck (ResNet-18).
      cardinality, bottleneck_width: groups, and channels of a group in stage 1 (ResNeXt).
      transform: middle of the bottleneck, see `Bottleneck`; also told `norm` and `cardinality`.
      gate: constructor of a block that weights the residual, called with `channels`.
      early_stride: the first 1x1 convolution strides instead of the 3x3 (He et al. 2016; the
        backbones called MSRA in detection).
      stem_width: channels of a stem of three 3x3 convolutions, as in `resnest.Architecture`; None
        is the 7x7 stem.
      dropblock, final_drop: as in `resnest.Architecture`.
    """

    depths: Tuple[int, int, int, int]
    basic: bool = False
    cardinality: int = 1
    bottleneck_width: int = 64
    transform: Optional[Callable] = None
    gate: Optional[Callable] = None
    early_stride: bool = False
    stem_width: Optional[int] = None
    dropblock: float = 0.0
    final_drop: float = 0.0


class SqueezeExcitation(Gated):
    """Weights each channel by what the means of all channels say (Hu et al. 2018).

    Input and output (N, C, H, W).

    Args:
      channels: C.
      hidden: channels in between; None is C / 16.
      act: constructor of the activation in between; None is ReLU.
    """

    def __init__(self, channels, hidden=None, act=None):
        super().__init__()
        hidden = hidden or channels // 16
        self.fc1 = nn.Conv2D(hidden, 1, in_channels=channels)
        self.act = act() if act else nn.Activation("relu")
        self.fc2 = nn.Conv2D(channels, 1, in_channels=hidden)

    def hybrid_forward(self, F, x):
        pooled = F.contrib.AdaptiveAvgPooling2D(x, output_size=1)
        return self.weighted(F, x, F.sigmoid(self.fc2(self.act(self.fc1(pooled)))))


class SelectiveKernel(Gated):
    """Chooses between 3x3 and 5x5 for each channel by what both see (Li et al. 2019).

    Input (N, C_in, H, W), output (N, C, H', W'). The 5x5 is a 3x3 of twice the dilation; M = 2,
    r = 16 and L = 32 in the letters of that paper. Takes the arguments of `SplitAttention`.
    """

    def __init__(self, channels, *, in_channels, norm, cardinality=1, strides=1, dilation=1):
        super().__init__()
        hidden = max(channels // 16, 32)
        self.paths = nn.HybridSequential(prefix="")
        for spread in (dilation, 2 * dilation):
            path = nn.HybridSequential(prefix="")
            path.add(nn.Conv2D(channels, 3, strides, spread, spread, groups=cardinality,
                               use_bias=False, in_channels=in_channels),
                     norm(in_channels=channels),
                     nn.Activation("relu"))
            self.paths.add(path)
        self.fc1 = nn.Conv2D(hidden, 1, use_bias=False, in_channels=channels)
        self.bn1 = norm(in_channels=hidden)
        self.relu1 = nn.Activation("relu")
        self.fc2 = nn.Conv2D(2 * channels, 1, use_bias=False, in_channels=hidden)

    def hybrid_forward(self, F, x):
        narrow, wide = (path(x) for path in self.paths)
        pooled = F.contrib.AdaptiveAvgPooling2D(narrow + wide, output_size=1)
        logits = self.fc2(self.relu1(self.bn1(self.fc1(pooled))))            # (N, 2*C, 1, 1)
        first, second = F.split(logits, num_outputs=2, axis=1)               # (N, C, 1, 1) each
        # A softmax over two is a sigmoid of their difference, and its second gate is the rest.
        return wide + self.weighted(F, narrow - wide, F.sigmoid(first - second))


class BasicBlock(nn.HybridBlock):
    """3x3, 3x3, added to a shortcut (He et al. 2016); arguments as in `Bottleneck`.

    Args:
      first_dilation: of the first convolution; `dilation` is that of the second.
    """

    def __init__(self, channels, *, in_channels, norm, strides=1, first_dilation=1, dilation=1,
                 shortcut=None, zero_last_gamma=False, dropblock=None):
        super().__init__()
        self.conv1 = nn.Conv2D(channels, 3, strides, first_dilation, first_dilation,
                               use_bias=False, in_channels=in_channels)
        self.bn1 = norm(in_channels=channels)
        self.dropblock1 = None if dropblock is None else DropBlock(dropblock)
        self.relu1 = nn.Activation("relu")
        self.conv2 = nn.Conv2D(channels, 3, 1, dilation, dilation, use_bias=False,
                               in_channels=channels)
        self.bn2 = norm(in_channels=channels,
                        gamma_initializer="zeros" if zero_last_gamma else "ones")
        self.dropblock2 = None if dropblock is None else DropBlock(dropblock)
        self.relu2 = nn.Activation("relu")
        self.downsample = shortcut

    def hybrid_forward(self, F, x):
        residual = chain(x, self.conv1, self.bn1, self.dropblock1, self.relu1,
                         self.conv2, self.bn2, self.dropblock2)
        return self.relu2(residual + chain(x, self.downsample))


class ResNet(Backbone):
    """Residual network: images (N, in_channels, H, W) to logits (N, classes).

    Arguments as in `resnest.ResNeSt`, with a `ResNetArchitecture`.
    """

    def __init__(self, arch, *, classes=1000, in_channels=3, output_stride=32, norm=norm_layer(),
                 zero_last_gamma=False, dropblock=None, final_drop=None, prefix="resnet_"):
        super().__init__(prefix=prefix)
        plan = stage_plan(output_stride)
        expansion = 1 if arch.basic else EXPANSION
        self.feature_channels = tuple(width * expansion for width in (64, 128, 256, 512))
        self.feature_strides = tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))
        dropblock = arch.dropblock if dropblock is None else dropblock
        final_drop = arch.final_drop if final_drop is None else final_drop
        stem = 2 * arch.stem_width if arch.stem_width else 64
        inputs = (stem,) + self.feature_channels[:3]
        with self.name_scope():
            self.conv1 = (deep_stem(arch.stem_width, in_channels, norm) if arch.stem_width else
                          nn.Conv2D(64, 7, 2, 3, use_bias=False, in_channels=in_channels))
            self.bn1 = norm(in_channels=stem)
            self.relu = nn.Activation("relu")
            self.maxpool = nn.MaxPool2D(3, 2, padding=1)
            for stage in range(4):
                block = functools.partial(
                    _basic if arch.basic else _bottleneck, arch, 64 << stage, norm=norm,
                    zero_last_gamma=zero_last_gamma, dropblock=dropblock if stage > 1 else None)
                setattr(self, f"layer{stage + 1}", _stage(
                    stage, block, arch.depths[stage], plan[stage], in_channels=inputs[stage],
                    channels=self.feature_channels[stage], norm=norm))
            self.avgpool = nn.GlobalAvgPool2D()
            self.flat = nn.Flatten()
            self.drop = Dropout(final_drop) if final_drop else None
            self.fc = nn.Dense(classes, in_units=self.feature_channels[-1])


def _stage(index, block, depth, plan, *, in_channels, channels, norm):
    """Builds stage `index` (0..3) of `depth` blocks; `plan` is its entry of `stage_plan`."""
    strides, first_dilation, dilation = plan
    stage = nn.HybridSequential(prefix=f"layers{index + 1}_")
    with stage.name_scope():
        shortcut = None
        if strides != 1 or in_channels != channels:
            shortcut = nn.HybridSequential(prefix="down_")
            with shortcut.name_scope():
                shortcut.add(nn.Conv2D(channels, 1, strides, use_bias=False,
                                       in_channels=in_channels),
                             norm(in_channels=channels))
        stage.add(block(in_channels=in_channels, strides=strides, first_dilation=first_dilation,
                        dilation=dilation, shortcut=shortcut))
        for _ in range(1, depth):
            stage.add(block(in_channels=channels, strides=1, first_dilation=dilation,
                            dilation=dilation, shortcut=None))
    return stage


def _basic(arch, width, **options):
    """Builds a basic block of `width` channels."""
    return BasicBlock(width, **options)


def _bottleneck(arch, width, *, norm, strides, first_dilation, dilation, **options):
    """Builds a bottleneck whose inner width in plain ResNet would be `width`."""
    transform = arch.transform and functools.partial(arch.transform, norm=norm,
                                                     cardinality=arch.cardinality)
    channels = width * EXPANSION
    return Bottleneck(int(width * arch.bottleneck_width / 64) * arch.cardinality, channels,
                      norm=norm, transform=transform, cardinality=arch.cardinality,
                      first_strides=strides if arch.early_stride else 1,
                      strides=1 if arch.early_stride else strides, dilation=first_dilation,
                      gate=arch.gate and arch.gate(channels), **options)
