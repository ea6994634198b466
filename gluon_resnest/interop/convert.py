"""From the tensors of any weight file to the parameters of one of our networks, and back.

The mapping is total: every tensor of the file is used or dropped by name, every parameter of the
network is filled with a tensor of its shape, or nothing is converted.
"""
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop import torch_names
from gluon_resnest.models.resnest import Architecture

_SHOWN = 10


class Conversion(NamedTuple):
    """The parameters under our structural names, and how they came about.

    Attributes:
      tensors: structural name to array, in the order of the network.
      naming: recognised layout and prefix of the file.
      model: name of the network.
      lookalikes: other networks with tensors of the same names and shapes.
      dropped: names in the file that have no use here.
    """

    tensors: Dict[str, np.ndarray]
    naming: torch_names.Naming
    model: str
    lookalikes: Tuple[str, ...]
    dropped: Tuple[str, ...]


def to_gluon(tensors: Dict[str, np.ndarray], *, model: Optional[str] = None, file_name: str = "",
             backbone: bool = False) -> Conversion:
    """Converts the tensors of a file of any layout.

    Args:
      tensors: name to array, as `checkpoints.read_weights` returns them.
      model: name of the network; None recognises it from the shapes.
      file_name: settles which of several networks of equal shapes is meant, if it names one.
      backbone: leave the classifier out; implied by layouts that have none.

    Raises:
      UserError: unknown layout or network, or the two sides do not match; lists both.
    """
    tensors = {name[4:] if name.startswith(("arg:", "aux:")) else name: value
               for name, value in tensors.items()}
    naming = torch_names.detect(tensors)
    candidates = [model] if model else recognise(tensors, naming)
    name = _named(candidates, file_name)
    shapes = _parameter_shapes(name, tensors, naming)
    headless = backbone or not naming.layout.classifier
    sources = {ours: naming.theirs(ours) for ours in shapes}
    wanted = {ours: theirs for ours, theirs in sources.items()
              if not (headless and ours.startswith("fc."))}
    missing = [theirs for theirs in wanted.values() if theirs not in tensors]
    unused = sorted(set(tensors).difference(wanted.values()))
    skipped = set(sources.values()) if headless else set()
    unexpected = [theirs for theirs in unused if theirs not in skipped and not naming.drops(theirs)]
    misshaped = [f"{theirs} (expected {shapes[ours]}, found {tensors[theirs].shape})"
                 for ours, theirs in wanted.items()
                 if theirs in tensors and tensors[theirs].shape != shapes[ours]]
    if missing or unexpected or misshaped:
        raise UserError(_mismatch(name, naming, missing, unexpected, misshaped))
    return Conversion({ours: tensors[theirs] for ours, theirs in wanted.items()}, naming, name,
                      tuple(other for other in candidates if other != name), tuple(unused))


def from_gluon(tensors: Dict[str, np.ndarray], layout: str) -> Dict[str, np.ndarray]:
    """Renames parameters from our structural names to those of a layout; a layout without a
    classifier loses it."""
    naming = torch_names.written(layout)
    return {naming.theirs(name): value for name, value in tensors.items()
            if naming.layout.classifier or not name.startswith("fc.")}


def recognise(tensors: Dict[str, np.ndarray], naming: torch_names.Naming) -> List[str]:
    """Names the networks whose tensors have these shapes, those of the table in its order.

    Depths, widths, radix, cardinality and stem are in the shapes; where the pooling stands is not.

    Raises:
      UserError: if a tensor that tells them is absent or no ResNeSt has such shapes.
    """
    def shape(ours):
        theirs = naming.theirs(ours)
        if theirs not in tensors or tensors[theirs].ndim != 4:
            raise UserError(f"{theirs} is absent or no convolution, so the file is no complete "
                            f"ResNeSt of the layout {naming.layout.name}; give --model to see what "
                            "is missing")
        return tensors[theirs].shape

    depths = []
    for stage in (1, 2, 3, 4):
        blocks = 0
        while naming.theirs(f"layer{stage}.{blocks}.conv1.weight") in tensors:
            blocks += 1
        depths.append(blocks)
    split = naming.theirs("layer1.0.conv2.conv.weight") in tensors
    width = shape("layer1.0.conv1.weight")[0]
    outputs, group, _, _ = shape("layer1.0.conv2.conv.weight" if split else "layer1.0.conv2.weight")
    widths = tuple(shape(f"layer{stage}.0.conv3.weight")[0] // 4 for stage in (1, 2, 3, 4))
    radix = outputs // width if split else 0
    # The convolution has cardinality * radix groups (one per split), or cardinality without splits.
    cardinality = width // max(group * max(radix, 1), 1)
    found = (tuple(depths), shape("conv1.0.weight")[0], radix, cardinality, widths, width)
    names = [name for name, variant in zoo.VARIANTS.items()
             if isinstance(variant.arch, Architecture) and _traits(variant.arch) == found]
    if not names:
        names = _spelled(found)
    if not names:
        raise UserError("no network of the family has {} blocks, stem {}, radix {}, cardinality {} "
                        "and widths {}; give --model".format(*found[:5]))
    return names


def _traits(arch):
    width = int(arch.widths[0] * arch.bottleneck_width / 64) * arch.cardinality
    return arch.depths, arch.stem_width, arch.radix, arch.cardinality, arch.widths, width


def _spelled(found):
    """Tries the grammar for a network that the table does not hold."""
    depths, _, radix, cardinality, _, width = found
    numbers = [depth for depth, blocks in zoo.DEPTHS.items() if blocks == depths]
    if not numbers or not cardinality:
        return []
    names = [f"resnest{numbers[0]}{fast}_{radix}s{cardinality}x{width // cardinality}d"
             for fast in ("_fast", "")]
    return [name for name in names if _traits(zoo.variant(name).arch) == found]


def _named(candidates: Sequence[str], file_name: str):
    """Chooses the longest candidate the file name contains, else the first."""
    named = sorted((name for name in candidates if name in file_name), key=len)
    return named[-1] if named else candidates[0]


def _parameter_shapes(model, tensors, naming):
    """Builds the network with the file's classes and channels; returns its parameters' shapes."""
    zoo.variant(model)                                  # only our own networks: refuses other names
    classifier = tensors.get(naming.theirs("fc.weight"))
    stem = tensors.get(naming.theirs("conv1.0.weight"))
    net = zoo.get_model(
        model, classes=len(classifier) if classifier is not None and classifier.ndim == 2 else 1000,
        in_channels=stem.shape[1] if stem is not None and stem.ndim == 4 else 3)
    return {name: parameter.shape for name, parameter in net._collect_params_with_prefix().items()}


def _mismatch(model, naming, missing, unexpected, misshaped):
    parts = [f"{len(names)} {label}: {', '.join(names[:_SHOWN])}"
             + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
             for label, names in (("missing", missing), ("unexpected", unexpected),
                                  ("mis-shaped", misshaped)) if names]
    only_head = not unexpected and not misshaped and all(
        name in (naming.theirs("fc.weight"), naming.theirs("fc.bias")) for name in missing)
    advice = ("the file has no classifier, convert the rest with --backbone" if only_head
              else "name the right network with --model")
    return (f"the file (layout {naming.layout.name}) does not fit {model}; {'; '.join(parts)}; "
            f"{advice}")
