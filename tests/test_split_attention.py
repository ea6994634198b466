"""Split-Attention against a plain numpy twin, against GluonCV's block, and by its laws."""
import numpy as np
import pytest
from mxnet import autograd, init, nd
from mxnet.gluon import nn

from gluon_resnest.models.split_attention import SplitAttention

SHAPES = [(r, g) for r in (1, 2, 4) for g in (1, 2, 4)]
CHANNELS = 16


def block(radix, cardinality, **options):
    made = SplitAttention(CHANNELS, in_channels=CHANNELS, norm=nn.BatchNorm, radix=radix,
                          cardinality=cardinality, **options)
    made.initialize()
    for param in made.collect_params().values():
        noise = nd.random.normal(0, 0.5, shape=param.shape)
        param.set_data(noise.abs() + 0.5 if param.name.endswith("var") else noise)
    return made


def normalised(x, params, name):
    """Batch norm in inference on (C, ...) or (C,)."""
    shape = (-1,) + (1,) * (x.ndim - 1)
    mean, var, gamma, beta = (params[f"{name}.{key}"].reshape(shape) for key in
                              ("running_mean", "running_var", "gamma", "beta"))
    return (x - mean) / np.sqrt(var + 1e-5) * gamma + beta


def cardinality_major(image, params, radix, cardinality):
    """The paper's figure 2, one cardinal group after the other, in loops; image (C_in, H, W)."""
    weight = params["conv.weight"]
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    groups = radix * cardinality
    inputs, outputs = image.shape[0] // groups, weight.shape[0] // groups
    convolved = np.zeros((weight.shape[0], height, width))
    for out in range(weight.shape[0]):
        first = out // outputs * inputs
        for channel in range(inputs):
            for y in range(3):
                for x in range(3):
                    convolved[out] += (weight[out, channel, y, x]
                                       * padded[first + channel, y:y + height, x:x + width])
    features = np.maximum(normalised(convolved, params, "bn"), 0)
    result = []
    hidden = params["fc1.weight"].shape[0] // cardinality
    hidden_all = []
    splits_all = []
    for k in range(cardinality):        # U_hat of the k-th cardinal group: the sum of its splits
        splits = [features[(i * cardinality + k) * outputs:(i * cardinality + k + 1) * outputs]
                  for i in range(radix)]
        squeeze = sum(splits).mean(axis=(1, 2))
        rows = slice(k * hidden, (k + 1) * hidden)
        hidden_all.append(params["fc1.weight"][rows, :, 0, 0] @ squeeze + params["fc1.bias"][rows])
        splits_all.append(splits)
    excited = np.maximum(normalised(np.concatenate(hidden_all), params, "bn1"), 0)
    for k, splits in enumerate(splits_all):
        rows = slice(k * radix * outputs, (k + 1) * radix * outputs)
        logits = (params["fc2.weight"][rows, :, 0, 0] @ excited[k * hidden:(k + 1) * hidden]
                  + params["fc2.bias"][rows]).reshape(radix, outputs)
        if radix == 1:
            gates = 1 / (1 + np.exp(-logits))
        else:
            gates = np.exp(logits) / np.exp(logits).sum(axis=0)
        result.append(sum(gate[:, None, None] * split for gate, split in zip(gates, splits)))
    return np.concatenate(result)


@pytest.mark.parametrize("radix, cardinality", SHAPES)
def test_radix_major_equals_a_cardinality_major_twin(radix, cardinality, hybridize):
    made = block(radix, cardinality)
    made.hybridize(hybridize)
    x = nd.random.normal(shape=(2, CHANNELS, 5, 7))
    values = {name: param.data().asnumpy().astype("float64")
              for name, param in made._collect_params_with_prefix().items()}
    expected = np.stack([cardinality_major(image, values, radix, cardinality)
                         for image in x.asnumpy().astype("float64")])
    np.testing.assert_allclose(made(x).asnumpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("radix", [2, 4])
def test_gates_sum_to_one(radix, hybridize):
    """Equal splits come out unchanged, whatever the gates are."""
    made = SplitAttention(
        CHANNELS, in_channels=CHANNELS, radix=radix,
        conv=lambda *args, **kwargs: nn.HybridLambda(lambda F, x: F.tile(x, reps=(1, radix, 1, 1))),
        norm=lambda in_channels: nn.HybridLambda(lambda F, x: F.identity(x)))
    made.initialize(init.Normal(1))
    made.hybridize(hybridize)
    x = nd.random.uniform(shape=(2, CHANNELS, 3, 5))
    np.testing.assert_allclose(made(x).asnumpy(), x.asnumpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("radix, cardinality", SHAPES)
def test_equals_gluoncv_in_output_and_gradients(radix, cardinality):
    splat = pytest.importorskip("gluoncv.nn.splat")
    ours = block(radix, cardinality)
    theirs = splat.SplitAttentionConv(CHANNELS, 3, padding=1, in_channels=CHANNELS, radix=radix,
                                      groups=cardinality, use_bias=False)
    theirs.initialize()
    names = ours._collect_params_with_prefix()
    assert list(names) == list(theirs._collect_params_with_prefix())
    for name, param in theirs._collect_params_with_prefix().items():
        param.set_data(names[name].data())
    x = nd.random.normal(shape=(16, CHANNELS, 5, 7))
    head = nd.random.normal(shape=x.shape)
    results = []
    for net in (ours, theirs):
        net.hybridize()
        x.attach_grad()
        with autograd.record():
            y = net(x)
        y.backward(head)
        grads = [param.grad().asnumpy() for param in net.collect_params().values()
                 if param.grad_req != "null"]
        results.append([y.asnumpy(), x.grad.asnumpy(), *grads])
    for mine, other in zip(*results):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4 * max(1, abs(other).max()))


def test_strides_and_dilation_keep_the_size_rules(hybridize):
    x = nd.random.normal(shape=(1, CHANNELS, 7, 9))
    for options, shape in (({"strides": 2}, (4, 5)), ({"dilation": 2}, (7, 9))):
        made = block(2, 2, **options)
        made.hybridize(hybridize)
        assert made(x).shape == (1, CHANNELS) + shape


def test_the_convolution_is_the_callers():
    """DCNv2 passes its own; it must get Conv2D's arguments."""
    asked = []

    def conv(*args, **kwargs):
        asked.append((args, kwargs))
        return nn.Conv2D(*args, **kwargs)

    block(2, 2, conv=conv)
    assert asked == [((CHANNELS * 2, 3, 1, 1, 1),
                      {"groups": 4, "use_bias": False, "in_channels": CHANNELS})]
