"""Finds a trained classifier and the card that says how to feed it."""
import mxnet as mx

from gluon_resnest import zoo
from gluon_resnest.errors import UserError
from gluon_resnest.interop.deployed import Card
from gluon_resnest.interop.weights import load_parameters, read_params

_CLASSIFIERS = ("fc.bias", "output.bias")      # of our networks, and of GluonCV's others


def from_zoo(name, weights=None, *, classes=None, ctx=None):
    """Builds a network of the zoo with trained weights.

    Args:
      name: zoo name.
      weights: `.params` file; None takes the published weights.
      classes: length of the logits; None means what the file has, else 1000.
      ctx: Context of the parameters; the CPU by default.

    Returns:
      (net, card): the card has the crop and protocol the published weights are evaluated at, or
      224 px where none are published.

    Raises:
      UserError: if the name is unknown, or the weights are not to be had or do not fit.
    """
    ctx = ctx or mx.cpu()
    if weights is not None and classes is None:
        classes = _classes_of(weights)
    classes = classes or 1000
    net = zoo.get_model(name, pretrained=weights is None, ctx=ctx, classes=classes)
    if weights is not None:
        load_parameters(net, weights, ctx=ctx)
    return net, zoo_card(name, classes)


def with_weights(name, weights, *, ctx=None):
    """Builds a network of the zoo for which no weights are published, with those of a file.

    Raises:
      UserError: if the name is unknown, or the weights are not given or do not fit.
    """
    if not weights:
        raise UserError(f"no weights are published for {name!r}; give a file with --weights FILE")
    net = zoo.get_model(name)
    load_parameters(net, weights, ctx=ctx or mx.cpu())
    return net


def zoo_card(name, classes):
    """Returns the card of a zoo name: crop, protocol and normalisation of its published weights."""
    try:
        published = zoo.variant(name).weights
    except UserError:       # a name of GluonCV's
        published = None
    if published is None:
        return Card(name, classes, 224)
    return Card(name, classes, published.crop_px, published.protocol, published.mean,
                published.std)


def _classes_of(weights):
    arrays = read_params(weights)
    for name in _CLASSIFIERS:
        for saved in (name, "arg:" + name):     # the latter by an export
            if saved in arrays:
                return len(arrays[saved])
    return None
