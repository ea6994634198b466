"""Laws of schedules, optimizers and the update."""
import dataclasses
import json
import math

import mxnet as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mxnet import gluon, nd

from gluon_resnest.engine.comm import Comm
from gluon_resnest.engine.optim import Cosine, Poly, Steps, decays, optimizer, set_multipliers
from gluon_resnest.engine.update import Update
from gluon_resnest.errors import UserError

SPANS = st.tuples(st.floats(1e-3, 10), st.integers(0, 20), st.integers(1, 40)).map(
    lambda drawn: (drawn[0], drawn[1], drawn[1] + drawn[2]))


@given(SPANS)
def test_cosine_equals_the_closed_formula_at_every_step(span):
    base, warm, total = span
    schedule = Cosine(*span)
    for k in range(total + 1):
        formula = base * k / warm if k < warm else \
            base / 2 * (1 + math.cos(math.pi * (k - warm) / (total - warm)))
        assert schedule(k) == pytest.approx(formula, rel=1e-12, abs=0)


@given(SPANS)
def test_poly_equals_the_closed_formula_at_every_step(span):
    base, warm, total = span
    schedule = Poly(*span)
    for k in range(total + 1):
        formula = base * k / warm if k < warm else base * (1 - (k - warm) / (total - warm)) ** 0.9
        assert schedule(k) == pytest.approx(formula, rel=1e-12, abs=0)


@pytest.mark.parametrize("kind", [Cosine, Poly])
@given(span=SPANS)
def test_decays_from_the_peak_to_exactly_zero(kind, span):
    base, warm, total = span
    rates = [kind(*span)(k) for k in range(total + 3)]
    assert rates[warm] == max(rates) == pytest.approx(base)
    assert rates[:warm + 1] == sorted(rates[:warm + 1])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)
    assert rates[total:] == [0.0, 0.0, 0.0]
    assert warm == 0 or rates[0] == 0.0


@pytest.mark.parametrize("schedule", [Cosine(1.0, 3, 20), Poly(1.0, 3, 20), Steps(1.0, 3, (8,))])
def test_schedules_depend_on_the_step_only(schedule):
    forward = [schedule(k) for k in range(21)]
    assert [schedule(k) for k in reversed(range(21))] == forward[::-1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.base_lr = 2.0


def test_cosine_by_hand():
    assert [round(Cosine(8.0, 2, 6)(k), 9) for k in range(7)] == \
        [0.0, 4.0, 8.0, round(4 + 4 / math.sqrt(2), 9), 4.0, round(4 - 4 / math.sqrt(2), 9), 0.0]


def test_steps_by_hand():
    """The milestone itself is the last update with the old rate."""
    schedule = Steps(1.0, 2, (4, 6), warmup_from=0.5)
    assert [schedule(k) for k in range(9)] == \
        pytest.approx([0.5, 0.75, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_published_schedule():
    """ResNeSt-50: 64 workers x 128 images, 270 epochs of 157 steps, warm-up 5 epochs."""
    schedule = Cosine(0.1 * 8192 / 256, 5 * 157, 270 * 157)
    assert schedule(5 * 157) == pytest.approx(3.2)
    assert schedule(157) == pytest.approx(0.64)
    assert schedule(270 * 157) == 0


def test_equals_mxnets_scheduler_at_its_own_count():
    """MXNet raises num_update before it asks for the rate: the first update is number 1."""
    published = mx.lr_scheduler.CosineScheduler(max_update=30, base_lr=0.7, warmup_steps=4)
    ours = Cosine(0.7, 4, 30)
    assert [ours(k) for k in range(1, 31)] == \
        pytest.approx([published(k) for k in range(1, 31)], abs=1e-12)


@pytest.mark.parametrize("make, message", [
    (lambda: Cosine(0.1, 5, 5), r"total_steps \(=5\) must exceed warmup_steps \(=5\)"),
    (lambda: Poly(0.1, 0, 0), r"total_steps \(=0\) must exceed"),
    (lambda: Cosine(-0.1, 0, 5), "base_lr must be a number >= 0, got -0.1"),
    (lambda: Cosine(float("nan"), 0, 5), "base_lr must be a number >= 0, got nan"),
    (lambda: Steps(math.inf, 0, ()), "base_lr must be a number >= 0, got inf"),
    (lambda: Cosine(0.1, -1, 5), "warmup_steps must be at least 0, got -1"),
    (lambda: Cosine(0.1, 1, 5, warmup_from=2), r"warmup_from must lie in \[0, 1\], got 2"),
    (lambda: Poly(0.1, 0, 5, power=0), "power must be positive, got 0"),
    (lambda: Steps(0.1, 0, (5, 3)), r"milestones must ascend, got \(5, 3\)"),
    (lambda: Steps(0.1, 9, (5, 30)), r"first milestone \(=5\) must not lie in the warm-up of 9"),
    (lambda: optimizer("nagg", wd=0), "optimizer must be one of nag, sgd, adam, got 'nagg'; did"),
])
def test_wrong_numbers_are_a_sentence(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("name, expected", [
    ("conv1.weight", True), ("net_dense0_weight", True), ("layer1.0.bn1.gamma", False),
    ("bn1_beta", False), ("fc.bias", False), ("bias_head.weight", True)])
def test_decay_spares_gamma_beta_and_bias(name, expected):
    assert decays(name) is expected


def small_net(prefix="small_"):
    net = gluon.nn.HybridSequential(prefix=prefix)
    with net.name_scope():
        net.add(gluon.nn.Dense(3, in_units=4), gluon.nn.BatchNorm(in_channels=3),
                gluon.nn.Dense(2, in_units=3))
    net.initialize(mx.init.Normal(0.5))
    return net


def update_of(net, name="nag", **numbers):
    params = net.collect_params()
    set_multipliers(params, **numbers)
    return Update(Comm().trainer(params, optimizer(name, wd=0.1)), net)


def values(net):
    return {name: parameter.data().asnumpy().copy()
            for name, parameter in net._collect_params_with_prefix().items()}


def run(net, update, steps, start=0):
    for step in range(start, start + steps):
        images = nd.array(np.random.RandomState(step).standard_normal((5, 4)))
        update.step(lambda batch: {"loss": (net(batch[0]) ** 2).mean()}, (images,),
                    0.1 / (step + 1))


def test_decay_acts_on_weights_only():
    """With a loss of zero only the decay moves anything."""
    net = small_net()
    net[2].bias.set_data(nd.ones(2))
    before, update = values(net), update_of(net)
    update.step(lambda batch: {"loss": (net(batch[0]) * 0).sum()}, (nd.ones((5, 4)),), 0.1)
    after = values(net)
    for name in ("0.weight", "2.weight"):       # Nesterov's first step: (1 + momentum) lr wd w
        np.testing.assert_allclose(after[name], before[name] * (1 - 1.9 * 0.1 * 0.1), rtol=1e-6)
    for name in ("0.bias", "2.bias", "1.gamma", "1.beta"):
        np.testing.assert_array_equal(after[name], before[name])


def test_lr_mult_scales_the_step_of_the_named():
    net, twin = small_net(), small_net()
    for name, parameter in twin._collect_params_with_prefix().items():
        parameter.set_data(net._collect_params_with_prefix()[name].data())
    before = values(net)
    run(net, update_of(net), 1)
    run(twin, update_of(twin, lr_mult=lambda name: 10.0 if "dense1" in name else 1.0), 1)
    for name in before:
        factor = 10 if name.startswith("2.") else 1
        if "running" not in name:
            np.testing.assert_allclose(values(twin)[name] - before[name],
                                       factor * (values(net)[name] - before[name]),
                                       rtol=1e-4, atol=1e-7)


def test_nag_equals_what_mxnet_really_computes():
    """The rate is part of the velocity, whose decay term sees the new weight (decision 0021)."""
    net = gluon.nn.Dense(1, in_units=1, use_bias=False)
    net.initialize(mx.init.Constant(2.0))
    update = update_of(net)
    weight, velocity, moved = 2.0, 0.0, []
    for lr in (0.1, 0.05, 0.2, 0.0):
        update.step(lambda batch: {"loss": (net(batch[0]) * 3).mean()}, (nd.ones((1, 1)),), lr)
        coasting, before = 0.9 * velocity, weight
        weight += 1.9 * (coasting - lr * (3 + 0.1 * weight)) - coasting
        velocity = coasting - lr * (3 + 0.1 * weight)
        moved.append(weight - before)
        assert net.weight.data().asnumpy().item() == pytest.approx(weight, rel=1e-6)
    assert abs(moved[-1]) > 0.5         # a rate of zero still coasts


@pytest.mark.parametrize("name", ["nag", "sgd", "adam"])
def test_restore_continues_bit_for_bit(name):
    """The state passes through JSON and numpy, into another instance with other global names."""
    net = small_net("first_")
    update = update_of(net, name)
    run(net, update, 3)
    parameters = values(net)
    arrays, numbers = update.state()
    arrays = {key: array.asnumpy() for key, array in arrays.items()}
    numbers = json.loads(json.dumps(numbers))
    run(net, update, 3, start=3)

    other = small_net("second_")
    for key, parameter in other._collect_params_with_prefix().items():
        parameter.set_data(nd.array(parameters[key]))
    resumed = update_of(other, name)
    resumed.restore(arrays, numbers)
    run(other, resumed, 3, start=3)
    for key, value in values(net).items():
        np.testing.assert_array_equal(values(other)[key], value)


def test_state_is_named_by_structure():
    net = small_net()
    update = update_of(net, "adam")
    assert update.state() == ({}, {"optimizer": "adam", "num_update": 0, "counts": {}})
    run(net, update, 2)
    arrays, numbers = update.state()
    trained = ["0.bias", "0.weight", "1.beta", "1.gamma", "2.bias", "2.weight"]
    assert sorted(arrays) == sorted(f"{name}:{slot}" for name in trained for slot in (0, 1))
    assert numbers == {"optimizer": "adam", "num_update": 2, "counts": dict.fromkeys(trained, 2)}


@pytest.mark.parametrize("change, message", [
    (lambda arrays, numbers: numbers.update(optimizer="adam"),
     "made by optimizer 'adam', this run uses 'nag'"),
    (lambda arrays, numbers: numbers.clear(), "made by optimizer None"),
    (lambda arrays, numbers: arrays.pop("0.weight:0"), "does not fit this network: '0.weight:0'"),
    (lambda arrays, numbers: arrays.update({"x.weight:0": nd.ones(1)}), "'x.weight:0' is missing"),
    (lambda arrays, numbers: arrays.update({"0.bias:0": nd.ones((9,))}), "'0.bias:0' is missing"),
    (lambda arrays, numbers: numbers["counts"].update({"7.weight": 3}), "'7.weight' is missing"),
])
def test_foreign_state_is_a_sentence_and_changes_nothing(change, message):
    net = small_net()
    update = update_of(net)
    run(net, update, 2)
    arrays, numbers = update.state()
    arrays = {name: array.copy() for name, array in arrays.items()}
    before = {name: array.asnumpy() for name, array in arrays.items()}
    change(arrays, numbers)
    with pytest.raises(UserError, match=message):
        update.restore(arrays, numbers)
    for name, array in update.state()[0].items():
        np.testing.assert_array_equal(array.asnumpy(), before[name])


def test_an_update_knows_its_network():
    with pytest.raises(ValueError, match="small_batchnorm0_beta', which the network does not own"):
        Update(Comm().trainer(small_net().collect_params(), optimizer("sgd", wd=0)), small_net())
