"""Plain layouts around convolutions of narrow groups, in graphs of training on a CPU with AVX-512.

There oneDNN keeps 16 channels side by side; around groups of 4, 8, 20 or 40 channels it keeps 4 or
8, and its batch norm for maps and gradients of two such orders takes up to two thirds of a step
(docs/decisions/0146-narrow-groups.md).
"""
import mxnet as mx

from gluon_resnest.models.splice import Splice
from gluon_resnest.processor import has

_LEAST, _MOST = 4, 16       # channels side by side


def free_narrow_groups(symbol, shapes):
    """Puts copies, which MXNet makes in the plain order, before and behind such convolutions.

    Args:
      symbol: graph, all of whose parameters have shapes that follow from the inputs'.
      shapes: {input: (N, C, H, W)}; the graph goes on holding for others.

    Returns:
      The graph, of the same inputs, parameters, outputs and values.
    """
    if not has("avx512f"):
        return symbol
    splice = Splice(symbol)
    known = dict(zip(symbol.list_arguments(), symbol.infer_shape_partial(**shapes)[0]))
    fragments = {}
    for number, node in enumerate(splice.nodes):
        groups = int(node.get("attrs", {}).get("num_group", 1))
        if node["op"] != "Convolution" or groups == 1:
            continue
        weight = known.get(splice.nodes[node["inputs"][1][0]]["name"], ())
        gates = weight[2:] == (1, 1)                        # of maps of one pixel
        if len(weight) == 4 and not gates and _is_narrow(weight, groups):
            fragments[number] = _between_copies(node)
    return splice.symbol(fragments) if fragments else symbol


def _is_narrow(weight, groups):
    """Returns whether oneDNN keeps 4 or 8 channels of a group side by side."""
    sides = weight[0] // groups, weight[1]
    return (all(side % _LEAST == 0 for side in sides)
            and not all(side % _MOST == 0 for side in sides))


def _between_copies(node):
    F = mx.sym

    def copy(x):
        return F.slice_axis(x, axis=0, begin=0, end=None)

    inputs = [F.var(name) for name in ("x", "weight", "bias")[:len(node["inputs"])]]
    return copy(F.Convolution(copy(inputs[0]), *inputs[1:], **node["attrs"]))
