"""What the training graph computes in another form than the graph of inference, for speed.

Same function, same parameters; fewer or cheaper passes over the maps on a CPU
(docs/decisions/0106-training-graph.md). Exports never see it.
"""
import contextlib
import json
import os

import mxnet as mx
import numpy as np
from mxnet import nd

from gluon_resnest.models.split_attention import SplitAttention

_FUSED = "_contrib_BatchNormWithReLU"


def wants_training_form(args):
    """Returns whether a graph of these inputs runs on a CPU in float32, with oneDNN's operators."""
    arrays = [array for array in args if isinstance(array, nd.NDArray)]
    return (mx.runtime.Features().is_enabled("MKLDNN")
            and os.environ.get("MXNET_MKLDNN_ENABLED") != "0"
            and all(array.context.device_type == "cpu" for array in arrays)
            and any(array.dtype == np.float32 for array in arrays))


@contextlib.contextmanager
def training_form(net):
    """Traces `net` with gates that have a cheap backward pass while the context lasts."""
    blocks = []
    net.apply(lambda block: blocks.append(block) if isinstance(block, SplitAttention) else None)
    for block in blocks:
        block.trains = True
    try:
        yield
    finally:
        for block in blocks:
            block.trains = False


def fuse_norm_and_relu(symbol):
    """Returns the graph with each batch norm and the ReLU behind it as one operator.

    Only 4-d maps normalised by their own statistics over axis 1, which nothing else reads.
    """
    graph = json.loads(symbol.tojson(remove_amp_cast=False))
    nodes = graph["nodes"]
    readers = [0] * len(nodes)
    for entry in [entry for node in nodes for entry in node["inputs"]] + graph["heads"]:
        readers[entry[0]] += 1
    becomes = {}
    for number, node in enumerate(nodes):
        if node["op"] != "Activation" or node["attrs"]["act_type"] != "relu":
            continue
        source = node["inputs"][0][0]
        if readers[source] == 1 and _normalizes_batches(nodes[source]):
            nodes[source]["op"] = _FUSED
            becomes[number] = source
    for entry in [entry for node in nodes for entry in node["inputs"]] + graph["heads"]:
        entry[0] = becomes.get(entry[0], entry[0])
    return mx.sym.load_json(json.dumps(graph))


def _normalizes_batches(node):
    attrs = node.get("attrs", {})
    return (node["op"] == "BatchNorm" and attrs.get("axis", "1") == "1"
            and attrs.get("use_global_stats", "False") == "False"
            and attrs.get("output_mean_var", "False") == "False")
