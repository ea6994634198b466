"""The machine's peak: products of float32 matrices, which numpy's BLAS computes near the limit."""
import numpy as np
from worker import Side

_SIZE = 1536


def make(job):
    """Returns the `Side` of one matrix product, whose operations are counted in `flops`."""
    a = np.random.RandomState(0).rand(_SIZE, _SIZE).astype("float32")
    out = np.empty_like(a)
    return Side(lambda: np.dot(a, a, out=out), {"numpy": np.__version__}, flops=2 * _SIZE ** 3)
