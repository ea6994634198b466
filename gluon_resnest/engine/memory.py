"""Arrays as plain memory of the host."""
import ctypes

import numpy as np
from mxnet import nd
from mxnet.base import _LIB, check_call


def address_of(array):
    """Returns where the values of an array begin, as a c_void_p.

    Inference on a CPU leaves weights in layouts of oneDNN; asking for the address puts the values
    back into the plain one. Nothing may be under way that uses the array.
    """
    address = ctypes.c_void_p()
    check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(address)))
    return address


def to_device(array, context):
    """Returns a float32 copy of an array-like on a device; does not wait for steps under way.

    `nd.array` copies when the engine comes to it, behind the steps it was handed before: the loop
    would stand still until then, and call it waiting for data (docs/decisions/0144).
    """
    array = np.asarray(array)
    copy = nd.empty(array.shape)            # on the host; new, so nothing else uses it
    if array.size:
        values = ctypes.cast(address_of(copy), ctypes.POINTER(ctypes.c_float))
        np.copyto(np.ctypeslib.as_array(values, array.shape), array, casting="unsafe")
    return copy.as_in_context(context)
