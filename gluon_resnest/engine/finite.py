"""Whether numbers are finite, and the error when they are not."""
import mxnet as mx

_ARRAYS_AT_ONCE = 200        # MXNet's kernel takes a limited number of arguments


class NotFinite(FloatingPointError):
    """Training has met a number that is not finite; raised on all workers after the same step.

    Attributes:
      step: updates done when it was found; the fault lies at or before.
    """

    def __init__(self, sentence, step):
        super().__init__(sentence)
        self.step = step


def all_finite(arrays):
    """Returns whether no element of some float NDArrays on one device is infinite or NaN; waits."""
    verdict = mx.nd.ones((1,), ctx=arrays[0].context)
    for start in range(0, len(arrays), _ARRAYS_AT_ONCE):
        chunk = arrays[start:start + _ARRAYS_AT_ONCE]
        mx.nd.multi_all_finite(*chunk, num_arrays=len(chunk), init_output=False, out=verdict)
    return bool(verdict.asscalar())
