"""ONNX files in onnxruntime and OpenVINO: timm's networks, exported by PyTorch."""
import os
import tempfile

from worker import Side

_CALIBRATION_BATCHES = 2


def make(job):
    """Returns the `Side` of inference on float32 (N, 3, H, W), of timm's network as ONNX."""
    import numpy as np
    shape = (job["batch"], 3, job["size"], job["size"])
    images = np.random.RandomState(0).standard_normal(shape).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        path, versions = _exported(job, images, folder)
        load = {"onnxruntime": _onnxruntime, "openvino": _openvino}[job["competitor"]]
        unit, own = load(job, path, images)
    return Side(unit, {**versions, **own})


def _exported(job, images, folder):
    """Writes timm's network as ONNX; returns (path, versions)."""
    import torch
    from side_torch import network
    net, versions = network(job)
    path = os.path.join(folder, "timm.onnx")
    with torch.no_grad():
        torch.onnx.export(net.eval(), (torch.from_numpy(images),), path, opset_version=17,
                          input_names=["data"], output_names=["logits"], dynamo=False)
    return path, versions


def _onnxruntime(job, path, images):
    import onnxruntime
    if job["precision"] == "int8":
        path = _quantized(path, images)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job["threads"], 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return (lambda: session.run(None, {"data": images}),
            {"onnxruntime": onnxruntime.__version__})


def _quantized(path, images):
    """Writes the INT8 form of an ONNX file beside it: static, per channel, random calibration."""
    import numpy as np
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(quantization.CalibrationDataReader):
        """Noise like the images: speed does not depend on what the ranges are."""

        def __init__(self):
            rng = np.random.RandomState(1)
            self._batches = iter([{"data": rng.standard_normal(images.shape).astype("float32")}
                                  for _ in range(_CALIBRATION_BATCHES)])

        def get_next(self):
            return next(self._batches, None)

    prepared, target = path + ".prepared", path + ".int8"
    quant_pre_process(path, prepared)
    quantization.quantize_static(
        prepared, target, Batches(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8)
    return target


def _openvino(job, path, images):
    import openvino
    core, versions = openvino.Core(), {"openvino": openvino.__version__.split("-")[0]}
    network = core.read_model(path)
    if job["precision"] == "int8":
        import nncf
        network = nncf.quantize(network, nncf.Dataset([images] * 4))
        versions["nncf"] = nncf.__version__
    compiled = core.compile_model(network, "CPU", {
        "INFERENCE_NUM_THREADS": job["threads"], "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if job["precision"] == "bf16" else "f32"})
    request = compiled.create_infer_request()
    return lambda: request.infer({0: images}), versions
