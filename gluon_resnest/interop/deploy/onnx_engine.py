"""Runs ONNX files in onnxruntime, and quantizes them with its static quantizer."""
import os

import numpy as np

from gluon_resnest.errors import MissingExtra, UserError

_MAX_BYTES = 2 << 30


def open_session(file, threads=None):
    """Returns an onnxruntime session for a file, on the CPU.

    Args:
      file: Path of an .onnx file.
      threads: of its own pool; None takes OMP_NUM_THREADS as MXNet does, else all cores.

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


def forward_of(session):
    """Returns a function float32 (N, 3, H, W) -> list of output arrays."""
    name = session.get_inputs()[0].name

    def forward(images):
        return session.run(None, {name: np.ascontiguousarray(images, np.float32)})

    return forward


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
