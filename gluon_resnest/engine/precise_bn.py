"""Recomputes the running statistics of batch norms with the weights as they are (PreciseBN).

Running statistics average over the last steps of training, in which the weights moved; with few
images per worker they are also noisy. Wu and Johnson 2021, "Rethinking Batch in BatchNorm",
section 3, describe what this computes.
"""
import contextlib
import functools

import numpy as np
from mxnet import autograd
from mxnet.gluon import nn

from gluon_resnest.engine.heartbeat import alive
from gluon_resnest.errors import UserError


def recompute_statistics(net, batches, comm, *, forward=None):
    """Replaces every running mean and variance by those of `batches` over all workers.

    Weights stay as they are. The network runs in training mode (batch norms normalise with the
    statistics of their batch, dropout drops), without its graphs, without gradients. With layer
    input x, over all values of a channel in all batches of all workers,

        running_mean = mean(x)        running_var = mean((x - running_mean)^2)

    each value counted once, exact up to float32 within a batch and float64 between batches.
    This is the population's variance. The mean of the batches' variances, which Detectron2
    uses, is smaller by the variance of the batches' means: by one eighth for 8 values.

    Layers with `use_global_stats` are left alone, and so are layers that `batches` do not reach.

    Args:
      net: Block with values in its parameters, on one device.
      batches: finite iterable of what `forward` takes; with synchronised layers, of equal length
        on all workers.
      comm: `engine.comm.Comm`.
      forward: runs the network on one batch; None is the network itself.

    Returns:
      The number of layers that were given new statistics, the same on all workers.

    Raises:
      UserError: if no worker has any batch.
    """
    layers = [(name, layer) for name, layer in _named_blocks(net)
              if isinstance(layer, nn.BatchNorm) and not layer._kwargs["use_global_stats"]]
    moments = {name: _Moments(layer) for name, layer in layers}
    seen = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(_without_graphs(net))
        for name, layer in layers:
            hook = layer.register_forward_pre_hook(functools.partial(_look, moments[name]))
            stack.callback(hook.detach)
        running = [(parameter, parameter.data().copy()) for _, layer in layers
                   for parameter in (layer.running_mean, layer.running_var)]
        stack.callback(_put_back, running)
        with autograd.pause(train_mode=True):
            for batch in batches:
                (forward or net)(batch)
                for moment in moments.values():
                    moment.settle()
                seen += 1
                alive()
    if not comm.total(seen):
        raise UserError("no batch to recompute batch norm statistics from; give at least one")
    return sum(_install(layer, moments[name], comm) for name, layer in layers)


class _Moments:
    """Count, mean and sum of squared deviations, per channel, in float64."""

    def __init__(self, layer):
        self.axis = layer._kwargs["axis"]
        channels = layer.running_mean.shape
        self.count, self.mean, self.squares = 0, np.zeros(channels), np.zeros(channels)
        self._waiting = []

    def look(self, x):
        """Takes in a layer's input; the device may still be busy with it."""
        x = x.astype("float32")
        mean = x.mean(axis=self.axis, exclude=True, keepdims=True)
        var = (x - mean).square().mean(axis=self.axis, exclude=True)
        self._waiting.append((x.size // mean.size, mean.reshape(-1), var))

    def settle(self):
        """Adds what `look` took in (Chan, Golub and LeVeque 1979)."""
        for count, mean, var in self._waiting:
            total = self.count + count
            delta = mean.asnumpy().astype("float64") - self.mean
            self.squares += count * var.asnumpy().astype("float64") + \
                delta ** 2 * (self.count * count / total)
            self.mean += delta * (count / total)
            self.count = total
        self._waiting = []


def _install(layer, moments, comm):
    """Gives a layer the statistics of all workers' moments; returns whether there were any."""
    count = comm.total(moments.count)
    if not count:
        return False
    mean = comm.total(moments.count * moments.mean) / count
    squares = comm.total(moments.squares + moments.count * (moments.mean - mean) ** 2)
    layer.running_mean.set_data(mean)
    layer.running_var.set_data(squares / count)
    return True


def _look(moments, layer, inputs):
    moments.look(inputs[0])


def _put_back(running):
    """Undoes what training mode did to running statistics; an error leaves them as they were."""
    for parameter, values in running:
        parameter.set_data(values)


def _named_blocks(block, path=""):
    """Yields (path, block) of a block and all inside it, each block once."""
    found, todo = set(), [(path, block)]
    while todo:
        path, block = todo.pop()
        if id(block) not in found:
            found.add(id(block))
            yield path, block
            todo.extend((f"{path}.{name}", child)
                        for name, child in reversed(list(block._children.items())))


@contextlib.contextmanager
def _without_graphs(net):
    """Runs hybridized blocks operator by operator, so that hooks see arrays; keeps their graphs."""
    active = [block for _, block in _named_blocks(net) if getattr(block, "_active", False)]
    for block in active:
        block._active = False
    try:
        yield
    finally:
        for block in active:
            block._active = True
