"""DropBlock: its shares, its modes, its sizes, its seeds."""
import json

import numpy as np
import pytest
from mxnet import autograd, nd, random
from mxnet.gluon import nn

from gluon_resnest.errors import UserError
from gluon_resnest.models.dropblock import DropBlock, set_drop_prob, without_dropblock


def trained(block, x):
    with autograd.train_mode():
        return block(x).asnumpy()


def published_share(p, height, width):
    """The mean kept share, from how many centres reach each position."""
    rate = p / 9 * height * width / (max(height - 2, 1) * max(width - 2, 1))
    reach = np.array([[(min(y + 1, height - 1) - max(y - 1, 0) + 1)
                       * (min(x + 1, width - 1) - max(x - 1, 0) + 1)
                       for x in range(width)] for y in range(height)])
    return ((1 - rate) ** reach).mean()


def test_closed_form_gives_the_known_shares():
    assert published_share(0.1, 14, 14) == pytest.approx(0.883, abs=5e-4)
    assert published_share(0.1, 7, 7) == pytest.approx(0.852, abs=2e-3)


@pytest.mark.parametrize("size", [(14, 14), (7, 7), (12, 6), (2, 3), (1, 1)])
@pytest.mark.parametrize("rule", ["published", "exact"])
def test_mean_kept_share_is_the_closed_form(rule, size, hybridize):
    block = DropBlock(0.1, rule=rule)
    block.hybridize(hybridize)
    expected = published_share(0.1, *size) if rule == "published" else 0.9
    x = nd.ones((1, 400000 // (size[0] * size[1]), *size))
    kept = np.mean([(trained(block, x) != 0).mean() for _ in range(3)])
    assert kept == pytest.approx(expected, abs=0.005)


def test_exact_rule_drops_every_position_alike():
    kept = (trained(DropBlock(0.2, rule="exact"), nd.ones((1, 40000, 5, 4))) != 0).mean(axis=(0, 1))
    np.testing.assert_allclose(kept, 0.8, atol=0.012)


def test_squares_are_dropped_whole():
    """A dropped position lies in a 3x3 square of dropped ones (cut off at the border)."""
    kept = trained(DropBlock(0.1), nd.ones((1, 500, 9, 8)))[0] != 0
    dropped = np.pad(~kept, ((0, 0), (2, 2), (2, 2)), constant_values=True)
    whole = np.ones((500, 11, 10), bool)
    for y in range(3):
        for x in range(3):
            whole &= dropped[:, y:y + 11, x:x + 10]
    for channel, y, x in zip(*np.nonzero(~kept)):
        assert whole[channel, y:y + 3, x:x + 3].any()


@pytest.mark.parametrize("per_sample", [False, True])
def test_mean_is_kept_and_masks_are_shared_as_asked(per_sample, hybridize):
    block = DropBlock(0.3, per_sample=per_sample)
    block.hybridize(hybridize)
    y = trained(block, nd.ones((3, 50, 7, 9)))
    assert y.mean() == pytest.approx(1, rel=1e-5)
    assert (y[0] == y[1]).all() != per_sample
    assert len(np.unique(y)) == 2       # zero and one scale


def test_gradient_flows_through_what_was_kept(hybridize):
    block = DropBlock(0.3)
    block.hybridize(hybridize)
    x = nd.random.uniform(1, 2, shape=(2, 20, 6, 5))
    x.attach_grad()
    with autograd.record():
        y = block(x)
    y.backward()
    np.testing.assert_allclose(x.grad.asnumpy(), (y / x).asnumpy(), rtol=1e-6)


def test_is_the_identity_in_inference_whatever_was_traced_first(hybridize):
    x = nd.random.normal(shape=(2, 8, 5, 6))
    for first_training in (True, False):
        block = DropBlock(0.3)
        block.hybridize(hybridize)
        if first_training:
            trained(block, x)
        assert (block(x).asnumpy() == x.asnumpy()).all()
        assert (trained(block, x) == 0).any()
        assert (block(x).asnumpy() == x.asnumpy()).all()


def test_one_block_takes_any_size(hybridize):
    block = DropBlock(0.2)
    block.hybridize(hybridize)
    for shape in ((2, 64, 16, 12), (1, 64, 7, 7), (3, 64, 1, 1)):
        assert trained(block, nd.ones(shape)).mean() == pytest.approx(1, rel=1e-5)


def test_takes_what_a_onednn_convolution_yields(hybridize):
    """Its blocked layouts crash MXNet's `slice`."""
    net = nn.HybridSequential()
    net.add(nn.Conv2D(16, 1, in_channels=16), DropBlock(0.2))
    net.initialize()
    net.hybridize(hybridize)
    assert (trained(net, nd.ones((2, 16, 6, 4))) == 0).any()


def test_mask_repeats_with_the_seed(hybridize):
    block = DropBlock(0.3)
    block.hybridize(hybridize)
    x = nd.ones((2, 30, 7, 7))
    random.seed(5)
    first = trained(block, x)
    random.seed(5)
    assert (trained(block, x) == first).all()
    assert (trained(block, x) != first).any()


def test_counts_do_not_overflow_in_float16():
    block = DropBlock(0.1)
    block.cast("float16")
    y = trained(block, nd.ones((2, 2048, 14, 14), dtype="float16"))     # 401408 > 65504
    assert y.dtype == np.float16
    assert np.isfinite(y).all()
    assert y.astype("float64").mean() == pytest.approx(1, rel=1e-3)


def test_new_probability_reaches_a_traced_net():
    net = nn.HybridSequential()
    net.add(nn.HybridSequential())
    net[0].add(DropBlock(0.0))
    net.hybridize(static_alloc=True)
    x = nd.ones((1, 2000, 7, 7))
    shares = []
    for p in (0.0, 0.1, 0.3, 0.0):
        set_drop_prob(net, p)
        shares.append((trained(net, x) != 0).mean())
    assert shares[0] == shares[3] == 1
    assert shares[1] == pytest.approx(published_share(0.1, 7, 7), abs=0.01)
    assert shares[2] == pytest.approx(published_share(0.3, 7, 7), abs=0.02)
    assert net._flags and dict(net._flags)["static_alloc"]      # options of hybridize are kept


def test_without_dropblock_lasts_as_long_as_its_context():
    block, x = DropBlock(0.5), nd.ones((1, 100, 4, 4))
    with without_dropblock(block):
        assert (trained(block, x) == 1).all()
    assert (trained(block, x) == 0).any()


def test_probability_zero_adds_nothing_to_the_graph():
    from mxnet import sym
    nodes = json.loads(DropBlock(0.0)(sym.var("x") * 2).tojson())["nodes"]
    assert [node["op"] for node in nodes] == ["null", "_mul_scalar"]


@pytest.mark.parametrize("p", [-0.1, 1, 2])
def test_probability_is_checked(p):
    with pytest.raises(UserError, match=r"lies in \[0, 1\), got"):
        DropBlock(p)


def test_unknown_rule_names_the_nearest():
    with pytest.raises(UserError, match="rule must be one of .* 'exakt'; did you mean 'exact'"):
        DropBlock(rule="exakt")
