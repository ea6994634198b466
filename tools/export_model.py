"""Exports a trained network: graph and parameters for deployment, and a card that explains them.

    python tools/export_model.py runs/r50 --out deploy/r50
    python tools/export_model.py --model resnest50 --weights r50.params --out deploy/r50
    python tools/export_model.py --model resnest50 --weights r50.params --crop 256 \\
        --classes-file names.txt --out deploy/r50

writes deploy/r50-symbol.json, deploy/r50-0000.params and deploy/r50.json, after it has reloaded the
first two through SymbolBlock and Module and compared them with the network on fresh inputs.

The run, or --model simple_pose_resnest50 --weights FILE, may also be of a pose recipe: the card is
then another, and --height and --width take the place of crop, protocol and class names. A
segmentation network, --model deeplab_resnest50_ade, a detector, --model
mask_rcnn_fpn_resnest50_coco, and a panoptic network have cards of their own, too; these take
--classes-file and work at any size.

    python tools/export_model.py runs/r50 --out deploy/r50 --target mxnet
    python tools/export_model.py runs/r50 --out deploy/r50 --target onnx
    python tools/export_model.py runs/r50 --out deploy/r50 --target onnx --precision int8 \\
        --calibration val.rec

write the deploy graph instead: batch norms folded, attention rewritten, any batch and size. For
mxnet it is again a pair of plain float32 operators; `predict.py --engine mxnet` and
`gluon_resnest.interop.deployed.load` fuse them, and lower them to --precision, when they load it.
For onnx it is deploy/r50.onnx. float32 must equal the network within 1e-4 of the largest output, on
noise and smooth pictures of two sizes and on the images of --calibration; below float32, at least
--min-agreement of images that were not calibrated with must get the same class.

    python tools/predict.py deploy/r50 photo.jpg --save answer.png          uses them
    net = gluon.SymbolBlock.imports("deploy/r50-symbol.json", ["data"], "deploy/r50-0000.params")
"""
import argparse
import dataclasses
import functools
import os
from pathlib import Path

from gluon_resnest.data.classification import read_class_names
from gluon_resnest.data.transforms import PROTOCOLS
from gluon_resnest.errors import UserError, exit_on_user_error

# Fields of a card and the flags that set them.
FLAGS = {"crop_px": "--crop", "protocol": "--protocol", "class_names": "--classes-file",
         "height": "--height", "width": "--width"}

# Flags of --target.
DEPLOY = ("precision", "calibration", "judging", "calibration_images", "judging_images",
          "calibration_mode", "float_layers", "min_agreement", "force")


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN",
                        help="run directory of a recipe; its best checkpoint is exported")
    parser.add_argument("--model", metavar="NAME", help="zoo name, instead of a run directory")
    parser.add_argument("--weights", metavar="FILE", help="parameters for --model, or other ones "
                        "for the run; --model without it takes the published weights")
    parser.add_argument("--out", required=True, metavar="PREFIX",
                        help="what the written files' names begin with; what was exported under "
                        "it before is replaced, whatever the target")
    parser.add_argument("--crop", type=int, metavar="PX", help="evaluation crop, for the card "
                        "(default: the run's, or that of the published weights)")
    parser.add_argument("--protocol", metavar="NAME", help="evaluation protocol, for the card: "
                        f"{', '.join(PROTOCOLS)} (default: likewise)")
    parser.add_argument("--classes-file", metavar="FILE",
                        help="class names for the card, one a line, in the order of the classes")
    for side in ("height", "width"):
        parser.add_argument(f"--{side}", type=int, metavar="PX", help="of a person's crop, for the "
                            "card of a pose network: what its weights were trained at (default: "
                            "the run's, or 256 x 192)")
    deploy = parser.add_argument_group("deploy graph")
    deploy.add_argument("--target", choices=("mxnet", "onnx"), help="engine to write a deploy "
                        "graph for; without it the graph is the trained one")
    deploy.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32",
                        help="of the arithmetic (default: %(default)s); bf16 needs a CPU with it")
    deploy.add_argument("--calibration", metavar="REC|FOLDER", help="labelled images, a .rec file "
                        "or a folder for each class: some give int8 its ranges, others judge the "
                        "result")
    deploy.add_argument("--judging", metavar="REC|FOLDER", help="judge on these instead, such as "
                        "the test set")
    deploy.add_argument("--calibration-images", type=int, default=128, metavar="N",
                        help="images that give ranges (default: %(default)s)")
    deploy.add_argument("--judging-images", type=int, default=512, metavar="N",
                        help="other images, that judge (default: %(default)s)")
    deploy.add_argument("--calibration-mode", choices=("naive", "entropy"), default="naive",
                        help="naive: least and greatest values; entropy: tails cut off, slow "
                        "(default: %(default)s)")
    deploy.add_argument("--float-layers", default="0,-1", metavar="I,J", help="convolutions and "
                        "dense layers that stay float32 in int8, counted from the first as 0 or "
                        "the last as -1; '' for none (default: %(default)s)")
    deploy.add_argument("--min-agreement", type=float, default=0.97, metavar="SHARE",
                        help="least share of judging images with the same class as in float32 "
                        "(default: %(default)s)")
    deploy.add_argument("--force", action="store_true", help="write it even if fewer agree")
    return parser.parse_args(argv)


def plan_of(flags):
    """Returns the `deploy.export.Plan` that the flags mean, or None without --target."""
    if flags.target is None:
        defaults = parse(["--out", ""])
        given = [name for name in DEPLOY if getattr(flags, name) != getattr(defaults, name)]
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} belongs to a deploy graph; add "
                            "--target mxnet or onnx")
        return None
    from gluon_resnest.interop.deploy import calibration
    from gluon_resnest.interop.deploy.export import Plan
    calibration.check_counts(flags.calibration_images, flags.judging_images)
    if flags.judging and not flags.calibration:
        raise UserError("--judging takes the place of some images of --calibration; add "
                        "--calibration, or leave it out")
    try:
        layers = tuple(int(number) for number in flags.float_layers.split(",") if number)
    except ValueError as error:
        raise UserError(f"--float-layers must be numbers such as 0,-1, got {flags.float_layers!r}"
                        ) from error
    return Plan(flags.target, flags.precision, flags.calibration_mode, layers,
                flags.min_agreement, flags.force)


def deploy(net, card, plan, flags):
    """Writes a deploy graph and prints what was measured."""
    from gluon_resnest.interop.deploy import calibration
    from gluon_resnest.interop.deploy.export import export_deployment, files_of
    read_images = None
    if flags.calibration:
        read_images = functools.partial(
            calibration.read_images, flags.calibration, card, judging_source=flags.judging,
            calibration=flags.calibration_images, judging=flags.judging_images)
    measured = export_deployment(net, flags.out, card, plan, read_images)
    for file in files_of(flags.out, plan.target):
        print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB)")
    print(f"{card.model}, {plan.precision} for {plan.target}; {measured}")


def of_run(directory, weights):
    """Returns (net, card) of a run directory of any recipe, with other weights if given."""
    from gluon_resnest.interop.weights import load_parameters
    from gluon_resnest.run_directory import CLASS_NAMES
    from gluon_resnest.tasks import trained_run
    file = Path(directory) / CLASS_NAMES
    net, card = {"PoseRecipe": pose_run, "SegmentationRecipe": segmentation_run,
                 "DetectionRecipe": detection_run, "PanopticRecipe": panoptic_run}.get(
        trained_run.kind_of_run(directory), trained_run.open_classifier)(directory)
    if weights:
        load_parameters(net, weights)
    if card.task == "segmentation":     # the auxiliary head has its values in `weights` too
        net = net.without_auxiliary()
    if "class_names" in card.adjustable and file.is_file():
        names = tuple(read_class_names(file, distinct=False))
        card = dataclasses.replace(card, class_names=names)
    return net, card


def pose_run(directory):
    """Returns (net, card) of a run directory of a pose recipe."""
    from gluon_resnest.interop.pose import PoseCard
    from gluon_resnest.tasks import trained_run
    from gluon_resnest.zoo import POSE
    net, recipe = trained_run.open_pose_run(directory)
    return net, PoseCard(POSE + recipe.network, recipe.height, recipe.width, recipe.margin,
                         flip=recipe.eval_flip)


def segmentation_run(directory):
    """Returns (net, card) of a run directory of a segmentation recipe."""
    from gluon_resnest.interop.segmentation import SegmentationCard
    from gluon_resnest.tasks import trained_run
    net, recipe = trained_run.open_segmentation_run(directory)
    return net, SegmentationCard(recipe.network, recipe.classes, recipe.crop_px, recipe.base_px,
                                 recipe.scales, recipe.eval_flip, recipe.eval_rule)


def detection_run(directory):
    """Returns (net, card) of a run directory of a detection recipe."""
    from gluon_resnest.interop import detection
    from gluon_resnest.tasks import trained_run
    net, recipe = trained_run.open_detection_run(directory)
    return net, detection.card_of(net, recipe.network, short_px=recipe.eval_px,
                                  max_px=recipe.longest_eval_px, resize=recipe.resize)


def panoptic_run(directory):
    """Returns (net, card) of a run directory of a panoptic recipe."""
    from gluon_resnest.interop import panoptic
    from gluon_resnest.tasks import trained_run
    net, recipe = trained_run.open_panoptic_run(directory)
    return net, panoptic.card_of(
        net, recipe.network, confidence=recipe.confidence, overlap=recipe.overlap,
        stuff_area=recipe.stuff_area, short_px=recipe.eval_px, max_px=recipe.longest_eval_px,
        resize=recipe.resize, class_names=net.detector.classes + net.stuff)


def network_of(flags):
    """Returns (net, card) of the network that the flags mean."""
    if flags.run:
        net, card = of_run(flags.run, flags.weights)
    else:
        from gluon_resnest.interop import by_task
        net, card = by_task.from_zoo(flags.model, flags.weights)
    given = {"crop_px": flags.crop, "protocol": flags.protocol, "class_names": flags.classes_file,
             "height": flags.height, "width": flags.width}
    given = {name: value for name, value in given.items() if value is not None}
    wrong = [FLAGS[name] for name in given if name not in card.adjustable]
    if wrong:
        raise UserError(f"{wrong[0]} does not apply to {card.model}, a {card.word}; leave it out")
    if flags.classes_file:
        given["class_names"] = tuple(read_class_names(flags.classes_file, distinct=False))
    return net, dataclasses.replace(card, **given)


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
        plan = plan_of(flags)
        net, card = network_of(flags)
        if plan:
            deploy(net, card, plan, flags)
        else:
            from gluon_resnest.interop.export import export_classifier, export_network
            classifier = card.task == "classification"
            card = (export_classifier if classifier else export_network)(net, flags.out, card)
            report(flags.out, f"{card.model}, {card.summary}")


if __name__ == "__main__":
    main()
