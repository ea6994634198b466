"""Says what is on pictures: classes, joints of persons, the class of each pixel, objects, segments.

The network is an exported one, one of the zoo, or, of classifiers, that of a run directory.

    python tools/predict.py deploy/r50 photo.jpg
    python tools/predict.py deploy/r50 photos/ --topk 3 --save answer.png
    python tools/predict.py deploy/r50 photos/ --json > answers.json
    python tools/predict.py deploy/r50 photos/ --engine mxnet             fused; or onnxruntime
    python tools/predict.py resnest50 photo.jpg                           published weights
    python tools/predict.py resnest50 photo.jpg --weights r50.params --classes-file names.txt
    python tools/predict.py runs/mine photos/ --explain why.png           evidence and attention

    python tools/predict.py deploy/pose photo.jpg --boxes boxes.json --save skeletons.png
    python tools/predict.py simple_pose_resnest50 photo.jpg --weights pose.params --json

    python tools/predict.py deploy/seg photos/ --save overlays.png        colours and a legend
    python tools/predict.py deeplab_resnest50_ade photo.jpg --weights seg.params

    python tools/predict.py deploy/mask50 photos/ --save objects.png      boxes, labels and masks
    python tools/predict.py mask_rcnn_fpn_resnest50_coco photo.jpg --weights mask50.params

    python tools/predict.py deploy/panoptic photos/ --save segments.png   things and stuff

Crop, resizing and class names come from the card beside the exported files, or from the zoo;
--crop, --protocol and --classes-file replace them. A picture that cannot be read is named and left
out, and the exit code is then 2. A pose network needs the boxes of persons, a json file
{"photo.jpg": [[x, y, width, height], ...]}; without it each whole picture is one person.
"""
import argparse
import dataclasses
import json
import sys
from typing import NamedTuple, Optional

from gluon_resnest.config import ClassificationRecipe
from gluon_resnest.data.classification import read_class_names
from gluon_resnest.data.transforms import PROTOCOLS
from gluon_resnest.errors import UserError, exit_on_user_error
from gluon_resnest.interop.drawing import OPACITY
from gluon_resnest.run_directory import is_run

DEFAULTS = {"topk": 5, "batch": 16, "threshold": 0.5, "opacity": OPACITY}
_COLOURED = ("segmentation", "detection", "panoptic")
# Flag -> kinds of network that listen to it; all listen to those that are not here.
LISTENERS = {
    "topk": ("classification",), "batch": ("classification",), "explain": ("classification",),
    "protocol": ("classification",), "threshold": ("detection", "panoptic"),
    "boxes": ("pose",), "height": ("pose",), "width": ("pose",),
    "crop": ("classification", *_COLOURED),
    "classes_file": ("classification", *_COLOURED)}


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", metavar="PREFIX|NAME|RUN",
                        help="prefix of an exported pair, a zoo name, or a run directory")
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER")
    parser.add_argument("--weights", metavar="FILE", help="parameters for a zoo name; without it "
                        "the published weights are fetched")
    parser.add_argument("--topk", type=int, metavar="K",
                        help=f"classes an image (default: {DEFAULTS['topk']})")
    parser.add_argument("--save", metavar="PICTURE", help="draw the first 24 images with "
                        "their answers (.png, .pdf, .svg)")
    parser.add_argument("--opacity", type=float, metavar="SHARE",
                        help="of the colours that --save lays on segments, objects and joints, "
                        "and --explain on the evidence; 1 leaves the picture itself out (default: "
                        f"{DEFAULTS['opacity']})")
    parser.add_argument("--explain", metavar="PICTURE", help="draw for the first 12 images where a "
                        "classifier finds the evidence for its guess, and how its blocks weight "
                        "their splits; not for exported pairs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--crop", type=int, metavar="PX", help="evaluation crop")
    parser.add_argument("--protocol", metavar="NAME",
                        help=f"evaluation protocol: {', '.join(PROTOCOLS)}")
    parser.add_argument("--classes-file", metavar="FILE",
                        help="class names, one a line, in the order of the classes")
    parser.add_argument("--boxes", metavar="FILE", help="persons, for a pose network")
    for side, default in (("height", 256), ("width", 192)):
        parser.add_argument(f"--{side}", type=int, metavar="PX", help="of a person's crop: what "
                            f"--weights of a pose network were trained at (default: {default})")
    parser.add_argument("--threshold", type=float, metavar="SCORE", help="least score of the "
                        "objects of a detector or a panoptic network, 0 to 1 (default: "
                        f"{DEFAULTS['threshold']}); joints are drawn from 0.2 on")
    parser.add_argument("--engine", choices=("mxnet", "onnxruntime"), help="run an exported "
                        "network by this engine, operators fused; without it, files that were "
                        "exported with --target run by their engine, others as they are")
    parser.add_argument("--batch", type=int, metavar="N", help="images that are classified "
                        f"together (default: {DEFAULTS['batch']})")
    return parser.parse_args(argv)


def settle(flags, kind, word):
    """Fills in the defaults of the flags.

    Raises:
      UserError: if a flag is given that a network of this kind does not listen to, or its value is
        out of range.
    """
    for name, kinds in LISTENERS.items() if kind else ():
        if getattr(flags, name) is not None and kind not in kinds:
            raise UserError(f"--{name.replace('_', '-')} does not apply to {flags.network!r}, a "
                            f"{word}; leave it out")
    if kind == "classification" and flags.opacity is not None and not flags.explain:
        raise UserError("--opacity is that of the evidence that --explain PICTURE draws; give it, "
                        "or leave --opacity out")
    for name, value in DEFAULTS.items():
        if getattr(flags, name) is None:
            setattr(flags, name, value)
    if flags.topk < 1 or flags.batch < 1:
        raise UserError(f"--topk and --batch must be at least 1, got {flags.topk} and "
                        f"{flags.batch}")
    if flags.crop is not None and flags.crop < 1:
        raise UserError(f"--crop must be at least 1 px, got {flags.crop}")
    for name in ("threshold", "opacity"):
        if not 0 <= getattr(flags, name) <= 1:
            raise UserError(f"--{name} must be from 0 to 1, got {getattr(flags, name)}")


def kind_of(network):
    """Returns (task, word) of an exported prefix, a zoo name or a run directory.

    (None, None) of what looks like a prefix but is not there; loading it says so.

    Raises:
      UserError: if it is a run directory of something else than a classifier.
    """
    from gluon_resnest.interop import deployed
    from gluon_resnest.interop.by_task import CARDS, card_class
    from gluon_resnest.tasks import trained_run
    if deployed.is_exported(network):
        card = CARDS.get(str(deployed.task_of(network)), deployed.Card)
    elif is_run(network):
        trained_run.recipe_of(network, ClassificationRecipe)
        card = deployed.Card
    elif "/" in network:
        return None, None
    else:
        card = card_class(network)
    return card.task, card.word


def refuse_engine(flags):
    """Raises a UserError if --engine is given, for a network that is not exported."""
    if flags.engine:
        raise UserError(f"--engine runs exported networks, but {flags.network!r} is none; export "
                        "it with tools/export_model.py --target, or leave --engine out")


def load(flags):
    """Returns (Predictor, network) that the flags mean; the network of an exported pair is None."""
    from gluon_resnest.interop import deployed, trained
    from gluon_resnest.interop.predictor import Predictor
    net, run = None, is_run(flags.network)
    exported = not run and (deployed.is_exported(flags.network) or "/" in flags.network)
    if not exported:
        refuse_engine(flags)
    if flags.weights and (exported or run):
        raise UserError(f"--weights belongs to a zoo name, but {flags.network!r} is "
                        f"{'a run directory' if run else 'an exported pair'}; leave it out")
    if exported:
        card = deployed.read_card(flags.network)
        if card is None and flags.crop:
            card = deployed.assumed_card(flags.network, flags.crop)
    elif run:
        from gluon_resnest.tasks.trained_run import open_classifier
        net, card = open_classifier(flags.network)
    else:
        net, card = trained.from_zoo(flags.network, flags.weights)
    names = flags.classes_file and tuple(read_class_names(flags.classes_file, distinct=False))
    changes = {name: value for name, value in [("crop_px", flags.crop), ("class_names", names),
                                               ("protocol", flags.protocol)]
               if value is not None}
    if card is not None and changes:
        card = dataclasses.replace(card, **changes)
        card.check("the command line")
    if exported:
        return Predictor.load(flags.network, card, engine=flags.engine), None
    return Predictor.of_block(net, card), net


def load_pose(flags):
    """Returns the PosePredictor that the flags mean."""
    from gluon_resnest.interop import deployed, pose
    sides = {side: getattr(flags, side) for side in ("height", "width")
             if getattr(flags, side) is not None}
    if deployed.is_exported(flags.network):
        refuse_weights(flags)
        if sides:
            raise UserError(f"--{min(sides)} belongs to a zoo name, but {flags.network!r} is an "
                            "exported pair, whose card has its size; leave it out")
        return pose.PosePredictor.load(flags.network, engine=flags.engine)
    refuse_engine(flags)
    net, card = pose.from_zoo(flags.network, flags.weights)
    card = dataclasses.replace(card, **sides)
    card.check("the command line")
    return pose.PosePredictor.of_block(net, card)


def load_task(flags, module, predictor, px, changes=(), options=()):
    """Returns the predictor of a task's module that the flags mean.

    Args:
      flags: of the command line.
      module: has read_card and from_zoo.
      predictor: class to return one of; `options` are further arguments of it.
      px: field of the card that --crop replaces; `changes` are further fields.
    """
    from gluon_resnest.interop import deployed
    if deployed.is_exported(flags.network):
        refuse_weights(flags)
        net, card = None, module.read_card(flags.network)
    else:
        refuse_engine(flags)
        net, card = module.from_zoo(flags.network, flags.weights)
    names = flags.classes_file and tuple(read_class_names(flags.classes_file, distinct=False))
    card = dataclasses.replace(card, class_names=names or card.class_names,
                               **{px: flags.crop or getattr(card, px)}, **dict(changes))
    card.check("the command line")
    if net is None:
        return predictor.load(flags.network, card, engine=flags.engine, **dict(options))
    return predictor(net, card, **dict(options))


def refuse_weights(flags):
    """Raises a UserError if --weights is given, for an exported pair."""
    if flags.weights:
        raise UserError(f"--weights belongs to a zoo name, but {flags.network!r} is an exported "
                        "pair; leave it out")


class Told(NamedTuple):
    """What is left of the answers when they are printed."""

    kept: list              # the first MAX_DRAWN without a problem, if there is something to draw
    files: int
    problems: int
    first: Optional[str]    # problem


def tell(answers, flags, record, lines):
    """Prints each answer when it is there, so that memory does not grow with their number.

    Args:
      answers: iterable of what has `file` and `problem`.
      flags: of the command line.
      record: an answer's values for JSON, a dict.
      lines: an answer's lines for a person.

    Returns:
      `Told`.
    """
    from gluon_resnest.interop.drawing import MAX_DRAWN
    kept, files, problems, first = [], 0, 0, None
    try:
        for answer in answers:
            files += 1
            if answer.problem:
                problems, first = problems + 1, first or answer.problem
            elif (flags.save or flags.explain) and len(kept) < MAX_DRAWN:
                kept.append(answer)
            if flags.json:
                values = {"file": str(answer.file), "problem": answer.problem, **record(answer)}
                print("[" if files == 1 else ",", json.dumps(values, indent=1), sep="\n", end="",
                      flush=True)
            else:
                print(answer.file, *lines(answer), *([answer.problem] if answer.problem else []),
                      sep="\n  ", flush=True)
    finally:
        if flags.json and files:
            print("\n]")
    return Told(kept, files, problems, first)


def tell_rows(predictor, flags, files, *, key, rows_of, line_of, draw):
    """Prints the rows of each answer, as lines or as JSON below `key`, and draws it for --save.

    Args:
      predictor: answers files.
      rows_of, line_of: an answer's rows; a row's line.
      draw: draws answers for --save.

    Returns:
      `Told`.
    """
    def rows(answer):
        return [] if answer.problem else rows_of(answer)

    told = tell(predictor.answer(files), flags, lambda answer: {key: rows(answer)},
                lambda answer: [line_of(row).rstrip() for row in rows(answer)])
    if flags.save:
        draw(flags.save, told.kept, predictor.card, flags.opacity)
    return told


def tell_poses(flags, files):
    """Finds the joints of the persons in all files; returns what is `Told`, and draws it."""
    from gluon_resnest.interop.pose import boxes_of, read_boxes
    from gluon_resnest.interop.pose_drawing import draw_poses
    predictor = load_pose(flags)
    boxes = boxes_of(files, read_boxes(flags.boxes), flags.boxes) if flags.boxes else None
    names = predictor.card.joints

    def record(answer):
        return {"persons": [
            {"box": box.tolist(), "joints": {name: joint.round(3).tolist()
                                             for name, joint in zip(names, joints)}}
            for box, joints in zip(answer.boxes, answer.joints)]}

    def lines(answer):
        for number, joints in enumerate(answer.joints, 1):
            yield f"person {number}"
            for name, (x, y, score) in zip(names, joints):
                yield f"  {name:15s} {x:7.1f} {y:7.1f}  {score:.2f}"

    told = tell(predictor.answer(files, boxes), flags, record, lines)
    if flags.save:
        draw_poses(flags.save, told.kept, predictor.card, flags.opacity)
    return told


def tell_labels(flags, files):
    """Labels the pixels of all files; returns what is `Told`, and draws it."""
    from gluon_resnest.interop import segmentation
    from gluon_resnest.interop.segmentation_drawing import draw_labelled
    predictor = load_task(flags, segmentation, segmentation.SegmentationPredictor, "crop_px")
    return tell_rows(
        predictor, flags, files, key="classes", draw=draw_labelled,
        rows_of=lambda answer: [{"index": number, "name": predictor.card.name(number),
                                 "share": share} for number, share in answer.shares()],
        line_of=lambda row: f"{100 * row['share']:6.2f} %  {row['name']}")


def tell_objects(flags, files):
    """Finds the objects in all files; returns what is `Told`, and draws it."""
    from gluon_resnest.interop import detection
    from gluon_resnest.interop.detection_drawing import draw_detected

    def line(row):
        edges = " ".join(f"{edge:7.1f}" for edge in row["box"])
        return f"{row['score']:.2f}  {row['name']:20s} {edges}"

    predictor = load_task(flags, detection, detection.DetectionPredictor, "short_px",
                          options={"threshold": flags.threshold})
    return tell_rows(predictor, flags, files, key="objects", line_of=line, draw=draw_detected,
                     rows_of=lambda answer: answer.rows(predictor.card))


def tell_segments(flags, files):
    """Finds the segments of all files; returns what is `Told`, and draws it."""
    from gluon_resnest.interop import panoptic
    from gluon_resnest.interop.panoptic_drawing import draw_segments

    def line(row):
        score = f"{row['score']:.2f}" if row["thing"] else ""
        return f"{100 * row['share']:6.2f} %  {row['name']:20s} {score}"

    predictor = load_task(flags, panoptic, panoptic.PanopticPredictor, "short_px",
                          changes={"confidence": flags.threshold})
    return tell_rows(predictor, flags, files, key="segments", line_of=line, draw=draw_segments,
                     rows_of=lambda answer: answer.rows(predictor.card))


def tell_classes(flags, files):
    """Classifies all files; returns what is `Told`, and draws it."""
    from gluon_resnest.interop.drawing import draw_answers
    predictor, net = load(flags)
    if flags.explain and net is None:
        raise UserError(f"--explain looks inside a network, but {flags.network!r} is an exported "
                        "pair; give the run directory, or the zoo name with --weights")
    told = tell(
        predictor.classify(files, topk=flags.topk, batch=flags.batch), flags,
        lambda answer: {"guesses": [guess._asdict() for guess in answer.guesses]},
        lambda answer: [f"{rank:2d}  {100 * guess.probability:6.2f} %  {guess.label}"
                        for rank, guess in enumerate(answer.guesses, 1)])
    if flags.save:
        draw_answers(flags.save, told.kept)
    if flags.explain:
        from gluon_resnest.interop.explanation_drawing import draw_explained
        draw_explained(flags.explain, net, predictor.card, [answer.file for answer in told.kept],
                       flags.opacity)
        print(f"drew {flags.explain}", file=sys.stderr)
    return told


TELLERS = {"classification": tell_classes, "pose": tell_poses, "segmentation": tell_labels,
           "detection": tell_objects, "panoptic": tell_segments}


def main(argv=None):
    flags = parse(argv)
    with exit_on_user_error():
        from gluon_resnest.interop.drawing import check_picture
        from gluon_resnest.interop.predictor import find_images
        kind, word = kind_of(flags.network)
        settle(flags, kind, word)
        for picture in filter(None, (flags.save, flags.explain)):
            check_picture(picture)
        told = TELLERS.get(kind, tell_classes)(flags, find_images(flags.images))
        if flags.save:
            print(f"drew {flags.save}", file=sys.stderr)
        if told.problems:
            done = "classified" if kind == "classification" else "looked at"
            raise UserError(f"{told.problems} of {told.files} images could not be {done}, first: "
                            f"{told.first}")


if __name__ == "__main__":
    main()
