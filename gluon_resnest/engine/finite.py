"""Whether numbers are finite, and the error when they are not."""
import mxnet as mx
import numpy as np

_ARRAYS_AT_ONCE = 200        # MXNet's kernel takes a limited number of arguments


class NotFinite(FloatingPointError):
    """Training has met a number that is not finite; raised on all workers together.

    Attributes:
      step: the first known to be bad, counted from 1; its cause may lie before.
    """

    def __init__(self, sentence, step):
        super().__init__(sentence)
        self.step = step


class GradientsNotFinite(FloatingPointError):
    """The gradients of an update overflow however small the loss is scaled; on all workers."""


def all_finite(arrays):
    """Returns whether the sums of squares of float32 NDArrays on one device are finite; waits.

    So a norm above 1.8e19 counts as infinite. MXNet's own `multi_all_finite` takes fifteen times
    as long on a CPU.
    """
    chunks = [arrays[start:start + _ARRAYS_AT_ONCE]
              for start in range(0, len(arrays), _ARRAYS_AT_ONCE)]
    squares = [mx.nd.multi_sum_sq(*chunk, num_arrays=len(chunk)) for chunk in chunks]
    return all(bool(np.isfinite(found.asnumpy()).all()) for found in squares)
