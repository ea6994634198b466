"""ResNeSt in plain numpy, from tensors with PyTorch names: the slow twin of our network.

Written from the paper's equations (section 3.1 and appendix A), group by group and split by split.
Also the rule that gives every tensor reproducible values by its name alone; numpy freezes the
streams of `RandomState`, so every system that follows the rule has the same weights for ever.
"""
import zlib

import numpy as np

EPSILON = 1e-5


def ruled(name, shape):
    """Returns the float32 values that the tensor of this (PyTorch) name and shape has by rule."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if len(shape) > 1:
        bound = np.sqrt(6.0 / np.prod(shape[1:]))          # He's variance, 2 / fan in
        low, high = -bound, bound
    elif name.endswith("running_var"):
        low, high = 0.5, 1.5
    elif name.endswith(("bn3.weight", "downsample.2.weight")):
        low, high = 0.1, 0.4                               # keeps 89 residuals from exploding
    elif name.endswith("weight"):
        low, high = 0.5, 1.5
    else:
        low, high = -0.2, 0.2
    return random.uniform(low, high, shape).astype(np.float32)


def ruled_image(height, width):
    """Returns the (1, 3, height, width) image of the rule, of zero mean and unit variance."""
    uniform = ruled(f"image{height}x{width}", (1, 3, height, width))
    return uniform * np.float32(np.sqrt(1.5 * height * width))


def forward(tensors, image, *, pool_first=False, dilated=False):
    """Computes the logits.

    Args:
      tensors: PyTorch name to array.
      image: (N, 3, H, W).
      pool_first: the "fast" form, which pools before the 3x3 convolution.
      dilated: stages 3 and 4 dilate by 2 and 4 instead of striding.

    Returns:
      (N, K) float64.
    """
    net = {name: value.astype(np.float64) for name, value in tensors.items()}
    x = np.asarray(image, np.float64)
    x = relu(norm(conv(x, net["conv1.0.weight"], strides=2, padding=1), net, "conv1.1"))
    x = relu(norm(conv(x, net["conv1.3.weight"], padding=1), net, "conv1.4"))
    x = relu(norm(conv(x, net["conv1.6.weight"], padding=1), net, "bn1"))
    x = windows(x, 3, 2, 1, fill=-np.inf).max((-2, -1))
    # strides, dilation of the first block, dilation of the others
    plan = [(1, 1, 1), (2, 1, 1)] + ([(1, 1, 2), (1, 2, 4)] if dilated else [(2, 1, 1)] * 2)
    for stage, (strides, first, dilation) in enumerate(plan, 1):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in net:
            begins = block == 0
            x = bottleneck(net, f"layer{stage}.{block}", x, strides if begins else 1,
                           first if begins else dilation, pool_first,
                           pools=begins and (strides > 1 or first != dilation))
            block += 1
    return x.mean((2, 3)) @ net["fc.weight"].T + net["fc.bias"]


def bottleneck(net, name, x, strides, dilation, pool_first, *, pools):
    """One residual block; `pools` says whether it has the 3x3 average pooling."""
    y = relu(norm(conv(x, net[f"{name}.conv1.weight"]), net, f"{name}.bn1"))
    if pools and pool_first:
        y = windows(y, 3, strides, 1).mean((-2, -1))
    y = split_attention(net, f"{name}.conv2", y, dilation)
    if pools and not pool_first:
        y = windows(y, 3, strides, 1).mean((-2, -1))
    y = norm(conv(y, net[f"{name}.conv3.weight"]), net, f"{name}.bn3")
    if f"{name}.downsample.1.weight" in net:
        if strides > 1:
            # Windows at the border that are cut off average what is left of them.
            bottom, right = (-size % strides for size in x.shape[2:])
            padded = np.pad(x, ((0, 0), (0, 0), (0, bottom), (0, right)), constant_values=np.nan)
            x = np.nanmean(windows(padded, strides, strides, 0), axis=(-2, -1))
        x = norm(conv(x, net[f"{name}.downsample.1.weight"]), net, f"{name}.downsample.2")
    return relu(x + y)


def split_attention(net, name, x, dilation):
    """Equations 1 to 3 of the paper, for each cardinal group k and each split r by itself."""
    channels = x.shape[1]
    radix = len(net[f"{name}.conv.weight"]) // channels
    groups = channels // net[f"{name}.conv.weight"].shape[1]
    cardinality = groups // radix
    u = conv(x, net[f"{name}.conv.weight"], padding=dilation, dilation=dilation, groups=groups)
    u = relu(norm(u, net, f"{name}.bn0"))
    splits = [u[:, r * channels:(r + 1) * channels] for r in range(radix)]
    gap = sum(splits).mean((2, 3), keepdims=True)
    hidden = conv(gap, net[f"{name}.fc1.weight"], groups=cardinality)
    hidden = hidden + net[f"{name}.fc1.bias"].reshape(1, -1, 1, 1)
    logits = conv(relu(norm(hidden, net, f"{name}.bn1")), net[f"{name}.fc2.weight"],
                  groups=cardinality) + net[f"{name}.fc2.bias"].reshape(1, -1, 1, 1)
    result, size = np.zeros_like(x), channels // cardinality
    for k in range(cardinality):
        parts = [logits[:, (k * radix + r) * size:(k * radix + r + 1) * size]
                 for r in range(radix)]
        total = sum(np.exp(part) for part in parts)
        for part, split in zip(parts, splits):
            attention = np.exp(part) / total if radix > 1 else 1 / (1 + np.exp(-part))
            result[:, k * size:(k + 1) * size] += attention * split[:, k * size:(k + 1) * size]
    return result


def windows(x, kernel, strides, padding, dilation=1, fill=0.0):
    """Views (N, C, H, W) as sliding windows (N, C, H', W', kernel, kernel)."""
    pads = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    reach = dilation * (kernel - 1) + 1
    view = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, pads, constant_values=fill), (reach, reach), axis=(2, 3))
    return view[:, :, ::strides, ::strides, ::dilation, ::dilation]


def conv(x, weight, *, strides=1, padding=0, dilation=1, groups=1):
    """Convolution of each group as one matrix product over its windows."""
    view = windows(x, weight.shape[-1], strides, padding, dilation)
    inputs, outputs = weight.shape[1], len(weight) // groups
    return np.concatenate([
        np.einsum("nchwij,ocij->nohw", view[:, g * inputs:(g + 1) * inputs],
                  weight[g * outputs:(g + 1) * outputs], optimize=True)
        for g in range(groups)], axis=1)


def norm(x, net, name):
    """Batch normalisation with running statistics."""
    mean, var, gamma, beta = (net[f"{name}.{leaf}"].reshape(1, -1, 1, 1)
                              for leaf in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / np.sqrt(var + EPSILON) * gamma + beta


def relu(x):
    """max(x, 0)."""
    return np.maximum(x, 0)
