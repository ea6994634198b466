"""A network's graph and parameters while they are rewritten."""
from collections import Counter
from dataclasses import dataclass, field
from typing import List

import numpy as np

from gluon_resnest.interop.graph import Graph, Node


@dataclass(eq=False)
class Op:
    """One operator or, with op "null", a variable; equal only to itself.

    Attributes:
      op, name, attrs: as in `graph.Node`.
      inputs: of (Op, which of its outputs).
    """

    op: str
    name: str
    attrs: dict = field(default_factory=dict)
    inputs: List[tuple] = field(default_factory=list)


class Draft:
    """What the rules of this package rewrite; nothing in it is shared with where it came from.

    Attributes:
      heads: the Ops whose first outputs are the network's.
      params: {name of a variable: numpy array}; all variables but the image.
    """

    def __init__(self, graph, arrays):
        """Args: what `export.trace` returned: a Graph, and arrays under `arg:` and `aux:` names."""
        ops = []
        for node in graph.nodes:
            ops.append(Op(node.op, node.name, dict(node.attrs),
                          [(ops[source], output) for source, output in node.inputs]))
        self.heads = [ops[head] for head in (graph.head, *graph.more_heads)]
        self.params = {name[4:]: _numpy(array) for name, array in arrays.items()}

    def ops(self):
        """Returns what the heads need, each after its inputs."""
        order, done, stack = [], set(), [(head, False) for head in reversed(self.heads)]
        while stack:
            op, ready = stack.pop()
            if ready:
                order.append(op)
            elif id(op) not in done:
                done.add(id(op))
                stack.append((op, True))
                stack += [(source, False) for source, _ in reversed(op.inputs)]
        return order

    def of(self, kind):
        """Returns the operators of a kind, each after its inputs."""
        return [op for op in self.ops() if op.op == kind]

    def readers(self, op):
        """Returns the operators that read an output of `op`."""
        return [reader for reader in self.ops() for source, _ in reader.inputs if source is op]

    def has_one_reader(self, op):
        """Returns whether nothing but one input of one operator needs `op`."""
        return op not in self.heads and len(self.readers(op)) == 1

    def replace(self, old, new):
        """Lets every reader of one output read another; both are (Op, output)."""
        for op in self.ops():
            op.inputs = [new if (source is old[0] and output == old[1]) else (source, output)
                         for source, output in op.inputs]
        self.heads = [new[0] if head is old[0] else head for head in self.heads]

    def variable(self, name, value):
        """Returns an entry for a new parameter."""
        self.params[name] = np.ascontiguousarray(value, np.float32)
        return Op("null", name), 0

    def value(self, entry):
        """Returns the array of an entry that is a parameter."""
        return self.params[entry[0].name]

    def finish(self):
        """Returns (Graph, arrays) of what is left, arrays under `arg:` and `aux:` names."""
        ops = self.ops()
        index = {id(op): i for i, op in enumerate(ops)}
        nodes = tuple(Node(op.op, op.name, dict(op.attrs), tuple(
            (index[id(source)], output) for source, output in op.inputs)) for op in ops)
        statistics = {source.name for op in ops if op.op == "BatchNorm"
                      for source, _ in op.inputs[3:]}
        arrays = {("aux:" if op.name in statistics else "arg:") + op.name: self.params[op.name]
                  for op in ops if op.op == "null" and op.name in self.params}
        repeated = [name for name, count in Counter(op.name for op in ops).items() if count > 1]
        if repeated:
            raise ValueError(f"two operators are called {repeated[0]!r}")
        first, *more = (index[id(head)] for head in self.heads)
        return Graph(nodes, first, tuple(more)), arrays


def _numpy(array):
    return np.array(array if isinstance(array, np.ndarray) else array.asnumpy())
