"""The table: every network of the family by name, what it costs, and the weights published for it.

Sources: paper tables 1 to 3; the authors' README and ablation.md; GluonCV's ResNeSt table.
Parameter counts and MACs are measured on these very definitions (tests/test_zoo.py).
"""
import functools
import re
from dataclasses import dataclass, replace
from typing import Optional, Tuple, Union

from gluon_resnest.errors import UserError, nearest
from gluon_resnest.models.baselines import ResNetArchitecture, SelectiveKernel, SqueezeExcitation
from gluon_resnest.models.efficientnet import EfficientNetArchitecture
from gluon_resnest.models.resnest import Architecture
from gluon_resnest.models.split_attention import SplitAttention


@dataclass(frozen=True)
class Weights:
    """A published parameter file and how it is meant to be evaluated.

    Attributes:
      sha1: of each version, newest first.
      crop_px: side of the evaluation crop.
      top1, top5: per cent on the ImageNet validation set, published by `source`.
      protocol: evaluation protocol of `data.transforms`.
      mean, std: of the input's channels, for images in [0, 1].
    """

    sha1: Tuple[str, ...]
    crop_px: int
    top1: float
    top5: Optional[float]
    source: str
    protocol: str = "gluon"
    mean: Tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: Tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Variant:
    """A named network and its cost.

    Attributes:
      arch: what to build.
      params: trainable parameters with 1000 classes; None where it was not declared.
      gmacs: 1e9 multiply-accumulates of convolutions and dense layers on one 224x224 image.
      weights: what was published for it, if anything was.
    """

    arch: Union[Architecture, ResNetArchitecture, EfficientNetArchitecture]
    params: Optional[int] = None
    gmacs: Optional[float] = None
    weights: Optional[Weights] = None


DEPTHS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 32: (2, 3, 3, 2), 50: (3, 4, 6, 3),
          101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3), 269: (3, 30, 48, 8)}

_GLUONCV = "GluonCV model zoo, ResNeSt table"
_ABLATION = "zhanghang1989/ResNeSt, ablation.md"


def _plain(depth, **changes):
    """The flagship form: 2s1x64d, pooling after the 3x3; wide stem and dropout as they deepen."""
    return Architecture(DEPTHS[depth], stem_width=64 if depth > 100 else 32,
                        final_drop=0.2 if depth >= 200 else 0.0, **changes)


def _fast(depth, radix, cardinality, width):
    """The fast form (paper, table 2): narrow stem, pooling before the 3x3.

    Radix 0 is the ResNet-D bottleneck, whose 3x3 convolution strides itself.
    """
    return Architecture(DEPTHS[depth], radix=radix, cardinality=cardinality,
                        bottleneck_width=width, pool="before" if radix else None)


def _report(depth, radix, cardinality, width):
    """The form of the CIFAR-10 report: fast, with a pooling in the very first bottleneck too."""
    return Architecture(DEPTHS[depth], radix=radix, cardinality=cardinality,
                        bottleneck_width=width, pool="before", pool_first=True)


def _resnet(depth, **changes):
    """The original form (He et al. 2016), its 3x3 striding."""
    return ResNetArchitecture(DEPTHS[depth], **changes)


# The paper's SENet and SKNet rows have the GFLOPs of the ResNeXt they are built on.
_RESNEXT = dict(cardinality=32, bottleneck_width=4)
_ONE_SPLIT = functools.partial(SplitAttention, radix=1)

VARIANTS = {
    "resnest14": Variant(_plain(14, dropblock=0.0), 10611688, 2.75, Weights(
        ("7e0b0cae2fd7e9084d1e498b858af1429a6eb1cb",), 224, 75.75, 92.70, _GLUONCV)),
    "resnest26": Variant(_plain(26), 17069448, 3.62, Weights(
        ("364590740605b6a2b95f5bb77436d781a817436f",), 224, 78.68, 94.38, _GLUONCV)),
    "resnest32": Variant(_report(32, 2, 1, 64), 18591688, 3.02),
    "resnest50": Variant(_plain(50), 27483240, 5.37, Weights(
        ("bcfefe1dd1dd1ef5cfed5563123c1490ea37b42e",), 224, 81.04, 95.42, _GLUONCV)),
    "resnest101": Variant(_plain(101), 48275016, 10.20, Weights(
        ("5da943b3230f071525a98639945a6b3b3a45ac95",), 256, 82.83, 96.42, _GLUONCV)),
    "resnest200": Variant(_plain(200), 70201544, 17.41, Weights(
        ("0c5d117df664ace220aa6fc2922c094bb079d381",), 320, 83.86, 96.86, _GLUONCV)),
    "resnest269": Variant(_plain(269), 110929480, 22.43, Weights(
        ("11ae7f5da2bcdbad05ba7e84f9b74383e717f3e3",), 416, 84.53, 96.98, _GLUONCV)),

    "resnest50_fast_0s1x64d": Variant(_fast(50, 0, 1, 64), 25576264, 4.33),
    "resnest50_fast_1s1x64d": Variant(_fast(50, 1, 1, 64), 26217896, 4.33, Weights(
        ("5e16dbe56f1fba8e1bc2faddd91f874bfbd74193",), 224, 80.35, None, _ABLATION)),
    "resnest50_fast_2s1x64d": Variant(_fast(50, 2, 1, 64), 27483240, 4.33, Weights(
        ("85eb779a5e313d74b5e5390dae02aa8082a0f469",), 224, 80.65, None, _ABLATION)),
    "resnest50_fast_4s1x64d": Variant(_fast(50, 4, 1, 64), 31912712, 4.34, Weights(
        ("3f215532c6d8e07a10df116309993d4479fc3e4b",), 224, 80.90, None, _ABLATION)),
    "resnest50_fast_1s2x40d": Variant(_fast(50, 1, 2, 40), 25946680, 4.36, Weights(
        ("af3514c2ec757a3a9666a75b82f142ed47d55bee",), 224, 80.72, None, _ABLATION)),
    "resnest50_fast_2s2x40d": Variant(_fast(50, 2, 2, 40), 26943792, 4.37, Weights(
        ("2db13245aa4967cf5e8617cb4911880dd41628a4", "d4a7f303531a333d8ad5cf6f73cab84d0a2dd752"),
        224, 80.84, None, _ABLATION)),
    "resnest50_fast_4s2x40d": Variant(_fast(50, 4, 2, 40), 30417592, 4.37, Weights(
        ("b24d515797832e02da4da9c8a15effd5e44cfb56", "1a9f15bcd4ffddd793acdea05de01f73b096e614"),
        224, 81.17, None, _ABLATION)),
    "resnest50_fast_1s4x24d": Variant(_fast(50, 1, 4, 24), 25677000, 4.40, Weights(
        ("7318153ddb5e542a20cc6c58192f3c6209cff9ed",), 224, 80.97, None, _ABLATION)),
    "resnest101_fast_2s1x64d": Variant(_fast(101, 2, 1, 64), 48170472, 8.04),

    # The CIFAR-10 report's table I; its parameter counts are for 10 classes.
    "resnest14_0s1x64d": Variant(_report(14, 0, 1, 64), 10084168, 1.71),
    "resnest14_1s1x64d": Variant(_report(14, 1, 1, 64), 10262024, 1.71),
    "resnest14_1s1x40d": Variant(_report(14, 1, 1, 40), 7464296, 1.23),
    "resnest14_1s2x64d": Variant(_report(14, 1, 2, 64), 15657832, 2.70),
    "resnest14_2s1x64d": Variant(_report(14, 2, 1, 64), 10611688, 1.71),
    "resnet14_0s1x64d": Variant(_resnet(14), 10064936, 1.47),
    "resnet14_1s1x64d": Variant(_resnet(14, transform=_ONE_SPLIT), 10242792, 1.47),

    # Twice the resolution throughout, for images of 32 pixels (docs/cifar10.md).
    "cifar_resnest14": Variant(replace(_report(14, 2, 1, 64), stem_stride=1), 10611688, 6.83),

    # What tables 2 to 4 compare with; the form of detection's backbones strides in the 1x1.
    "resnet18": Variant(ResNetArchitecture((2, 2, 2, 2), basic=True), 11689512, 1.81),
    "resnet50": Variant(_resnet(50), 25557032, 4.09),
    "resnet101": Variant(_resnet(101), 44549160, 7.80),
    "resnet50_msra": Variant(_resnet(50, early_stride=True), 25557032, 3.86),
    "resnet101_msra": Variant(_resnet(101, early_stride=True), 44549160, 7.57),
    # Deep stem, strided shortcut: what GluonCV's segmentation calls resnet50 (its resnet50_v1s).
    "resnet50_v1s": Variant(_resnet(50, stem_width=64), 25680808, 5.44),
    "resnet101_v1s": Variant(_resnet(101, stem_width=64), 44672936, 9.16),
    "resnet152_v1s": Variant(_resnet(152, stem_width=64), 60316584, 12.87),
    "resnet50d": Variant(replace(_fast(50, 0, 1, 64), dropblock=0.0), 25576264, 4.33),
    "resnet101d": Variant(replace(_fast(101, 0, 1, 64), dropblock=0.0), 44568392, 8.04),
    "resnext50_32x4d": Variant(_resnet(50, **_RESNEXT), 25028904, 4.23),
    "resnext101_32x4d": Variant(_resnet(101, **_RESNEXT), 44177704, 7.97),
    "senet50": Variant(_resnet(50, gate=SqueezeExcitation, **_RESNEXT), 27559896, 4.23),
    "senet101": Variant(_resnet(101, gate=SqueezeExcitation, **_RESNEXT), 48955416, 7.97),
    "sknet50": Variant(_resnet(50, transform=SelectiveKernel, **_RESNEXT), 27479784, 4.46),
    "sknet101": Variant(_resnet(101, transform=SelectiveKernel, **_RESNEXT), 48736040, 8.45),
    "efficientnet_b0": Variant(EfficientNetArchitecture(1.0, 1.0, 224, 0.2), 5288548, 0.386),
    "efficientnet_b1": Variant(EfficientNetArchitecture(1.0, 1.1, 240, 0.2), 7794184, 0.570),
    "efficientnet_b2": Variant(EfficientNetArchitecture(1.1, 1.2, 260, 0.3), 9109994, 0.659),
    "efficientnet_b3": Variant(EfficientNetArchitecture(1.2, 1.4, 300, 0.3), 12233232, 0.963),
    "efficientnet_b4": Variant(EfficientNetArchitecture(1.4, 1.8, 380, 0.4), 19341616, 1.50),
    "efficientnet_b5": Variant(EfficientNetArchitecture(1.6, 2.2, 456, 0.4), 30389784, 2.36),
    "efficientnet_b6": Variant(EfficientNetArchitecture(1.8, 2.6, 528, 0.5), 43040704, 3.36),
    "efficientnet_b7": Variant(EfficientNetArchitecture(2.0, 3.1, 600, 0.5), 66347960, 5.17),
}

# For tests and dry runs: every part of the network in a hundredth of its size.
HIDDEN = {"resnest_tiny": Variant(Architecture((1, 1, 1, 1), stem_width=8, widths=(8, 16, 32, 64),
                                               bottleneck_width=64))}

# Name -> SHA-1 of the files GluonCV published for it, newest first. Others may be spelled.
SEGMENTERS = {
    "deeplab_resnest50_ade": ("a8312db6e30a464151580f2bda83479786455724",),
    "deeplab_resnest101_ade": ("6d05c630fb7acb38615f7f4d360fb90f47b25042",),
    "deeplab_resnest200_ade": ("9134a6f7d1399b549d5803d8faed3dfc74efc0d8",),
    "deeplab_resnest269_ade": ("d45b33dedf4cca13b8147213c5360e30f93685bd",),
    "deeplab_resnet50_ade": ("c7789b237adc7253405bee57c84d53b15db45942",),
    "deeplab_resnet101_ade": ("bf1584dfcec12063eff3075ee643e181c0f6d443",),
    "deeplab_resnet50_citys": ("cf6a7bb3d55360933de647a8505f7936003902a4",),
    "deeplab_resnet101_citys": ("eb8477a91efc244c85b364c0736664078aaf0e65",),
    **{f"deeplab_resnest{depth}_{dataset}": () for dataset in ("citys", "pcontext")
       for depth in (50, 101, 200, 269)},
    "deeplab_resnet50_pcontext": (),
    "deeplab_resnet101_pcontext": (),
    "deeplabplus_resnest200_citys": (),
    "fcn_resnest50_ade": (),
    "fcn_resnest50_pcontext": (),
    "psp_resnest50_ade": (),
    "psp_resnest50_citys": (),
}

_GRAMMAR = re.compile(r"resnest(\d+)(_fast)?_(\d)s(\d+)x(\d+)d")


def variant(name):
    """Returns the `Variant` of a name: a row of the table or resnest{depth}[_fast]_{r}s{g}x{w}d.

    Case does not matter.

    Raises:
      UserError: if it is neither; names the nearest ones.
    """
    name, known = name.lower(), {**VARIANTS, **HIDDEN}
    if name in known:
        return known[name]
    spelled = _GRAMMAR.fullmatch(name)
    if not spelled:
        raise UserError(f"unknown model {name!r}, expected a name of list_models() or "
                        f"resnest{{depth}}[_fast]_{{r}}s{{g}}x{{w}}d{nearest(name, VARIANTS)}")
    depth, radix, cardinality, width = map(int, spelled.group(1, 3, 4, 5))
    if depth not in DEPTHS or cardinality < 1 or width < 1:
        raise UserError(f"{name!r} is spelled like a ResNeSt, but its depth must be one of "
                        f"{', '.join(map(str, DEPTHS))}, its cardinality and width at least 1")
    if spelled.group(2):
        return Variant(_fast(depth, radix, cardinality, width))
    return Variant(_plain(depth, radix=radix, cardinality=cardinality, bottleneck_width=width))


def is_same_network(name, other):
    """Returns whether two names that `variant` knows build the same network, dropout aside.

    Files do not tell: resnet50 and resnet50_msra have parameters of equal names and shapes, and
    stride in other convolutions.
    """
    return _without_dropout(variant(name).arch) == _without_dropout(variant(other).arch)


def is_named(name):
    """Returns whether `variant` knows the name, or its grammar spells it."""
    name = name.lower()
    return name in VARIANTS or name in HIDDEN or bool(_GRAMMAR.fullmatch(name))


def _without_dropout(arch):
    return replace(arch, **{field: 0.0 for field in ("dropblock", "final_drop", "drop_path")
                            if hasattr(arch, field)})
