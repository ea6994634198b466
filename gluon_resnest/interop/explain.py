"""Why a classifier says what it says: class activation maps, and the weights of the splits."""
from typing import Dict, NamedTuple

import mxnet as mx
import numpy as np
from mxnet import autograd

from gluon_resnest.errors import UserError
from gluon_resnest.models.resnest import Backbone
from gluon_resnest.models.split_attention import SplitAttention


class Explanation(NamedTuple):
    """What a network saw in a batch of N images.

    logits: float32 (N, K).
    activation: float32 (N, K, h, w); its mean over h and w, plus the bias, is the logit.
    attention: {structural name of a Split-Attention block: float32 (N, radix, C)}, the weights of
      the splits; for each channel they add up to one, for radix 1 they lie between 0 and 1.
    """

    logits: np.ndarray
    activation: np.ndarray
    attention: Dict[str, np.ndarray]


def explain(net, images):
    """Runs a classifier and looks inside (class activation maps: Zhou et al. 2016).

    Args:
      net: `models.resnest.Backbone`; if it is hybridized, its graphs are traced anew afterwards.
      images: NDArray (N, 3, H, W), normalised.

    Returns:
      `Explanation`.

    Raises:
      UserError: if the network is of another kind.
    """
    if not isinstance(net, Backbone):
        raise UserError(f"expected a network of our zoo to explain, got {type(net).__name__}; give "
                        "its name with --weights, or a run directory")
    active, flags = net._active, dict(net._flags)
    net.hybridize(False)                    # hooks see arrays only then
    kept, blocks = {}, dict(_attentions(net))
    hooks = [net.avgpool.register_forward_pre_hook(
        lambda _, inputs: kept.update(features=inputs[0]))]
    for name, block in blocks.items():
        hooks.append(block.fc2.register_forward_hook(
            lambda _, __, output, name=name: kept.update({name: output})))
    try:
        with autograd.pause(train_mode=False):
            logits = net(images)
    finally:
        for hook in hooks:
            hook.detach()
        net.hybridize(active, **flags)
    features, weight = kept["features"], net.fc.weight.data()
    activation = mx.nd.Convolution(features, weight.expand_dims(2).expand_dims(3), kernel=(1, 1),
                                   num_filter=len(weight), no_bias=True)
    return Explanation(logits.asnumpy(), activation.asnumpy(),
                       {name: _weights(block, kept[name].asnumpy())
                        for name, block in blocks.items()})


def _attentions(block, path=""):
    """Yields (structural name, block) of every Split-Attention block."""
    for name, child in block._children.items():
        if isinstance(child, SplitAttention):
            yield path + name, child
        yield from _attentions(child, f"{path}{name}.")


def _weights(block, logits):
    """Returns (N, radix, C) from the output of `fc2`, which is cardinality-major (equation 2)."""
    radix, groups = block._radix, block._cardinality
    if radix == 1:
        return 1 / (1 + np.exp(-logits.reshape(len(logits), 1, -1)))
    split = logits.reshape(len(logits), groups, radix, -1)
    powers = np.exp(split - split.max(axis=2, keepdims=True))
    gates = powers / powers.sum(axis=2, keepdims=True)
    return gates.transpose(0, 2, 1, 3).reshape(len(logits), radix, -1)
