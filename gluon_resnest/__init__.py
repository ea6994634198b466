"""ResNeSt (Split-Attention Networks, arXiv 2004.08955) for MXNet Gluon: models, training, tools.

    import gluon_resnest
    net = gluon_resnest.get_model("resnest50")

Importing the package checks Python, numpy and mxnet, but imports neither mxnet nor numpy, so that
the worker processes of `gluon_resnest.data` stay small.
"""
import importlib

from gluon_resnest import _environment

__version__ = "0.1.0"
__all__ = ["ResNeSt", "get_model", "list_models"]

_HOMES = {"get_model": "gluon_resnest.zoo", "list_models": "gluon_resnest.zoo",
          "ResNeSt": "gluon_resnest.models.resnest"}

_environment.check()
_environment.set_waiting()


def __getattr__(name):
    """Imports the home of a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return sorted(list(globals()) + __all__)
