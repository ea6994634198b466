"""Laws of the update: parts of a batch, clipping, average, loss scale, compression, what learns.

Started by horovodrun, this file is one of two workers.
"""
import dataclasses
import json
import signal
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from horovod_job import launch
from hypothesis import given, settings
from hypothesis import strategies as st
from mxnet import gluon, nd

from gluon_resnest.config import ClassificationRecipe
from gluon_resnest.engine.amp import LossScaler, enable
from gluon_resnest.engine.comm import Comm, connect
from gluon_resnest.engine.ema import Average
from gluon_resnest.engine.finite import all_finite
from gluon_resnest.engine.optim import optimizer, scale_rates, set_multipliers
from gluon_resnest.engine.update import Update, clip, make_update
from gluon_resnest.errors import UserError
from gluon_resnest.models.norm import freeze
from gluon_resnest.models.resnest import initialize
from gluon_resnest.zoo import get_model

RECIPE = ClassificationRecipe(network="resnest_tiny", source="a test", batch=12)


def small_net(hybridize=False, frozen_statistics=True):
    net = gluon.nn.HybridSequential(prefix="small_")
    with net.name_scope():
        net.add(gluon.nn.Dense(6, in_units=4),
                gluon.nn.BatchNorm(in_channels=6, use_global_stats=frozen_statistics),
                gluon.nn.Dense(2, in_units=6))
    mx.random.seed(3)
    net.initialize(mx.init.Normal(0.5))
    if hybridize:
        net.hybridize(static_alloc=True)
    return net


def update_of(net, comm=None, compression="none", **options):
    trainer = (comm or Comm()).trainer(net.collect_params(), optimizer("nag", wd=0.01),
                                       compression=compression)
    return Update(trainer, net, **options)


def values(net):
    return {name: parameter.data().asnumpy().copy()
            for name, parameter in net._collect_params_with_prefix().items()}


def gradients(net):
    return {name: parameter.grad().asnumpy()
            for name, parameter in net._collect_params_with_prefix().items()
            if parameter.grad_req != "null"}


def batch_of(step, count=12):
    drawn = np.random.RandomState(step).standard_normal((count, 6))
    return nd.array(drawn[:, :4]), nd.array(drawn[:, 4:])


def losses_of(net, factor=1.0):
    def losses(batch):
        error = net(batch[0]) - batch[1]
        return {"square": factor * (error ** 2).mean(), "size": 0.1 * error.abs().mean()}
    return losses


def train(net, update, steps, start=0):
    """Trains and returns the loss terms of the last step."""
    for step in range(start, start + steps):
        terms = update.step(losses_of(net), batch_of(step), 0.05)
    return {name: term.asscalar() for name, term in terms.items()}


def difference(one, other):
    """Returns the largest distance of two sets of tensors relative to the norm of each tensor."""
    return max(np.linalg.norm(one[name] - other[name]) / (np.linalg.norm(one[name]) + 1e-12)
               for name in one)


# Accumulation

@pytest.mark.parametrize("parts", [2, 3, 12])
def test_parts_equal_the_whole_batch_with_frozen_statistics(parts, hybridize):
    whole, cut = small_net(hybridize), small_net(hybridize)
    expected = train(whole, update_of(whole), 4)
    got = train(cut, update_of(cut, parts=parts), 4)
    assert difference(values(whole), values(cut)) < 1e-5
    assert got == pytest.approx(expected, rel=1e-5)


def test_batch_statistics_are_the_named_exception():
    whole, cut = small_net(frozen_statistics=False), small_net(frozen_statistics=False)
    train(whole, update_of(whole), 4)
    train(cut, update_of(cut, parts=4), 4)
    assert difference(values(whole), values(cut)) > 1e-3


def test_a_batch_that_cannot_be_cut_is_a_sentence():
    recipe = dataclasses.replace(RECIPE, accumulate=5)
    with pytest.raises(UserError, match=r"accumulate \(=5\) must divide the 12 images of a worker"):
        make_update(recipe, small_net(), Comm(), optimizer("nag", wd=0))


# Clipping

@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6), min_size=1,
                max_size=4), st.floats(1e-2, 1e3))
def test_clipping_equals_numpy(rows, norm):
    gradients = [nd.array(row) for row in rows]
    clip(gradients, norm)
    total = np.sqrt(sum(float((np.float64(row) ** 2).sum()) for row in rows))
    factor = min(1.0, norm / total) if total else 1.0
    for row, gradient in zip(rows, gradients):
        np.testing.assert_allclose(gradient.asnumpy(), np.float32(row) * factor, rtol=1e-5,
                                   atol=1e-30)


def test_a_small_gradient_is_not_clipped_by_one_bit():
    net, twin = small_net(), small_net()
    train(net, update_of(net), 3)
    train(twin, update_of(twin, clip_norm=1e6), 3)
    assert difference(values(net), values(twin)) == 0


@pytest.mark.parametrize("scaled", [False, True])
def test_the_step_of_a_clipped_gradient_has_the_norm(scaled):
    """Plain SGD without decay moves the weights by lr times the gradient."""
    net = small_net()
    trainer = Comm().trainer(net.collect_params(), optimizer("sgd", wd=0, momentum=0))
    update = Update(trainer, net, clip_norm=0.02, scaler=LossScaler() if scaled else None)
    before = values(net)
    update.step(losses_of(net), batch_of(0), 0.5)
    moved = np.sqrt(sum(((values(net)[name] - before[name]) ** 2).sum() for name in before))
    assert moved == pytest.approx(0.5 * 0.02, rel=1e-4)


# Moving average

def test_the_average_equals_its_closed_form(hybridize):
    decay, net = 0.8, small_net(hybridize, frozen_statistics=False)
    update = update_of(net, average=Average(net, decay))
    history = [values(net)]
    for step in range(5):
        train(net, update, 1, start=step)
        nd.waitall()
        history.append(values(net))
    trained, n = history[-1], 5
    with update.averaged():
        averaged = values(net)
    for name in trained:
        closed = decay ** n * history[0][name] + (1 - decay) * sum(
            decay ** (n - i) * history[i][name] for i in range(1, n + 1))
        np.testing.assert_allclose(averaged[name], closed, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(values(net)[name], trained[name])


def test_what_does_not_change_is_its_own_average():
    net = small_net()
    freeze(net[0])
    update, before = update_of(net, average=Average(net, 0.9)), values(net)
    train(net, update, 3)
    with update.averaged():
        averaged = values(net)
    assert (averaged["2.weight"] != before["2.weight"]).all()
    for name in ("0.weight", "0.bias", "1.running_mean"):
        np.testing.assert_array_equal(averaged[name], before[name])


def test_an_average_of_decay_zero_is_the_network():
    net = small_net()
    update = update_of(net, average=Average(net, 0.0))
    train(net, update, 2)
    trained = values(net)
    with update.averaged():
        assert difference(values(net), trained) < 1e-6


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5])
def test_a_decay_outside_is_a_sentence(decay):
    with pytest.raises(UserError, match="ema_decay must be at least 0 and below 1"):
        Average(small_net(), decay)


def resumed(net, update, fresh):
    """Carries a run over into `fresh()` through a checkpoint's values; returns it."""
    with update.averaged():
        model = values(net)
    arrays, numbers = update.state()
    arrays = {name: array.asnumpy() for name, array in arrays.items()}
    other, another = fresh()
    for name, parameter in other._collect_params_with_prefix().items():
        parameter.set_data(nd.array(model[name]))
    another.restore(arrays, json.loads(json.dumps(numbers)))
    return other, another


def test_average_and_loss_scale_are_resumed_bit_for_bit():
    def fresh():
        net = small_net(frozen_statistics=False)
        return net, update_of(net, average=Average(net, 0.9), clip_norm=1.0, parts=2,
                              scaler=LossScaler(scale=64, growth_steps=2))
    net, update = fresh()
    train(net, update, 3)
    other, another = resumed(net, update, fresh)
    train(net, update, 3, start=3)
    train(other, another, 3, start=3)
    for one, two in ((net, update), (other, another)):
        nd.waitall()
    np.testing.assert_equal(values(other), values(net))
    with update.averaged(), another.averaged():
        np.testing.assert_equal(values(other), values(net))
    assert another.state()[1] == update.state()[1]
    assert another.state()[1]["loss_scale"] == {"scale": 512.0, "good": 0}


def test_an_evaluation_between_two_steps_changes_no_bit():
    """Though inference leaves the weights in layouts of oneDNN."""
    states = []
    for evaluations in (0, 1):
        net = get_model("resnest_tiny", classes=2)
        mx.random.seed(3)
        initialize(net)
        net.hybridize(static_alloc=True)
        update = update_of(net)
        for step in range(2):
            images = nd.array(np.random.RandomState(step).standard_normal((32, 3, 32, 32)))
            update.step(lambda batch: {"square": (net(batch[0]) ** 2).mean()}, (images,), lr=0.1)
            for _ in range(evaluations):
                with update.averaged():
                    net(images).wait_to_read()
        momenta = {key: array.asnumpy() for key, array in update.state()[0].items()}
        states.append({**values(net), **momenta})
    one, other = states
    assert {key for key in one if one[key].tobytes() != other[key].tobytes()} == set()


@pytest.mark.parametrize("made, used, message", [
    ({}, {"average": 0.9}, "has no trained weights of '0.weight' beside their average"),
    ({"average": 0.9}, {}, "does not fit this network: 'trained:0.weight' is missing"),
    ({"scaler": True}, {}, "was made with another precision"),
    ({}, {"scaler": True}, "was made with another precision")])
def test_state_of_other_settings_is_a_sentence(made, used, message):
    def build(settings):
        net = small_net()
        return net, update_of(net, average=Average(net, 0.9) if "average" in settings else None,
                              scaler=LossScaler() if "scaler" in settings else None)
    net, update = build(made)
    train(net, update, 1)
    arrays, numbers = update.state()
    with pytest.raises(UserError, match=message):
        build(used)[1].restore(arrays, numbers)


# Loss scale

def test_the_loss_scale_changes_nothing_where_nothing_overflows():
    net, twin = small_net(), small_net()
    train(net, update_of(net), 4)
    train(twin, update_of(twin, scaler=LossScaler()), 4)
    assert difference(values(net), values(twin)) == 0           # powers of two are exact


def test_an_infinite_gradient_halves_the_scale_and_changes_nothing_else():
    net = small_net(frozen_statistics=True)
    scaler = LossScaler(scale=1024, growth_steps=3)
    update = update_of(net, scaler=scaler, average=Average(net, 0.5))
    train(net, update, 2)
    before, state = values(net), {name: array.asnumpy()
                                  for name, array in update.state()[0].items()}
    with update.averaged():
        averaged = values(net)
    update.step(losses_of(net, factor=3e38), batch_of(2), 0.05)
    np.testing.assert_equal(values(net), before)
    np.testing.assert_equal({name: array.asnumpy() for name, array in update.state()[0].items()},
                            state)
    with update.averaged():
        np.testing.assert_equal(values(net), averaged)
    assert scaler.state() == {"scale": 512.0, "good": 0}        # the two good ones are forgotten
    train(net, update, 3, start=3)
    assert scaler.state() == {"scale": 1024.0, "good": 0}
    assert difference(values(net), before) > 0


def test_the_scale_has_an_end_above_and_below():
    scaler = LossScaler(scale=LossScaler.HIGHEST, growth_steps=1)
    assert scaler.accepts([nd.ones(3)]) and scaler.scale == LossScaler.HIGHEST
    scaler = LossScaler(scale=2.0)
    assert not scaler.accepts([nd.array([1, np.inf])]) and scaler.scale == 1
    with pytest.raises(FloatingPointError, match="not finite, whatever the loss scale"):
        scaler.accepts([nd.array([np.nan])])


@pytest.mark.parametrize("place", [0, 199, 200, 450])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_number_among_many_arrays_is_found(place, value):
    arrays = [nd.ones((2,)) for _ in range(451)]
    assert all_finite(arrays) and all_finite([])
    arrays[place][1] = value
    assert not all_finite(arrays)


# Precision

def test_precision_that_the_device_lacks_is_a_sentence():
    with pytest.raises(UserError, match="cannot compute in float16: CPUs take bfloat16"):
        enable("float16", mx.cpu())
    with pytest.raises(UserError, match="precision must be one of .* got 'bf16'"):
        enable("bf16", mx.cpu())


# What learns

def test_factors_scale_the_rates_of_their_parts():
    net = get_model("resnest_tiny", classes=5)
    params = net._collect_params_with_prefix()
    set_multipliers(net.collect_params(), lr_mult=lambda name: 2.0)
    scale_rates(net, "layer1=0.5, layer1.0.conv2=0,fc=10")
    for name, parameter in params.items():
        expected = 2 * (0 if name.startswith("layer1.0.conv2.") else
                        0.5 if name.startswith("layer1.") else 10 if name.startswith("fc.") else 1)
        assert parameter.lr_mult == expected, name


@pytest.mark.parametrize("text, message", [
    ("layer9=1", "lr_factors names 'layer9', which is no part of the network; did you mean"),
    ("fc", "lr_factors must be part=factor .* got 'fc'"),
    ("fc=-1", "got 'fc=-1'"), ("fc=nan", "got 'fc=nan'"), ("fc=x", "got 'fc=x'")])
def test_wrong_factors_are_a_sentence(text, message):
    with pytest.raises(UserError, match=message):
        scale_rates(get_model("resnest_tiny", classes=5), text)


# Two workers

def work(folder):
    """Trains on the half of each batch: plain, compressed, clipped, in parts, with an infinity."""
    comm = connect()
    half = slice(6 * comm.rank, 6 * comm.rank + 6)
    seen = {}
    for name, compression, options in (
            ("plain", "none", {}), ("fp16", "fp16", {}), ("clip", "none", {"clip_norm": 0.05}),
            ("parts", "none", {"parts": 3}), ("scaled", "none", {"scaler": LossScaler(1024.0)})):
        net = small_net()
        update = update_of(net, comm, compression, **options)
        if compression != "none":
            update.step(losses_of(net), [array[half] for array in batch_of(0)], 0.0)
            seen[f"{name} gradients"] = {
                key: (value * update._trainer._scale).tolist()
                for key, value in gradients(net).items()}
        for step in range(3):
            poisoned = name == "scaled" and step == 1 and comm.rank == 1
            losses = losses_of(net, 3e38 if poisoned else 1.0)
            update.step(losses, [array[half] for array in batch_of(step)], 0.05)
        seen[name] = {key: value.tolist() for key, value in values(net).items()}
        seen[f"{name} numbers"] = update.state()[1]
    comm.warm_up()
    (Path(folder) / f"{comm.rank}.json").write_text(json.dumps(seen))
    comm.shutdown()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    code, text, seen = launch(2, __file__, tmp_path_factory.mktemp("pair"))
    assert code == 0, text
    return seen


def arrays(worker, name):
    return {key: np.float32(value) for key, value in worker[name].items()}


@pytest.mark.horovod
@pytest.mark.parametrize("name, options", [("plain", {}), ("clip", {"clip_norm": 0.05}),
                                           ("parts", {})])
def test_two_workers_equal_one_with_the_whole_batch(name, options, pair):
    net = small_net()
    train(net, update_of(net, **options), 3)
    for worker in pair:
        assert difference(values(net), arrays(worker, name)) < 1e-5


@pytest.mark.horovod
def test_compression_is_bounded_by_the_rounding_of_float16(pair):
    """Each worker's gradient is rounded by 2^-11 at most, and so is their sum."""
    halves = []
    for half in (slice(0, 6), slice(6, 12)):
        net = small_net()
        update_of(net).step(losses_of(net), [array[half] for array in batch_of(0)], 0.0)
        halves.append(gradients(net))
    compressed, largest = arrays(pair[0], "fp16 gradients"), 0.0
    for name in halves[0]:
        error = abs(compressed[name] - (halves[0][name] + halves[1][name]) / 2)
        size = abs(halves[0][name]) + abs(halves[1][name])
        assert (error <= 2 ** -11 * size * 1.01 + 2 ** -24).all(), name
        largest = max(largest, float((error / size).max()))
    assert largest > 2 ** -14                                   # it was compressed
    assert pair[0]["fp16"] == pair[1]["fp16"] != pair[0]["plain"]


@pytest.mark.horovod
def test_all_workers_leave_out_the_step_that_overflows_on_one(pair):
    assert pair[0]["scaled"] == pair[1]["scaled"]
    for worker in pair:
        assert worker["scaled numbers"]["loss_scale"] == {"scale": 512.0, "good": 1}
        assert worker["scaled numbers"]["num_update"] == 2
    net = small_net()
    update = update_of(net)
    for step in (0, 2):
        train(net, update, 1, start=step)
    assert difference(values(net), arrays(pair[0], "scaled")) < 1e-5


if __name__ == "__main__":
    signal.alarm(170)
    work(sys.argv[1])
