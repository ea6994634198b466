"""What the card of a deployed network adds: for which engine, at which precision, and the proof."""
import math
from dataclasses import asdict, dataclass
from typing import Optional

from gluon_resnest.errors import UserError

KEY = "deploy"                      # in the card's file
TARGETS = ("mxnet", "onnx")
PRECISIONS = ("fp32", "bf16", "int8")
_MAX_RANGES = 20_000


@dataclass(frozen=True)
class Record:
    """How a deployed network is meant to run.

    Attributes:
      target: "mxnet" or "onnx": which files are the network's, whatever else lies beside them.
      precision: of the arithmetic. Files for MXNet hold float32, and the loader lowers them.
      ranges: {layer: (low, high)} of MXNet's int8 arithmetic, else None.
      float_layers: layers, counted from the first as 0 or the last as -1, that stay float32 in it.
      sha256: of the ONNX file, else None.
      checks: what was measured before the files were written.
    """

    target: str
    precision: str = "fp32"
    ranges: Optional[dict] = None
    float_layers: tuple = ()
    sha256: Optional[str] = None
    checks: Optional[dict] = None

    def values(self):
        """Returns what the card's file holds under KEY."""
        return asdict(self)


def record_of(values, source):
    """Returns the `Record` in the values of a card's file, or None where there is none.

    Raises:
      UserError: if it cannot be true; the message begins with `source`.
    """
    held = values.get(KEY) if isinstance(values, dict) else None
    if held is None:
        return None
    fault = _fault(held)
    if fault:
        raise UserError(f"{source} says {fault} about its deployment, which cannot be; export the "
                        "network again")
    ranges = held["ranges"]
    return Record(held["target"], held["precision"],
                  ranges and {name: tuple(pair) for name, pair in ranges.items()},
                  tuple(held["float_layers"]), held["sha256"], held["checks"])


def _fault(held):
    if not isinstance(held, dict) or set(held) != set(Record.__dataclass_fields__):
        return "something else than the fields of a record"
    tests = {
        "target": held["target"] in TARGETS,
        "precision": held["precision"] in PRECISIONS,
        "ranges": _are_ranges(held["ranges"]) and (
            (held["ranges"] is not None) == (held["precision"] == "int8"
                                             and held["target"] == "mxnet")),
        "float_layers": isinstance(held["float_layers"], list) and all(
            type(number) is int for number in held["float_layers"]),
        "sha256": (isinstance(held["sha256"], str) if held["target"] == "onnx"
                   else held["sha256"] is None),
        "checks": held["checks"] is None or isinstance(held["checks"], dict)}
    wrong = [name for name, right in tests.items() if not right]
    return f"{wrong[0]}={held[wrong[0]]!r:.80}" if wrong else None


def _are_ranges(ranges):
    if ranges is None:
        return True
    return isinstance(ranges, dict) and len(ranges) <= _MAX_RANGES and all(
        len(name) <= 300 and isinstance(pair, list) and len(pair) == 2
        and all(type(value) is float and math.isfinite(value) and abs(value) < 1e30
                for value in pair) and pair[0] <= pair[1]
        for name, pair in ranges.items())
