"""Mixed precision: convolutions and matrix products in 16 bits, parameters and sums in 32."""
import functools

import mxnet as mx
from mxnet.contrib import amp

from gluon_resnest.engine.finite import GradientsNotFinite, all_finite
from gluon_resnest.errors import UserError, check_choice

PRECISIONS = ("float32", "bfloat16", "float16")

_enabled = "float32"


def enable(precision, context):
    """Makes this process compute in `precision`; before the first network is built.

    MXNet rewrites its operators for the whole process and cannot go back.

    Args:
      precision: one of PRECISIONS.
      context: the device of the networks.

    Raises:
      UserError: if the device cannot compute in it, or the process already uses another.
    """
    global _enabled
    check_choice("precision", precision, PRECISIONS)
    if precision == _enabled:
        return
    if _enabled != "float32":
        raise UserError(f"this process already computes in {_enabled}, and MXNet cannot change "
                        f"that; use another process for {precision}")
    if not supported(precision, context):
        raise UserError(f"{context} cannot compute in {precision}: CPUs take bfloat16 if they have "
                        "AVX-512, never float16; use --precision float32, or another device")
    amp.init(target_dtype=precision, fp32_ops=_in_32_bits(precision))
    if precision == "bfloat16":
        for operators in (mx.nd, mx.sym):
            operators.Deconvolution = _of_32_bits(operators.Deconvolution, operators.amp_cast)
    _enabled = precision


def _in_32_bits(precision):
    """Returns the names of the operators that MXNet is to give float32, its own list mended."""
    own = (amp.lists.symbol_bf16 if precision == "bfloat16" else amp.lists.symbol_fp16).FP32_FUNCS
    names = set(own) - {"_arange"}      # has no input, and fails if wrapped
    if precision == "bfloat16":
        # MXNet leaves Concat as it is, which refuses inputs of both types. Casting the weight of a
        # hybridized Deconvolution ends the process in the backward pass: `enable` casts its data.
        names = names - {"Deconvolution"} | {"Concat", "concat"}
    return sorted(names)


def _of_32_bits(operator, cast):
    """Returns an operator that casts its first input, and it alone, to float32."""
    @functools.wraps(operator)
    def call(data, *args, **kwargs):
        return operator(cast(data, dtype="float32"), *args, **kwargs)

    return call


def enabled():
    """Returns the precision of PRECISIONS that this process computes in."""
    return _enabled


def supported(precision, context):
    """Returns whether the device can compute a convolution in `precision`, by trying."""
    kind = amp.amp.bfloat16 if precision == "bfloat16" else precision
    try:
        ones = mx.nd.amp_cast(mx.nd.ones((1, 1, 1, 1), ctx=context), dtype=kind)
        mx.nd.Convolution(ones, ones, kernel=(1, 1), num_filter=1, no_bias=True).wait_to_read()
    except mx.MXNetError:
        return False
    return True


class LossScaler:
    """Dynamic scale of the loss, so that small gradients do not vanish in float16.

    The scale halves at a step whose gradients overflow, which then changes nothing else, and
    doubles after `growth_steps` good steps in a row. The gradients judged are the sums over the
    workers, so that all workers decide alike.
    """

    HIGHEST = 2.0 ** 24

    def __init__(self, scale=2.0 ** 16, growth_steps=2000):
        self.scale, self._growth_steps, self._good = scale, growth_steps, 0

    def accepts(self, gradients):
        """Judges the gradients of a step and sets the scale of the next one; waits for them.

        Raises:
          GradientsNotFinite: if they are not finite with a scale of 1 either.
        """
        if not all_finite(gradients):
            if self.scale <= 1:
                raise GradientsNotFinite("the sum of all workers' gradients is not finite, "
                                         "whatever the loss scale")
            self.scale, self._good = self.scale / 2, 0
            return False
        self._good += 1
        if self._good == self._growth_steps:
            self.scale, self._good = min(self.scale * 2, self.HIGHEST), 0
        return True

    def state(self):
        """Returns {"scale", "good"} as plain numbers."""
        return {"scale": self.scale, "good": self._good}

    def restore(self, numbers):
        """Continues from `state()`'s values."""
        self.scale, self._good = numbers["scale"], numbers["good"]
