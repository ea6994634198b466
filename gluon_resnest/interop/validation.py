"""Checks a network of the zoo: it builds, computes finite numbers, and is as large as declared."""
import dataclasses
import time
from dataclasses import dataclass
from typing import Optional

import mxnet as mx

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop.analysis import analyze

MACS_TOLERANCE = 0.01          # of the declared ones, which have three digits


@dataclass(frozen=True)
class Finding:
    """What was found out about one network; numbers are None where they could not be had.

    Attributes:
      name: of the zoo.
      verdict: "ok", or a sentence about what is wrong.
      parameters: that learn; declared_parameters: what the zoo says, of classifiers.
      gmacs: 1e9 multiply-accumulates on one image of 224x224; declared_gmacs: likewise.
      outputs: shapes of the outputs of the forward pass.
      seconds: of that pass, the first one, which plans memory too.
      top1: per cent, where weights and images were given.
    """

    name: str
    verdict: str
    parameters: Optional[int] = None
    declared_parameters: Optional[int] = None
    gmacs: Optional[float] = None
    declared_gmacs: Optional[float] = None
    outputs: str = ""
    seconds: Optional[float] = None
    top1: Optional[float] = None


FIELDS = tuple(field.name for field in dataclasses.fields(Finding))


def validate(name, *, size=(64, 64), weights=None):
    """Returns the `Finding` about a network.

    Args:
      name: of the zoo; size: (height, width) of the random image that goes through it; weights:
        file to load instead of random values.
    """
    try:
        net = zoo.get_model(name)
        found = {"parameters": _parameters(net)}
        net.initialize(mx.init.Xavier())
        if weights:
            zoo.load_weights(net, name, str(weights))
        image = mx.nd.random.uniform(-1, 1, shape=(1, 3, *size))
        began = time.monotonic()
        outputs = _flat(net(image))
        finite = all(bool(mx.nd.contrib.isfinite(output).min().asscalar()) for output in outputs)
        found.update(seconds=time.monotonic() - began,
                     outputs=" ".join("x".join(map(str, output.shape)) for output in outputs))
    except (UserError, mx.MXNetError) as error:
        return Finding(name, str(error).strip().splitlines()[-1])
    problems = [] if finite else ["the outputs are not finite"]
    if name in zoo.VARIANTS:
        declared = zoo.VARIANTS[name]
        found.update(declared_parameters=declared.params, declared_gmacs=declared.gmacs,
                     gmacs=round(analyze(net, (224, 224)).total().macs / 1e9, 3))
        problems += _against(found)
    return Finding(name, "; ".join(problems) or "ok", **found)


def _against(found):
    """Returns what of the counts is not as declared."""
    problems = []
    if found["parameters"] != found["declared_parameters"]:
        problems.append(f"{found['parameters']} parameters, {found['declared_parameters']} "
                        "declared")
    if abs(found["gmacs"] / found["declared_gmacs"] - 1) > MACS_TOLERANCE:
        problems.append(f"{found['gmacs']:g} GMACs, {found['declared_gmacs']:g} declared")
    return problems


def _parameters(net):
    """Counts parameters as papers do: running statistics left out, frozen parts counted.

    Shapes must be known before the first image, as all are in our zoo.
    """
    count = 0
    for name, parameter in net.collect_params().items():
        if not name.endswith(("running_mean", "running_var")):
            size = 1
            for length in parameter.shape:
                size *= length
            count += size
    return count


def _flat(outputs):
    if isinstance(outputs, (list, tuple)):
        return [leaf for output in outputs for leaf in _flat(output)]
    return [] if outputs is None else [outputs]
