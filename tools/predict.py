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
from pathlib import Path

from gluon_resnest.data.classification import read_class_names
from gluon_resnest.data.transforms import PROTOCOLS
from gluon_resnest.errors import UserError, exit_on_user_error


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", metavar="PREFIX|NAME|RUN",
                        help="prefix of an exported pair, a zoo name, or a run directory")
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER")
    parser.add_argument("--weights", metavar="FILE", help="parameters for a zoo name; without it "
                        "the published weights are fetched")
    parser.add_argument("--topk", type=int, default=5, metavar="K",
                        help="classes an image (default: %(default)s)")
    parser.add_argument("--save", metavar="PICTURE", help="draw the first 24 images with "
                        "their answers (.png, .pdf, .svg)")
    parser.add_argument("--opacity", type=float, default=0.6, metavar="SHARE",
                        help="of the colours that --save lays on segments and objects; 1 leaves "
                        "the picture itself out (default: %(default)s)")
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
    parser.add_argument("--threshold", type=float, default=0.5, metavar="SCORE",
                        help="least score of a detector's objects (default: %(default)s)")
    parser.add_argument("--engine", choices=("mxnet", "onnxruntime"), help="run an exported "
                        "network by this engine, operators fused; without it, files that were "
                        "exported with --target run by their engine, others as they are")
    parser.add_argument("--batch", type=int, default=16, metavar="N",
                        help="images that are classified together (default: %(default)s)")
    return parser.parse_args(argv)


def refuse_engine(flags):
    """Raises a UserError if --engine is given, for a network that is not exported."""
    if flags.engine:
        raise UserError(f"--engine runs exported networks, but {flags.network!r} is none; export "
                        "it with tools/export_model.py --target, or leave --engine out")


def load(flags):
    """Returns (Predictor, network) that the flags mean; the network of an exported pair is None."""
    from gluon_resnest.interop import deployed, trained
    from gluon_resnest.interop.predictor import Predictor
    net, run = None, Path(flags.network, "config.json").is_file()
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
    """Returns the PosePredictor that the flags mean, or None if they mean another network."""
    from gluon_resnest.interop import deployed, pose
    from gluon_resnest.zoo import POSE
    if flags.network.startswith(POSE) and not deployed.is_exported(flags.network):
        refuse_engine(flags)
        net, card = pose.from_zoo(flags.network, flags.weights)
        return pose.PosePredictor.of_block(net, card)
    if deployed.task_of(flags.network) != pose.TASK:
        if flags.boxes:
            raise UserError(f"--boxes belongs to a pose network, but {flags.network!r} is a "
                            "classifier; leave it out")
        return None
    given = [name for name in ("weights", "crop", "protocol", "classes_file")
             if getattr(flags, name)]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} does not apply to {flags.network!r}, an "
                        "exported pose network; leave it out")
    return pose.PosePredictor.load(flags.network, engine=flags.engine)


def tell_poses(predictor, flags, files):
    """Finds the joints of the persons in all files; returns the answers, drawn and printed."""
    from gluon_resnest.interop.pose import read_boxes
    from gluon_resnest.interop.pose_drawing import draw_poses
    boxes = read_boxes(flags.boxes) if flags.boxes else None
    answers = list(predictor.answer(files, boxes))
    names = predictor.card.joints
    if flags.json:
        print(json.dumps([{"file": str(answer.file), "problem": answer.problem, "persons": [
            {"box": box.tolist(), "joints": {name: joint.round(3).tolist()
                                             for name, joint in zip(names, joints)}}
            for box, joints in zip(answer.boxes, answer.joints)]} for answer in answers], indent=1))
    else:
        for answer in answers:
            print(answer.file, *([answer.problem] if answer.problem else []), sep="\n  ")
            for number, joints in enumerate(answer.joints, 1):
                print(f"  person {number}")
                for name, (x, y, score) in zip(names, joints):
                    print(f"    {name:15s} {x:7.1f} {y:7.1f}  {score:.2f}")
    if flags.save:
        draw_poses(flags.save, answers, predictor.card)
    return answers


def load_task(flags, module, spells, predictor, px, changes=(), options=()):
    """Returns the predictor of a task's module that the flags mean, or None if they mean another.

    Args:
      flags: of the command line.
      module: has TASK, read_card and from_zoo.
      spells: says whether a zoo name is one of the task's.
      predictor: class to return one of; `options` are further arguments of it.
      px: field of the card that --crop replaces; `changes` are further fields.
    """
    from gluon_resnest.interop import deployed
    exported = deployed.is_exported(flags.network)
    if exported and deployed.task_of(flags.network) == module.TASK:
        if flags.weights:
            raise UserError(f"--weights belongs to a zoo name, but {flags.network!r} is an "
                            "exported pair; leave it out")
        net, card = None, module.read_card(flags.network)
    elif not exported and spells(flags.network):
        refuse_engine(flags)
        net, card = module.from_zoo(flags.network, flags.weights)
    else:
        return None
    if flags.protocol:
        raise UserError(f"--protocol does not apply to {flags.network!r}, a {card.word}; "
                        "leave it out")
    names = flags.classes_file and tuple(read_class_names(flags.classes_file, distinct=False))
    card = dataclasses.replace(card, class_names=names or card.class_names,
                               **{px: flags.crop or getattr(card, px)}, **dict(changes))
    card.check("the command line")
    if net is None:
        return predictor.load(flags.network, card, engine=flags.engine, **dict(options))
    return predictor(net, card, **dict(options))


def load_segmentation(flags):
    """Returns the SegmentationPredictor that the flags mean, or None if they mean another one."""
    from gluon_resnest.interop import segmentation
    return load_task(flags, segmentation, segmentation.is_segmenter,
                     segmentation.SegmentationPredictor, "crop_px")


def load_detection(flags):
    """Returns the DetectionPredictor that the flags mean, or None if they mean another one."""
    from gluon_resnest.interop import detection
    return load_task(flags, detection, detection.is_detector, detection.DetectionPredictor,
                     "short_px", options={"threshold": flags.threshold})


def load_panoptic(flags):
    """Returns the PanopticPredictor that the flags mean, or None if they mean another one."""
    from gluon_resnest.interop import panoptic
    return load_task(flags, panoptic, panoptic.is_panoptic, panoptic.PanopticPredictor,
                     "short_px", changes={"confidence": flags.threshold})


def print_rows(answers, key, rows_of, line_of, as_json):
    """Prints the rows of each answer, as lines or as JSON below `key`; none of a problem's."""
    rows = {answer.file: [] if answer.problem else rows_of(answer) for answer in answers}
    if as_json:
        print(json.dumps([{"file": str(answer.file), "problem": answer.problem,
                           key: rows[answer.file]} for answer in answers], indent=1))
        return
    for answer in answers:
        print(answer.file, *([answer.problem] if answer.problem else []), sep="\n  ")
        for row in rows[answer.file]:
            print(f"  {line_of(row)}".rstrip())


def tell_labels(predictor, flags, files):
    """Labels the pixels of all files; returns the answers, drawn and printed."""
    from gluon_resnest.interop.segmentation_drawing import draw_labelled
    answers = list(predictor.answer(files))
    print_rows(answers, "classes", lambda answer: [
        {"index": number, "name": predictor.card.name(number), "share": share}
        for number, share in answer.shares()],
        lambda row: f"{100 * row['share']:6.2f} %  {row['name']}", flags.json)
    if flags.save:
        draw_labelled(flags.save, answers, predictor.card, flags.opacity)
    return answers


def tell_objects(predictor, flags, files):
    """Finds the objects in all files; returns the answers, drawn and printed."""
    from gluon_resnest.interop.detection_drawing import draw_detected
    answers = list(predictor.answer(files))
    print_rows(answers, "objects", lambda answer: answer.rows(predictor.card),
               lambda row: f"{row['score']:.2f}  {row['name']:20s} "
               + " ".join(f"{edge:7.1f}" for edge in row["box"]), flags.json)
    if flags.save:
        draw_detected(flags.save, answers, predictor.card, flags.opacity)
    return answers


def tell_segments(predictor, flags, files):
    """Finds the segments of all files; returns the answers, drawn and printed."""
    from gluon_resnest.interop.panoptic_drawing import draw_segments
    answers = list(predictor.answer(files))
    print_rows(answers, "segments", lambda answer: answer.rows(predictor.card),
               lambda row: f"{100 * row['share']:6.2f} %  {row['name']:20s} "
               + (f"{row['score']:.2f}" if row["thing"] else ""), flags.json)
    if flags.save:
        draw_segments(flags.save, answers, predictor.card, flags.opacity)
    return answers


def tell_classes(flags, files):
    """Classifies all files; returns the answers, drawn and printed."""
    from gluon_resnest.interop.drawing import draw_answers
    predictor, net = load(flags)
    if flags.explain and net is None:
        raise UserError(f"--explain looks inside a network, but {flags.network!r} is an exported "
                        "pair; give the run directory, or the zoo name with --weights")
    answers = list(predictor.classify(files, topk=flags.topk, batch=flags.batch))
    (print_json if flags.json else print_table)(answers)
    if flags.save:
        draw_answers(flags.save, answers)
    if flags.explain:
        from gluon_resnest.interop.explanation_drawing import draw_explained
        draw_explained(flags.explain, net, predictor.card,
                       [answer.file for answer in answers if not answer.problem])
        print(f"drew {flags.explain}", file=sys.stderr)
    return answers


def print_table(answers):
    """Prints the guesses of each file, one a line."""
    for answer in answers:
        print(answer.file)
        for rank, guess in enumerate(answer.guesses, 1):
            print(f"  {rank:2d}  {100 * guess.probability:6.2f} %  {guess.label}")
        if answer.problem:
            print(f"  {answer.problem}")


def print_json(answers):
    """Prints a list of {"file", "guesses": [{"index", "name", "probability"}], "problem"}."""
    print(json.dumps([{"file": str(answer.file), "problem": answer.problem,
                       "guesses": [guess._asdict() for guess in answer.guesses]}
                      for answer in answers], indent=1))


def main(argv=None):
    flags = parse(argv)
    with exit_on_user_error():
        if flags.topk < 1 or flags.batch < 1:
            raise UserError(f"--topk and --batch must be at least 1, got {flags.topk} and "
                            f"{flags.batch}")
        from gluon_resnest.interop.drawing import check_picture
        from gluon_resnest.interop.predictor import find_images
        for picture in filter(None, (flags.save, flags.explain)):
            check_picture(picture)
        files = find_images(flags.images)
        pose, segmentation = load_pose(flags), load_segmentation(flags)
        detection, panoptic = load_detection(flags), load_panoptic(flags)
        if flags.explain and (pose or segmentation or detection or panoptic):
            raise UserError(f"--explain is for classifiers, but {flags.network!r} is none; leave "
                            "it out")
        if detection:
            answers = tell_objects(detection, flags, files)
        elif panoptic:
            answers = tell_segments(panoptic, flags, files)
        elif pose:
            answers = tell_poses(pose, flags, files)
        elif segmentation:
            answers = tell_labels(segmentation, flags, files)
        else:
            answers = tell_classes(flags, files)
        if flags.save:
            print(f"drew {flags.save}", file=sys.stderr)
        bad = [answer for answer in answers if answer.problem]
        if bad:
            others = pose or segmentation or detection or panoptic
            done = "looked at" if others else "classified"
            raise UserError(f"{len(bad)} of {len(answers)} images could not be {done}, first: "
                            f"{bad[0].problem}")


if __name__ == "__main__":
    main()
