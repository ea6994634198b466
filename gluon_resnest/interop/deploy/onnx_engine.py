"""Runs ONNX files in onnxruntime, and quantizes them with its static quantizer."""
import functools
import os

import numpy as np

from gluon_resnest.errors import MissingExtra, UserError
from gluon_resnest.interop.deploy.onnx_file import SIDES

_MAX_BYTES = 2 << 30


class OnnxNetwork:
    """Runs an ONNX file on images of any size, faster on those of one size.

    Only where onnxruntime knows height and width, it sees that the two sides of a residual sum
    are equally large, and adds within the convolution (decision 0140).

    Call with float32 (N, 3, H, W); returns a list of output arrays.

    Args:
      file, threads: see `open_session`; raises as that.
      size: (height, width) of most images, or None; others share a session that knows no size
        and is opened for the first of them.
    """

    def __init__(self, file, size=None, threads=None):
        self._open = functools.partial(open_session, file, threads)
        self._sessions = {size: self._open(size)}
        self._size, self._name = size, self._sessions[size].get_inputs()[0].name

    def __call__(self, images):
        size = self._size if images.shape[2:] == self._size else None
        if size not in self._sessions:
            self._sessions[size] = self._open()
        return self._sessions[size].run(
            None, {self._name: np.ascontiguousarray(images, np.float32)})


def open_session(file, threads=None, size=None):
    """Returns an onnxruntime session for a file, on the CPU.

    Args:
      file: Path of an .onnx file.
      threads: of its own pool; None takes OMP_NUM_THREADS as MXNet does, else all cores.
      size: (height, width) of all images, for a file that leaves both free; None leaves them so.

    Raises:
      UserError: if it is no network of one image input.
      MissingExtra: if onnxruntime is not installed.
    """
    runtime = _onnxruntime()
    if file.stat().st_size > _MAX_BYTES:
        raise UserError(f"{str(file)!r} is larger than 2 GB, which no export of this package is")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    asked = os.environ.get("OMP_NUM_THREADS", "")
    options.intra_op_num_threads = threads or (int(asked) if asked.isdigit() else 0)
    for name, length in zip(SIDES, size or ()):
        options.add_free_dimension_override_by_name(name, int(length))
    try:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:      # its exceptions have no common base of their own
        raise UserError(f"{str(file)!r} is not a network that onnxruntime can run: "
                        f"{str(error).splitlines()[0][:200]}; export it again") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        raise UserError(f"{str(file)!r} must have one float32 image input (N, 3, H, W); export it "
                        "again")
    return session


def quantize(source, target, batches, *, mode, float_nodes):
    """Writes an int8 copy of an ONNX file: QDQ form, weights per channel, activations uint8.

    Weights use 7 bits: CPUs without VNNI add pairs of products in 16 bits, which 8 bits overflow.

    Args:
      source, target: paths.
      batches: float32 arrays (N, 3, H, W) to calibrate with.
      mode: "naive" or "entropy", as `lowering.calibrate`.
      float_nodes: names of nodes that stay float32.
    """
    _onnxruntime()
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """Hands out the batches once, as onnxruntime asks for them: None at the end."""

        def __init__(self):
            self._batches = iter([{"data": images} for images in batches])

        def get_next(self):
            return next(self._batches, None)

    method = (quantization.CalibrationMethod.Entropy if mode == "entropy"
              else quantization.CalibrationMethod.MinMax)
    quantization.quantize_static(
        str(source), str(target), Reader(), quant_format=quantization.QuantFormat.QDQ,
        per_channel=True, reduce_range=True, activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8, calibrate_method=method,
        nodes_to_exclude=list(float_nodes))


def version():
    """Returns {"onnxruntime": its version}."""
    return {"onnxruntime": _onnxruntime().__version__}


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx") from error
    return onnxruntime
