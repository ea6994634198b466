"""From the tensors of any weight file to the parameters of one of our networks, and back.

The mapping is total: every tensor of the file is used or dropped by name, every parameter of the
network is filled with a tensor of its shape, or nothing is converted.
"""
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop import head_names, torch_names, whole_network
from gluon_resnest.interop.weights import declaration, undeclared
from gluon_resnest.models.detection import build as detection
from gluon_resnest.models.detection.conventions import NAMES as CONVENTIONS
from gluon_resnest.models.detection.conventions import Conventions
from gluon_resnest.models.resnest import Architecture

__all__ = ["CONVENTIONS", "Conversion", "from_gluon", "recognise", "to_gluon"]

_SHOWN = 10


class Conversion(NamedTuple):
    """The parameters under our structural names, and how they came about.

    Attributes:
      tensors: structural name to array, in the order of the network.
      naming: recognised layout and prefix of the file.
      model: name of the network.
      call: Python that builds it.
      lookalikes: other networks, or backbones, with tensors of the same names and shapes.
      dropped: name in the file to the reason why it has no use here.
      conventions: of a detector, their name.
    """

    tensors: Dict[str, np.ndarray]
    naming: torch_names.Naming
    model: str
    call: str
    lookalikes: Tuple[str, ...]
    dropped: Dict[str, str]
    conventions: Optional[str] = None


def to_gluon(tensors: Dict[str, np.ndarray], *, model: Optional[str] = None, file_name: str = "",
             backbone: bool = False, conventions: Union[str, Conventions, None] = None
             ) -> Conversion:
    """Converts the tensors of a file of any layout.

    Detectors and pose networks are converted whole where the layout has names for them.

    Args:
      tensors: name to array, as `checkpoints.read_weights` returns them.
      model: name of the network; None recognises it from the shapes.
      file_name: settles which of several networks of equal shapes is meant, if it names one.
      backbone: leave out everything but the backbone; implied by layouts that have no classifier.
      conventions: of a detector, `Conventions` or their name; None takes those of the system, or
        those that a file of ours declares.

    Raises:
      UserError: unknown layout or network, or the two sides do not match; lists both.
    """
    model = model and model.lower()
    tensors, declared = undeclared({
        name[4:] if name.startswith(("arg:", "aux:")) else name: value
        for name, value in tensors.items()})
    naming = torch_names.detect(tensors)
    heads = None if backbone else head_names.detect(tensors, naming)
    inner = _inner(model)
    candidates = [inner] if inner else recognise(tensors, naming)
    name = _named(candidates, file_name)
    lookalikes = tuple(other for other in candidates if other != name)
    deformable = tuple(stage + 1 for stage in (1, 2, 3, 4) if naming.theirs(
        f"layer{stage}.0.conv2.conv.offset.weight") in tensors)
    if heads:
        whole = whole_network.recognise(tensors, heads, name, deformable, conventions or declared)
        if model not in (None, inner, whole.model):
            raise UserError(f"the file holds a {whole.model}, not a {model}; leave out --model")
        sources = {ours: heads.theirs(ours) for ours in whole.shapes}
        dropped = _checked(whole.model, heads.backbone, tensors, sources, whole.shapes, heads.drops)
        return Conversion({ours: heads.ours(ours, tensors[theirs])
                           for ours, theirs in sources.items()},
                          naming, whole.model, whole.call, lookalikes, dropped,
                          whole.conventions.name if whole.conventions else None)
    call, shapes = _classifier(name, tensors, naming, deformable)
    headless = backbone or not naming.layout.classifier
    sources = {ours: naming.theirs(ours) for ours in shapes}
    classifier = {sources.pop(ours) for ours in list(sources) if ours.startswith("fc.")} if (
        headless) else ()

    def drops(theirs):
        if theirs in classifier:
            return "the classifier"
        outside = backbone and not theirs.startswith(naming.prefix)
        return naming.drops(theirs) or ("outside of the backbone" if outside else None)

    dropped = _checked(name, naming, tensors, sources, shapes, drops)
    return Conversion({ours: tensors[theirs] for ours, theirs in sources.items()}, naming, name,
                      call, lookalikes, dropped)


def from_gluon(tensors: Dict[str, np.ndarray], layout: str, conventions: Optional[str] = None
               ) -> Dict[str, np.ndarray]:
    """Renames parameters from our structural names to those of a layout; a layout without a
    classifier loses it.

    Args:
      tensors: as in `Conversion`.
      layout: its name, or "gluoncv", which names detectors in another way than other networks.
      conventions: of a detector, their name; written into files of our own layout.

    Raises:
      UserError: if the layout has no names for such a network, or other conventions.
    """
    whole = head_names.written(tensors, layout)
    if not whole:
        naming = torch_names.written("gluon" if layout == "gluoncv" else layout)
        return {naming.theirs(name): value for name, value in tensors.items()
                if naming.layout.classifier or not name.startswith("fc.")}
    if whole.heads.conventions not in (None, conventions):
        raise UserError(f"the detector has the conventions {conventions!r}, the layout {layout} "
                        f"means {whole.heads.conventions!r}: the same numbers would detect other "
                        "boxes; convert the backbone alone with --backbone")
    nameless = [name for name in tensors if whole.heads.rules and whole.theirs(name).startswith(
        ("features.fpn.", "stages.", "mask_heads."))]
    if nameless:
        raise UserError(f"{whole.heads.system} has no such networks, the layout {layout} has no "
                        f"name for {', '.join(nameless[:_SHOWN])}; convert the backbone alone with "
                        "--backbone")
    return {**{whole.theirs(name): whole.value(name, value) for name, value in tensors.items()},
            **(declaration(conventions) if layout == "gluon" and conventions else {})}


def recognise(tensors: Dict[str, np.ndarray], naming: torch_names.Naming) -> List[str]:
    """Names the networks whose tensors have these shapes, those of the table in its order.

    Depths, widths, radix, cardinality and stem are in the shapes; where the pooling stands is not.

    Raises:
      UserError: if a tensor that tells them is absent or no ResNeSt has such shapes.
    """
    def shape(ours):
        theirs = naming.theirs(ours)
        if theirs not in tensors or tensors[theirs].ndim != 4 or not tensors[theirs].size:
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
    numbers = [depth for depth, blocks in zoo.table.DEPTHS.items() if blocks == depths]
    if not numbers or not cardinality:
        return []
    names = [f"resnest{numbers[0]}{fast}_{radix}s{cardinality}x{width // cardinality}d"
             for fast in ("_fast", "")]
    return [name for name in names if _traits(zoo.variant(name).arch) == found]


def _named(candidates: Sequence[str], file_name: str):
    """Chooses the longest candidate the file name contains in any case, else the first."""
    named = sorted((name for name in candidates if name in file_name.lower()), key=len)
    return named[-1] if named else candidates[0]


def _inner(model):
    """Returns the name of the backbone inside a network of a name, or the name; None for None."""
    if model is None:
        return None
    detector = detection.parse(model)
    if detector:
        return detector.backbone
    return model[len(zoo.POSE):] if model.startswith(zoo.POSE) else model


def _classifier(model, tensors, naming, deformable):
    """Builds the network with the file's classes and channels.

    Returns:
      Python that builds it, and its parameters' shapes.
    """
    zoo.variant(model)                                  # only our own networks: refuses other names
    classifier = tensors.get(naming.theirs("fc.weight"))
    stem = tensors.get(naming.theirs("conv1.0.weight"))
    options = {}
    if classifier is not None and classifier.ndim == 2 and len(classifier) != 1000:
        options["classes"] = len(classifier)
    if stem is not None and stem.ndim == 4 and stem.shape[1] != 3:
        options["in_channels"] = stem.shape[1]
    if deformable:
        options["deform_stages"] = deformable
    net = zoo.get_model(model, **options)
    said = "".join(f", {key}={value!r}" for key, value in options.items())
    return f"get_model({model!r}{said})", {
        name: parameter.shape for name, parameter in net._collect_params_with_prefix().items()}


def _checked(model, naming, tensors, sources, shapes, drops):
    """Returns {name: reason} of what is not used.

    Args:
      model: name of the network.
      naming: of the file.
      tensors: of the file.
      sources: our names to theirs, of what is wanted.
      shapes: our names to the shapes that the network has.
      drops: tells why a name has no use here, or None.

    Raises:
      UserError: if something is missing, unexpected or mis-shaped.
    """
    missing = [theirs for theirs in sources.values() if theirs not in tensors]
    unused = sorted(set(tensors).difference(sources.values()))
    dropped = {theirs: drops(theirs) for theirs in unused}
    unexpected = [theirs for theirs, reason in dropped.items() if reason is None]
    misshaped = [f"{theirs} (expected {shapes[ours]}, found {tensors[theirs].shape})"
                 for ours, theirs in sources.items()
                 if theirs in tensors and tensors[theirs].shape != shapes[ours]]
    if missing or unexpected or misshaped:
        raise UserError(_mismatch(model, naming, missing, unexpected, misshaped))
    return dropped


def _mismatch(model, naming, missing, unexpected, misshaped):
    parts = [f"{len(names)} {label}: {', '.join(names[:_SHOWN])}"
             + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
             for label, names in (("missing", missing), ("unexpected", unexpected),
                                  ("mis-shaped", misshaped)) if names]
    only_head = not unexpected and not misshaped and all(
        name in (naming.theirs("fc.weight"), naming.theirs("fc.bias")) for name in missing)
    advice = "name the right network with --model"
    if only_head:
        advice = "the file has no classifier, convert the rest with --backbone"
    elif _inner(model) != model:
        advice += ", or convert the backbone alone with --backbone"
    return (f"the file (layout {naming.layout.name}) does not fit {model}; {'; '.join(parts)}; "
            f"{advice}")
