"""Makes MXNet run a plain graph fast: operators fused by oneDNN, in float32, bfloat16 or int8.

Files hold the plain graph; what is done here is done when they are loaded. MXNet's own ways are
traps (docs/decisions/0101): `optimize_for` on a graph whose input shape is unknown, or without
`ctx`, returns it unfused, and an unknown back end is only logged. So the result is looked at.
"""
import json

import mxnet as mx
from mxnet.contrib import quantization

from gluon_resnest.errors import UserError
from gluon_resnest.processor import has

BACKEND = "MKLDNN"
_INT8_BACKEND = "MKLDNN_QUANTIZE"
_FUSED = {"Convolution": "_sg_mkldnn_conv", "FullyConnected": "_sg_mkldnn_fully_connected"}
MODES = ("naive", "entropy")


def fused(symbol, backend=BACKEND):
    """Returns a symbol with convolutions, their sums and activations fused into one operator each.

    Raises:
      UserError: if this MXNet has no oneDNN.
      RuntimeError: if a convolution was left as it was.
    """
    if not mx.runtime.Features().is_enabled("MKLDNN"):
        raise UserError("this MXNet was built without oneDNN, whose fused operators the engine "
                        "'mxnet' needs on a CPU; install mxnet 1.9.1 from PyPI, or export with "
                        "--target onnx")
    result = symbol.get_backend_symbol(backend)
    left = [name for name, op in _operators(result) if op == "Convolution"]
    if left:
        raise RuntimeError(f"the back end {backend!r} left {len(left)} convolutions unfused, first "
                           f"{left[0]!r}")
    return result


def needs(precision):
    """Raises a UserError unless this machine can run a precision."""
    if precision == "bf16" and not has("avx512_bf16"):
        raise UserError("bf16 on MXNet needs a CPU with AVX-512 BF16, which this machine has not; "
                        "use fp32 or int8 here, or export on a machine that can run it")


def lowered(symbol, args, auxiliary, precision, ranges=None, float_layers=()):
    """Returns (symbol, args) that compute at a precision.

    Args:
      symbol: plain graph; args, auxiliary: {name: NDArray} of it.
      precision: one of `record.PRECISIONS`.
      ranges, float_layers: for int8, see `record.Record`.

    Raises:
      UserError: if this machine cannot run it, or the ranges or layers belong to another graph.
      RuntimeError: as `fused`.
    """
    needs(precision)
    if precision == "fp32":
        return fused(symbol), args
    if precision == "bf16":
        from mxnet.contrib import amp
        symbol, args, _ = amp.convert_model(symbol, args, auxiliary, target_dtype="bfloat16")
        return symbol, args
    symbol = fused(symbol, _INT8_BACKEND)
    quantized, names = _quantized(symbol, args, float_layers)
    if set(ranges) != set(names):
        raise UserError(f"the calibrated ranges are those of another network: {len(ranges)} "
                        f"layers, expected {len(names)}; export the network again")
    quantized = quantization._calibrate_quantized_sym(quantized, ranges)
    args = quantization._quantize_params(quantized, args, ranges)
    return quantized.get_backend_symbol(_INT8_BACKEND), args


def chosen(layers, numbers):
    """Returns the layers of these numbers: 0 is the first, -1 the last.

    Raises:
      UserError: if there is no layer of a number.
    """
    count = len(layers)
    wrong = [number for number in numbers if not -count <= number < count]
    if wrong:
        raise UserError(f"there is no layer {wrong[0]} to keep in float32: the network has {count} "
                        f"convolutions and dense layers; give numbers from {-count} to {count - 1}")
    return [layers[number] for number in numbers]


def calibrate(symbol, args, auxiliary, batches, mode="naive", float_layers=()):
    """Returns the ranges that int8 arithmetic of a plain graph needs.

    Args:
      symbol, args, auxiliary: as `lowered`.
      batches: float32 arrays (N, 3, H, W), prepared images, all of one shape.
      mode: "naive" takes the least and greatest value of each layer, "entropy" cuts the tails off
        so that the distributions differ least.
      float_layers: see `record.Record`.
    """
    symbol = fused(symbol, _INT8_BACKEND)
    _, names = _quantized(symbol, args, float_layers)
    collector = (quantization._LayerHistogramCollector(include_layer=names) if mode == "entropy"
                 else quantization._LayerOutputMinMaxCollector("auto", include_layer=names))
    executor = None
    for images in batches:
        if executor is None:
            executor = symbol.simple_bind(mx.cpu(), grad_req="null", data=images.shape)
            executor.copy_params_from(args, auxiliary)
            executor.set_monitor_callback(collector.collect, monitor_all=True)
        executor.forward(is_train=False, data=mx.nd.array(images))
        mx.nd.waitall()
    found = (quantization._get_optimal_thresholds(collector.hist_dict, "auto")
             if mode == "entropy" else collector.min_max_dict)
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def _quantized(symbol, args, float_layers):
    """Returns (quantized symbol, names of the layers whose ranges it needs)."""
    layers = [name for name, op in _operators(symbol) if op in _FUSED.values()]
    # The public functions that wrap this one either calibrate at once or hide the ranges.
    return quantization._quantize_symbol(
        symbol, mx.cpu(), excluded_symbols=chosen(layers, float_layers),
        offline_params=list(args), quantized_dtype="auto", quantize_mode="smart",
        quantize_granularity="channel-wise")


def _operators(symbol):
    return [(node["name"], node["op"]) for node in json.loads(symbol.tojson())["nodes"]]
