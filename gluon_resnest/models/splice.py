"""Graphs with some of their nodes replaced by graphs of several."""
import json

import mxnet as mx


class Splice:
    """Copies a graph node by node, some of them replaced.

    Args:
      symbol: the graph; `nodes` are those of its json, in order.
    """

    def __init__(self, symbol):
        self._graph = json.loads(symbol.tojson(remove_amp_cast=False))
        self.nodes = self._graph["nodes"]
        self._copied, self._numbers = [], {}        # old number of a node -> new one

    def symbol(self, fragments):
        """Returns the new graph.

        Args:
          fragments: {number of a node: the graph of one output that takes its place, whose
            variables x, weight and bias are the node's inputs}.
        """
        for number, node in enumerate(self.nodes):
            inputs = [self._entry(entry) for entry in node["inputs"]]
            if number in fragments:
                self._insert(number, node, inputs, fragments[number])
            else:
                self._numbers[number] = self._add(node, node["name"], inputs)
        return mx.sym.load_json(json.dumps({
            "nodes": self._copied,
            "heads": [self._entry(entry) for entry in self._graph["heads"]],
            "arg_nodes": [number for number, node in enumerate(self._copied)
                          if node["op"] == "null"], "attrs": self._graph["attrs"]}))

    def _insert(self, number, node, inputs, fragment):
        given = dict(zip(("x", "weight", "bias"), inputs))
        inner, entries = json.loads(fragment.tojson()), {}      # of nodes with one output
        for place, each in enumerate(inner["nodes"]):
            if each["op"] == "null":
                entries[place] = given[each["name"]]
            else:
                entries[place] = [self._add(each, f"{node['name']}_{each['name']}", [
                    entries[source] for source, *_ in each["inputs"]]), 0, 0]
        self._numbers[number] = entries[inner["heads"][0][0]][0]

    def _add(self, node, name, inputs):
        self._copied.append({**node, "name": name, "inputs": inputs})
        return len(self._copied) - 1

    def _entry(self, entry):
        return [self._numbers[entry[0]], *entry[1:]]
