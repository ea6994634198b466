"""Draws explanations: where the evidence lies, and which split each channel listens to."""
import mxnet as mx
import numpy as np

from gluon_resnest.data import images
from gluon_resnest.data.transforms import eval_transform
from gluon_resnest.errors import UserError
from gluon_resnest.interop.drawing import OPACITY, check_opacity, check_picture, literal, save
from gluon_resnest.interop.explain import explain

MAX_DRAWN = 12
_BINS = 64


def draw_explained(path, net, card, files, opacity=OPACITY):
    """Explains what a classifier says of the first MAX_DRAWN images, and draws it.

    Args:
      path: picture to write, see `drawing.check_picture`.
      net: `models.resnest.Backbone`, on the CPU; card: its `deployed.Card`.
      files: image files.
      opacity: see `draw_explanations`.

    Raises:
      UserError: if there is no file, the network cannot be explained, the picture cannot be
        written, or the opacity is out of range.
    """
    prepare = eval_transform(card.crop_px, card.protocol, mean=card.mean, std=card.std)
    rows = []
    for file in files[:MAX_DRAWN]:
        prepared = prepare(images.load(file))
        found = explain(net, mx.nd.array(prepared[None]))
        best = int(found.logits[0].argmax())
        powers = np.exp(found.logits[0] - found.logits[0].max())
        name = card.class_names[best] if card.class_names else f"class {best}"
        colours = prepared.transpose(1, 2, 0) * np.array(card.std) + np.array(card.mean)
        rows.append((f"{file.name[-24:]}\n{name} {100 * powers[best] / powers.sum():.1f} %",
                     (255 * colours).round().clip(0, 255).astype("uint8"),
                     found.activation[0, best],
                     {block: weights[0] for block, weights in found.attention.items()}))
    draw_explanations(path, rows, opacity)


def draw_explanations(path, rows, opacity=OPACITY):
    """Draws a row for each image: what the network saw, the evidence for its guess, its attention.

    Attention is shown block by block, the first at the top: for each, the share of its channels by
    the weight of their first split. Where all channels listen to all splits alike, it is a narrow
    peak at 1 / radix.

    Args:
      path: picture to write, see `drawing.check_picture`.
      rows: list of (title, image uint8 (S, S, 3), activation (h, w) of the guessed class,
        {block: weights (radix, C)}).
      opacity: of the evidence's colours, 0..1; at 1, which hides the images, they are left out.

    Raises:
      UserError: if there is no row, the picture cannot be written, or the opacity is out of range.
    """
    check_picture(path)
    check_opacity(opacity)
    if not rows:
        raise UserError(f"there is nothing to draw in {str(path)!r}: no image could be classified")
    from matplotlib.figure import Figure
    rows = rows[:MAX_DRAWN]
    pictures = 2 if opacity < 1 else 1
    figure = Figure(figsize=(11, 2.9 * len(rows)), layout="constrained", facecolor="white")
    for axes, (title, image, activation, attention) in zip(
            figure.subplots(len(rows), pictures + 1, squeeze=False,
                            gridspec_kw={"width_ratios": [1] * pictures + [2]}), rows):
        height, width = image.shape[:2]
        for picture in axes[:pictures]:
            if opacity < 1:
                picture.imshow(image)
            picture.set_axis_off()
        evidence = axes[pictures - 1]
        limit = np.abs(activation).max() or 1.0
        shown = evidence.imshow(activation, extent=(0, width, height, 0), cmap="coolwarm",
                                vmin=-limit, vmax=limit, alpha=opacity, interpolation="bilinear")
        axes[0].set_title(literal(title), fontsize=8)
        evidence.set_title(f"{evidence.get_title()}\nevidence for it (red), against it (blue)"
                           .strip(), fontsize=8)
        figure.colorbar(shown, ax=evidence, shrink=0.7).ax.tick_params(labelsize=6)
        _draw_attention(axes[-1], attention)
    save(figure, path, dpi=110)


def _draw_attention(axes, attention):
    """Draws a histogram of the first split's weights for each block, as a row of shades."""
    if not attention:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no split attention in this network", ha="center", fontsize=8)
        return
    shades = np.array([np.histogram(weights[0], _BINS, (0, 1))[0] / weights.shape[1]
                       for weights in attention.values()])
    axes.imshow(np.sqrt(shades), aspect="auto", cmap="Greys", extent=(0, 1, len(shades), 0),
                interpolation="nearest")
    axes.set_title("weight of the first split, over the channels of each block", fontsize=8)
    step = -(-len(shades) // 12)
    axes.set_yticks(np.arange(0, len(shades), step) + 0.5, list(attention)[::step], fontsize=6)
    axes.tick_params(axis="x", labelsize=6)
