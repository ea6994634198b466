"""Normalisation policies by name: what a network is told instead of a class and a dict."""
import functools
import json

import mxnet as mx
from mxnet.gluon import nn

from gluon_resnest.errors import UserError, nearest
from gluon_resnest.models.sync_batch_norm import SyncBatchNorm, plain_batch_norm

POLICIES = ("batch", "frozen", "sync")


def frozen_batch_norm(**kwargs):
    """Builds a BatchNorm that uses its running statistics in training too and learns nothing.

    Detectors trained with few images per device keep the statistics of the pretrained network.
    """
    layer = nn.BatchNorm(**{**kwargs, "use_global_stats": True})
    for param in (layer.gamma, layer.beta):
        param.grad_req = "null"
    return layer


def norm_layer(policy=None, norm_kwargs=None):
    """Returns a constructor of normalisation layers.

    Args:
      policy: "batch" (the default), "frozen", "sync", or any constructor that takes `in_channels`
        and `gamma_initializer`, such as `gluon.nn.BatchNorm`.
      norm_kwargs: further arguments of the constructor; copied, never changed. "sync" needs
        `workers`, the `engine.comm.Comm` of this process.

    Returns:
      A callable `(in_channels=C, **more) -> HybridBlock`.

    Raises:
      UserError: if the policy is unknown, or is "sync" and there are no `workers`.
    """
    norm_kwargs = dict(norm_kwargs or {})
    if callable(policy):
        constructor = policy
    elif policy in (None, "batch"):
        constructor = nn.BatchNorm
    elif policy == "frozen":
        constructor = frozen_batch_norm
    elif policy == "sync":
        if "workers" not in norm_kwargs:
            raise UserError("norm policy 'sync' needs the workers whose images it looks at: give "
                            "norm_kwargs={'workers': engine.comm.connect()}, or choose 'batch' or "
                            "'frozen'")
        constructor = SyncBatchNorm
    else:
        raise UserError(f"unknown norm policy {policy!r}, expected one of {', '.join(POLICIES)} "
                        f"or a layer constructor{nearest(policy, POLICIES)}")
    return functools.partial(constructor, **norm_kwargs)


def with_defaults(norm, **defaults):
    """Returns a constructor whose batch norms have other defaults beneath what `norm` says.

    Args:
      norm: as `norm_layer` returns it; layers of other kinds are left as they are.
    """
    constructor = getattr(norm, "func", norm)
    if constructor is not frozen_batch_norm and not (
            isinstance(constructor, type) and issubclass(constructor, nn.BatchNorm)):
        return norm
    return functools.partial(norm, **{**defaults, **getattr(norm, "keywords", {})})


STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
BEHIND = ("conv2", "bn2")       # what EfficientNet has between its last stage and the classifier


def freeze_stages(backbone, count):
    """Freezes the first `count` stages of a backbone, the stem being the first; see `freeze`.

    Graphs that were traced before are dropped. A hybridized block around the backbone keeps its
    own, with the old norms: hybridize it again.

    Args:
      backbone: Block with the children of STAGES, and of BEHIND if it has such layers.
      count: 0, which freezes nothing, to 5, which leaves only a classifier to learn.

    Raises:
      UserError: if there are not so many stages.
    """
    if type(count) is not int or not 0 <= count <= len(STAGES):
        raise UserError(f"expected 0 to {len(STAGES)} frozen stages (the stem is the first), got "
                        f"{count!r}")
    for names in STAGES[:count]:
        for name in names:
            freeze(getattr(backbone, name))
    if count == len(STAGES):
        for name in BEHIND:
            if hasattr(backbone, name):
                freeze(getattr(backbone, name))
    if isinstance(backbone, nn.HybridBlock):
        backbone._clear_cached_op()


def freeze(block):
    """Makes every parameter of a block constant, and its batch norms use running statistics.

    What is behind it in the backward pass is not computed. Graphs of blocks inside are dropped.
    """
    for param in block.collect_params().values():
        param.grad_req = "null"

    def fix(layer):
        if isinstance(layer, nn.BatchNorm):
            layer._kwargs["use_global_stats"] = True
        if isinstance(layer, nn.HybridBlock):
            layer._clear_cached_op()

    block.apply(fix)


def use_running_statistics(net, names):
    """Has batch norms use their running statistics in training too; they go on learning.

    Args:
      net: HybridBlock not yet called.
      names: structural names of the layers, as `few_values` gives them.
    """
    for name, layer in _batch_norms(net):
        if name in names:
            layer._kwargs["use_global_stats"] = True


def few_values(net, shape, *, workers=1, least=8):
    """Finds batch norms that estimate their statistics from few values per channel.

    The norm in a Split-Attention block sees one value per image. A variance estimated from n
    normal values is off by sqrt(2 / (n - 1)) of itself: by half for 8, by four fifths for 4.
    Nothing is computed; the shapes are inferred.

    Args:
      net: HybridBlock of one image input.
      shape: (N, C, H, W) of a worker's batch.
      workers: that share statistics; layers that are not synchronised count their own images.
      least: values that are enough.

    Returns:
      {structural name of the layer: values per channel}, fewer than `least`, in order of the net.
    """
    owners = {layer.running_mean.name: (name, layer) for name, layer in _batch_norms(net)}
    with plain_batch_norm(net):
        graph = net(mx.sym.var("data")).get_internals()
    shapes = dict(zip(graph.list_outputs(), graph.infer_shape(data=shape)[1]))
    nodes = json.loads(graph.tojson())["nodes"]
    few = {}
    for node in nodes:
        if node["op"] != "BatchNorm" or node["attrs"].get("use_global_stats") == "True":
            continue
        name, layer = owners[nodes[node["inputs"][3][0]]["name"]]
        output = shapes[f"{node['name']}_output"]
        values = output[0] * workers if isinstance(layer, SyncBatchNorm) else output[0]
        for size in output[2:]:
            values *= size
        if values < least:
            few[name] = min(values, few.get(name, values))
    return few


def _batch_norms(block, path=""):
    """Yields (structural name, layer) of every batch norm inside `block`."""
    for name, child in block._children.items():
        if isinstance(child, nn.BatchNorm):
            yield path + name, child
        yield from _batch_norms(child, f"{path}{name}.")
