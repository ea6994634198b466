"""Who can take part in a benchmark: which library, which Python, at which precisions."""
import subprocess
from dataclasses import dataclass, field
from typing import Dict, Tuple

from gluon_resnest.errors import UserError, nearest

PRECISIONS = ("fp32", "bf16", "int8")
INSTALL_PEERS = "make benchmark-peers"

_MXNET, _TORCH, _ONNX = "mxnet", "torch", "onnx"


@dataclass(frozen=True)
class Competitor:
    """A way to do the work of a benchmark.

    Attributes:
      library: module `sides/side_<library>.py` that does it.
      modules: must be importable; install: the command that makes them so.
      peer: runs under the peers' Python, not under ours.
      precisions: it offers.
      what: it is, in a few words.
      job: what differs in its job from the benchmark's.
      devices: it runs on.
    """

    library: str
    modules: Tuple[str, ...]
    install: str
    peer: bool
    precisions: Tuple[str, ...]
    what: str
    job: Dict[str, object] = field(default_factory=dict)
    devices: Tuple[str, ...] = ("cpu", "gpu")


def _ours(library, what, modules=("mxnet",), precisions=("fp32",), job=()):
    return Competitor(library, modules, "make setup", False, precisions, what, dict(job))


def _gluon(module, install, what):
    return Competitor(_MXNET, ("mxnet", module), install, False, ("fp32",), what)


def _peer(library, modules, what, precisions=("fp32", "bf16"), devices=("cpu", "gpu")):
    return Competitor(library, modules, INSTALL_PEERS, True, precisions, what, devices=devices)


_GLUONCV = _gluon("gluoncv", "make setup", "GluonCV's network, hybridized, static")
_AUTHORS = _gluon("resnest", "pip install --no-deps resnest==0.0.5",
                  "the authors' network, hybridized, static")

KINDS: Dict[str, Dict[str, Competitor]] = {
    "infer": {
        "ours": _ours(_MXNET, "our network, hybridized, static"),
        "deployed": _ours(_MXNET, "the file given by --deployed", precisions=PRECISIONS),
        "gluoncv": _GLUONCV,
        "authors": _AUTHORS,
        "timm": _peer(_TORCH, ("torch", "timm"), "timm's network, eager, channels last"),
        "torch-compile": _peer(_TORCH, ("torch", "timm"), "timm's network, compiled, frozen"),
        "onnxruntime": _peer(_ONNX, ("torch", "timm", "onnx", "onnxruntime"),
                             "timm's network as ONNX in onnxruntime", ("fp32", "int8"), ("cpu",)),
        "openvino": _peer(_ONNX, ("torch", "timm", "onnx", "openvino"),
                          "timm's network as ONNX in OpenVINO", PRECISIONS, ("cpu",)),
    },
    "train": {
        "ours": _ours(_MXNET, "our network and update", precisions=("fp32", "bf16")),
        "ours-recipe": _ours(_MXNET, "the same with mixup, smoothed labels, losses logged"),
        "ours-dropblock": _ours(_MXNET, "ours with DropBlock at 0.1", job={"dropblock": 0.1}),
        "ours-parts": _ours(_MXNET, "ours, the batch in four parts that add up",
                            job={"parts": 4}),
        "gluoncv": _GLUONCV,
        "authors": _AUTHORS,
        "timm": _peer(_TORCH, ("torch", "timm"), "timm's network, eager, channels last"),
        "torch-compile": _peer(_TORCH, ("torch", "timm"), "timm's network, compiled"),
    },
    "data": {
        "ours": _ours("loader", "our loader, transform with lighting", modules=("cv2",)),
        "timm": _peer("torch_loader", ("torch", "timm", "torchvision"),
                      "timm's transform, torch's DataLoader", ("fp32",)),
        "torchvision": _peer("torch_loader", ("torch", "timm", "torchvision"),
                             "torchvision's transform, torch's DataLoader", ("fp32",)),
    },
}
PROBE = Competitor("probe", ("numpy",), "make setup", False, PRECISIONS, "product of matrices")


def chosen(kind, names, precision, pythons, *, device="cpu"):
    """Returns ({name: Competitor}, [sentence about each that is left out]).

    Args:
      kind: key of KINDS.
      names: competitors, the first is what the others are compared with.
      precision: of PRECISIONS; only the same is compared with the same.
      pythons: {False: our Python, True: the peers'}, paths.
      device: "cpu" or "gpu".

    Raises:
      UserError: if there is no such competitor, it has no such precision, it does not run on the
        device, or the first is absent.
    """
    known, found, left_out = KINDS[kind], {}, []
    for name in names:
        if name not in known:
            raise UserError(f"{kind} knows no competitor {name!r}"
                            f"{nearest(name, known)}; known are {', '.join(known)}")
        competitor = known[name]
        if precision not in competitor.precisions:
            raise UserError(f"{name} offers {', '.join(competitor.precisions)}, not {precision}, "
                            "and only equal precisions are compared; "
                            + ("leave it out of --vs" if name != names[0] else
                               "give --deployed FILE of that precision" if "deployed" in known else
                               f"give --precision {' or '.join(competitor.precisions)}"))
        if device not in competitor.devices:
            raise UserError(f"{name} runs on {' and '.join(competitor.devices)} here, not on "
                            f"{device}; leave it out of --vs")
        python = pythons[competitor.peer]
        missing = _missing(python, competitor.modules)
        if not missing:
            found[name] = competitor
            continue
        left_out.append(f"{name} is left out: {python} cannot import {', '.join(missing)}; "
                        f"install with `{competitor.install}`")
        if name == names[0]:
            raise UserError(left_out[-1].replace("is left out", "cannot run"))
    return found, left_out


def _missing(python, modules):
    """Returns the modules that an interpreter does not find; all, if there is no interpreter."""
    program = ("import importlib.util, sys; "
               "print(*[name for name in sys.argv[1:] if not importlib.util.find_spec(name)])")
    try:
        return subprocess.run([python, "-c", program, *modules], capture_output=True, text=True,
                              check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return list(modules)
