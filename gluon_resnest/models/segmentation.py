"""Semantic segmentation networks: a dilated backbone, a head, and one place that resizes.

Children are called as in GluonCV's SegBaseModel: the backbone's stages under their own names,
beside `head` and `auxlayer`. So a file of a classifier fits but for `fc`, and GluonCV's files fit.
"""
import re
from typing import NamedTuple, Optional

import mxnet as mx
from mxnet.gluon import nn

from gluon_resnest.errors import UserError, check_choice
from gluon_resnest.models.deeplab import DeepLabHead, DeepLabPlusHead, conv_norm, resize_like
from gluon_resnest.models.dropout import Dropout
from gluon_resnest.models.graphs import TwoGraphs
from gluon_resnest.models.norm import norm_layer
from gluon_resnest.models.resnest import KAIMING, Backbone

BACKBONE = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class FCNHead(nn.HybridBlock):
    """Fully convolutional head (Long et al. 2015, in GluonCV's form).

    Args:
      channels, strides: of the four feature maps.
      classes: length of the logits.
      norm: constructor of normalisation layers.
      level: which map it looks at.
      inner: channels inside; None is a quarter of the map's, as published.
      dropout: whether there is dropout, as published.
      prefix: of the names in `collect_params()`.
    """

    def __init__(self, channels, strides, classes, *, norm, level=3, inner=None, dropout=True,
                 prefix="head_"):
        super().__init__(prefix=prefix)
        self.levels = (level,)
        inner = inner or channels[level] // 4
        with self.name_scope():
            self.block = conv_norm(inner, 3, in_channels=channels[level], norm=norm)
            self.block.add(Dropout(0.1 * dropout), nn.Conv2D(classes, 1, in_channels=inner))

    def hybrid_forward(self, F, x):
        return self.block(x)


class PyramidPooling(nn.HybridBlock):
    """Appends to a map its means over 1, 4, 9 and 36 regions (Zhao et al. 2017, section 3.2).

    (N, C, H, W) to (N, 2 C, H, W).
    """

    def __init__(self, in_channels, *, norm):
        super().__init__()
        for number in range(1, 5):
            setattr(self, f"conv{number}", conv_norm(in_channels // 4, 1, in_channels=in_channels,
                                                     norm=norm))

    def hybrid_forward(self, F, x):
        levels = zip((1, 2, 3, 6), (self.conv1, self.conv2, self.conv3, self.conv4))
        means = [conv(F.contrib.AdaptiveAvgPooling2D(x, output_size=size))
                 for size, conv in levels]
        return F.concat(x, *(resize_like(F, mean, x) for mean in means), dim=1)


class PSPHead(nn.HybridBlock):
    """Pyramid scene parsing head (Zhao et al. 2017); arguments as in `DeepLabHead`."""

    levels = (3,)

    def __init__(self, channels, strides, classes, *, norm, inner=512, dropout=True,
                 prefix="head_"):
        super().__init__(prefix=prefix)
        with self.name_scope():
            self.psp = PyramidPooling(channels[3], norm=norm)
            self.block = conv_norm(inner, 3, in_channels=2 * channels[3], norm=norm)
            self.block.add(Dropout(0.1 * dropout), nn.Conv2D(classes, 1, in_channels=inner))

    def hybrid_forward(self, F, x):
        return self.block(self.psp(x))


HEADS = {"deeplab": DeepLabHead, "deeplabplus": DeepLabPlusHead, "fcn": FCNHead, "psp": PSPHead}


class Segmenter(TwoGraphs):
    """Images (N, 3, H, W) of any size to logits (N, classes, H, W).

    With an auxiliary head it returns (logits, auxiliary logits), both of the image's size.

    Args:
      backbone: a `resnest.Backbone`, or another segmenter; its stages become this block's too.
      head: block of HEADS.
      auxlayer: second head that only training listens to, or None.
      enlarge: whether logits have the image's size, or that of the maps they are made of.
    """

    features = Backbone.features

    def __init__(self, backbone, head, auxlayer=None, enlarge=True):
        super().__init__(prefix="segmenter_")
        _adopt(self, backbone)
        self.head = head
        self.auxlayer = auxlayer
        self._enlarge = enlarge

    def hybrid_forward(self, F, x):
        maps = self.features(x)
        outputs = tuple(head(*(maps[level] for level in head.levels)) for head in self.heads())
        if self._enlarge:
            outputs = tuple(resize_like(F, logits, x) for logits in outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def predict(self, x):
        """Returns the logits of the main head, as GluonCV's networks do by this name."""
        return self(x) if self.auxlayer is None else self(x)[0]

    def heads(self):
        """Returns the heads there are, the main one first."""
        return [head for head in (self.head, self.auxlayer) if head is not None]

    def stages(self):
        """Returns a block of the backbone's children only: what a classifier's file fits."""
        return _adopt(nn.HybridBlock(prefix=""), self)

    def without_auxiliary(self):
        """Returns a segmenter of the same parameters that gives the logits only."""
        return Segmenter(self, self.head)

    def before_enlarging(self):
        """Returns a segmenter of the same parameters whose logits have their own size."""
        return Segmenter(self, self.head, self.auxlayer, enlarge=False)


def _adopt(block, backbone):
    """Gives a block the stem and the stages of another one; returns it."""
    for name in BACKBONE:
        setattr(block, name, getattr(backbone, name))
    return block


def segmenter(backbone, classes, *, head="deeplab", aux=True, norm=norm_layer(), dropout=True,
              head_channels=None):
    """Builds the heads for a backbone.

    Args:
      backbone: a `resnest.Backbone` of output stride 8, as published, or 16.
      classes: length of the logits.
      head: a name of HEADS.
      aux: whether there is an auxiliary FCN head on the third map (Zhao et al. 2017, section 3.3).
      norm: constructor of the heads' normalisation layers.
      dropout: whether the heads have dropout, as published.
      head_channels: inside the main head; None is as published.

    Raises:
      UserError: if there is no such head, or the backbone has another stride.
    """
    check_choice("head", head, HEADS)
    maps = backbone.feature_channels, backbone.feature_strides
    if maps[1][3] not in (8, 16):
        raise UserError("a segmentation network needs a backbone whose last map has the stride 8 "
                        f"or 16, got {maps[1][3]}; give another output_stride")
    options = {"norm": norm, "dropout": dropout}
    auxlayer = FCNHead(*maps, classes, level=2, prefix="auxlayer_", **options) if aux else None
    if head_channels:
        options["inner"] = head_channels
    return Segmenter(backbone, HEADS[head](*maps, classes, **options), auxlayer)


def initialize(net, ctx=None):
    """Initialises a segmenter as published: the backbone as a classifier, heads uniform in ±0.07.

    (GluonCV's heads have MXNet's default initialiser.)
    """
    for head in net.heads():
        head.initialize(mx.init.Uniform(0.07), ctx=ctx)
    net.stages().initialize(KAIMING, ctx=ctx)


class Name(NamedTuple):
    """What the name of a segmentation network says; `dataset` is None where it names none."""

    head: str
    backbone: str
    dataset: Optional[str]

    @property
    def classes(self):
        """Classes of the data set, or None."""
        return CLASSES.get(self.dataset)


CLASSES = {"ade": 150, "citys": 19, "pcontext": 59, "voc": 21, "coco": 21}

# GluonCV's segmentation calls its ResNets of deep stem (v1s) by these names.
_BACKBONES = {f"resnet{depth}": f"resnet{depth}_v1s" for depth in (50, 101, 152)}
_GRAMMAR = re.compile(f"({'|'.join(HEADS)})_(.+?)(?:_({'|'.join(CLASSES)}))?")


def parse_name(name):
    """Returns the `Name` that {head}_{backbone}[_{dataset}] spells in any case, or None."""
    spelled = _GRAMMAR.fullmatch(name.lower())
    if not spelled:
        return None
    head, backbone, dataset = spelled.groups()
    return Name(head, _BACKBONES.get(backbone, backbone), dataset)
