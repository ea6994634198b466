"""Names of the same ResNeSt tensors in every neighbouring system, as ordered rules.

A rule rewrites one of our structural names (`layer1.0.conv2.bn.gamma`) towards the other system's;
all rules of a layout are applied in order. Tensors need no transposition: convolutions are OIHW and
dense layers (out, in) in all of these systems. Because the rules start from the names a network
asks for, what a file lacks and what it has too much fall out as two set differences.
"""
import re
from typing import Callable, Dict, Iterable, NamedTuple, Optional, Tuple, Union

from gluon_resnest.errors import UserError

Rules = Tuple[Tuple[str, Union[str, Callable]], ...]
Dropped = Tuple[Tuple[str, str], ...]       # (pattern of names, why they have no use here)

# Wrappers put these words before every name; exported graphs, the name of the network.
_WRAPPING = r"((module|model|features|backbone|bottom_up|pretrained)\.)*"
_GRAPH_NAME = r"(features\.)?([a-z0-9]+_)?"


class Layout(NamedTuple):
    """How one family of systems names the tensors.

    Attributes:
      name: what users call it.
      systems: who writes it.
      rules: (pattern, replacement) pairs for `re.sub`, from our name to theirs.
      marker: one of our names; a file that has its translation has this layout.
      classifier: whether its files have the classifier `fc`.
      dropped: names without use here; anything else left over is an error.
      prefix: what files are written with before the names of the backbone.
      wrapping: pattern of the prefixes that files are read with.
    """

    name: str
    systems: str
    rules: Rules
    marker: str = "conv1.1.gamma"
    classifier: bool = True
    dropped: Dropped = ()
    prefix: str = ""
    wrapping: str = _WRAPPING

    def theirs(self, ours: str) -> str:
        """Translates one of our structural names."""
        return translate(self.rules, ours)


def translate(rules: Rules, name: str) -> str:
    """Applies all rules to a name, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def reason_to_drop(dropped: Dropped, theirs: str) -> Optional[str]:
    """Returns why a name of a file has no use here, or None if that is not known."""
    name = re.sub(r"^(module|model)\.", "", theirs)
    return next((reason for pattern, reason in dropped if re.search(pattern, name)), None)


BATCH_NORM: Rules = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))
_TORCH: Rules = ((r"\.conv2\.bn\.", ".conv2.bn0."),) + BATCH_NORM

_MMPRETRAIN: Rules = (
    (r"^conv1\.0\.", "stem.0.conv."), (r"^conv1\.1\.", "stem.0.bn."),
    (r"^conv1\.3\.", "stem.1.conv."), (r"^conv1\.4\.", "stem.1.bn."),
    (r"^conv1\.6\.", "stem.2.conv."), (r"^bn1\.", "stem.2.bn."),
    # Stage 1 keeps its size, so its shortcut has no pooling at index 0 there.
    (r"^layer1\.0\.downsample\.1\.", "layer1.0.downsample.0."),
    (r"^layer1\.0\.downsample\.2\.", "layer1.0.downsample.1."),
    (r"^fc\.", "head.fc."),
) + _TORCH

_MMDETECTION: Rules = ((r"^conv1\.", "stem."), (r"^bn1\.", "stem.7.")) + _TORCH

_DETECTRON2: Rules = (
    (r"^conv1\.0\.", "stem.conv1_1."), (r"^conv1\.1\.", "stem.conv1_1.norm."),
    (r"^conv1\.3\.", "stem.conv1_2."), (r"^conv1\.4\.", "stem.conv1_2.norm."),
    (r"^conv1\.6\.", "stem.conv1_3."), (r"^bn1\.", "stem.conv1_3.norm."),
    (r"^(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.norm."),
    (r"\.downsample\.1\.", ".shortcut."), (r"\.downsample\.2\.", ".shortcut.norm."),
    (r"\.conv2\.conv\.offset\.", ".conv2_offset."),
    (r"^layer1\.", "res2."), (r"^layer2\.", "res3."),
    (r"^layer3\.", "res4."), (r"^layer4\.", "res5."),
) + _TORCH

# Exported graphs number the layers of a stage through: five convolutions, four norms a bottleneck.
_NUMBERED = {"conv": ("conv1", "conv2.conv", "conv2.fc1", "conv2.fc2", "conv3"),
             "batchnorm": ("bn1", "conv2.bn", "conv2.bn1", "bn3")}


def _number(match):
    stage, block, layer, leaf = match.groups()
    for kind, layers in _NUMBERED.items():
        if layer in layers:
            number = int(block) * len(layers) + layers.index(layer)
            return f"layers{stage}_{kind}{number}_{leaf}"
    return match.group()


_SYMBOL: Rules = (
    (r"^conv1\.0\.", "conv0_"), (r"^conv1\.1\.", "batchnorm0_"),
    (r"^conv1\.3\.", "conv1_"), (r"^conv1\.4\.", "batchnorm1_"),
    (r"^conv1\.6\.", "conv2_"), (r"^bn1\.", "batchnorm2_"),
    (r"^layer(\d)\.0\.downsample\.1\.", r"down\1_conv0_"),
    (r"^layer(\d)\.0\.downsample\.2\.", r"down\1_batchnorm0_"),
    (r"^layer(\d)\.(\d+)\.(.+)\.(\w+)$", _number),
    (r"^fc\.", "dense0_"),
)

COUNTERS: Dropped = ((r"num_batches_tracked$", "counters of PyTorch's batch norms"),)
PIXELS: Dropped = ((r"^pixel_(mean|std)$", "said by the conventions"),
                   (r"^data_preprocessor\.", "said by the conventions"))
_HEADS = "heads that are not converted"

# The order matters: the first layout whose marker is found is taken.
LAYOUTS = (
    Layout("detectron2", "detectron2-ResNeSt", _DETECTRON2, classifier=False,
           dropped=COUNTERS + PIXELS + (
               (r"^(proposal_generator|roi_heads|sem_seg_head)\.", _HEADS),
               (r"^backbone\.fpn_(lateral|output)\d\.", _HEADS))),
    Layout("mmpretrain", "mmpretrain, mmpose", _MMPRETRAIN, prefix="backbone.",
           dropped=COUNTERS + PIXELS + (
               (r"^(neck|keypoint_head|head\.(deconv_layers|final_layer))\.", _HEADS),)),
    Layout("mmdet", "mmdetection, mmsegmentation", _MMDETECTION, classifier=False,
           dropped=COUNTERS + PIXELS + (
               (r"^(neck|(rpn|roi|bbox|mask)_head)\.", _HEADS),
               (r"^(decode|auxiliary)_head\.", "heads that resize with other corners than ours, "
                "behind stages that dilate without pooling"))),
    Layout("torch", "the authors' PyTorch code, PyTorch-Encoding, timm", _TORCH,
           dropped=COUNTERS + ((r"^(head\.(aspp|block)|auxlayer)\.", _HEADS),
                               (r"^(mean|std)$", "statistics of pixels"))),
    Layout("gluon", "GluonCV, the authors' Gluon code, this package", ()),
    Layout("gluon-symbol-sync", "GluonCV's detectors",
           _SYMBOL + ((r"(^|_)batchnorm", r"\1syncbatchnorm"),), wrapping=_GRAPH_NAME),
    Layout("gluon-symbol", "HybridBlock.export", _SYMBOL,
           marker="layer1.0.conv2.fc1.bias", wrapping=_GRAPH_NAME),
)
BY_NAME: Dict[str, Layout] = {layout.name: layout for layout in LAYOUTS}


class Naming(NamedTuple):
    """A layout together with the prefix a certain file puts before its names."""

    layout: Layout
    prefix: str

    def theirs(self, ours: str) -> str:
        """Translates one of our structural names to the full name in the file."""
        name = self.layout.theirs(ours)
        if name.startswith("head.") and self.prefix.endswith("backbone."):
            return self.prefix[:-len("backbone.")] + name      # a sibling of the backbone
        return self.prefix + name

    def drops(self, theirs: str) -> Optional[str]:
        """Returns why a name of the file has no use here, or None if that is not known."""
        return reason_to_drop(self.layout.dropped, theirs)


def detect(names: Iterable[str]) -> Naming:
    """Recognises the layout of a file from its names.

    Raises:
      UserError: if no layout, or no single prefix, fits.
    """
    names = sorted(names)
    for layout in LAYOUTS:
        marker = layout.theirs(layout.marker)
        prefixes = [name[:-len(marker)] for name in names
                    if name.endswith(marker) and re.fullmatch(layout.wrapping, name[:-len(marker)])]
        if len(prefixes) > 1:
            raise UserError(f"the file holds {len(prefixes)} {layout.name} networks, under "
                            f"{', '.join(map(repr, prefixes))}; save one of them alone")
        if prefixes:
            return Naming(layout, prefixes[0])
    shown = ", ".join(names[:10])
    raise UserError(f"the {len(names)} names fit none of the layouts "
                    f"{', '.join(BY_NAME)}; expected a ResNeSt, found {shown}")


def written(layout_name: Optional[str]) -> Naming:
    """Returns the naming that files of a layout are written with."""
    layout = BY_NAME[layout_name]
    return Naming(layout, layout.prefix)
