"""Exports a trained classifier for deployment, and proves the files before it leaves them.

The training net is traced anew, in prediction mode and without anything that drops, so neither
its mode nor its cached graph matter and neither changes. Batch and image size stay free.
"""
import contextlib
import dataclasses
import logging
import os
import tempfile
import warnings
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import autograd

from gluon_resnest import params_file
from gluon_resnest.data.transforms import PROTOCOLS
from gluon_resnest.errors import UserError
from gluon_resnest.interop import deployed
from gluon_resnest.interop.deployed import INPUT
from gluon_resnest.interop.graph import BadGraph, parse_graph
from gluon_resnest.models.deform import fused_deformables
from gluon_resnest.models.dropblock import without_dropblock
from gluon_resnest.models.sync_batch_norm import plain_batch_norm
from gluon_resnest.provenance import commit, sha256

# Largest difference of logits, relative to the largest logit, between the net and its files. They
# repeat the net's operators, so that less than this is seen; trials gave exactly 0.
TOLERANCE = 1e-5
# Beyond this the fused arithmetic that Module uses unless told otherwise is worth a warning.
_FUSED_TOLERANCE = 1e-3

_log = logging.getLogger(__name__)


def export_classifier(net, prefix, card):
    """Writes a classifier as PREFIX-symbol.json, PREFIX-0000.params and PREFIX.json.

    The files are written aside, reloaded through SymbolBlock and through Module, compared with the
    net on inputs of two sizes, and get their names only then; a failure leaves nothing behind.
    Whatever was exported under these names, for any target, is replaced.

    Args:
      net: HybridBlock with values in its parameters, (N, 3, H, W) to logits (N, K).
      prefix: path that the names begin with; its folder is made.
      card: what the net wants and means; its `classes` must be those of the net.

    Returns:
      The `Card` that was written.

    Raises:
      UserError: if a path cannot be written, a value cannot be, or the net has no values yet.
      RuntimeError: if the reloaded files do not compute what the net does.
    """
    card.check("the card of the export")
    return export_network(net, prefix, dataclasses.replace(card, interpolation=interpolation(card)))


def export_network(net, prefix, card):
    """Writes any network as `export_classifier` does.

    Args:
      card: frozen dataclass that knows `check(source)`, `to_json()`, `input_shape`, `output_shapes`
        and has the fields `commit` and `sha256`, which are filled in.

    Returns, raises: as `export_classifier`.
    """
    card.check("the card of the export")
    mx.nd.waitall()     # running statistics may still be on their way
    graph, arrays = trace(net, outputs=len(card.output_shapes))
    prefix = Path(prefix)
    if not prefix.name:
        raise UserError(f"the prefix {str(prefix)!r} names no files; give a path such as "
                        "deploy/r50, with which their names begin")
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{prefix.name}.", dir=prefix.parent) as folder:
            aside = Path(folder) / prefix.name
            symbol_file, weights_file, card_file = deployed.paths(aside)
            symbol_file.write_text(graph.to_json(), encoding="utf-8")
            params_file.write(weights_file, {name: array.asnumpy()
                                             for name, array in arrays.items()})
            sums = {"symbol": sha256(symbol_file), "params": sha256(weights_file)}
            card = dataclasses.replace(card, commit=commit(), sha256=sums)
            card_file.write_text(card.to_json(), encoding="utf-8")
            deployed.load_pair(aside, card)
            verify(net, aside, *card.input_shape[2:])
            settle(aside, prefix, ("-symbol.json", "-0000.params", ".json"))
    except OSError as error:
        raise UserError(f"cannot write {str(prefix)!r}: {error.strerror}; choose a prefix in a "
                        "writable folder with space") from error
    return card


def trace(net, outputs=1):
    """Returns the prediction graph of a net and its arrays under `arg:` and `aux:` names.

    Variables carry the structural names of the parameters (`layer1.0.conv1.weight`), so that equal
    nets give equal files whatever counters MXNet had reached.
    """
    structural = {}
    for name, param in net._collect_params_with_prefix().items():
        structural.setdefault(param.name, (name, param))
    with without_dropblock(net), fused_deformables(net), plain_batch_norm(net), \
            autograd.pause(train_mode=False):
        symbol = net(mx.sym.var(INPUT))
    if isinstance(symbol, (list, tuple)):
        symbol = mx.sym.Group(list(symbol))
    if len(symbol.list_outputs()) != outputs:
        raise UserError(f"{type(net).__name__} gives several outputs, a classifier gives one; "
                        "export the classifier, not its features" if outputs == 1 else
                        f"{type(net).__name__} gives {len(symbol.list_outputs())} outputs, its "
                        f"card says {outputs}; make the card of this network")

    def rename(name):
        if name in structural:
            return structural[name][0]
        return name[len(net.prefix):] if name.startswith(net.prefix) else name

    arrays = {}
    auxiliary = set(symbol.list_auxiliary_states())
    try:
        for name in sorted(set(symbol.list_inputs()) - {INPUT}):
            label, param = structural[name]
            kind = "aux" if name in auxiliary else "arg"
            arrays[f"{kind}:{label}"] = param.data(param.list_ctx()[0]).as_in_context(mx.cpu())
    except (RuntimeError, mx.gluon.parameter.DeferredInitializationError) as error:
        raise UserError(f"parameter {label} has no values yet; load weights before exporting"
                        ) from error
    try:
        graph = parse_graph(symbol.tojson(), outputs)
    except BadGraph as error:
        raise UserError(f"cannot export {type(net).__name__}: {error}; allow it in "
                        "interop/graph.py if it is safe") from error
    return graph.without("Dropout").renamed(rename), arrays


def settle(aside, prefix, endings):
    """Gives files that were written aside their names; what was exported there before is removed.

    Files of another target go too: nothing would tell that they are of another network. Where a
    file cannot get its name, all is as it was; a kill leaves files of one of the two networks.

    Args:
      aside: what the new files' names begin with, in a folder of its own beside `prefix`.
      prefix: what their names are to begin with.
      endings: of the new files, the card's last.
    """
    before = aside.with_name("before")
    before.mkdir()
    moves = [(file, before / file.name)
             for file in (deployed.onnx_path(prefix), *deployed.paths(prefix)) if file.is_file()]
    moves += [(Path(f"{aside}{ending}"), Path(f"{prefix}{ending}")) for ending in endings]
    done = []
    try:
        for source, target in moves:
            os.replace(source, target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            os.replace(target, source)
        raise


def verify(net, prefix, height, width):
    """Compares the files of `prefix` with the net on inputs that neither has seen.

    By default Module fuses batch norms into convolutions (oneDNN), which rounds otherwise, and a
    net may magnify rounding: what the files hold is judged without fusion, and a large effect of
    fusion is logged.

    Raises:
      RuntimeError: if they differ by more than TOLERANCE of the largest logit.
    """
    symbol_file, weights_file, _ = map(str, deployed.paths(prefix))
    with warnings.catch_warnings():     # of the input's type, which the parameters decide
        warnings.simplefilter("ignore", UserWarning)
        block = mx.gluon.SymbolBlock.imports(symbol_file, [INPUT], weights_file, ctx=mx.cpu())
    place = next(iter(net.collect_params().values())).list_ctx()[0]
    for images in fresh_inputs(height, width):
        expected = run(net, images, place)
        with _without_fusion():
            module = _by_module(prefix, images)
        for engine, answer in (("SymbolBlock", run(block, images, mx.cpu())), ("Module", module)):
            error = difference(answer, expected)
            if not error <= TOLERANCE:     # also where it is not a number
                raise RuntimeError(
                    f"the exported files, reloaded by {engine}, differ from the network by "
                    f"{error:.1e} of the largest logit on input {images.shape}; at most "
                    f"{TOLERANCE:.0e} is allowed and nothing was written")
        fused = difference(_by_module(prefix, images), expected)
        if not fused <= _FUSED_TOLERANCE:
            _log.warning("this network magnifies rounding: fused by oneDNN, as Module does by "
                         "default, its logits differ by %.1e of the largest", fused)


def run(net, images, ctx):
    """Returns the outputs of a block in prediction mode, whatever the caller's mode; numpy."""
    with autograd.pause(train_mode=False):
        outputs = net(mx.nd.array(images, ctx=ctx))
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return [output.asnumpy() for output in outputs]


def difference(actual, expected):
    """Returns the largest difference of outputs relative to the largest expected value of each."""
    return np.max([abs(ours - theirs).max() / max(abs(theirs).max(), 1e-30)
                   for ours, theirs in zip(actual, expected)])      # NaN if one is


def fresh_inputs(height, width):
    """Yields noise (1, 3, height, width), then smooth pictures (2, 3, H, W) of another size."""
    rng = np.random.default_rng(width)
    yield rng.standard_normal((1, 3, height, width)).astype(np.float32)
    height, width = height + 32, max(32, width * 3 // 4)
    y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
    waves = rng.uniform(1, 9, (2, 3, 2, 1, 1)) * np.stack([y, x])
    yield (2 * np.sin(2 * np.pi * waves.sum(2))).astype(np.float32)


def interpolation(card):
    """Returns how the card's protocol resizes at its crop."""
    return getattr(PROTOCOLS[card.protocol](card.crop_px), "interpolation", "bicubic")


def _by_module(prefix, images):
    symbol, args, auxiliary = mx.model.load_checkpoint(str(prefix), 0)
    module = mx.mod.Module(symbol, data_names=[INPUT], label_names=None, context=mx.cpu())
    module.bind([(INPUT, images.shape)], for_training=False)
    module.set_params(args, auxiliary)
    module.forward(mx.io.DataBatch([mx.nd.array(images)]), is_train=False)
    return [output.asnumpy() for output in module.get_outputs()]


@contextlib.contextmanager
def _without_fusion():
    """Keeps Module from fusing operators: MXNet reads this variable at every bind."""
    name = "MXNET_SUBGRAPH_BACKEND"
    before = os.environ.get(name)
    os.environ[name] = "NONE"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
