"""Renders docs/model_zoo.md and its plot from the table of the zoo and the papers' numbers."""
import functools
import hashlib
from collections import namedtuple
from pathlib import Path

from gluon_resnest import zoo
from gluon_resnest.errors import MissingExtra, UserError
from gluon_resnest.interop import published, store
from gluon_resnest.interop.analysis import analyze
from gluon_resnest.models.resnest import Architecture

PAGE, PLOT = "model_zoo.md", "model_zoo.png"
COMMAND = "python tools/render_model_zoo.py"

INTRO = f"""# Model zoo

Rendered by `{COMMAND}`; a test fails when it is not what `gluon_resnest/zoo/table.py` gives.

Parameters and MACs are measured on our networks by `gluon_resnest.interop.analysis`: parameters
with 1000 classes and without running statistics, MACs as multiply-accumulates of convolutions and
dense layers for one image. **Every accuracy on this page is a published one**, top-1 per cent on
the ImageNet validation set, named with its source; none was measured by this project.

![accuracy against MACs and parameters]({PLOT})

Published accuracies; MACs and parameters as printed, and as measured by us where nothing is printed
(ResNeSt at crops other than 224)."""

_EXAMPLE = f"resnest50-{zoo.VARIANTS['resnest50'].weights.sha1[0][:8]}"
_MIRROR = store.MIRROR_VARIABLE

GETTING_WEIGHTS = f"""## Getting weights

`get_model(NAME, pretrained=True)`, `--weights published` and a name after `--backbone-weights` take
the published file of a network from a folder, and download it there if it is missing. **Do not
count on the download**: GluonCV's server was reported dead in February 2024 (dmlc/gluon-cv#1778),
links of the authors earlier (zhanghang1989/ResNeSt#153, #183). Neither server was tried here. A
file that is not to be had is reported in one sentence with all that was tried.

| | |
| --- | --- |
| folder | `$MXNET_HOME/models`, or `~/.mxnet/models` where that is not set; GluonCV's, too |
| file | `NAME-HASH8.params`, as `{_EXAMPLE}.params`: the first 8 digits of the SHA-1 below |
| check | the SHA-1 of the content is the published one; **another file of that name is deleted** |
| mirror | `{_MIRROR}=FOLDER` or `=URL`, asked first: `NAME-HASH8.params`, else `.zip` |

A file of PyTorch or timm is converted, and then given by its path; it needs no torch. It does not
belong in that folder, because its SHA-1 is another one:

```
python tools/convert_weights.py resnest50-528c19ca.pth resnest50.params
python recipes/imagenet.py --model resnest50 --eval-only --rec-val val.rec \\
    --weights resnest50.params
```

In Python, `gluon_resnest.zoo.load_weights(net, "resnest50", "resnest50.params")` loads a path or a
URL; names and shapes must all fit. Other layouts: [migration](migration.md#weight-files), detectors
[there](detection.md#weights-of-other-systems)."""

CHECKING = """## Checking the zoo

`python tools/validate_zoo.py --csv zoo.csv` builds every network, sends an image through it and
compares parameters and MACs with this page; `--weights FOLDER --rec val.rec` measures the accuracy
of files. All 119 networks were right at a965a81 (AMD EPYC, 24 GB, MXNet 1.9.1)."""

# Where a count or a definition is not the one in print, and why.
DEVIATIONS = (
    ("tables 2 and 3", "up to 1.2 % fewer MACs than printed", "ours equal timm's to the last one; "
     "the counters behind the printed ones presumably count other operators too"),
    ("resnest50_fast_1s1x64d", "26.2 M parameters, printed 26.3 M",
     "26.27 M with running statistics, which the other printed rows leave out"),
    ("senet50, senet101, sknet101, resnext101_32x4d", "up to 0.5 % fewer parameters than printed",
     "the printed ones are those of the SKNet paper; ours equal timm's where timm has the network"),
    ("efficientnet_b4 to b7", "up to 4.6 % more MACs than printed",
     "the printed ones are rounded to two digits; ours equal timm's to the last one"),
    ("efficientnet_b0 to b7", "padding is symmetric",
     "the original pads the odd pixel below and to the right; sizes and counts are the same"),
    ("sknet50, sknet101", "one sigmoid", "equals the softmax over two logits of the original"),
    ("resnet50, resnet101", "the 3x3 convolution strides", "the printed MACs are those of this "
     "form; `resnet50_msra` and `resnet101_msra` stride in the first 1x1, as He et al. 2016 do"),
)

Point = namedtuple("Point", "series label gmacs params top1")


def write_page(folder):
    """Writes the page and its plot into `folder`.

    Raises:
      UserError: the folder cannot be written to.
    """
    folder = Path(folder)
    try:
        (folder / PAGE).write_text(render_page(), encoding="utf-8")
        draw_plot(folder / PLOT)
    except OSError as error:
        raise UserError(f"cannot write into {str(folder)!r}: {error.strerror}; choose a writable "
                        "folder with space") from error


def render_page():
    """Returns the text of the page."""
    return "\n\n".join([
        INTRO,
        GETTING_WEIGHTS,
        CHECKING,
        "## ResNeSt\n\nThe SHA-1 is that of the newest published parameter file (first 8 digits, "
        "as in its name); the crop and the protocol are those it is evaluated with.",
        _family(),
        "## What the paper compares with\n\nDefined and measured here, no parameter files.",
        _baselines(),
        "## Published numbers only\n\nQuoted in table 4 of the paper; these networks are not "
        "defined here.",
        _quoted(),
        "## Counts against the printed ones",
        _counts(),
        "### Deviations",
        _table(("networks", "what differs", "why"), DEVIATIONS),
        "## The CIFAR-10 report\n\nIts tables I and II by our names, parameters with 10 classes.",
        _report(),
    ]) + "\n"


def _table(header, rows):
    rows = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _millions(count):
    return f"{count / 1e6:.2f}"


def _giga(number):
    return f"{number:.2f}" if number >= 1 else f"{number:.3f}"


@functools.lru_cache(maxsize=None)
def measured_gmacs(name, crop_px):
    """Returns the 1e9 MACs of a network on one square image."""
    return analyze(zoo.get_model(name), (crop_px, crop_px)).total().macs / 1e9


def _family():
    rows = []
    for name, entry in zoo.VARIANTS.items():
        if not (isinstance(entry.arch, Architecture) and "resnest" in name):
            continue
        cells = [f"`{name}`", _millions(entry.params), _giga(entry.gmacs)]
        weights = entry.weights
        if weights:
            cells += [str(weights.crop_px), _giga(measured_gmacs(name, weights.crop_px)),
                      weights.protocol, f"{weights.top1:.2f}",
                      f"{weights.top5:.2f}" if weights.top5 else "", weights.source,
                      f"`{weights.sha1[0][:8]}`"]
        else:
            printed = _printed(name, 224)
            cells += ["224", _giga(entry.gmacs), "", f"{printed.top1:.2f}" if printed else "", "",
                      printed.table if printed else "", ""]
        rows.append(cells)
    return _table(("name", "M params", "GMACs at 224", "crop", "GMACs at crop", "protocol", "top-1",
                   "top-5", "source", "sha1"), rows)


def _printed(name, crop_px):
    """Returns the printed row of a network at a crop, or None."""
    return next((row for row in [*published.TABLE3, *published.TABLE2]
                 if (row.model, row.crop_px) == (name, crop_px)), None)


def _baselines():
    rows = []
    for name, entry in zoo.VARIANTS.items():
        if "resnest" in name:
            continue
        found = [row for row in [*published.TABLE3, *published.TABLE4, *published.EFFICIENTNETS]
                 if row.model == name]
        rows.append((f"`{name}`", _millions(entry.params), _giga(entry.gmacs),
                     ", ".join(f"{_accuracy(row)} at {row.crop_px}" for row in found),
                     "; ".join(dict.fromkeys(row.table for row in found))))
    return _table(("name", "M params", "GMACs at 224", "top-1 at crop", "source"), rows)


def _accuracy(row):
    """Returns the accuracy with the digits that are printed."""
    return f"{row.top1:.2f}" if row in published.TABLE3 else f"{row.top1:.1f}"


def _quoted():
    return _table(("network", "M params", "GMACs", "crop", "top-1"), [
        (row.label, str(row.params), str(published.SEARCHED_GMACS.get(row.label, "")),
         str(row.crop_px or ""), str(row.top1))
        for row in published.TABLE4 if row.model is None])


def compared():
    """Yields (printed row, parameters in 1e6, GMACs at its crop) of rows that print both."""
    for row in [*published.TABLE3, *published.TABLE2, *published.EFFICIENTNETS]:
        if row.gmacs and row.crop_px != 320:
            entry = zoo.variant(row.model)
            gmacs = entry.gmacs if row.crop_px == 224 else measured_gmacs(row.model, row.crop_px)
            yield row, entry.params / 1e6, gmacs


def _counts():
    rows = []
    for row, params, gmacs in compared():
        peer = published.TIMM.get(row.model)
        rows.append((row.label, f"`{row.model}`", str(row.params), f"{params:.2f}",
                     f"{100 * (params / row.params - 1):+.1f} %", str(row.gmacs), _giga(gmacs),
                     f"{100 * (gmacs / row.gmacs - 1):+.1f} %",
                     f"equal to `{peer[0]}`" if peer else ""))
    return _table(("row", "name", "M params printed", "ours", "", "GMACs printed", "ours", "",
                   "timm"), rows)


def _report():
    return _table(("row", "name", "M params printed", "ours"), [
        (label, f"`{name}`", f"{printed:.2f}", _millions(with_classes(name, 10)))
        for label, name, printed in published.REPORT])


def with_classes(name, classes):
    """Returns the parameters of a network of the table with that many classes."""
    width = zoo.get_model(name).fc.weight.shape[1]
    return zoo.variant(name).params - (1000 - classes) * (width + 1)


def points():
    """Returns the `Point`s of the plot."""
    found = []
    for row in published.TABLE3:
        if row.crop_px == 224 and row.label != "ResNeSt-101":       # that one: at 256, below
            series, _, depth = row.label.partition("-")
            series += "-fast" if depth.endswith("fast") else ""
            found.append(Point(series, depth.partition("-")[0], row.gmacs, row.params, row.top1))
    for row in published.TABLE4:
        if row.label.startswith("ResNeSt"):
            found.append(Point("ResNeSt", row.label.partition("-")[2],
                               measured_gmacs(row.model, row.crop_px), row.params, row.top1))
        elif row.model is None:
            found.append(Point("published only", row.label,
                               published.SEARCHED_GMACS.get(row.label), row.params, row.top1))
    for row in published.EFFICIENTNETS:
        found.append(Point("EfficientNet", row.label.partition("-")[2].lower(), row.gmacs,
                           row.params, row.top1))
    return found


def digest(drawn):
    """Returns what tells whether a plot shows these points; it is in the picture's description."""
    return hashlib.sha1(repr(drawn).encode()).hexdigest()


_STYLES = {"ResNeSt": ("#c0392b", "o"), "ResNeSt-fast": ("#e67e22", "o"),
           "EfficientNet": ("#3d9a68", "D"), "SKNet": ("#7d5ba6", "^"), "SENet": ("#2f7fb5", "v"),
           "ResNetD": ("#5d6d7e", "s"), "ResNeXt": ("#8e6e53", "P"), "ResNet": ("#95a5a6", "X"),
           "published only": ("#1f2933", "*")}

# Where a label would lie on another one: its offset in points instead of (6, -8).
_LABELS = {("published only", "AmoebaNet-A"): (-14, 7), ("ResNetD", "50"): (-16, -2),
           ("SENet", "50"): (-16, -5), ("SKNet", "50"): (7, -3), ("ResNeSt", "50"): (8, 1)}


def draw_plot(path):
    """Draws published accuracy against MACs and parameters into a PNG."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib") from None
    drawn = points()
    figure = Figure(figsize=(12.5, 5.6), facecolor="white")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, words in zip(panels, ("gmacs", "params"),
                                ("multiply-accumulates (10⁹, log)", "parameters (10⁶, log)")):
        for series, (colour, marker) in _STYLES.items():
            line = [point for point in drawn if point.series == series and getattr(point, key)]
            axes.plot([getattr(point, key) for point in line], [point.top1 for point in line],
                      marker=marker, color=colour, markersize=6.5, label=series,
                      linewidth=0 if series == "published only" else 1.7)
            for point in line:
                axes.annotate(point.label, (getattr(point, key), point.top1), fontsize=7.5,
                              color=colour, textcoords="offset points",
                              xytext=_LABELS.get((series, point.label), (6, -8)))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(words)
        axes.grid(color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("published top-1, ImageNet validation (%)")
    panels[1].legend(loc="lower right", fontsize=8.5, frameon=False)
    figure.suptitle("Published accuracy against cost; each network at its own crop", fontsize=12)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Description": digest(drawn)})
