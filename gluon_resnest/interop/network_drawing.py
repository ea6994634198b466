"""Draws a network: its stages with their costs, and one block unfolded into its operators."""
import textwrap
from collections import Counter, defaultdict, namedtuple

from gluon_resnest.errors import UserError
from gluon_resnest.interop.drawing import save

_INK, _GREY, _PALE = "#1f2933", "#7b8794", "#f4f6f8"
_LINE = "#9aa5b1"
_FILLS = {"global": "#d9efe2", "convolution": "#d7e8f4", "pooling": "#fde8c8", "dense": "#d9efe2",
          "data": "#eceff2", "other": "#eceff2"}
_EDGES = {"convolution": "#2f7fb5", "pooling": "#d08a1d", "global": "#3d9a68", "dense": "#3d9a68",
          "data": "#7b8794", "other": "#7b8794"}
_SIGNS = {"addition": "+", "subtraction": "\u2212", "multiplication": "\u00d7"}
# Operators that are written into the box of the one they follow, if nothing else reads that one.
_TRAILING = {"batch norm", "relu", "sigmoid", "softmax", "swish", "reshape", "flatten", "swap axes",
             "broadcast", "copy", "dropout", "split"}
_HALF = 1.1                     # width of half a box
_SHORT = {"batch norm": "BN"}
_SILENT = {"reshape", "flatten", "copy", "broadcast", "dropout", "swap axes"}

Box = namedtuple("Box", "kinds shape sources")      # operators, last shape, boxes it reads


def draw_network(path, name, analysis):
    """Draws the stages of a network and the operators of the first block of its second stage.

    Args:
      path: picture to write; `drawing.check_picture` says which names can be.
      name: title.
      analysis: `analysis.Analysis` of a network with children layer1, layer2, ...

    Raises:
      UserError: if the network has no such stages, or the picture cannot be written.
    """
    from matplotlib.figure import Figure
    stages = analysis.by_stage()
    if len(stages) < 3:
        raise UserError(f"{name} has no stages layer1, layer2, ...; only networks that have can be "
                        "drawn")
    block = _blocks(analysis, "layer2")[0]
    boxes = fold(analysis.layers, block)
    ranks, columns, lanes = arrange(boxes)
    places = _places(boxes, columns, lanes)
    height = max(7.5, 0.62 * (max(ranks) + 2), 1.35 * len(stages) + 1.5)
    widths = 7.8, max(6.0, 1.15 * (max(places.values()) + 2.6))
    figure = Figure(figsize=(sum(widths), height), facecolor="white")
    left, right = figure.subplots(1, 2, gridspec_kw={
        "width_ratios": widths, "left": 0.02, "right": 0.98, "top": 1 - 0.75 / height,
        "bottom": 0.02, "wspace": 0.04})
    size = "\u00d7".join(map(str, analysis.input_shape))
    total = analysis.total()
    figure.text(0.025, 1 - 0.4 / height, name, fontsize=17, weight="bold", color=_INK, va="center")
    figure.text(0.975, 1 - 0.4 / height, f"input {size}   |   {total.params / 1e6:.2f} M parameters"
                f"   |   {total.macs / 1e9:.2f} GMACs   |   activations: sum "
                f"{total.bytes / 2 ** 20:.0f} MiB, peak {analysis.peak_bytes / 2 ** 20:.1f} MiB",
                fontsize=10.5, color=_GREY, va="center", ha="right")
    _draw_stages(left, analysis, stages, total, block)
    _draw_block(right, block, boxes, ranks, columns, lanes, places)
    save(figure, path, dpi=130)


def _blocks(analysis, stage):
    """Returns the paths of a stage's blocks, in order."""
    path = next(layer.block for layer in analysis.layers
                if f"{stage}." in layer.block)
    parent = path[:path.index(f"{stage}.") + len(stage)]
    return [total.label for total in analysis.by_block(parent)]


def fold(layers, block):
    """Returns the `Box`es of a block, in order; box 0 is its input.

    An operator that only reads another, and is the only one to, is in the other's box.
    """
    inside = {i: layer for i, layer in enumerate(layers)
              if layer.block == block or layer.block.startswith(f"{block}.")}
    sources = {}
    for i, layer in inside.items():
        # The second input of a broadcast says how large, nothing else.
        read = layer.inputs[:1] if layer.kind == "broadcast" else layer.inputs
        sources[i] = [source if source in inside else None for source in dict.fromkeys(read)]
    readers = defaultdict(int)
    for read in sources.values():
        for source in read:
            readers[source] += 1
    first = layers[min(inside)].inputs[0]
    boxes, box_of = [Box(["input"], layers[first].shape, [])], {None: 0}
    for i, layer in inside.items():
        read = sources[i]
        if (layer.kind in _TRAILING and len(read) == 1 and read[0] is not None
                and readers[read[0]] == 1):
            at = box_of[i] = box_of[read[0]]
            shape = boxes[at].shape if layer.kind == "broadcast" else layer.shape
            boxes[at] = Box([*boxes[at].kinds, layer.kind], shape, boxes[at].sources)
        else:
            box_of[i] = len(boxes)
            boxes.append(Box([layer.kind], layer.shape,
                             list(dict.fromkeys(box_of[source] for source in read))))
    return boxes


def arrange(boxes):
    """Places boxes on a grid.

    The longest path is column 0; what runs beside it for a shorter way is nearer.

    Returns:
      (ranks, columns, lanes): row and column of each box, where every box is below those it reads,
      and the column in which an edge (source, box) passes the rows in between.
    """
    ranks, readers = [], defaultdict(list)
    for i, box in enumerate(boxes):
        ranks.append(1 + max((ranks[source] for source in box.sources), default=-1))
        for source in box.sources:
            readers[source].append(i)
    chains, placed, edges = [], set(), set()
    while len(placed) < len(boxes):
        chains.append(_longest_chain(boxes, placed))
        placed.update(chains[-1])
    items = []                  # of (first rank, last rank, boxes, edges), to be put in a column
    for chain in chains:
        enters = [(source, chain[0]) for source in boxes[chain[0]].sources]
        leaves = [(chain[-1], reader) for reader in readers[chain[-1]]]
        own = {*enters, *zip(chain, chain[1:]), *leaves} - edges
        edges |= own
        items.append((min([ranks[chain[0]]] + [ranks[source] + 1 for source, _ in enters]),
                      max([ranks[chain[-1]]] + [ranks[reader] - 1 for _, reader in leaves]),
                      chain, own))
    for i, box in enumerate(boxes):
        items += [(ranks[source] + 1, ranks[i] - 1, (), {(source, i)})
                  for source in box.sources if (source, i) not in edges]
    columns, lanes, taken = {}, {}, set()
    beside = sorted(items[1:], key=lambda item: item[1] - item[0])
    for first, last, chain, own in items[:1] + beside:
        cells = range(first, last + 1)
        column = 0
        while any((column, rank) in taken for rank in cells):
            column += 1
        taken.update((column, rank) for rank in cells)
        columns.update((i, column) for i in chain)
        lanes.update((edge, column) for edge in own)
    return ranks, [columns[i] for i in range(len(boxes))], lanes


def _longest_chain(boxes, placed):
    """Returns the longest path through the boxes that are not placed, in order."""
    best = {}
    for i, box in enumerate(boxes):
        if i not in placed:
            before = [best[source] for source in box.sources if source not in placed]
            best[i] = max(before, key=len, default=()) + (i,)
    return max(best.values(), key=len)


def _draw_stages(axes, analysis, stages, total, unfolded):
    from matplotlib.patches import FancyBboxPatch
    rows = len(stages) + 1
    axes.set(xlim=(0, 100), ylim=(rows + 0.05, -0.35))
    axes.set_axis_off()
    for x, words in ((61, "output"), (77, "parameters"), (90, "MACs")):
        axes.text(x, -0.2, words, fontsize=9, color=_GREY, va="center")
    batch, *image = analysis.input_shape
    boxes = [("image", image, None)] + [(stage.label, stage.shape[1:], stage) for stage in stages]
    for row, (label, shape, stage) in enumerate(boxes):
        blocks = _blocks(analysis, label) if label.startswith("layer") else []
        colour = "convolution" if blocks else "data" if stage is None else "pooling"
        low, tall = row + 0.1, 0.72
        axes.add_patch(FancyBboxPatch(
            (1, low), 56, tall, boxstyle="round,pad=0,rounding_size=0.8", mutation_aspect=0.06,
            facecolor=_PALE, edgecolor=_EDGES[colour], linewidth=1.3))
        axes.text(2.6, low + tall / 2, label, fontsize=12, weight="bold", color=_INK, va="center")
        _draw_cells(axes, blocks, unfolded, low + tall / 2)
        if not blocks:
            words = _summary(analysis, stage) if stage else f"batch of {batch}"
            axes.text(14.5, low + tall / 2, words, fontsize=10, color=_INK, va="center")
        axes.text(61, low + tall / 2, "\u00d7".join(map(str, shape)), fontsize=10.5, color=_INK,
                  va="center")
        if stage is not None:
            axes.annotate("", (29, low), (29, low - 0.28), arrowprops={
                "arrowstyle": "-|>", "color": _LINE, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0})
            field = "{}\u00d7{}".format(*stage.field) if stage.field else "whole image"
            axes.text(61, low + tall / 2 + 0.24, f"field {field}", fontsize=8, color=_GREY,
                      va="center")
            _draw_bar(axes, 77, low + tall / 2, stage.params / total.params,
                      f"{stage.params / 1e6:.2f} M")
            _draw_bar(axes, 90, low + tall / 2, stage.macs / max(total.macs, 1),
                      f"{stage.macs / 1e9:.2f} G")


def _summary(analysis, stage):
    """Names the convolutions, poolings and dense layers of a stage outside layer1, layer2, ..."""
    layers = analysis.of_stage(stage.label)
    counts = Counter(layer.kind for layer in layers if layer.macs or "pooling" in layer.kind)
    return textwrap.fill(", ".join(kind if count == 1 else f"{count} \u00d7 {kind}"
                                   for kind, count in counts.items()), 40)


def _draw_cells(axes, blocks, unfolded, middle):
    """Draws the blocks of a stage as a grid of cells, the unfolded one filled."""
    from matplotlib.patches import Rectangle
    rows = 1 if len(blocks) <= 12 else 2 if len(blocks) <= 24 else 3
    columns = -(-len(blocks) // rows)
    pitch = min(6.0, 41 / max(columns, 1))
    tall = 0.42 / rows
    for i, block in enumerate(blocks):
        row, column = divmod(i, columns)
        low = middle - 0.23 + row * 0.46 / rows
        chosen = block == unfolded
        axes.add_patch(Rectangle((14.5 + pitch * column, low), 0.82 * pitch, tall, linewidth=0.9,
                                 facecolor=_EDGES["convolution"] if chosen
                                 else _FILLS["convolution"], edgecolor=_EDGES["convolution"]))
        if pitch > 3 and rows == 1:
            axes.text(14.5 + pitch * (column + 0.41), low + tall / 2, str(i), fontsize=9,
                      ha="center", va="center", color="white" if chosen else _INK)


def _draw_bar(axes, x, middle, share, words):
    """Draws words, and below them a bar for a share of 0 to 1."""
    from matplotlib.patches import Rectangle
    axes.text(x, middle, words, fontsize=10.5, color=_INK, va="center")
    axes.add_patch(Rectangle((x, middle + 0.2), 9.5, 0.07, color="#e4e7eb", linewidth=0))
    axes.add_patch(Rectangle((x, middle + 0.2), 9.5 * share, 0.07, linewidth=0,
                             color=_EDGES["convolution"]))


def _draw_block(axes, block, boxes, ranks, columns, lanes, places):
    axes.set(xlim=(-1.3, max(max(places.values()) + 1.3, 4)), ylim=(max(ranks) + 0.6, -0.95))
    axes.set_axis_off()
    axes.text(-1.2, -0.8, f"{block}, unfolded", fontsize=12, weight="bold", color=_INK,
              va="center")
    cells = set(zip(columns, ranks))
    for (source, target), lane in lanes.items():
        _draw_edge(axes, places, cells, (columns[source], ranks[source]), lane,
                   (columns[target], ranks[target]), boxes[source].kinds[0] in _SIGNS,
                   boxes[target].kinds[0] in _SIGNS)
    for i, box in enumerate(boxes):
        _draw_box(axes, places[columns[i]], ranks[i], box)


def _places(boxes, columns, lanes):
    """Returns {column: x}: columns of words are wide, those of signs and edges alone narrow."""
    wide = {column for column, box in zip(columns, boxes) if box.kinds[0] not in _SIGNS}
    x, places = 0.0, {}
    for column in sorted({*columns, *lanes.values()}):
        half = _HALF + 0.15 if column in wide else 0.25
        x += half if column else 0.0
        places[column] = x
        x += half
    return places


def _draw_box(axes, x, y, box):
    from matplotlib.patches import FancyBboxPatch
    first = box.kinds[0]
    if first in _SIGNS:
        trailing = [kind for kind in box.kinds[1:] if kind not in _SILENT]
        axes.plot([x], [y], marker="o", markersize=17, markerfacecolor="white",
                  markeredgecolor=_INK, markeredgewidth=1.1, zorder=4)
        axes.text(x, y, _SIGNS[first], fontsize=14, ha="center", va="center", color=_INK, zorder=5)
        if trailing:
            axes.text(x + 0.22, y + 0.22, ", ".join(trailing), fontsize=8.5, color=_GREY,
                      va="center", zorder=5)
        return
    group = next((key for key in _FILLS if key in first), "other")
    axes.add_patch(FancyBboxPatch((x - _HALF, y - 0.31), 2 * _HALF, 0.62, zorder=3, linewidth=1.1,
                                  boxstyle="round,pad=0,rounding_size=0.12",
                                  facecolor=_FILLS[group], edgecolor=_EDGES[group]))
    trailing = ", ".join(_SHORT.get(kind, kind) for kind in box.kinds[1:] if kind not in _SILENT)
    shape = "\u00d7".join(map(str, box.shape[1:]))
    axes.text(x, y - 0.12, first, fontsize=10, ha="center", va="center", color=_INK, zorder=4)
    axes.text(x, y + 0.14, f"{trailing}   {shape}" if trailing else shape, fontsize=8,
              ha="center", va="center", color=_GREY, zorder=4)


def _draw_edge(axes, places, cells, start, lane, end, from_sign, into_sign):
    """Draws an arrow from cell `start` to `end`, both (column, row), that passes in `lane`.

    It leaves and enters sideways where no box stands in the way, else between two rows.
    """
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    def clear(column, row):
        low, high = sorted((column, lane))
        return not any((between, row) in cells for between in range(low, high + 1)
                       if between != column)

    x0, x, x1 = places[start[0]], places[lane], places[end[0]]
    points = [(x0, start[1])]
    if clear(*start) and not from_sign:
        points.append((x, start[1]))
    else:
        points += [(x0, start[1] + 0.5), (x, start[1] + 0.5)]
    if x == x1:
        points.append((x1, end[1] - (0.23 if into_sign else 0.33)))
    elif clear(*end):
        points += [(x, end[1]), (x1 + (0.17 if into_sign else _HALF) * (1 if x > x1 else -1),
                                 end[1])]
    else:
        points += [(x, end[1] - 0.5), (x1, end[1] - 0.5), (x1, end[1] - 0.33)]
    points = [point for i, point in enumerate(points) if i == 0 or point != points[i - 1]]
    axes.add_patch(FancyArrowPatch(path=Path(points), arrowstyle="-|>", mutation_scale=10,
                                   color=_LINE, linewidth=1.3, zorder=2, joinstyle="round",
                                   fill=False))
