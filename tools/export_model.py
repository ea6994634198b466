"""Exports a trained network: graph and parameters for deployment, and a card that explains them.

    python tools/export_model.py runs/r50 --out deploy/r50
    python tools/export_model.py --model resnest50 --weights r50.params --out deploy/r50
    python tools/export_model.py --model resnest50 --weights r50.params --crop 256 \\
        --classes-file names.txt --out deploy/r50

writes deploy/r50-symbol.json, deploy/r50-0000.params and deploy/r50.json, after it has reloaded the
first two through SymbolBlock and Module and compared them with the network on fresh inputs.

The run, or --model simple_pose_resnest50 --weights FILE, may also be of a pose recipe: the card is
then another, and crop, protocol and class names do not apply. The same holds for a segmentation
network, --model deeplab_resnest50_ade, and for a detector, --model mask_rcnn_fpn_resnest50_coco;
these take --classes-file and work at any size.

    python tools/predict.py deploy/r50 photo.jpg --save answer.png          uses them
    net = gluon.SymbolBlock.imports("deploy/r50-symbol.json", ["data"], "deploy/r50-0000.params")
"""
import argparse
import dataclasses
import os
from pathlib import Path

from gluon_resnest.data.transforms import PROTOCOLS
from gluon_resnest.errors import UserError, exit_on_user_error


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN",
                        help="run directory of a recipe; its best checkpoint is exported")
    parser.add_argument("--model", metavar="NAME", help="zoo name, instead of a run directory")
    parser.add_argument("--weights", metavar="FILE", help="parameters for --model, or other ones "
                        "for the run; --model without it takes the published weights")
    parser.add_argument("--out", required=True, metavar="PREFIX",
                        help="what the written files' names begin with")
    parser.add_argument("--crop", type=int, metavar="PX", help="evaluation crop, for the card "
                        "(default: the run's, or that of the published weights)")
    parser.add_argument("--protocol", metavar="NAME", help="evaluation protocol, for the card: "
                        f"{', '.join(PROTOCOLS)} (default: likewise)")
    parser.add_argument("--classes-file", metavar="FILE",
                        help="class names for the card, one a line, in the order of the classes")
    return parser.parse_args(argv)


def open_run(directory, weights):
    """Returns (net, card) of a run directory, with other weights if they are given."""
    from gluon_resnest import cli
    from gluon_resnest.interop import trained
    from gluon_resnest.interop.deployed import Card
    from gluon_resnest.interop.weights import load_parameters
    from gluon_resnest.tasks.trained_run import open_run as open_trained
    net, recipe = open_trained(directory)
    if weights:
        load_parameters(net, weights)
    file = Path(directory) / cli.CLASS_NAMES
    names = trained.read_class_names(file) if file.exists() else None
    return net, Card(recipe.network, recipe.classes, recipe.eval_px, recipe.eval_protocol,
                     class_names=names)


def pose_of(flags):
    """Returns (net, card) of the pose network that the flags mean, or None if they mean another."""
    from gluon_resnest.interop import pose
    from gluon_resnest.interop.weights import load_parameters
    from gluon_resnest.tasks import trained_run
    from gluon_resnest.zoo import POSE
    if flags.model is not None and flags.model.startswith(POSE):
        net, card = pose.from_zoo(flags.model, flags.weights)
    elif flags.run and trained_run.kind_of_run(flags.run) == "PoseRecipe":
        net, recipe = trained_run.open_pose_run(flags.run)
        if flags.weights:
            load_parameters(net, flags.weights)
        card = pose.PoseCard(POSE + recipe.network, recipe.height, recipe.width, recipe.margin,
                             flip=recipe.eval_flip)
    else:
        return None
    if flags.crop or flags.protocol or flags.classes_file:
        raise UserError("--crop, --protocol and --classes-file belong to classifiers, but "
                        f"{card.model} is a pose network; leave them out")
    return net, card


def segmentation_of(flags):
    """Returns (net, card) of the segmentation network that the flags mean, or None."""
    from gluon_resnest import cli
    from gluon_resnest.interop import segmentation, trained
    from gluon_resnest.interop.weights import load_parameters
    from gluon_resnest.tasks import trained_run
    names = None
    if flags.model is not None and segmentation.is_segmenter(flags.model):
        net, card = segmentation.from_zoo(flags.model, flags.weights)
    elif flags.run and trained_run.kind_of_run(flags.run) == "SegmentationRecipe":
        net, recipe = trained_run.open_segmentation_run(flags.run)
        if flags.weights:
            load_parameters(net, flags.weights)
        file = Path(flags.run) / cli.CLASS_NAMES
        names = trained.read_class_names(file) if file.exists() else None
        net = net.without_auxiliary()
        card = segmentation.SegmentationCard(
            recipe.network, recipe.classes, recipe.crop_px, recipe.base_px, recipe.scales,
            recipe.eval_flip, recipe.eval_rule, class_names=names)
    else:
        return None
    if flags.crop or flags.protocol:
        raise UserError("--crop and --protocol belong to classifiers, but "
                        f"{card.model} is a segmentation network; leave them out")
    names = flags.classes_file and trained.read_class_names(flags.classes_file)
    return net, dataclasses.replace(card, class_names=names or card.class_names)


def detector_of(flags):
    """Returns (net, card) of the detector that the flags mean, or None."""
    from gluon_resnest import cli
    from gluon_resnest.interop import detection, trained
    from gluon_resnest.interop.weights import load_parameters
    from gluon_resnest.tasks import trained_run
    if flags.model is not None and detection.is_detector(flags.model):
        net, card = detection.from_zoo(flags.model, flags.weights)
    elif flags.run and trained_run.kind_of_run(flags.run) == "DetectionRecipe":
        net, recipe = trained_run.open_detection_run(flags.run)
        if flags.weights:
            load_parameters(net, flags.weights)
        file = Path(flags.run) / cli.CLASS_NAMES
        card = detection.card_of(
            net, recipe.network, short_px=recipe.eval_px, max_px=recipe.max_px,
            class_names=trained.read_class_names(file) if file.exists() else None)
    else:
        return None
    if flags.crop or flags.protocol:
        raise UserError("--crop and --protocol belong to classifiers, but "
                        f"{card.model} is a detector; leave them out")
    names = flags.classes_file and trained.read_class_names(flags.classes_file)
    return net, dataclasses.replace(card, class_names=names or card.class_names)


def report(prefix, network):
    """Prints what was written; `network` describes it."""
    from gluon_resnest.interop import deployed
    for file in deployed.paths(prefix):
        print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB)")
    print(f"{network}; reloaded by SymbolBlock and Module and found equal to the network")


def main(argv=None):
    flags = parse(argv)
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")    # no log line at every bind
    with exit_on_user_error():
        if (flags.run is None) == (flags.model is None):
            raise UserError("give either a run directory or --model NAME; see --help")
        from gluon_resnest.interop import trained
        from gluon_resnest.interop.export import export_classifier, export_network
        pose = pose_of(flags)
        if pose:
            card = export_network(pose[0], flags.out, pose[1])
            report(flags.out, f"{card.model}, persons of {card.height} x {card.width} px")
            return
        segmentation = segmentation_of(flags)
        if segmentation:
            card = export_network(segmentation[0], flags.out, segmentation[1])
            report(flags.out, f"{card.model}, {card.classes} classes, windows of {card.crop_px} px")
            return
        detector = detector_of(flags)
        if detector:
            card = export_network(detector[0], flags.out, detector[1])
            report(flags.out, f"{card.model}, {card.classes} classes, images of any size")
            return
        if flags.run:
            net, card = open_run(flags.run, flags.weights)
        else:
            net, card = trained.from_zoo(flags.model, flags.weights)
        names = flags.classes_file and trained.read_class_names(flags.classes_file)
        changes = {"crop_px": flags.crop, "protocol": flags.protocol, "class_names": names}
        card = dataclasses.replace(card, **{name: value for name, value in changes.items()
                                            if value is not None})
        card = export_classifier(net, flags.out, card)
        report(flags.out, f"{card.model}, {card.classes} classes, crop {card.crop_px} px, protocol "
               f"{card.protocol}")


if __name__ == "__main__":
    main()
