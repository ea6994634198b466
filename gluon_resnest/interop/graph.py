"""Reads, checks and edits the graph of an exported network (`PREFIX-symbol.json`).

MXNet's own reader trusts the file: a head beyond a node's outputs or `num_group` 0 ends the
process, a very long chain hangs it. So the text is parsed here, every index and attribute must be
one that an export of ours can hold, and MXNet is handed a text written anew from what passed.
"""
import json
import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Tuple

from gluon_resnest.errors import UserError, nearest

MAX_BYTES = 16 << 20
MAX_NODES = 20_000          # ResNeSt-269 has about 5000; MXNet needs seconds for 200 000
_MAX_NAME = 300
_FORMAT = {"mxnet_version": ["int", 10901]}


@dataclass(frozen=True)
class Node:
    """One operator, or with op "null" a variable.

    Attributes:
      attrs: {name: text}, as MXNet writes them.
      inputs: of (index of an earlier node, which of its outputs). MXNet's third number, how often
        a variable had been changed in the process that wrote it, is left out.
    """

    op: str
    name: str
    attrs: dict
    inputs: Tuple[Tuple[int, int], ...]


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which each comes after its inputs, and the indices of the outputs: of
    the only one or first, and of further ones."""

    nodes: Tuple[Node, ...]
    head: int
    more_heads: Tuple[int, ...] = ()

    def to_json(self):
        """Returns the text that MXNet reads; equal graphs give equal texts."""
        nodes = [{"op": node.op, "name": node.name,
                  "inputs": [[*entry, 0] for entry in node.inputs],
                  **({"attrs": dict(sorted(node.attrs.items()))} if node.attrs else {})}
                 for node in self.nodes]
        variables = [i for i, node in enumerate(self.nodes) if node.op == "null"]
        parts = {"arg_nodes": variables, "attrs": _FORMAT,
                 "heads": [[head, 0, 0] for head in (self.head, *self.more_heads)]}
        lines = ",\n".join(map(json.dumps, nodes))       # a node a line: short, and good to diff
        return f'{{"nodes": [\n{lines}\n],\n{json.dumps(parts)[1:]}\n'

    def operators(self):
        """Returns {operator: how often}, variables left out."""
        return Counter(node.op for node in self.nodes if node.op != "null")

    def variables(self):
        """Returns the names of the variables, in order."""
        return [node.name for node in self.nodes if node.op == "null"]

    def without(self, op):
        """Returns the graph with every node of `op` replaced by its only input."""
        index, nodes = {}, []
        for old, node in enumerate(self.nodes):
            inputs = tuple((index[source], output) for source, output in node.inputs)
            if node.op == op:
                index[old] = inputs[0][0]
            else:
                index[old] = len(nodes)
                nodes.append(replace(node, inputs=inputs))
        return Graph(tuple(nodes), index[self.head], tuple(index[old] for old in self.more_heads))

    def renamed(self, rename):
        """Returns the graph with `rename(name)` in place of each name."""
        return replace(self, nodes=tuple(replace(node, name=rename(node.name))
                                         for node in self.nodes))


def read_graph(file, outputs=1):
    """Reads and checks a symbol file.

    Args:
      file: its path.
      outputs: how many the graph has.

    Raises:
      UserError: if it is absent, damaged, or holds what no export of a classifier holds.
    """
    file = Path(file)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise BadGraph(f"it is larger than {MAX_BYTES >> 20} MB")
        return parse_graph(file.read_text(encoding="utf-8"), outputs)
    except (OSError, UnicodeDecodeError, BadGraph) as error:
        raise UserError(f"{str(file)!r} is not the graph of an exported classifier: {error}; "
                        "export the network again") from error


def parse_graph(text, outputs=1):
    """Parses and checks the text of a symbol file; as `read_graph`.

    Raises:
      BadGraph: if it holds what no export of a classifier holds.
    """
    try:
        return _graph(json.loads(text), outputs)
    except (ValueError, RecursionError) as error:
        raise BadGraph(f"it is not JSON ({error})") from error


class BadGraph(Exception):
    """What is wrong with a graph."""


def _require(truth, fault):
    if not truth:
        raise BadGraph(fault)


def _graph(document, outputs):
    _require(isinstance(document, dict), "it is not a JSON object")
    nodes, heads = document.get("nodes"), document.get("heads")
    _require(isinstance(nodes, list) and nodes, "it has no list of nodes")
    _require(len(nodes) <= MAX_NODES, f"it has {len(nodes)} nodes, more than {MAX_NODES}")
    checked = []
    for node in nodes:
        checked.append(_node(node, checked))
    names = Counter(node.name for node in checked if node.op == "null")
    twice = [name for name, count in names.items() if count > 1]
    _require(not twice, f"two variables are called {twice[:1]}")
    _require(isinstance(heads, list) and len(heads) == outputs, "it must have exactly "
             + ("one output" if outputs == 1 else f"{outputs} outputs"))
    entries = [_entry(head, checked, "its output") for head in heads]
    _require(all(output == 0 for _, output in entries), "its output is one part of a split")
    _require(all(checked[head].op != "null" for head, _ in entries), "its output is a variable")
    for node in checked:        # a region is of the image its first number names: MXNet believes it
        _require(node.op != "_contrib_ROIAlign" or checked[node.inputs[1][0]].op != "null",
                 f"the regions of {node.name} are parameters; expected computed ones")
    (first, _), *more = entries
    return Graph(tuple(checked), first, tuple(index for index, _ in more))


def _node(node, earlier):
    label = f"node {len(earlier)}"
    _require(isinstance(node, dict), f"{label} is not an object")
    op, name = node.get("op"), node.get("name")
    _require(isinstance(name, str) and 0 < len(name) <= _MAX_NAME and name.isprintable(),
             f"{label} has no proper name")
    label += f" ({name})"
    rule = OPERATORS.get(op) if isinstance(op, str) else None
    _require(rule, f"{label} has the operator {op!r}, which exported classifiers do not use"
             f"{nearest(op, OPERATORS)}")
    extra = set(node) - {"op", "name", "attrs", "inputs"}
    _require(not extra, f"{label} has unknown parts {', '.join(sorted(extra))}")
    attrs = node.get("attrs", {})
    _require(isinstance(attrs, dict), f"{label} has attributes that are no object")
    # What a variable carries, and dunder attributes, are hints; the parameter file decides.
    attrs = {key: text for key, text in attrs.items() if op != "null" and key[:2] != "__"}
    for key, text in attrs.items():
        check = rule.attrs.get(key)
        _require(check, f"{label} has the unknown attribute {key!r}")
        _require(isinstance(text, str) and check(text), f"{label} has {key}={text!r:.80}, "
                 f"expected {check.expected if check else ''}")
    absent = [key for key in rule.required if key not in attrs]
    _require(not absent, f"{label} lacks the attribute {', '.join(absent)}")
    inputs = node.get("inputs")
    _require(isinstance(inputs, list), f"{label} has no list of inputs")
    inputs = tuple(_entry(entry, earlier, label) for entry in inputs)
    least, most = rule.arity(attrs)
    _require(least <= len(inputs) <= most, f"{label}, {op}, has {len(inputs)} inputs")
    return Node(op, name, attrs, inputs)


def _entry(entry, nodes, label):
    """Checks a reference to an output of one of `nodes`."""
    _require(isinstance(entry, list) and len(entry) in (2, 3)
             and all(type(number) is int for number in entry),
             f"{label} refers to {str(entry)[:80]}, expected [node, output, version]")
    index, output = entry[:2]
    _require(0 <= index < len(nodes), f"{label} refers to node {index}, which is not before it")
    source = nodes[index]
    outputs = int(source.attrs["num_outputs"]) if source.op == "SliceChannel" else \
        _OUTPUTS.get(source.op, 1)
    _require(0 <= output < outputs, f"{label} refers to output {output} of {source.name}, "
             f"which has {outputs}")
    return index, output


class _Check:
    """A test of an attribute's text, and the words for what passes it."""

    def __init__(self, expected, test):
        self.expected, self._test = expected, test

    def __call__(self, text):
        return len(text) <= 200 and self._test(text)


def _numbers(low, high, lengths=(1,)):
    """Passes a tuple of integers of one of the lengths, each in low..high; a bare one if only 1."""
    form = r"(-?\d{1,9})"
    if lengths != (1,):
        form = r"[(\[]?((-?\d{1,9})(, ?-?\d{1,9})*),?[)\]]?"

    def test(text):
        body = re.fullmatch(form, text)
        numbers = [int(number) for number in body[1].split(",")] if body else []
        return len(numbers) in lengths and all(low <= number <= high for number in numbers)
    size = "" if lengths == (1,) else f" ({' or '.join(map(str, lengths))} of them)"
    return _Check(f"integers from {low} to {high}{size}", test)


def _permutation(length):
    """Passes each of 0 ... length - 1 once; MXNet ends the process where one comes twice."""
    def test(text):
        return numbers(text) and sorted(map(int, re.findall(r"\d+", text))) == list(range(length))
    numbers = _numbers(0, length - 1, (length,))
    return _Check(f"each of the integers from 0 to {length - 1} once", test)


def _real(low, high):
    def test(text):
        try:
            value = float(text)
        except ValueError:
            return False
        return math.isfinite(value) and low <= value <= high
    return _Check(f"a number from {low} to {high}", test)


def _or_none(check):
    return _Check(f"{check.expected}, or None", lambda text: text == "None" or check(text))


def _one_of(*words):
    return _Check(" or ".join(words), words.__contains__)


@dataclass(frozen=True)
class _Rule:
    """What nodes of one operator look like: input count, attributes and those that must be."""

    inputs: Tuple[int, int]
    attrs: dict
    required: Tuple[str, ...] = ()

    def arity(self, attrs):
        """Returns the least and greatest number of inputs; `no_bias` takes the last away."""
        least, most = self.inputs
        without = attrs.get("no_bias") in ("True", "1")
        return least - without, most - without


_FLAG = _one_of("True", "False", "0", "1")
_FALSE = _one_of("False", "0")
_PAIR = {"kernel": _numbers(1, 64, (2,)), "stride": _numbers(1, 64, (2,)),
         "pad": _numbers(0, 64, (2,))}
_AXIS = _numbers(-4, 3)
_REDUCE = _Rule((1, 1), {"axis": _numbers(-4, 3, (1, 2)), "keepdims": _FLAG, "exclude": _FALSE},
                ("axis",))
_UNARY, _BINARY = _Rule((1, 1), {}), _Rule((2, 2), {})
_SCALAR = _Rule((1, 1), {"scalar": _real(-1e30, 1e30), "is_int": _FLAG}, ("scalar",))

# What the exports of this package and of GluonCV's classifiers hold.
OPERATORS = {
    "null": _Rule((0, 0), {}),
    "Convolution": _Rule((3, 3), {
        **_PAIR, "dilate": _numbers(1, 64, (2,)), "num_filter": _numbers(1, 1 << 16),
        "num_group": _numbers(1, 1 << 16), "no_bias": _FLAG, "layout": _one_of("NCHW", "None"),
        "workspace": _numbers(0, 1 << 20), "cudnn_off": _FLAG,
        "cudnn_tune": _one_of("None", "off", "limited_workspace", "fastest")},
        ("kernel", "num_filter")),
    "Deconvolution": _Rule((2, 3), {
        **_PAIR, "dilate": _numbers(1, 64, (2,)), "adj": _numbers(0, 64, (2,)),
        "num_filter": _numbers(1, 1 << 16), "num_group": _numbers(1, 1 << 16), "no_bias": _FLAG,
        "layout": _one_of("NCHW", "None"), "workspace": _numbers(0, 1 << 20), "cudnn_off": _FLAG,
        "cudnn_tune": _one_of("None", "off", "limited_workspace", "fastest")},
        ("kernel", "num_filter")),
    "FullyConnected": _Rule((3, 3), {"num_hidden": _numbers(1, 1 << 20), "no_bias": _FLAG,
                                     "flatten": _FLAG}, ("num_hidden",)),
    "BatchNorm": _Rule((5, 5), {
        "axis": _one_of("1"), "eps": _real(1e-12, 1), "momentum": _real(0, 1), "fix_gamma": _FLAG,
        "use_global_stats": _FLAG, "output_mean_var": _FALSE, "cudnn_off": _FLAG}),
    "Pooling": _Rule((1, 1), {
        **_PAIR, "pool_type": _one_of("avg", "max"), "global_pool": _FLAG, "cudnn_off": _FLAG,
        "pooling_convention": _one_of("full", "valid"), "layout": _one_of("NCHW", "None"),
        "count_include_pad": _FLAG}, ("kernel", "pool_type")),
    "_contrib_AdaptiveAvgPooling2D": _Rule((1, 1), {"output_size": _numbers(1, 64, (1, 2))},
                                           ("output_size",)),
    "Activation": _Rule((1, 1), {"act_type": _one_of("relu", "sigmoid", "tanh", "softrelu",
                                                     "softsign")}, ("act_type",)),
    "softmax": _Rule((1, 1), {"axis": _AXIS, "temperature": _one_of("None"), "use_length": _FALSE,
                              "dtype": _one_of("None")}),
    "Dropout": _Rule((1, 1), {"p": _real(0, 0.99), "axes": _one_of("()", "(1, 2, 3)"),
                              "cudnn_off": _FLAG, "mode": _one_of("training")}),
    "Reshape": _Rule((1, 1), {"shape": _numbers(-4, 1 << 24, (1, 2, 3, 4, 5, 6)),
                              "reverse": _FALSE}, ("shape",)),
    "SwapAxis": _Rule((1, 1), {"dim1": _numbers(0, 4), "dim2": _numbers(0, 4)},
                      ("dim1", "dim2")),
    "expand_dims": _Rule((1, 1), {"axis": _AXIS}, ("axis",)),
    "SliceChannel": _Rule((1, 1), {"num_outputs": _numbers(1, 64), "axis": _AXIS,
                                   "squeeze_axis": _FALSE}, ("num_outputs", "axis")),
    "slice_axis": _Rule((1, 1), {"axis": _AXIS, "begin": _numbers(-1, 1 << 20),
                                 "end": _or_none(_numbers(-1, 1 << 20))},
                        ("axis", "begin", "end")),
    "Concat": _Rule((1, 64), {"dim": _AXIS, "num_args": _numbers(1, 64)}, ("num_args",)),
    "add_n": _Rule((1, 64), {"num_args": _numbers(1, 64)}, ("num_args",)),
    "clip": _Rule((1, 1), {"a_min": _real(-1e30, 1e30), "a_max": _real(-1e30, 1e30)},
                  ("a_min", "a_max")),
    "broadcast_like": _Rule((2, 2), {"lhs_axes": _numbers(0, 3, (1, 2)),
                                     "rhs_axes": _numbers(0, 3, (1, 2))}),
    # To the size of its second input, or twofold and fourfold.
    "_contrib_BilinearResize2D": _Rule((1, 2), {
        "mode": _one_of("like", "size"), "align_corners": _FALSE, "scale_height": _numbers(2, 4),
        "scale_width": _numbers(2, 4)}, ("mode",)),
    # Of detectors.
    "Cast": _Rule((1, 1), {"dtype": _one_of("float32")}, ("dtype",)),
    "UpSampling": _Rule((1, 1), {"scale": _numbers(2, 2), "sample_type": _one_of("nearest"),
                                 "num_args": _one_of("1")}, ("scale", "sample_type")),
    "_contrib_ModulatedDeformableConvolution": _Rule((5, 5), {
        **_PAIR, "dilate": _numbers(1, 64, (2,)), "num_filter": _numbers(1, 1 << 16),
        "num_group": _numbers(1, 1 << 16), "num_deformable_group": _numbers(1, 1 << 16),
        "no_bias": _FLAG}, ("kernel", "num_filter", "num_deformable_group", "no_bias")),
    "_contrib_ROIAlign": _Rule((2, 2), {
        "pooled_size": _numbers(1, 64, (2,)), "spatial_scale": _real(1e-4, 1), "aligned": _FLAG,
        "sample_ratio": _numbers(-1, 16)}, ("pooled_size", "spatial_scale")),
    "_contrib_arange_like": _Rule((1, 1), {"axis": _AXIS}, ("axis",)),
    "_contrib_box_nms": _Rule((1, 1), {
        "overlap_thresh": _real(0, 1), "valid_thresh": _real(-1e30, 1e30),
        "coord_start": _one_of("2"), "score_index": _one_of("1"), "id_index": _one_of("0")},
        ("coord_start", "score_index", "id_index")),
    "topk": _Rule((1, 1), {"k": _numbers(1, 1 << 20), "axis": _one_of("1"),
                           "ret_typ": _one_of("both", "indices")}, ("k", "axis")),
    "broadcast_axis": _Rule((1, 1), {"axis": _numbers(-4, 3, (1, 2)),
                                     "size": _numbers(1, 1 << 20, (1, 2))},
                            ("axis", "size")),
    "reshape_like": _Rule((2, 2), {name: _numbers(0, 4) for name in (
        "lhs_begin", "lhs_end", "rhs_begin", "rhs_end")}),
    "slice_like": _Rule((2, 2), {"axes": _numbers(0, 3, (1, 2))}, ("axes",)),
    "stack": _Rule((1, 64), {"axis": _AXIS, "num_args": _numbers(1, 64)}, ("num_args",)),
    "transpose": _Rule((1, 1), {"axes": _permutation(4)}, ("axes",)),
    "where": _Rule((3, 3), {}),
    **{op: _REDUCE for op in ("sum", "mean", "max")},
    **{op: _UNARY for op in ("Flatten", "sigmoid", "relu", "exp", "tanh", "_copy", "BlockGrad",
                             "floor", "log", "sqrt", "ones_like", "zeros_like", "shape_array")},
    **{op: _BINARY for op in (
        "elemwise_add", "elemwise_sub", "elemwise_mul", "_Plus", "_Minus", "_Mul",
        "broadcast_add", "broadcast_sub", "broadcast_mul", "broadcast_div", "broadcast_minimum",
        "gather_nd")},
    **{op: _SCALAR for op in ("_plus_scalar", "_minus_scalar", "_rminus_scalar", "_mul_scalar",
                              "_div_scalar", "_equal_scalar", "_greater_scalar",
                              "_greater_equal_scalar", "_maximum_scalar", "_minimum_scalar")},
}
_OUTPUTS = {"topk": 2}
