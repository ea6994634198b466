"""Whether numbers are finite, and the error when they are not."""
import mxnet as mx
import numpy as np


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

    So a norm above 1.8e19 counts as infinite; of no arrays nothing is. MXNet's own
    `multi_all_finite` takes fifteen times as long on a CPU.
    """
    if not arrays:
        return True
    squares = mx.nd.multi_sum_sq(*arrays, num_arrays=len(arrays))
    return bool(np.isfinite(squares.asnumpy()).all())
