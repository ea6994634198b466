"""Arrays as plain memory, and batches on their way to the device."""
import subprocess
import sys
import time

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from mxnet.gluon import nn

from gluon_resnest.engine.memory import to_device


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64])
def test_a_copy_of_the_same_values(dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    found = to_device(values, mx.cpu())
    assert found.dtype == np.float32 and found.shape == (2, 3, 4)
    np.testing.assert_array_equal(found.asnumpy(), values)
    values[:] = 7               # a loader writes its next batch to the same place
    assert found.asnumpy().max() == 23


def test_slices_and_turned_arrays():
    values = np.arange(24.).reshape(2, 3, 4)
    np.testing.assert_array_equal(to_device(values.T[1:], mx.cpu()).asnumpy(), values.T[1:])


def test_it_does_not_wait_for_the_steps_under_way():
    """A hybridized network is one operation of the engine, which nothing overtakes."""
    net = nn.HybridSequential()
    for _ in range(8):
        net.add(nn.Dense(1024, in_units=1024))
    net.initialize()
    net.hybridize(static_alloc=True)
    x = nd.zeros((1024, 1024))
    net(x).wait_to_read()
    start = time.perf_counter()
    last = [net(x) for _ in range(2)][-1]
    found = to_device(np.ones((8, 8)), mx.cpu())
    copied = time.perf_counter() - start
    last.wait_to_read()
    assert copied < 0.2 * (time.perf_counter() - start)
    assert found.asnumpy().sum() == 64


FORK = """
import os
import mxnet as mx
from mxnet import nd
from gluon_resnest.engine.memory import to_device
matrix = nd.ones((512, 512))
products = [nd.dot(matrix, matrix) for _ in range(20)]
batch = to_device(matrix.asnumpy()[:8], mx.cpu())
found = nd.dot(batch, products[-1])
del batch                               # from here on the queue alone holds it
child = os.fork()
if child:
    os.waitpid(child, 0)
    print(found[0, 0].asscalar())
else:
    os._exit(0)
"""


def test_a_process_may_fork_while_a_batch_waits_in_the_queue():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and float(done.stdout) == 512 * 512, done.stderr
