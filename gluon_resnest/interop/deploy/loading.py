"""Loads what `deploy.export` wrote, or a plain exported pair, to run as fast as its engine can."""
import re

import mxnet as mx

from gluon_resnest.errors import UserError, check_choice
from gluon_resnest.interop import deployed
from gluon_resnest.interop.deploy import lowering, onnx_engine
from gluon_resnest.interop.deploy.record import Record, record_of
from gluon_resnest.provenance import sha256

ENGINE_OF = {"mxnet": "mxnet", "onnx": "onnxruntime"}      # target of an export -> who runs it
ENGINES = tuple(ENGINE_OF.values())
# Ending of a file -> the target that has it, or None; the longer of two that fit comes first.
_TARGET_OF = {".onnx": "onnx", "-symbol.json": "mxnet", "-0000.params": "mxnet", ".json": None}


class Loaded:
    """A network that was exported: float32 images (N, 3, H, W) to its output, both numpy.

    Attributes:
      engine, precision: that it runs by.
      versions: {library: version} of the engine.
    """

    def __init__(self, forward, engine, precision, versions):
        self.outputs = forward
        self.engine, self.precision, self.versions = engine, precision, versions

    def __call__(self, images):
        """Returns the only output of a batch."""
        output, = self.outputs(images)
        return output


def load(path, *, engine=None, device="cpu", card=None):
    """Loads an exported network to run as fast as its engine can; trusts no file.

    The card says which files are the network's, and for which engine: others of the same prefix
    are not looked at.

    Args:
      path: what the file names begin with, or one of the files.
      engine: "mxnet" or "onnxruntime"; None takes the one that the files are for.
      device: "cpu", or with MXNet "gpu" or "gpu(1)", where nothing is fused.
      card: instead of the classifier's card beside the files.

    Returns:
      A `Loaded`.

    Raises:
      UserError: if a file is absent, damaged, not what the card says or for another engine, or
        the engine is missing or cannot run it here.
    """
    if engine is not None:
        check_choice("engine", engine, ENGINES)
    prefix, named = _split(str(path))
    onnx_file, card_file = deployed.onnx_path(prefix), deployed.paths(prefix)[2]
    record = record_of(deployed.read_values(prefix), repr(str(card_file))) or Record("mxnet")
    if record.target == "mxnet":
        deployed.check_presence(prefix)
    others = {engine, ENGINE_OF.get(named)} - {ENGINE_OF[record.target]}
    if "onnxruntime" in others:
        raise UserError(f"there is no {str(onnx_file)!r} that its card {card_file.name!r} tells of "
                        "for the engine onnxruntime; export the network with --target onnx")
    if "mxnet" in others:
        raise UserError(f"{str(onnx_file)!r} is for the engine onnxruntime, not for mxnet; export "
                        "the network with --target mxnet")
    card = card or deployed.read_card(prefix)
    if card is None:
        raise UserError(f"{prefix!r} has no card {card_file.name!r}; export the network again")
    return (_load_onnx if record.target == "onnx" else _load_mxnet)(prefix, record, card, device)


def _split(path):
    """Returns (prefix, target of the file that a path names, or None)."""
    for ending, target in _TARGET_OF.items():
        if path.endswith(ending):
            return path[:-len(ending)], target
    return path, None


def _load_onnx(prefix, record, card, device):
    file, card_file = deployed.onnx_path(prefix), deployed.paths(prefix)[2]
    if device != "cpu":
        raise UserError(f"the engine onnxruntime runs on the CPU here, got device {device!r}; "
                        "leave it out")
    if not file.is_file():
        raise UserError(f"there is no {str(file)!r}, of which {card_file.name!r} is the card; copy "
                        "both again, or export again")
    if sha256(file) != record.sha256:
        raise UserError(f"{str(file)!r} is not the file that was exported: its SHA-256 differs "
                        f"from the one in {card_file.name!r}; copy both again, or export again")
    forward = onnx_engine.OnnxNetwork(file, tuple(card.input_shape[2:]))

    def checked(images):
        outputs = forward(images)
        if [output.shape[1:2] for output in outputs] != [
                shape[1:2] for shape in card.output_shapes]:
            raise UserError(f"{str(file)!r} gives outputs of shape {[x.shape for x in outputs]}, "
                            f"its card says {card.output_shapes}; export the network again")
        return outputs

    return Loaded(checked, "onnxruntime", record.precision, onnx_engine.version())


def _load_mxnet(prefix, record, card, device):
    ctx = mx.Context(*_device(device))
    if ctx.device_type == "gpu" and ctx.device_id >= mx.context.num_gpus():
        raise UserError(f"MXNet sees {mx.context.num_gpus()} GPUs here, got device {device!r}; "
                        "give cpu, or install the build for NVIDIA's GPUs")

    def lower(symbol, args, auxiliary):
        if ctx.device_type == "cpu":
            return lowering.lowered(symbol, args, auxiliary, record.precision, record.ranges,
                                    record.float_layers)
        if record.precision == "int8":
            raise UserError("int8 by MXNet runs on the CPU only; leave the device out")
        return symbol, args

    block = deployed.load_pair(prefix, card, ctx=ctx, lower=lower)
    block.hybridize(static_alloc=True, static_shape=True)

    def forward(images):
        with mx.autograd.pause(train_mode=False):
            outputs = block(mx.nd.array(images, ctx=ctx, dtype="float32"))
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return [output.astype("float32", copy=False).asnumpy() for output in outputs]

    return Loaded(forward, "mxnet", record.precision, {"mxnet": mx.__version__})


def _device(text):
    match = re.fullmatch(r"(cpu|gpu)(?:\((\d{1,3})\))?", text)
    if not match:
        raise UserError(f"the device must be cpu, gpu or gpu(NUMBER), got {text!r}")
    return match[1], int(match[2] or 0)
