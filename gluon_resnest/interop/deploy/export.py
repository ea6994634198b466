"""Exports a network for deployment: rewritten, lowered, compared, and only then written.

    target mxnet    PREFIX-symbol.json, PREFIX-0000.params, PREFIX.json
    target onnx     PREFIX.onnx, PREFIX.json

For MXNet the files hold a plain float32 graph that any MXNet loads; fusing, bfloat16 and int8 are
applied when `deployed.load` loads it, int8 by the ranges in the card.
"""
import dataclasses
import json
import tempfile
from pathlib import Path

import mxnet as mx

from gluon_resnest import params_file
from gluon_resnest.errors import MissingExtra, UserError, check_choice
from gluon_resnest.interop import deployed
from gluon_resnest.interop.deploy import judging, loading, lowering, onnx_engine
from gluon_resnest.interop.deploy.onnx_file import to_onnx
from gluon_resnest.interop.deploy.record import KEY, PRECISIONS, TARGETS, Record
from gluon_resnest.interop.deploy.rewriting import deploy_graph
from gluon_resnest.interop.export import fresh_inputs, run, settle, trace
from gluon_resnest.provenance import commit, sha256

# Operators whose arithmetic becomes int8.
_LAYERS = ("Convolution", "Deconvolution", "FullyConnected")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to make of a network.

    Attributes:
      target: "mxnet" or "onnx".
      precision: "fp32", "bf16" or "int8".
      mode: of the calibration, "naive" or "entropy".
      float_layers: convolutions and dense layers that stay float32 in int8; 0 is the first, -1 the
        last.
      min_agreement: least share of judging images with the class of the float32 network.
      force: write the files even if fewer agree.
    """

    target: str
    precision: str = "fp32"
    mode: str = "naive"
    float_layers: tuple = (0, -1)
    min_agreement: float = judging.MIN_AGREEMENT
    force: bool = False

    def __post_init__(self):
        check_choice("target", self.target, TARGETS)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("calibration mode", self.mode, lowering.MODES)
        if not 0 <= self.min_agreement <= 1:
            raise UserError(f"the least agreement must be from 0 to 1, got {self.min_agreement!r}")


def export_deployment(net, prefix, card, plan, read_images=None):
    """Writes a network for deployment, and replaces whatever was exported under these names.

    Args:
      net: HybridBlock with values in its parameters and one output.
      prefix: path that the file names begin with; its folder is made.
      card: what the net wants and means, see `interop.export`.
      plan: `Plan`.
      read_images: function that returns `calibration.Images`, called when all else is known to
        fit; needed below float32.

    Returns:
      What was measured: a text.

    Raises:
      UserError: if the plan cannot be carried out, too few images agree, or the network itself
        is so sensitive that no other order of its sums can repeat it.
      RuntimeError: if a float32 deployment differs from the network by more than TOLERANCE.
    """
    card.check("the card of the export")
    if len(card.output_shapes) != 1:
        raise UserError(f"{card.model} is a detector, which has no deploy graph; export it without "
                        "--target")
    _check_plan(card, plan, read_images)
    mx.nd.waitall()     # running statistics may still be on their way
    graph, arrays = deploy_graph(*trace(net))
    if plan.precision == "int8":
        lowering.chosen([node.name for node in graph.nodes if node.op in _LAYERS],
                        plan.float_layers)
    prefix = Path(prefix)
    if not prefix.name:
        raise UserError(f"the prefix {str(prefix)!r} names no files; give a path such as "
                        "deploy/r50, with which their names begin")
    images = read_images() if read_images else None
    write = _write_onnx if plan.target == "onnx" else _write_mxnet
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{prefix.name}.", dir=prefix.parent) as folder:
            aside = Path(folder) / prefix.name
            card = dataclasses.replace(card, commit=commit(), sha256=None)
            card, record, files = write(aside, graph, arrays, card, plan, images)
            _write_card(aside, card, record)
            report, checks = _judge(net, aside, card, plan, images)
            _write_card(aside, card, dataclasses.replace(record, checks=checks))
            settle(aside, prefix, (*files, ".json"))
    except OSError as error:
        raise UserError(f"cannot write {str(prefix)!r}: {error.strerror}; choose a prefix in a "
                        "writable folder with space") from error
    return report


def files_of(prefix, target):
    """Returns the paths that `export_deployment` writes."""
    endings = (".onnx", ".json") if target == "onnx" else (
        "-symbol.json", "-0000.params", ".json")
    return [Path(f"{prefix}{ending}") for ending in endings]


def _check_plan(card, plan, read_images):
    classifier = isinstance(card, deployed.Card)
    if plan.precision == "fp32":
        if read_images and not classifier:
            raise UserError(f"labelled images judge a classifier, but {card.model} is a "
                            f"{card.word}; leave --calibration out")
        return
    if not classifier:
        raise UserError(f"{plan.precision} is judged by the classes of images, but {card.model} is "
                        "no classifier; export it as fp32")
    if plan.target == "onnx" and plan.precision == "bf16":
        raise UserError("onnxruntime has no bf16 convolutions on a CPU; export fp32 or int8, or "
                        "--target mxnet")
    lowering.needs(plan.precision)
    if read_images is None:
        raise UserError(f"{plan.precision} needs images to calibrate with and to be judged on; "
                        "give --calibration RECORDS.rec or a folder")


def _write_mxnet(aside, graph, arrays, card, plan, images):
    symbol_file, weights_file, _ = deployed.paths(aside)
    symbol_file.write_text(graph.to_json(), encoding="utf-8")
    values = {name: mx.nd.array(array) for name, array in arrays.items()}
    params_file.write(weights_file, {name: value.asnumpy() for name, value in values.items()})
    ranges = None
    if plan.precision == "int8":
        args, auxiliary = deployed.by_kind(values)
        ranges = lowering.calibrate(mx.sym.load_json(graph.to_json()), args, auxiliary,
                                    [batch for batch, _ in images.calibration], plan.mode,
                                    plan.float_layers)
    card = dataclasses.replace(card, sha256={"symbol": sha256(symbol_file),
                                             "params": sha256(weights_file)})
    record = Record("mxnet", plan.precision, ranges,
                    plan.float_layers if plan.precision == "int8" else ())
    return card, record, ("-symbol.json", "-0000.params")


def _write_onnx(aside, graph, arrays, card, plan, images):
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", "onnx") from error
    file = deployed.onnx_path(aside)
    model = to_onnx(graph, arrays, inputs=(deployed.INPUT, 3),
                    output_rank=len(card.output_shapes[0]), note=f"{card.model}, {card.commit}")
    onnx.save(model, str(file))
    if plan.precision == "int8":
        layers = [node.name for node in model.graph.node
                  if node.op_type in ("Conv", "Gemm", "ConvTranspose")]
        plain = file.with_suffix(".fp32")
        file.replace(plain)
        onnx_engine.quantize(plain, file, [batch for batch, _ in images.calibration],
                             mode=plan.mode, float_nodes=lowering.chosen(layers, plan.float_layers))
        plain.unlink()
    return card, Record("onnx", plan.precision, sha256=sha256(file)), (".onnx",)


def _write_card(prefix, card, record):
    values = json.loads(card.to_json())
    values[KEY] = record.values()
    deployed.paths(prefix)[2].write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _judge(net, prefix, card, plan, images):
    """Returns (text, dict) of what comparing the written files with the network gave."""
    place = next(iter(net.collect_params().values())).list_ctx()[0]
    network = loading.load(prefix, engine=loading.ENGINE_OF[plan.target], card=card)
    checks, words = {}, []
    if plan.precision == "fp32":
        inputs = [*fresh_inputs(*card.input_shape[2:])]
        inputs += [batch for batch, _ in images.judging] if images else []
        error = judging.worst_difference(network.outputs, lambda x: run(net, x, place), inputs)
        if not error <= judging.TOLERANCE:      # also where it is not a number
            own = judging.sensitivity(lambda x: run(net, x, place), inputs)
            if own > judging.SENSITIVE:
                raise UserError(f"{card.model} cannot be deployed: its own output moves by "
                                f"{own:.1e} where its input moves by {judging.NUDGE:.0e}, as that "
                                "of a network does that is not trained or has diverged; give "
                                "trained weights")
            raise RuntimeError(f"the deploy graph differs from the network by {error:.1e} of the "
                               f"largest output; at most {judging.TOLERANCE:.0e} is allowed and "
                               "nothing was written")
        checks["difference"] = error
        words.append(f"differs from the network by {error:.1e} of the largest output")
    if images:
        comparison = judging.compare(network, lambda x: run(net, x, place)[0], images.judging)
        checks.update(comparison.values())
        words.append(str(comparison))
        if comparison.agreement < plan.min_agreement and not plan.force:
            raise UserError(f"the {plan.precision} network is too far from the float32 one: "
                            f"{comparison}; expected at least {100 * plan.min_agreement:g} %: give "
                            "more calibration images or another mode, or --force it")
    return "; ".join(words), checks
