"""An exported classifier on disk: graph, parameters, and the card that says how to feed it.

    PREFIX-symbol.json   the graph, for SymbolBlock.imports, Module, or any other MXNet binding
    PREFIX-0000.params   its parameters as `arg:` and `aux:` names
    PREFIX.json          the card
    PREFIX.onnx          instead of the first two, where it was exported for ONNX engines

The files may come from anybody: all three are checked before MXNet sees them. Not seen is a graph
that computes regions of images that do not exist, for ROIAlign: run foreign detectors apart.
"""
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

import mxnet as mx
import numpy as np

from gluon_resnest.data import color
from gluon_resnest.data.transforms import PROTOCOLS
from gluon_resnest.errors import UserError, nearest
from gluon_resnest.interop.card_values import triple, whole
from gluon_resnest.interop.graph import read_graph
from gluon_resnest.interop.weights import read_params
from gluon_resnest.provenance import sha256

FORMAT = 1
INPUT = "data"
_MAX_CARD_BYTES = 16 << 20
_MAX_ACTIVATION_BYTES = 64 << 30
_AGAIN = "export the network again, or delete the file and give crop and protocol yourself"


@dataclass(frozen=True)
class Card:
    """How an exported classifier wants its images and what its outputs mean.

    The input is float32 RGB (N, 3, H, W), `(value / 255 - mean) / std`, any N, H and W; the output
    is logits (N, classes).

    Attributes:
      model: name of the network.
      classes: length of the logits.
      crop_px: side of the evaluation crop in pixels.
      protocol: name of the evaluation protocol (data.transforms.PROTOCOLS).
      interpolation: of that protocol at that crop, for readers without this package; the export
        fills it in.
      mean, std: of the normalisation, RGB, of values in 0..1.
      class_names: one name a class, or None.
      commit: of the source that exported; see `provenance.commit`.
      sha256: {"symbol": hex, "params": hex} of the two files, or None for a net that has none.
    """

    # As in `cards.TaskCard`.
    task = "classification"
    word = "classifier"
    adjustable = ("crop_px", "protocol", "class_names")

    model: str
    classes: int
    crop_px: int
    protocol: str = "gluon"
    mean: Tuple[float, float, float] = color.MEAN
    std: Tuple[float, float, float] = color.STD
    class_names: Optional[Tuple[str, ...]] = None
    interpolation: str = ""
    commit: str = ""
    sha256: Optional[dict] = None

    @property
    def input_shape(self):
        """Shape of one prepared image."""
        return (1, 3, self.crop_px, self.crop_px)

    @property
    def output_shape(self):
        """Shape of its output."""
        return (1, self.classes)

    @property
    def output_shapes(self):
        """That of each output; there is one."""
        return (self.output_shape,)

    @property
    def summary(self):
        """What to say of the network."""
        return f"{self.classes} classes, crop {self.crop_px} px, protocol {self.protocol}"

    def to_json(self):
        """Returns the text of the card's file."""
        return json.dumps({"format": FORMAT, "layout": "NCHW", "channels": "RGB",
                           "dtype": "float32", **dataclasses.asdict(self)}, indent=1) + "\n"

    def check(self, source):
        """Raises a UserError that begins with `source` unless every field can be true."""
        names, sums = self.class_names, self.sha256
        faults = {
            "model": isinstance(self.model, str),
            "classes": whole(self.classes, 1, 1 << 20),
            "crop_px": whole(self.crop_px, 8, 4096),
            "protocol": self.protocol in tuple(PROTOCOLS),
            "interpolation": isinstance(self.interpolation, str),
            "mean": triple(self.mean, -10, 10),
            "std": triple(self.std, 1e-6, 1e3),
            "class_names": names is None or all(isinstance(name, str) for name in names),
            "commit": isinstance(self.commit, str),
            "sha256": sums is None or (isinstance(sums, dict)
                                       and all(isinstance(text, str) for text in sums.values())
                                       and set(sums) == {"symbol", "params"}),
        }
        wrong = [name for name, right in faults.items() if not right]
        if wrong:
            raise UserError(f"{source} says {wrong[0]}={getattr(self, wrong[0])!r:.80}, which "
                            f"cannot be{self._hint(wrong[0])}")
        if names is not None and len(names) != self.classes:
            raise UserError(f"{source} has {len(names)} class names for {self.classes} classes; "
                            "give one name a class, in the order of the classes")

    def _hint(self, field):
        if field != "protocol":
            return "; correct it"
        return f"{nearest(self.protocol, PROTOCOLS)}; known are {', '.join(PROTOCOLS)}"


def paths(prefix):
    """Returns the paths of graph, parameters and card of an exported pair."""
    return tuple(Path(f"{prefix}{ending}") for ending in ("-symbol.json", "-0000.params", ".json"))


def onnx_path(prefix):
    """Returns the path of a network exported for ONNX engines."""
    return Path(f"{prefix}.onnx")


def is_exported(prefix):
    """Returns whether there are files of an exported network with this prefix."""
    return paths(prefix)[0].exists() or onnx_path(prefix).exists()


def is_plain(prefix):
    """Returns whether an exported network runs as it is, without an engine's preparation.

    Its card says so; an ONNX file beside it may be left of another network.
    """
    values = read_values(prefix)
    return not (isinstance(values, dict) and "deploy" in values)


def read_card(prefix):
    """Returns the card of an exported pair, or None where there is no such file.

    Raises:
      UserError: if it is damaged, of another task or of another format.
    """
    values, file = read_values(prefix), paths(prefix)[2]
    if values is None:
        return None
    if task_of(prefix) != Card.task:
        raise UserError(f"{str(file)!r} is no classifier's card, it says task="
                        f"{task_of(prefix)!r:.80}; give as card what interop.pose, segmentation, "
                        "detection or panoptic .read_card makes of it")
    again = _AGAIN
    fields = {field.name for field in dataclasses.fields(Card)}
    if not isinstance(values, dict) or values.get("format") != FORMAT or fields - set(values):
        raise UserError(f"{str(file)!r} is not a card of format {FORMAT}; {again}")
    lists = {name: tuple(values[name]) for name in ("mean", "std", "class_names")
             if isinstance(values[name], list)}
    if not {"mean", "std"} <= set(lists) or not ("class_names" in lists
                                                 or values["class_names"] is None):
        raise UserError(f"{str(file)!r} must hold mean, std and class_names as lists; {again}")
    card = Card(**{**{name: values[name] for name in fields}, **lists})
    card.check(repr(str(file)))
    return card


def read_values(prefix):
    """Returns what the card's file of an exported pair holds, unchecked; None without such a file.

    Raises:
      UserError: if it is no json file.
    """
    file = paths(prefix)[2]
    if not file.exists():
        return None
    try:
        if file.stat().st_size > _MAX_CARD_BYTES:
            raise ValueError("it is too large")
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(file)!r} is not the card of an exported network ({error}); {_AGAIN}"
                        ) from error


def task_of(prefix):
    """Returns what an exported pair is for, "classification" where its card does not say."""
    values = read_values(prefix)
    return values.get("task", Card.task) if isinstance(values, dict) else Card.task


def assumed_card(prefix, crop_px):
    """Returns a card for an exported pair that has none: ImageNet's normalisation, no names.

    Raises:
      UserError: if the graph cannot be read, or does not end with a fully connected layer.
    """
    check_presence(prefix)
    graph = read_graph(paths(prefix)[0])
    last = graph.nodes[graph.head]
    if last.op != "FullyConnected":
        raise UserError(f"{str(prefix)!r} has no card, and its graph ends with {last.op}, not with "
                        "a classifier; export the network again")
    return Card(Path(prefix).name, int(last.attrs["num_hidden"]), crop_px)


def load(path, *, engine=None, device="cpu", card=None):
    """Loads an exported network to run as fast as its engine can; see `deploy.loading.load`."""
    from gluon_resnest.interop.deploy import loading  # which stands on this module
    return loading.load(path, engine=engine, device=device, card=card)


def load_pair(prefix, card, *, ctx=None, lower=None):
    """Loads graph and parameters of an exported network, trusting neither.

    Args:
      prefix: what the file names begin with, folder included.
      card: of these files, from `read_card`, or made by hand where they have none.
      ctx: Context to place the parameters on; the CPU by default.
      lower: function of (symbol, arguments, auxiliary states) that returns the symbol and
        arguments to run instead.

    Returns:
      A SymbolBlock: images (N, 3, H, W) to logits (N, card.classes), or what the card says.

    Raises:
      UserError: if a file is absent, damaged, not what the card's SHA-256 says, or not a
        classifier of this card.
    """
    check_presence(prefix)
    symbol_file, params_file, card_file = paths(prefix)
    sums = card.sha256 or {}
    for file, key in ((symbol_file, "symbol"), (params_file, "params")):
        if key in sums and sha256(file) != sums[key]:
            raise UserError(f"{str(file)!r} is not the file that was exported: its SHA-256 differs "
                            f"from the one in {str(card_file)!r}; copy all three files again, or "
                            "export again")
    graph = read_graph(symbol_file, len(card.output_shapes))
    arrays = read_params(params_file)
    try:
        return _block(graph, arrays, ctx or mx.cpu(), card, lower)
    except (mx.MXNetError, _Unfit) as error:
        raise UserError(f"{str(symbol_file)!r} and {params_file.name!r} do not make a "
                        f"{card.word}: {_first_line(error)}; export it again") from error


def check_presence(prefix):
    """Raises a UserError unless graph and parameters of the prefix exist; names near ones."""
    *pair, card_file = paths(prefix)
    for file in pair:
        if not file.is_file():
            if onnx_path(prefix).is_file() and not card_file.is_file():
                raise UserError(f"{str(onnx_path(prefix))!r} has no card {card_file.name!r} that "
                                "tells of it; copy that beside it, or export the network again")
            raise UserError(f"there is no {str(file)!r}{_near_prefix(prefix)}; an exported network "
                            "is named by its path up to -symbol.json")


class _Unfit(Exception):
    """Why graph and parameters do not belong together."""


def by_kind(arrays):
    """Returns (arguments, auxiliary states) of arrays under `arg:` and `aux:` names."""
    return tuple({name[4:]: array for name, array in arrays.items() if name.startswith(kind)}
                 for kind in ("arg:", "aux:"))


def _block(graph, arrays, ctx, card, lower):
    symbol = mx.sym.load_json(graph.to_json())
    wanted = {f"arg:{name}" for name in symbol.list_arguments()}
    wanted |= {f"aux:{name}" for name in symbol.list_auxiliary_states()}
    if f"arg:{INPUT}" not in wanted:
        raise _Unfit(f"the graph has no input called {INPUT!r}")
    wanted.discard(f"arg:{INPUT}")
    if wanted != set(arrays):
        lacking, extra = sorted(wanted - set(arrays)), sorted(set(arrays) - wanted)
        raise _Unfit(f"{len(lacking)} parameters are missing {lacking[:3]} and {len(extra)} are "
                     f"not in the graph {extra[:3]}")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise _Unfit(f"{name} holds NaN or infinity")
    _check_shapes(symbol, {name[4:]: array.shape for name, array in arrays.items()}, card)
    arrays = {name: mx.nd.array(array, dtype=array.dtype) for name, array in arrays.items()}
    if lower:
        args, auxiliary = by_kind(arrays)
        symbol, args = lower(symbol, args, auxiliary)
        arrays = {**{f"arg:{name}": array for name, array in args.items()},
                  **{f"aux:{name}": array for name, array in auxiliary.items()}}
    block = mx.gluon.SymbolBlock(symbol, [mx.sym.var(INPUT, dtype="float32")])
    block.collect_params().load_dict(arrays, ctx=ctx, cast_dtype=True, dtype_source="saved")
    return block


def _check_shapes(symbol, shapes, card):
    """Infers every shape for one image, before memory is asked for."""
    if "self" in shapes:                # an argument of MXNet's shape inference
        raise _Unfit("a variable is called 'self'")
    shapes = {INPUT: card.input_shape, **shapes}
    _, every, _ = symbol.get_internals().infer_shape_partial(**shapes)
    if 4 * sum(np.prod(shape, dtype=float) for shape in every) > _MAX_ACTIVATION_BYTES:
        raise _Unfit(f"an image of {card.input_shape[2:]} px needs more than "
                     f"{_MAX_ACTIVATION_BYTES >> 30} GB")
    _, out, _ = symbol.infer_shape(**shapes)
    if tuple(out) != card.output_shapes:
        raise _Unfit("for one image the output has shape {}, expected {}".format(
            *(", ".join(map(str, each)) for each in (out, card.output_shapes))))


def _near_prefix(prefix):
    prefix = Path(prefix)
    ending = "-symbol.json"
    known = [file.name[:-len(ending)] for file in prefix.parent.glob("*" + ending)]
    return nearest(prefix.name, known)


def _first_line(error):
    lines = [line for line in str(error).splitlines() if line.strip()
             and "Stack trace" not in line and line.strip() != "Traceback (most recent call last):"]
    return lines[-1].strip()[:300] if lines else "unknown"
