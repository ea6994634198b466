"""Batch norms become part of the convolution before them: y = s (w x + b - mean) + beta."""
import numpy as np

# Operators whose weight is (C_out, C_in / groups, ...); a deconvolution's begins with C_in.
_PRODUCTS = ("Convolution", "FullyConnected", "_contrib_DeformableConvolution",
             "_contrib_ModulatedDeformableConvolution", "Deconvolution")


def fold_batch_norms(draft):
    """Folds every batch norm that alone reads a convolution or dense layer.

    The arithmetic is float64; the result rounds once.
    """
    for norm in draft.of("BatchNorm"):
        product, output = norm.inputs[0]
        if product.op in _PRODUCTS and output == 0 and draft.has_one_reader(product):
            _fold(draft, norm, product)


def _fold(draft, norm, product):
    gamma, beta, mean, variance = (draft.value(entry).astype(np.float64)
                                   for entry in norm.inputs[1:])
    if norm.attrs.get("fix_gamma", "True") in ("True", "1"):
        gamma = np.ones_like(gamma)
    scale = gamma / np.sqrt(variance + float(norm.attrs.get("eps", 1e-3)))
    # The weight, and the bias behind it, are the last inputs.
    biased = product.attrs.get("no_bias") not in ("True", "1")
    inputs = product.inputs if not biased else product.inputs[:-1]
    weight = draft.value(inputs[-1])
    bias = draft.value(product.inputs[-1]).astype(np.float64) if biased else 0.0
    label = inputs[-1][0].name
    product.inputs = [*inputs[:-1],
                      draft.variable(label + "_folded", _scaled(product, weight, scale)),
                      draft.variable(label + "_folded_bias", beta + (bias - mean) * scale)]
    product.attrs["no_bias"] = "False"
    draft.replace((norm, 0), (product, 0))


def _scaled(product, weight, scale):
    """Multiplies each output channel of a weight by its scale."""
    if product.op != "Deconvolution":
        return weight * scale.reshape((-1,) + (1,) * (weight.ndim - 1))
    groups = int(product.attrs.get("num_group", 1))
    per_group = weight.reshape((groups, -1) + weight.shape[1:])      # (g, C_in/g, C_out/g, ...)
    scale = scale.reshape((groups, 1, -1) + (1,) * (weight.ndim - 2))
    return (per_group * scale).reshape(weight.shape)
