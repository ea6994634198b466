"""Counts what a network costs, from its symbol graph: nothing is run, no parameter is needed.

What an operator costs is in `interop.operators`.
"""
import json
import math
import re
from dataclasses import dataclass
from typing import Optional, Tuple

import mxnet as mx

from gluon_resnest.errors import UserError, check_count
from gluon_resnest.interop import operators
from gluon_resnest.models.deform import fused_deformables
from gluon_resnest.models.dropblock import without_dropblock
from gluon_resnest.models.sync_batch_norm import plain_batch_norm

BYTES = 4                       # of a float32


@dataclass(frozen=True)
class Layer:
    """One operator of the graph.

    Attributes:
      name: of its node.
      op: MXNet's name of the operator.
      kind: `op` in words, with the kernel of a convolution or pooling.
      block: path of the block that calls it, such as "layer1.0.conv2".
      inputs: indices of the layers it reads; -1 is the image.
      shape: of its (first) output.
      params: elements of the parameters it is the first to read, running statistics left out.
      macs: multiply-accumulates of a convolution or dense layer.
      products: multiplications of two maps, element by element.
      bytes: of its outputs in float32; 0 where they are a view of its input.
      field: height and width in input pixels that a pixel of the output depends on, global
        pooling and what follows from it alone left out; None behind it: the whole image.
    """

    name: str
    op: str
    kind: str
    block: str
    inputs: Tuple[int, ...]
    shape: Tuple[int, ...]
    params: int
    macs: int
    products: int
    bytes: int
    field: Optional[Tuple[int, int]]


@dataclass(frozen=True)
class Total:
    """A sum over layers; shape: of the last one; field: the largest; None without one place."""

    label: str
    layers: int
    params: int
    macs: int
    products: int
    bytes: int
    shape: Optional[Tuple[int, ...]] = None
    field: Optional[Tuple[int, int]] = None


@dataclass(frozen=True)
class Analysis:
    """A network at one input shape.

    Attributes:
      input_shape: (N, C, H, W).
      layers: in the order of execution.
      peak_bytes: most that is alive at once in inference, the image included, where an output
        lives until its last reader is done and none is written over an input.
    """

    input_shape: Tuple[int, int, int, int]
    layers: Tuple[Layer, ...]
    peak_bytes: int

    def total(self):
        """Returns the `Total` of all layers; its bytes are what training keeps at most."""
        return _total("total", self.layers, located=True)

    def by_stage(self):
        """Returns the totals of stem, layer1, layer2, ... and head."""
        return [_total(stage, layers, located=True) for stage, layers in self._stages().items()]

    def of_stage(self, stage):
        """Returns the layers of "stem", "layer1", ... or "head"."""
        return self._stages()[stage]

    def _stages(self):
        stages = {}
        for layer in self.layers:
            stages.setdefault(_stage(layer.block, stages), []).append(layer)
        return stages

    def by_block(self, parent=""):
        """Returns the totals of the children of the block `parent`, in order of execution.

        What `parent` computes itself, such as the addition of a bottleneck, is in none of them.
        """
        inside = f"{parent}." if parent else ""
        children = {}
        for layer in self.layers:
            if layer.block.startswith(inside):
                child = layer.block[len(inside):].partition(".")[0]
                children.setdefault(inside + child, []).append(layer)
        return [_total(path, layers, located=True) for path, layers in children.items()]

    def by_operator(self):
        """Returns the totals of each kind of operator, the dearest first."""
        kinds = {}
        for layer in self.layers:
            kinds.setdefault(layer.kind, []).append(layer)
        totals = [_total(kind, layers) for kind, layers in kinds.items()]
        return sorted(totals, key=lambda total: (-total.macs, -total.bytes))


def analyze(net, size=(224, 224), *, batch=1, in_channels=3):
    """Analyses a network in inference.

    Args:
      net: HybridBlock of one input, initialised or not; it is left as it was.
      size: height and width of the images.
      batch: images.
      in_channels: channels of an image.

    Returns:
      An `Analysis`.

    Raises:
      UserError: if the network cannot take such images.
    """
    shape = (batch, in_channels, *size)
    for what, value in zip(("batch", "channels", "height", "width"), shape):
        check_count(what, value)
    symbol = trace(net)
    internals = symbol.get_internals()
    try:
        _, shapes, _ = internals.infer_shape(data=shape)
    except mx.MXNetError as error:
        raise UserError(f"{type(net).__name__} cannot take images of shape {shape}; choose another "
                        f"size ({str(error).strip().splitlines()[-1]})") from error
    return _walk(json.loads(symbol.tojson()), shapes, set(symbol.list_auxiliary_states()), shape)


def trace(net):
    """Returns the symbol of a network whose nodes say in `__block__` which block called them."""
    for param in net.collect_params().values():
        param.var()             # made here, since it is kept: it must not carry our attribute
    scopes, handles = [], []

    def enter(path):
        def hook(block, inputs):
            scopes.append(mx.AttrScope(__block__=path))
            scopes[-1].__enter__()
        return hook

    def leave(block, inputs, outputs):
        scopes.pop().__exit__(None, None, None)

    for path, block in _blocks(net):
        handles += [block.register_forward_pre_hook(enter(path)),
                    block.register_forward_hook(leave)]
    try:
        with without_dropblock(net), fused_deformables(net), plain_batch_norm(net):
            outputs = net(mx.sym.var("data"))
    finally:
        while scopes:
            leave(None, None, None)
        for handle in handles:
            handle.detach()
    return mx.sym.Group(list(outputs)) if isinstance(outputs, (list, tuple)) else outputs


def _blocks(net, path=""):
    """Yields (path, block) of all descendants."""
    for name, child in net._children.items():
        yield path + name, child
        yield from _blocks(child, f"{path}{name}.")


def _walk(graph, shapes, auxiliary, input_shape):
    """Turns a graph and the shapes of all outputs, in order, into an `Analysis`."""
    nodes, first, position = graph["nodes"], [], 0
    for node in nodes:
        first.append(position)
        position += operators.outputs(node["op"], node.get("attrs", {}))
    if position != len(shapes):
        raise UserError("the network has operators with outputs that the analysis does not know")
    reach = {}                  # node -> what `operators.reach` says
    layers, index, owned = [], {}, set()
    for i, node in enumerate(nodes):
        op, attrs = node["op"], node.get("attrs", {})
        if op == "null":
            if node["name"] == "data":
                index[i], reach[i] = -1, operators.PIXEL
            continue
        sources = [source for source, _, _ in node["inputs"]]
        inputs = [shapes[first[source] + output] for source, output, _ in node["inputs"]]
        outputs = shapes[first[i]:first[i] + operators.outputs(op, attrs)]
        maps = [source for source in sources if source in index]
        new = {source: shape for source, shape in zip(sources, inputs)
               if source not in index and source not in owned
               and nodes[source]["name"] not in auxiliary}
        owned.update(new)
        reach[i] = operators.reach(op, attrs, [reach[source] for source in maps])
        index[i] = len(layers)
        layers.append(Layer(
            name=node["name"], op=op, kind=operators.kind(op, attrs),
            block=attrs.get("__block__", ""), inputs=tuple(index[source] for source in maps),
            shape=outputs[0], params=sum(map(math.prod, new.values())),
            macs=operators.macs(op, inputs, outputs[0]),
            products=operators.products(op, outputs[0]),
            bytes=0 if op in operators.VIEWS else BYTES * sum(map(math.prod, outputs)),
            field=reach[i] and reach[i][0]))
    heads = {index[head[0]] for head in graph["heads"]}
    return Analysis(input_shape, tuple(layers), _peak(layers, heads, input_shape))


def _peak(layers, heads, input_shape):
    """Returns the most bytes alive at once, see `Analysis`; `heads` live to the end."""
    owner = {-1: -1}            # layer -> the layer whose memory its output is
    for i, layer in enumerate(layers):
        owner[i] = owner[layer.inputs[0]] if layer.op in operators.VIEWS and layer.inputs else i
    last = {owner[i]: i for i in range(-1, len(layers))}
    for i, layer in enumerate(layers):
        for source in layer.inputs:
            last[owner[source]] = i
    for head in heads:
        last[owner[head]] = len(layers)
    size = {-1: BYTES * math.prod(input_shape)}
    size.update((i, layer.bytes) for i, layer in enumerate(layers))
    ends = {}
    for i, end in last.items():
        ends.setdefault(end, []).append(i)
    alive = peak = size[-1]
    for i in range(len(layers)):
        alive += size[i]
        peak = max(peak, alive)
        alive -= sum(size[done] for done in ends.get(i, ()))
    return peak


def _stage(block, earlier):
    """Names the stage of a block: its layer, "stem" before the first, "head" after the last."""
    layer = re.search(r"(?:^|\.)(layer\d+)(?:\.|$)", block)
    if layer:
        return layer[1]
    return "head" if any(stage != "stem" for stage in earlier) else "stem"


def _total(label, layers, located=False):
    sums = {key: sum(getattr(layer, key) for layer in layers)
            for key in ("params", "macs", "products", "bytes")}
    last = layers[-1]
    field = max((layer.field for layer in layers if layer.field), default=None)
    return Total(label, len(layers), **sums, shape=last.shape if located else None,
                 field=field if located else None)
