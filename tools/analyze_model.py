"""Says what a network costs, by stage and by operator, without running it.

    python tools/analyze_model.py resnest50
    python tools/analyze_model.py resnest101 --size 480x640 --batch 2 --output-stride 8
    python tools/analyze_model.py resnest50 --draw resnest50.png
    python tools/analyze_model.py --compare resnest50 resnest50_fast_2s1x64d
    python tools/analyze_model.py resnest50 --json > resnest50.json

Parameters leave running statistics out. A MAC is one multiply-accumulate of a convolution or dense
layer; products of two maps (attention gates, swish) are counted apart. Memory is that of float32
activations: the sum of all outputs, which training keeps at most, and the peak of inference. The
receptive field is the theoretical one of the convolutions; attention sees the whole image.
"""
import argparse
import dataclasses
import json
import re
import sys

from gluon_resnest.errors import UserError, exit_on_user_error


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", metavar="NAME", help="zoo name")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two networks, by stage")
    parser.add_argument("--size", default="224", metavar="HxW",
                        help="of the images, or one number for both (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, metavar="N",
                        help="images (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=1000, metavar="K")
    parser.add_argument("--output-stride", type=int, metavar="S",
                        help="8, 16 or 32 (default: the network's)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--draw", metavar="PICTURE", help="draw the network (.png, .pdf, .svg)")
    return parser.parse_args(argv)


def size_of(text):
    """Returns (height, width) of "HxW" or "S"."""
    spelled = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if not spelled:
        raise UserError(f"--size must be HxW or one number, got {text!r}")
    return int(spelled[1]), int(spelled[2] or spelled[1])


def table(rows, header):
    """Prints rows of words in columns, the first aligned left, the others right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        print("  ".join([row[0].ljust(widths[0])]
                        + [word.rjust(width) for word, width in zip(row[1:], widths[1:])]))


def count(number):
    return f"{number:,}"


def mega(number):
    return f"{number / 1e6:,.2f}"


def mebibytes(number):
    return f"{number / 2 ** 20:,.1f}"


def pixels(pair):
    return "{}x{}".format(*pair) if pair else "image"


def costs(total):
    """Returns the words of a total's four costs."""
    return [count(total.params), mega(total.macs), mega(total.products), mebibytes(total.bytes)]


COSTS = ["parameters", "MMACs", "M products", "MiB"]


def print_analysis(name, analysis):
    """Prints the table by stage, the table by operator, and the peak."""
    print(f"{name}, input {'x'.join(map(str, analysis.input_shape))}\n")
    table([[total.label, "x".join(map(str, total.shape[1:])), *costs(total), pixels(total.field)]
           for total in [*analysis.by_stage(), analysis.total()]],
          ["stage", "output", *COSTS, "field"])
    print()
    table([[total.label, str(total.layers), *costs(total)] for total in analysis.by_operator()],
          ["operator", "nodes", *COSTS])
    print(f"\npeak of inference: {mebibytes(analysis.peak_bytes)} MiB of activations")


def print_comparison(names, analyses):
    """Prints two networks side by side, by stage, and how the second relates to the first."""
    def rows(analysis):
        return {total.label: total for total in [*analysis.by_stage(), analysis.total()]}

    first, second = map(rows, analyses)
    labels = [*first, *(label for label in second if label not in first)]
    labels.append(labels.pop(labels.index("total")))
    printed = []
    for label in labels:
        row = [label]
        for key, words in (("params", count), ("macs", mega), ("bytes", mebibytes)):
            values = [getattr(side[label], key) if label in side else 0 for side in (first, second)]
            ratio = f"{values[1] / values[0]:.3f}" if values[0] else "-"
            row += [words(values[0]), words(values[1]), ratio]
        printed.append(row)
    print(f"A {names[0]}, B {names[1]}, input {'x'.join(map(str, analyses[0].input_shape))}\n")
    table(printed, ["stage", *(word for cost in ("parameters", "MMACs", "MiB")
                               for word in (f"{cost} A", "B", "B/A"))])
    peaks = " and ".join(mebibytes(analysis.peak_bytes) for analysis in analyses)
    print(f"\npeak of inference: {peaks} MiB of activations")


def as_json(name, analysis):
    """Returns a dict of plain values: totals by stage and operator, and every layer."""
    return {"model": name, "input_shape": analysis.input_shape,
            "peak_bytes": analysis.peak_bytes, "total": dataclasses.asdict(analysis.total()),
            "stages": [dataclasses.asdict(total) for total in analysis.by_stage()],
            "operators": [dataclasses.asdict(total) for total in analysis.by_operator()],
            "layers": [dataclasses.asdict(layer) for layer in analysis.layers]}


def main(argv=None):
    flags = parse(argv)
    with exit_on_user_error():
        if (flags.model is None) == (flags.compare is None):
            raise UserError("give either NAME or --compare A B; see --help")
        if flags.compare and flags.draw:
            raise UserError("--draw draws one network; leave --compare out")
        from gluon_resnest import zoo
        from gluon_resnest.interop.analysis import analyze
        from gluon_resnest.interop.drawing import check_picture
        from gluon_resnest.interop.network_drawing import draw_network
        if flags.draw:
            check_picture(flags.draw)
        names = flags.compare or [flags.model]
        analyses = [analyze(zoo.get_model(name, classes=flags.classes,
                                          output_stride=flags.output_stride),
                            size_of(flags.size), batch=flags.batch) for name in names]
        if flags.json:
            documents = [as_json(name, found) for name, found in zip(names, analyses)]
            print(json.dumps(documents if flags.compare else documents[0], indent=1))
        elif flags.compare:
            print_comparison(names, analyses)
        else:
            print_analysis(names[0], analyses[0])
        if flags.draw:
            draw_network(flags.draw, names[0], analyses[0])
            print(f"drew {flags.draw}", file=sys.stderr)


if __name__ == "__main__":
    main()
