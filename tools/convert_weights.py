#!/usr/bin/env python
"""Converts ResNeSt weights from and to every neighbouring system.

    python tools/convert_weights.py resnest50-528c19ca.pth resnest50.params
    python tools/convert_weights.py resnest50.params resnest50.safetensors
    python tools/convert_weights.py resnest50.params backbone.pth --to detectron2
    python tools/convert_weights.py mask_rcnn.pth mask_rcnn.params
    python tools/convert_weights.py mask_rcnn.pth resnest50.params --backbone

Reads PyTorch .pth (new and old container), .safetensors, detectron2 .pkl and MXNet .params without
executing anything in them; recognises the layout of the names and the network. The suffix of OUT
says which container is written: .params, .pth or .safetensors.

Whole networks are converted with their heads: Faster, Mask, Cascade and Cascade Mask R-CNN of
detectron2-ResNeSt and mmdetection, Faster R-CNN of GluonCV's zoo, SimplePose of mmpose. Their
numbers of classes and joints, box heads, norms and deformable stages are read off the tensors; the
line "build" is the Python that makes the network for the file. A detector's file says whose
conventions (anchors, alignment, pixels) it was trained with and loads into a network of these only.
Other heads, those of mmsegmentation among them, are dropped by name, and the backbone is converted.
"""
import argparse
import os

from gluon_resnest.errors import UserError, exit_on_user_error
from gluon_resnest.interop import checkpoints, convert
from gluon_resnest.provenance import sha256

CONTAINERS = {".params": "params", ".pth": "torch", ".pt": "torch", ".safetensors": "safetensors"}
# What --to takes: the layout of the names; the container follows the suffix.
TARGETS = {"params": "gluon", "torch": "torch", "timm": "torch", "safetensors": "torch",
           "mmpretrain": "mmpretrain", "mmpose": "mmpretrain", "mmdet": "mmdet",
           "detectron2": "detectron2", "gluoncv": "gluoncv"}
OF_PARAMS = ("params", "gluoncv")


def parse_args(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", help="weight file to read")
    parser.add_argument("target", metavar="OUT", help="weight file to write")
    parser.add_argument("--model", help="name of the network, default: recognised from the shapes")
    parser.add_argument("--to", choices=TARGETS,
                        help="system to write for, default: params for .params, else torch")
    parser.add_argument("--ema", action="store_true",
                        help="take the moving average of the weights that the file holds")
    parser.add_argument("--backbone", action="store_true",
                        help="leave out classifier and heads")
    parser.add_argument("--conventions", choices=convert.CONVENTIONS,
                        help="whose conventions a detector's .params file has that does not say it")
    parser.add_argument("--dry-run", action="store_true", help="report, but write nothing")
    return parser.parse_args(argv)


def target_of(path, to):
    """Returns (layout, container) of the file to write.

    Raises:
      UserError: unknown suffix, or a suffix and --to that contradict each other.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in CONTAINERS:
        raise UserError(f"OUT should end in one of {', '.join(CONTAINERS)}, got {path!r}")
    container = CONTAINERS[suffix]
    to = to or ("params" if container == "params" else "torch")
    if (to in OF_PARAMS) != (container == "params") or (
            to == "safetensors" and container != "safetensors"):
        raise UserError(f"--to {to} does not go with the suffix {suffix}; "
                        "leave out --to or change the suffix")
    return TARGETS[to], container


def reasons(dropped):
    """Returns lines of dropped names, one for each reason; counters are many and one item."""
    lines = []
    for reason in dict.fromkeys(dropped.values()):
        names = [name for name, why in dropped.items() if why == reason]
        counters = [name for name in names if name.endswith("num_batches_tracked")]
        shown = [f"{len(counters)} times *.num_batches_tracked"] if counters else []
        shown += [name for name in names if name not in counters]
        lines.append(f"          {reason}: {', '.join(shown)}")
    return lines


def main(argv=None):
    """Converts and reports."""
    args = parse_args(argv)
    layout, container = target_of(args.target, args.to)
    file = checkpoints.read_weights(args.source, ema=args.ema)
    source_hash = sha256(args.source)
    print(f"read      {args.source} ({file.container}), {len(file.tensors)} tensors")
    print(f"sha256    {source_hash}")
    for note in file.notes:
        print(f"note      {note}")
    done = convert.to_gluon(file.tensors, model=args.model, backbone=args.backbone,
                            file_name=os.path.basename(args.source),
                            conventions=args.conventions)
    found = done.naming.layout
    print(f"layout    {found.name} ({found.systems})"
          + (f", prefix {done.naming.prefix!r}" if done.naming.prefix else ""))
    print(f"network   {done.model}"
          + (f"; equal shapes: {', '.join(done.lookalikes)} (--model chooses)"
             if done.lookalikes else ""))
    print(f"build     {done.call}")
    headless = done.call.startswith("get_model") and "fc.weight" not in done.tensors
    print(f"used      {len(done.tensors)} tensors"
          + (", no classifier (load with ignore=('fc.*',))" if headless else ""))
    print("\n".join([f"dropped   {len(done.dropped)} tensors", *reasons(done.dropped)]))
    if args.dry_run:
        return
    checkpoints.write_weights(args.target, convert.from_gluon(
        done.tensors, layout, done.conventions), container, {
            "model": done.model, "layout": layout, "source_sha256": source_hash})
    print(f"wrote     {args.target} (layout {layout}, {container})")
    print(f"sha256    {sha256(args.target)}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
