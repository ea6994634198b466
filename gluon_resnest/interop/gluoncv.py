"""The bridge into GluonCV: the one file that touches GluonCV's internals.

Importing it changes nothing; `register` does, and `unregister` undoes it.
"""
import functools
import importlib

from gluon_resnest import zoo
from gluon_resnest.errors import MissingExtra
from gluon_resnest.models.dropblock import DropBlock, set_drop_prob

# Modules that hold GluonCV's resnest functions under their names, some by `from .. import`.
_HOLDERS = ("gluoncv.model_zoo", "gluoncv.model_zoo.model_zoo", "gluoncv.model_zoo.resnest",
            "gluoncv.model_zoo.segbase")
_ABSENT = object()
_replaced = []      # (namespace, key, what it was), in the order of replacement


def register(overwrite=False):
    """Makes `gluoncv.model_zoo.get_model` find the networks of `zoo.list_models()`.

    A network built through GluonCV starts with DropBlock at probability 0, because GluonCV's
    detectors, segmentation script and pose networks run without it; GluonCV's `set_drop_prob` and
    `DropBlockScheduler` reach it. Calling `register` again replaces the earlier registration.

    Args:
      overwrite: also put ours in place of GluonCV's own resnest networks, everywhere its consumers
        look: `get_model`, `segbase.get_backbone`, the Faster and Mask R-CNN builders, which stay
        GluonCV's on our backbone (decision 0041). Modules that imported such a function by name
        before keep the old one.

    Raises:
      MissingExtra: if GluonCV cannot be imported.
    """
    unregister()
    models = _module("gluoncv.model_zoo.model_zoo")._models
    for name in zoo.list_models():
        if name.startswith(zoo.POSE):       # GluonCV's own end in _v1b, _v1d
            _replace(models, name, _pose_builder(name))
        elif name not in models:
            _replace(models, name, _builder(name))
        elif overwrite and "resnest" in name:
            _replace(models, name, _builder(name))
            for holder in _HOLDERS if name.startswith("resnest") else ():
                _replace(vars(_module(holder)), name, _builder(name))
    dropblock = vars(_module("gluoncv.nn.dropblock"))
    _replace(dropblock, "set_drop_prob", _reaching_ours(dropblock["set_drop_prob"]))


def unregister():
    """Restores GluonCV to what it was before `register`; does nothing without one."""
    while _replaced:
        namespace, key, before = _replaced.pop()
        if before is _ABSENT:
            del namespace[key]
        else:
            namespace[key] = before


def _replace(namespace, key, value):
    _replaced.append((namespace, key, namespace.get(key, _ABSENT)))
    namespace[key] = value


def _module(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra("gluoncv", "gluoncv") from error


def _builder(name):
    """Returns a function that builds our network as GluonCV's consumers call for theirs."""
    def build(pretrained=False, root=None, ctx=None, base_size=None, crop_size=None, **options):
        # The last two fix the image size of GluonCV's segmentation networks; ours take any.
        net = zoo.get_model(name, pretrained=pretrained, root=root, ctx=ctx, **options)
        set_drop_prob(net, 0)
        return net
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Builds {name} of gluon_resnest."
    return build


def _pose_builder(name):
    """Returns a function that builds our pose network as GluonCV's consumers call for theirs."""
    backbone = name[len(zoo.POSE):]

    def build(pretrained=False, root=None, ctx=None, num_joints=17, pretrained_base=False,
              pretrained_ctx=None, norm_layer=None, norm_kwargs=None):
        if pretrained:
            return zoo.get_model(name, pretrained=pretrained, root=root, ctx=ctx)
        net = zoo.pose_model(backbone, num_joints, norm_layer=norm_layer, norm_kwargs=norm_kwargs)
        if pretrained_base:
            zoo.load_backbone_weights(net.backbone, backbone, root=root, ctx=pretrained_ctx)
        return net
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Builds {name} of gluon_resnest."
    return build


def _reaching_ours(original):
    @functools.wraps(original)
    def set_prob(drop_prob, module):
        original(drop_prob, module)
        if isinstance(module, DropBlock):
            module.set_drop_prob(drop_prob)
    return set_prob
