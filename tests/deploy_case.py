"""What the tests of interop.deploy share: a network of random values, and its files."""
import mxnet as mx
import numpy as np
import pytest
from mxnet import nd

from gluon_resnest import zoo
from gluon_resnest.interop.deploy.export import Plan, export_deployment
from gluon_resnest.interop.deployed import Card
from gluon_resnest.models.resnest import initialize

CARD = Card("resnest_tiny", 3, 32)
# A deep network of random values magnifies rounding: trials gave up to 2e-6.
CLOSE = 2e-5
FAMILY = ["resnest14_0s1x64d", "resnest14_1s1x64d", "resnest14_2s1x64d", "resnest14_4s1x64d",
          "resnest14_2s2x40d", "resnest14_fast_1s2x40d", "resnest14_fast_2s1x64d",
          "resnest14_fast_4s2x40d"]


def tiny_network():
    mx.random.seed(3)
    return randomized(zoo.get_model("resnest_tiny", classes=3, dropblock=0.3, final_drop=0.5))


def randomized(net):
    """Gives a network random values everywhere, running statistics included.

    Residuals are kept small: a deep random network would magnify rounding by many thousands.
    """
    initialize(net)
    for key, param in net._collect_params_with_prefix().items():
        if key.endswith("bn3.gamma"):
            param.set_data(nd.random.uniform(0.1, 0.3, shape=param.shape))
        elif key.endswith(("gamma", "running_var")):
            param.set_data(nd.random.uniform(0.5, 1.5, shape=param.shape))
        elif key.endswith(("beta", "bias", "running_mean")):
            param.set_data(nd.random.normal(0, 0.1, shape=param.shape))
    return net


def noise(shape, seed=5):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def assert_equal(actual, expected, tolerance=CLOSE):
    assert actual.shape == expected.shape
    assert abs(actual - expected).max() <= tolerance * abs(expected).max()


def export_both(net, folder):
    """Writes the deploy graph for each engine."""
    for target in ("mxnet", "onnx"):
        if target == "onnx":
            pytest.importorskip("onnxruntime")
        export_deployment(net, folder / target, CARD, Plan(target))
    return folder
