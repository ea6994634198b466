"""Normalisation policies by name: what a network is told instead of a class and a dict."""
import functools

from mxnet.gluon import nn

from gluon_resnest.errors import UserError, nearest
from gluon_resnest.models.sync_batch_norm import SyncBatchNorm

POLICIES = ("batch", "frozen", "sync")


def frozen_batch_norm(**kwargs):
    """Builds a BatchNorm that uses its running statistics in training too and learns nothing.

    Detectors trained with few images per device keep the statistics of the pretrained network.
    """
    layer = nn.BatchNorm(use_global_stats=True, **kwargs)
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
