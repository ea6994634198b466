"""What the training graph computes in another form than the graph of inference, for speed.

Same function, same parameters; cheaper passes over the maps on a CPU
(docs/decisions/0106-training-graph.md). Exports never see it.
"""
import contextlib
import os

import mxnet as mx
import numpy as np
from mxnet import nd

from gluon_resnest.models.gated import Gated


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
    net.apply(lambda block: blocks.append(block) if isinstance(block, Gated) else None)
    for block in blocks:
        block.trains = True
    try:
        yield
    finally:
        for block in blocks:
            block.trains = False
