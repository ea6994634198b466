"""Compares speed: inference, training step or input pipeline, ours against other libraries'.

    python tools/benchmark.py infer --vs gluoncv,torch-compile,onnxruntime,openvino --batch 16
    python tools/benchmark.py infer --deployed exported/resnest50 --vs gluoncv --precision fp32
    python tools/benchmark.py train --vs torch-compile,gluoncv --batch 16 --size 224
    python tools/benchmark.py train --with-recipe --with-dropblock
    python tools/benchmark.py train --workers 1,2
    python tools/benchmark.py data --data FOLDER --vs timm,torchvision
    python tools/benchmark.py infer --paper table4 --device gpu

Each competitor has a process of its own, and all take turns, round after round. Rounds in which
other processes held a CPU are dropped; if too few remain, the report says that it is none. `speed`
is relative to the first row, round by round: median and extremes. What the peers need is installed
by `make benchmark-peers`. --device gpu was written without a GPU to try it on.
"""
import argparse
import json
import os
import re
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from gluon_resnest.benchmark import report, rounds
from gluon_resnest.benchmark.competitors import KINDS, PRECISIONS, chosen
from gluon_resnest.benchmark.process import launcher
from gluon_resnest.benchmark.timing import FEWEST
from gluon_resnest.errors import UserError, exit_on_user_error
from gluon_resnest.files import write_whole
from gluon_resnest.interop.drawing import check_picture
from gluon_resnest.reproduction.elsewhere import SPEEDS

PAPER = {       # table -> kind, [(network, pixels)]
    # What the paper and its authors time on a V100, 16 images a batch.
    "table2": ("infer", [(f"resnest50_fast_{name}", 224) for name in
                         ("0s1x64d", "1s1x64d", "2s1x64d", "4s1x64d", "1s2x40d", "2s2x40d",
                          "4s2x40d", "1s4x24d")]),
    "table4": ("infer", [("resnest101", 256), ("resnest200", 320), ("resnest269", 416)]),
    "speeds": ("infer", [(network, px) for network, px, _ in SPEEDS]),
    # The CIFAR-10 report's, for a T4.
    "cifar1": ("train", [(name, 32) for name in (
        "resnet14_0s1x64d", "resnet14_1s1x64d", "resnest14_0s1x64d", "resnest14_1s1x64d",
        "resnest14_1s1x40d", "resnest14_1s2x64d", "resnest14_2s1x64d")]),
    "cifar2": ("train", [(name, 32) for name in (
        "resnest14_2s1x64d", "resnest32", "resnest50_fast_2s1x64d", "resnest101_fast_2s1x64d",
        "resnet18", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3")]),
}
MODEL, SIZE_PX = "resnest50", 224       # where neither --model, --size nor --paper says
BFLOAT16 = {"avx512_bf16", "amx_bf16"}


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = "; ".join(f"{kind}: {', '.join(known)}" for kind, known in KINDS.items())
    parser.add_argument("kind", choices=tuple(KINDS))
    parser.add_argument("--vs", default="", metavar="NAME,...",
                        help=f"competitors of ours ({kinds})")
    parser.add_argument("--model", metavar="NAME", help="infer, train: zoo name, with --deployed "
                        f"of the network that runs beside it (default: {MODEL})")
    parser.add_argument("--batch", type=int, default=16, help="images (default: %(default)s)")
    parser.add_argument("--size", type=int, help=f"pixels (default: {SIZE_PX})")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument("--threads", type=int, help="of a competitor, or loader processes "
                        "(default: one for each CPU)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"),
                        help="infer, train (default: %(default)s)")
    parser.add_argument("--deployed", metavar="PAIR|FILE.onnx",
                        help="infer: an exported network as first competitor")
    parser.add_argument("--engine", choices=("mxnet", "onnxruntime"),
                        help="of --deployed (default: the one the file is for)")
    parser.add_argument("--paper", choices=tuple(PAPER), help="networks and crops of a table "
                        "instead of --model and --size; of the paper's for infer, of the CIFAR-10 "
                        "report's for train")
    parser.add_argument("--with-recipe", action="store_true",
                        help="train: also with mixup, smoothed labels, metrics and log")
    parser.add_argument("--with-dropblock", action="store_true", help="train: also with DropBlock")
    parser.add_argument("--with-parts", action="store_true", help="train: also with the batch in "
                        "four parts whose gradients add up, for less memory")
    parser.add_argument("--workers", metavar="N,...", help="train: ours with so many processes, "
                        "each with --threads pinned CPUs (default: all CPUs shared out)")
    parser.add_argument("--horovod", metavar="MB:MS,...", help="train: with one number of "
                        "--workers, so many MB of a fusion buffer and ms of a cycle, a row for "
                        "each pair")
    parser.add_argument("--data", metavar="FOLDER", help="data: folder of class folders of JPEGs")
    parser.add_argument("--auto-augment", action="store_true", help="data: with AutoAugment")
    parser.add_argument("--peers-python", default=".venv-peers/bin/python", metavar="PATH",
                        help="interpreter that has the peers (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="undisturbed rounds wanted, "
                        f"at least {FEWEST} (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0,
                        help="length of a turn, at least one unit (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=6.0,
                        help="no round but the first begins that would end later (default: "
                        "%(default)s)")
    parser.add_argument("--limit", type=float, default=0.1, metavar="CPUS", help="what others may "
                        "hold in a turn that counts (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--plot", metavar="FILE.png", help="draw images per second")
    return parser.parse_args(argv)


def check(flags):
    """Raises a UserError for numbers and combinations that cannot be measured."""
    for name in ("batch", "size", "classes", "rounds", "seconds", "minutes", "threads"):
        value = getattr(flags, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name} must be positive, got {value}")
    if flags.rounds < FEWEST:
        raise UserError(f"--rounds must be at least {FEWEST}, for fewer are no measurement, got "
                        f"{flags.rounds}")
    if flags.json and (Path(flags.json).is_dir() or not Path(flags.json).parent.is_dir()):
        raise UserError(f"--json {flags.json} cannot be written; give a file in an existing folder")
    if flags.plot:
        check_picture(flags.plot)
    if flags.kind == "data" and not (flags.data and Path(flags.data).is_dir()):
        raise UserError(f"--data must be a folder of class folders of images, got {flags.data!r}")
    for name, kind in (("deployed", "infer"), ("with_recipe", "train"),
                       ("with_dropblock", "train"), ("with_parts", "train"), ("workers", "train"),
                       ("horovod", "train"), ("data", "data"), ("auto_augment", "data")):
        if getattr(flags, name) and flags.kind != kind:
            raise UserError(f"--{name.replace('_', '-')} belongs to {kind}, not to {flags.kind}; "
                            "leave it out")
    if flags.engine and not flags.deployed:
        raise UserError("--engine is what runs the file of --deployed; add that, or leave it out")
    if flags.paper and PAPER[flags.paper][0] != flags.kind:
        raise UserError(f"--paper {flags.paper} belongs to {PAPER[flags.paper][0]}, not to "
                        f"{flags.kind}; leave it out")
    check_network(flags)
    if flags.precision == "bf16" and flags.device == "cpu" and not BFLOAT16 & set(
            report.machine()["vectors"]):
        raise UserError("bf16 needs a CPU with AVX-512 BF16 or AMX, and this one has neither: it "
                        "would emulate them and be slower than fp32; use --precision fp32")


def check_network(flags):
    """Raises a UserError for flags about networks that would change nothing."""
    if flags.kind == "data" and flags.device != "cpu":
        raise UserError(f"--device {flags.device} belongs to infer and train, not to data; leave "
                        "it out")
    if flags.deployed and flags.paper:
        raise UserError("--paper times networks of the zoo, --deployed one file; leave one of them "
                        "out")
    for name in ("model", "size"):
        if flags.paper and getattr(flags, name):
            raise UserError(f"--{name} is said by the table of --paper {flags.paper}; leave it out")
    if flags.model and not names_network(flags):
        raise UserError(f"--model {flags.model} would change nothing, because " + (
            "data runs no network" if flags.kind == "data" else
            "only the file of --deployed runs, without --vs") + "; leave it out")


def names_network(flags):
    """Returns whether a network runs that --model names."""
    return flags.kind != "data" and not flags.paper and bool(not flags.deployed or flags.vs)


def competitors(flags):
    """Returns the names of the rows, the one that others are compared with first."""
    names = ["deployed"] if flags.deployed else ["ours"]
    names += [name for name, wanted in (("ours-recipe", flags.with_recipe),
                                        ("ours-dropblock", flags.with_dropblock),
                                        ("ours-parts", flags.with_parts)) if wanted]
    names += [name for name in flags.vs.split(",") if name and name not in names]
    if len(names) > 1 and (flags.workers or flags.paper):
        raise UserError("--workers and --paper compare ours with ours; leave --vs and --with-... "
                        "out")
    return names


def entries_of(flags, tell):
    """Returns the entries to measure, the probe's last."""
    pythons = {False: sys.executable, True: flags.peers_python}
    found, left_out = chosen(flags.kind, competitors(flags), flags.precision, pythons,
                             device=flags.device)
    for sentence in left_out:
        tell(sentence)
    cpus = sorted(os.sched_getaffinity(0))
    counts = worker_counts(flags.workers, len(cpus))
    threads = flags.threads or len(cpus) // max(counts)
    if threads * max(counts) > len(cpus) and flags.kind != "data":
        raise UserError(f"{max(counts)} worker(s) with {threads} thread(s) each need more than the "
                        f"{len(cpus)} CPUs of this process; give fewer")
    base = {"kind": flags.kind, "classes": flags.classes, "batch": flags.batch,
            "precision": flags.precision, "device": flags.device, "threads": threads,
            "dropblock": 0.0, "parts": 1, "file": flags.deployed or flags.data,
            "engine": flags.engine,
            "auto_augment": flags.auto_augment}
    entries, networks = [], PAPER[flags.paper][1] if flags.paper else [
        (flags.model or MODEL, flags.size or SIZE_PX)]
    models = [model for model, _ in networks]
    for name, competitor in found.items():
        for model, size in networks:
            for count in counts:
                label = model if models.count(model) == 1 else f"{model} at {size}"
                if not flags.paper:
                    label = f"{count} worker(s)" if flags.workers else name
                cores = [cpus[k * threads:(k + 1) * threads] for k in range(count)]
                entry = rounds.Entry(label, pythons[competitor.peer], {
                    **base, "competitor": name, "library": competitor.library, "model": model,
                    "size": size, "workers": count, "cores": cores if flags.workers else [],
                    **competitor.job}, {}, flags.batch * count)
                entries += horovod_entries(entry, flags.horovod) if flags.horovod else [entry]
    labels = [entry.label for entry in entries]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise UserError(f"several rows would be called {twice[0]!r}; give each number of --workers "
                        "and --horovod once, and with --paper one row for each network")
    if flags.device == "cpu" and flags.kind != "data":
        entries.append(rounds.probe(max(entries, key=lambda entry: entry.job["workers"]),
                                    sys.executable))
    return entries


def horovod_entries(entry, text):
    """Returns the entry once for each pair of "64:5,16:1"."""
    if entry.job["workers"] == 1 or not re.fullmatch(r"\d+:\d+(,\d+:\d+)*", text):
        raise UserError("--horovod must be pairs of MB and ms such as 64:5,16:1, with --workers "
                        f"2 or more, got {text!r} with {entry.job['workers']} worker(s)")
    pairs = [tuple(map(int, pair.split(":"))) for pair in text.split(",")]
    return [replace(entry, label=f"{megabytes} MB, {cycle} ms", environ={
        **entry.environ, "HOROVOD_FUSION_THRESHOLD": str(megabytes << 20),
        "HOROVOD_CYCLE_TIME": str(cycle)}) for megabytes, cycle in pairs]


def worker_counts(text, cpus):
    """Returns the numbers of "1,2", or [1] without any."""
    if not text:
        return [1]
    if not re.fullmatch(r"[1-9]\d?(,[1-9]\d?)*", text):
        raise UserError(f"--workers must be whole numbers such as 1,2, got {text!r}")
    counts = list(map(int, text.split(",")))
    if max(counts) > cpus:
        raise UserError(f"--workers {text} asks for {max(counts)} processes on {cpus} CPUs; give "
                        "at most one for each")
    if max(counts) > 1 and not launcher(sys.executable).is_file():
        raise UserError(f"--workers {text} needs {launcher(sys.executable)}, which is not there; "
                        "install Horovod with `pip install 'gluon-resnest[train]'`")
    return counts


def flops_of(flags):
    """Returns the floating point operations an image takes, None where rows differ in it."""
    if flags.kind == "data" or flags.paper or flags.deployed:
        return None
    from gluon_resnest.interop.analysis import analyze
    from gluon_resnest.zoo import get_model
    size = flags.size or SIZE_PX
    macs = analyze(get_model(flags.model or MODEL, classes=flags.classes),
                   (size, size)).total().macs
    return 2 * macs * (3 if flags.kind == "train" else 1)


def settings_of(flags, threads):
    """Returns {flag: value} of what was measured, where `threads` is that of a competitor."""
    left_out = {"kind", "vs", "rounds", "seconds", "minutes", "limit", "json", "plot",
                "peers_python"}
    values = {**vars(flags), "threads": threads, "size": flags.size or SIZE_PX,
              "model": flags.model or MODEL}
    if flags.paper:
        left_out.add("size")
    if not names_network(flags):
        left_out.add("model")
    return {name: value for name, value in values.items() if value and name not in left_out}


def main(argv=None):
    flags = parse(argv)
    with exit_on_user_error():
        check(flags)

        def tell(sentence):
            print(sentence, file=sys.stderr, flush=True)

        flops, entries = flops_of(flags), entries_of(flags, tell)
        plan = rounds.Plan(flags.rounds, flags.seconds, flags.minutes, flags.limit)
        with tempfile.TemporaryDirectory(prefix="gluon-resnest-benchmark-") as folder:
            outcome = rounds.run(entries, plan, Path(folder), tell=tell)
        made = report.document(flags.kind, entries, plan, outcome, flops=flops,
                               settings=settings_of(flags, entries[0].job["threads"]))
        print(report.text(made))
        if flags.json:
            write_whole(flags.json, json.dumps(made, indent=1) + "\n")
        if flags.plot:
            report.draw(made, flags.plot)


if __name__ == "__main__":
    for stop in (signal.SIGINT, signal.SIGTERM):        # the competitors are ended on the way out
        signal.signal(stop, lambda number, _: sys.exit(128 + number))
    main()
