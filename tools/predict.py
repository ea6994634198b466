"""Says what is on pictures: the most probable classes by an exported network or one of the zoo.

    python tools/predict.py deploy/r50 photo.jpg
    python tools/predict.py deploy/r50 photos/ --topk 3 --save answer.png
    python tools/predict.py deploy/r50 photos/ --json > answers.json
    python tools/predict.py resnest50 photo.jpg                           published weights
    python tools/predict.py resnest50 photo.jpg --weights r50.params --classes-file names.txt

Crop, resizing and class names come from the card beside the exported files, or from the zoo;
--crop, --protocol and --classes-file replace them. A picture that cannot be read is named and left
out, and the exit code is then 2.
"""
import argparse
import dataclasses
import json
import sys

from gluon_resnest.data.transforms import PROTOCOLS
from gluon_resnest.errors import UserError, exit_on_user_error


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", metavar="PREFIX|NAME",
                        help="prefix of an exported pair, or a zoo name")
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER")
    parser.add_argument("--weights", metavar="FILE", help="parameters for a zoo name; without it "
                        "the published weights are fetched")
    parser.add_argument("--topk", type=int, default=5, metavar="K",
                        help="classes an image (default: %(default)s)")
    parser.add_argument("--save", metavar="PICTURE", help="draw the first 24 images with "
                        "their answers (.png, .pdf, .svg)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--crop", type=int, metavar="PX", help="evaluation crop")
    parser.add_argument("--protocol", metavar="NAME",
                        help=f"evaluation protocol: {', '.join(PROTOCOLS)}")
    parser.add_argument("--classes-file", metavar="FILE",
                        help="class names, one a line, in the order of the classes")
    parser.add_argument("--batch", type=int, default=16, metavar="N",
                        help="images that are classified together (default: %(default)s)")
    return parser.parse_args(argv)


def load(flags):
    """Returns the Predictor that the flags mean."""
    from gluon_resnest.interop import deployed, trained
    from gluon_resnest.interop.predictor import Predictor
    exported = deployed.paths(flags.network)[0].exists() or "/" in flags.network
    if exported:
        if flags.weights:
            raise UserError(f"--weights belongs to a zoo name, but {flags.network!r} is an "
                            "exported pair; leave it out")
        card = deployed.read_card(flags.network)
        if card is None and flags.crop:
            card = deployed.assumed_card(flags.network, flags.crop)
    else:
        net, card = trained.from_zoo(flags.network, flags.weights)
    names = flags.classes_file and trained.read_class_names(flags.classes_file)
    changes = {name: value for name, value in [("crop_px", flags.crop), ("class_names", names),
                                               ("protocol", flags.protocol)] if value}
    if card is not None and changes:
        card = dataclasses.replace(card, **changes)
        card.check("the command line")
    return Predictor.load(flags.network, card) if exported else Predictor.of_block(net, card)


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
        from gluon_resnest.interop.drawing import check_picture, draw_answers
        from gluon_resnest.interop.predictor import find_images
        if flags.save:
            check_picture(flags.save)
        files = find_images(flags.images)
        answers = list(load(flags).classify(files, topk=flags.topk, batch=flags.batch))
        (print_json if flags.json else print_table)(answers)
        if flags.save:
            draw_answers(flags.save, answers)
            print(f"drew {flags.save}", file=sys.stderr)
        bad = [answer for answer in answers if answer.problem]
        if bad:
            raise UserError(f"{len(bad)} of {len(answers)} images could not be classified, first: "
                            f"{bad[0].problem}")


if __name__ == "__main__":
    main()
