import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from gluon_resnest import get_model
from gluon_resnest.errors import UserError
from gluon_resnest.models.dropout import Dropout

# The command line's environment comes first: it gives each GPU one generator.
TWO_MASKS = """
import gluon_resnest.cli
import mxnet as mx
from gluon_resnest.models.dropout import Dropout
layer, x = Dropout(0.4), mx.nd.ones((3, 50), ctx=mx.Context({device!r}))
masks = []
for _ in range(2):
    mx.random.seed(7)
    with mx.autograd.record():
        masks.append(layer(x).asnumpy())
    with mx.autograd.record():      # draws in between change nothing
        layer(x).wait_to_read()
assert (masks[0] == masks[1]).all() and len(set(masks[0].ravel())) == 2
"""


def drawn(layer, x, seed):
    mx.random.seed(seed)
    with autograd.record():
        return layer(x).asnumpy()


@pytest.mark.parametrize("axes", [(), (1, 2, 3)], ids=str)
def test_the_mask_is_a_function_of_the_seed(axes, hybridize):
    layer, x = Dropout(0.4, axes=axes), nd.random.normal(shape=(9, 3, 4, 5))
    if hybridize:
        layer.hybridize()
    mask, again, other = (drawn(layer, x, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(mask, again)
    assert (mask != other).any()
    np.testing.assert_allclose(mask[mask != 0], x.asnumpy()[mask != 0] / 0.6, rtol=1e-6)
    np.testing.assert_array_equal(layer(x).asnumpy(), x.asnumpy())


def test_a_mask_of_its_own_depends_on_no_mode_of_execution():
    layer, x = Dropout(0.4), nd.ones((6, 7))
    mask = drawn(layer, x, 5)
    layer.hybridize()
    np.testing.assert_array_equal(drawn(layer, x, 5), mask)


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_the_seed_of_a_step_reaches_the_device(device):
    subprocess.run([sys.executable, "-c", TWO_MASKS.format(device=device)], check=True)


def test_cudnn_has_no_part_in_it():
    """Its kernel takes no notice of the seed; a graph says which kernel it takes."""
    node, = Dropout(0.4)(mx.sym.var("x")).attr_dict().values()
    assert node["cudnn_off"] == "True" and node["p"] == "0.4"


@pytest.mark.parametrize("name", [
    "resnest_tiny", "resnet50", "efficientnet_b0", "deeplab_resnest_tiny_ade",
    "deeplabplus_resnest_tiny_ade", "fcn_resnest_tiny_ade", "psp_resnest_tiny_ade"])
def test_every_network_drops_by_this_layer(name):
    layers = []
    net = get_model(name, **({} if "tiny_ade" in name else {"final_drop": 0.2}))
    net.apply(lambda block: layers.append(block) if isinstance(block, nn.Dropout) else None)
    assert layers and all(type(layer) is Dropout for layer in layers)


@pytest.mark.parametrize("rate", [-0.1, 1, 2])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(UserError, match=rf"a dropout rate lies in \[0, 1\), got {rate}"):
        get_model("resnest_tiny", final_drop=rate)
