"""Convolutions over maps of a few pixels in cheaper forms, in graphs of training on a CPU.

On a map of 2 x 2 pixels a 3x3 convolution reads 16 of its 36 taps, and oneDNN's kernels, which are
made for rows of pixels, reach half their speed there. As a product with a matrix of those 16 taps
it takes a third of the time (docs/decisions/0143-small-maps.md). Networks for 32 pixels spend a
fifth of a step on such maps.

Depthwise convolutions stay, without the taps that meet no pixel: where the kernel is larger than
the map oneDNN has none made for them (docs/decisions/0148-depthwise-on-small-maps.md).
"""
import ast
import json
from typing import NamedTuple, Tuple

import mxnet as mx

from gluon_resnest.models.splice import Splice

_MOST_GROUPS = 4        # of a convolution; each is a product of its own
_LEAST_BATCH = 32       # making a matrix of a kernel costs the same for any batch
_LEAST_BATCH_ON_ONE_PIXEL = 8
_WIDEST = 3             # of the kernels that oneDNN's backward pass for depthwise ones is made for


def fit_small_maps(symbol, shapes):
    """Replaces convolutions over small maps by products of matrices or smaller convolutions.

    Args:
      symbol: float32 graph, all of whose parameters have shapes that follow from the inputs'.
      shapes: {input: (N, C, H, W)}, or other shapes of inputs that are no images.

    Returns:
      The graph, of the same inputs, parameters and outputs, that holds for these H and W only; or
      None if no map is small because of them.
    """
    splice = Splice(symbol)
    maps = _maps(symbol, shapes)
    fitting = {number for number, around in maps.items() if around.pays()}
    if not fitting or any(node["op"].startswith("amp_") for node in splice.nodes):
        return None
    larger = {name: (*shape[:2], *(2 * side for side in shape[2:]))
              for name, shape in shapes.items()}
    try:
        larger = _maps(symbol, larger)
    except mx.MXNetError:                       # there is a graph for one size only
        larger = {}
    if all(larger.get(number) == maps[number] for number in fitting):
        return None                             # pooled maps, of one pixel at every size
    return splice.symbol({number: maps[number].form(len(splice.nodes[number]["inputs"]) == 3)
                          for number in fitting})


class _Around(NamedTuple):
    """A convolution and the sides (height, width) of the maps before and behind it."""

    batch: int
    before: Tuple[int, int]
    behind: Tuple[int, int]
    kernel: Tuple[int, int]
    stride: Tuple[int, int]
    pad: Tuple[int, int]
    filters: int
    channels: int
    groups: int

    def pays(self):
        """Returns whether `form` is faster: of a depthwise convolution, whether taps meet no pixel
        or zeros have to become pixels; of others, whether the map is one pixel, or has at most
        half as many pixels as the kernel has taps, and the batch is worth the making of a matrix.
        """
        if self.groups > _MOST_GROUPS:
            met = [range(taps) for taps in self.kernel]
            return (self.groups == self.channels == self.filters
                    and all(pad < taps for pad, taps in zip(self.pad, self.kernel))
                    and (self._taps_met() != met or self._is_refused(self.kernel)))
        pixels, taps = self.before[0] * self.before[1], self.kernel[0] * self.kernel[1]
        if pixels > 1 and 2 * pixels > taps:
            return False
        return self.batch >= (_LEAST_BATCH_ON_ONE_PIXEL if pixels == 1 else _LEAST_BATCH)

    def form(self, biased):
        """Returns the convolution of the variables x, weight and maybe bias in its cheap form."""
        x, weight, *bias = map(mx.sym.var, ("x", "weight", "bias")[:3 if biased else 2])
        form = self._cropped if self.groups > _MOST_GROUPS else self._product
        return form(x, weight, bias)

    def _taps_met(self):
        """Returns the taps that meet a pixel at some place, a range for each axis."""
        return [range(max(0, pad - (windows - 1) * stride), min(taps, before + pad))
                for windows, stride, pad, taps, before in zip(
                    self.behind, self.stride, self.pad, self.kernel, self.before)]

    def _is_refused(self, kernel):
        """Returns whether oneDNN takes such a depthwise kernel, but for a larger map only."""
        return kernel[1] <= _WIDEST and any(
            side < taps for side, taps in zip(self.before, kernel))

    def _cropped(self, x, weight, bias):
        """Returns the convolution with the taps that meet a pixel, maybe with zeros as pixels."""
        F, kernel, around = mx.sym, [], []
        for axis, met in enumerate(self._taps_met()):
            weight = F.slice_axis(weight, axis=2 + axis, begin=met.start, end=met.stop)
            kernel.append(len(met))
            last = (self.behind[axis] - 1) * self.stride[axis] - self.pad[axis]     # window
            around.append((self.pad[axis] - met.start, max(0, last + met.stop - self.before[axis])))
        pad = tuple(above for above, _ in around)
        if self._is_refused(kernel) or any(above < below for above, below in around):
            x = F.pad(x, mode="constant", pad_width=(0, 0, 0, 0, *around[0], *around[1]))
            pad = (0, 0)
        return F.Convolution(x, weight, *bias, kernel=tuple(kernel), stride=self.stride, pad=pad,
                             num_filter=self.filters, num_group=self.groups, no_bias=not bias)

    def _product(self, x, weight, bias):
        F, places = mx.sym, self.behind[0] * self.behind[1]
        matrices = [self._matrix(part) for part in _parts(weight, 0, self.filters, self.groups)]
        if bias and self.groups == places == 1:
            return F.reshape(F.FullyConnected(x, matrices[0], *bias, num_hidden=self.filters),
                             shape=(-1, self.filters, 1, 1))
        products = [F.FullyConnected(part, matrix, no_bias=True,
                                     num_hidden=self.filters // self.groups * places)
                    for part, matrix in zip(_parts(x, 1, self.channels, self.groups), matrices)]
        whole = F.concat(*products, dim=1) if self.groups > 1 else products[0]
        whole = F.reshape(whole, shape=(-1, self.filters, *self.behind))
        return F.broadcast_add(whole, F.reshape(*bias, (1, -1, 1, 1))) if bias else whole

    def _matrix(self, weight):
        """Returns (filters * places behind, channels * pixels before) of a group's weights."""
        F, inner, taps = mx.sym, self.channels // self.groups, self.kernel[0] * self.kernel[1]
        if taps == 1:
            return F.reshape(weight, shape=(-1, inner))
        places, pixels = (height * width for height, width in (self.behind, self.before))
        weight = F.FullyConnected(F.reshape(weight, shape=(-1, taps)), self._taps(),
                                  num_hidden=places * pixels, no_bias=True)
        weight = F.reshape(weight, shape=(-1, inner, places, pixels))
        return F.reshape(F.transpose(weight, axes=(0, 2, 1, 3)), shape=(-1, inner * pixels))

    def _taps(self):
        """Returns (places behind * pixels before, taps): one at the tap that joins two, if any."""
        F, pixels = mx.sym, self.before[0] * self.before[1]
        pairs = F.arange(self.behind[0] * self.behind[1] * pixels)
        place = F.floor(pairs / pixels)
        pixel = pairs - pixels * place
        down, right = (
            _coordinate(pixel, self.before, axis) + self.pad[axis]
            - self.stride[axis] * _coordinate(place, self.behind, axis) for axis in (0, 1))
        height, width = self.kernel
        inside = (down >= 0) * (down < height) * (right >= 0) * (right < width)
        tap = (down * width + right) * inside - (1 - inside)        # -1: no column of one_hot
        return F.BlockGrad(F.one_hot(tap, height * width))


def _coordinate(number, sides, axis):
    row = mx.sym.floor(number / sides[1])
    return row if axis == 0 else number - sides[1] * row


def _parts(x, axis, length, parts):
    """Cuts an axis. Weights of groups first of all: an inference leaves them in a layout of oneDNN
    that `slice_axis` can read, but `reshape` cannot."""
    if parts == 1:
        return [x]
    step = length // parts
    return [mx.sym.slice_axis(x, axis=axis, begin=start, end=start + step)
            for start in range(0, length, step)]


def _maps(symbol, shapes):
    """Returns {number of node: _Around} of the plain 2-d convolutions whose maps are known."""
    graph = json.loads(symbol.tojson(remove_amp_cast=False))
    nodes = [node if node["op"] == "null" else {**node, "name": f"node{number}"}
             for number, node in enumerate(graph["nodes"])]     # a layer called twice has one name
    internals = mx.sym.load_json(json.dumps({**graph, "nodes": nodes})).get_internals()
    known = dict(zip(internals.list_outputs(), internals.infer_shape_partial(**shapes)[1]))

    def shape(entry):
        name = nodes[entry[0]]["name"]
        return next((known[key] for key in (name, f"{name}_output", f"{name}_output{entry[1]}")
                     if key in known), ())

    found = {}
    for number, node in enumerate(graph["nodes"]):
        if node["op"] != "Convolution":
            continue
        before, behind = shape(node["inputs"][0]), shape((number, 0))
        values = {name: ast.literal_eval(node["attrs"].get(name, default)) for name, default in [
            ("kernel", "()"), ("stride", "(1, 1)"), ("pad", "(0, 0)"), ("dilate", "(1, 1)"),
            ("num_group", "1"), ("num_filter", "0")]}
        if (len(before) == len(behind) == 4 and min(before[1:] + behind[1:]) > 0
                and tuple(values["dilate"]) == (1, 1)):
            found[number] = _Around(
                before[0], before[2:], behind[2:],
                *(tuple(values[name]) for name in ("kernel", "stride", "pad")),
                values["num_filter"], before[1], values["num_group"])
    return found
