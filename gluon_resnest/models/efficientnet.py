"""EfficientNet-b0 to b7 (Tan and Le 2019), the paper's rival from architecture search."""
import math
from dataclasses import dataclass
from typing import NamedTuple

from mxnet.gluon import nn

from gluon_resnest.errors import UserError
from gluon_resnest.models.baselines import SqueezeExcitation
from gluon_resnest.models.dropout import Dropout
from gluon_resnest.models.norm import norm_layer, with_defaults
from gluon_resnest.models.resnest import Backbone, chain, stage_plan

STEM, HEAD = 32, 1280


class Group(NamedTuple):
    """A row of table 1 of that paper; `stage` is the one of `features` it belongs to (0..3)."""

    stage: int
    expansion: int
    channels: int
    blocks: int
    strides: int
    kernel: int


GROUPS = (Group(0, 1, 16, 1, 1, 3), Group(0, 6, 24, 2, 2, 3), Group(1, 6, 40, 2, 2, 5),
          Group(2, 6, 80, 3, 2, 3), Group(2, 6, 112, 3, 1, 5), Group(3, 6, 192, 4, 2, 5),
          Group(3, 6, 320, 1, 1, 3))


@dataclass(frozen=True)
class EfficientNetArchitecture:
    """Compound scaling of b0.

    Attributes:
      width, depth: factors of the channels and of the blocks in a group.
      crop_px: side of the images it is meant for.
      final_drop: dropout before the classifier.
      drop_path: probability that the last block's residual is dropped in training; earlier blocks
        have proportionally less.
    """

    width: float
    depth: float
    crop_px: int
    final_drop: float
    drop_path: float = 0.2


def scaled(channels, factor):
    """Returns `channels` times `factor`, as a multiple of 8 that loses at most a tenth."""
    target = channels * factor
    rounded = max(8, int(target + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * target else rounded


class Swish(nn.HybridBlock):
    """x times sigmoid(x); `nn.Swish` multiplies once more, by one, and has no oneDNN kernel."""

    def hybrid_forward(self, F, x):
        return x * F.Activation(x, act_type="sigmoid")


class InvertedBottleneck(nn.HybridBlock):
    """1x1 to more channels, depthwise, squeeze and excitation, 1x1 back (MobileNet v2 and v3).

    Input (N, in_channels, H, W); added to the input where that has the shape of the output.

    Args:
      spec: what to build, a `_Block`.
    """

    def __init__(self, spec, *, in_channels, norm, zero_last_gamma=False):
        super().__init__()
        width = in_channels * spec.expansion
        adds = spec.strides == 1 and in_channels == spec.channels
        self._adds = adds
        if spec.expansion > 1:
            self.conv1 = nn.Conv2D(width, 1, use_bias=False, in_channels=in_channels)
            self.bn1 = norm(in_channels=width)
            self.swish1 = Swish()
        else:
            self.conv1 = self.bn1 = self.swish1 = None
        pad = spec.dilation * (spec.kernel // 2)
        self.conv2 = nn.Conv2D(width, spec.kernel, spec.strides, pad, spec.dilation, groups=width,
                               use_bias=False, in_channels=width)
        self.bn2 = norm(in_channels=width)
        self.swish2 = Swish()
        self.gate = SqueezeExcitation(width, max(1, in_channels // 4), Swish)
        self.conv3 = nn.Conv2D(spec.channels, 1, use_bias=False, in_channels=width)
        self.bn3 = norm(in_channels=spec.channels,
                        gamma_initializer="zeros" if zero_last_gamma and adds else "ones")
        # Dropping all of a sample, and scaling those that stay, is stochastic depth.
        self.drop = Dropout(spec.drop_path, axes=(1, 2, 3)) if adds and spec.drop_path else None

    def hybrid_forward(self, F, x):
        residual = chain(x, self.conv1, self.bn1, self.swish1, self.conv2, self.bn2, self.swish2,
                         self.gate, self.conv3, self.bn3, self.drop)
        return x + residual if self._adds else residual


class EfficientNet(Backbone):
    """EfficientNet: images (N, in_channels, H, W) to logits (N, classes).

    Arguments as in `resnest.ResNeSt`, with an `EfficientNetArchitecture`. Pads symmetrically,
    where the original pads the odd pixel below and to the right.

    Raises:
      UserError: if a DropBlock probability is given; there is stochastic depth instead.
    """

    def __init__(self, arch, *, classes=1000, in_channels=3, output_stride=32, norm=norm_layer(),
                 zero_last_gamma=False, dropblock=None, final_drop=None, prefix="efficientnet_"):
        super().__init__(prefix=prefix)
        if dropblock:
            raise UserError(f"EfficientNet has stochastic depth instead of DropBlock, got "
                            f"dropblock={dropblock!r}; leave it out or give 0")
        stages = _plan(arch, output_stride)
        self.feature_channels = tuple(blocks[-1].channels for blocks in stages)
        self.feature_strides = tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))
        norm = with_defaults(norm, epsilon=1e-3, momentum=0.99)
        final_drop = arch.final_drop if final_drop is None else final_drop
        stem, head = scaled(STEM, arch.width), scaled(HEAD, arch.width)
        inputs = (stem,) + self.feature_channels[:3]
        with self.name_scope():
            self.conv1 = nn.Conv2D(stem, 3, 2, 1, use_bias=False, in_channels=in_channels)
            self.bn1 = norm(in_channels=stem)
            self.relu = Swish()
            self.maxpool = None
            for index, blocks in enumerate(stages):
                setattr(self, f"layer{index + 1}",
                        _stage(index, blocks, inputs[index], norm, zero_last_gamma))
            self.conv2 = nn.Conv2D(head, 1, use_bias=False, in_channels=self.feature_channels[-1])
            self.bn2 = norm(in_channels=head)
            self.relu2 = Swish()
            self.avgpool = nn.GlobalAvgPool2D()
            self.flat = nn.Flatten()
            self.drop = Dropout(final_drop) if final_drop else None
            self.fc = nn.Dense(classes, in_units=head)

    def hybrid_forward(self, F, x):
        return chain(self.features(x)[-1], self.conv2, self.bn2, self.relu2, self.avgpool,
                     self.flat, self.drop, self.fc)


class _Block(NamedTuple):
    """What an `InvertedBottleneck` is told."""

    expansion: int
    channels: int
    kernel: int
    strides: int
    dilation: int
    drop_path: float


def _plan(arch, output_stride):
    """Returns the `_Block`s of each of the four stages."""
    depths = [math.ceil(arch.depth * group.blocks) for group in GROUPS]
    total, done = sum(depths), 0
    stages = [[], [], [], []]
    for group, depth in zip(GROUPS, depths):
        strides, dilation, later = stage_plan(output_stride)[group.stage]
        # The plan's first stage does not stride; here its second group does.
        strides = group.strides if group.stage == 0 or group.strides == 1 else strides
        if group.strides == 1:
            dilation = later
        for _ in range(depth):
            stages[group.stage].append(_Block(
                group.expansion, scaled(group.channels, arch.width), group.kernel, strides,
                dilation, arch.drop_path * done / total))
            strides, dilation, done = 1, later, done + 1
    return stages


def _stage(index, blocks, in_channels, norm, zero_last_gamma):
    """Builds stage `index` (0..3)."""
    stage = nn.HybridSequential(prefix=f"layers{index + 1}_")
    with stage.name_scope():
        for block in blocks:
            stage.add(InvertedBottleneck(block, in_channels=in_channels, norm=norm,
                                         zero_last_gamma=zero_last_gamma))
            in_channels = block.channels
    return stage
