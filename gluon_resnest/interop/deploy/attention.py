"""Algebra of split attention that holds in inference: fewer and cheaper passes over the maps.

Each rule is an identity over the real numbers and looks at a few operators only; together they
turn the graph of `models.split_attention.SplitAttention` into

    splits = r convolutions                            of r parts of the one before
    gate   = sigmoid(fc2'(relu(fc1'(sum of their means))))          for radix 2
    out    = splits[1] + gate * (splits[0] - splits[1])

and apply to squeeze-and-excitation and selective kernels as far as these have the same parts.
"""
import numpy as np

from gluon_resnest.interop.deploy.draft import Op

_BY_CHANNEL = ("Activation", "Pooling")      # what a split may move through


def rewrite_attention(draft):
    """Applies all rules of this file."""
    order_by_radix(draft)
    pool_before_sum(draft)
    separate_splits(draft)
    difference_of_logits(draft)
    merge_differences(draft)
    multiply_by_broadcast(draft)
    pool_before_weighting(draft)


def pool_before_sum(draft):
    """The mean of a sum is the sum of the means, of vectors; and a mean over all is a Pooling."""
    for pool in draft.of("_contrib_AdaptiveAvgPooling2D"):
        if set(pool.attrs["output_size"].strip("()[], ").replace(" ", "").split(",")) != {"1"}:
            continue
        source, output = pool.inputs[0]
        if source.op in ("add_n", "elemwise_add"):
            parts = source.inputs
            means = [(_global_mean(f"{pool.name}_{i}", part), 0) for i, part in enumerate(parts)]
            new = Op("add_n", pool.name + "_sum", {"num_args": str(len(parts))}, means)
        else:
            new = _global_mean(pool.name + "_mean", (source, output))
        draft.replace((pool, 0), (new, 0))


def _global_mean(name, entry):
    return Op("Pooling", name, {"kernel": "(1, 1)", "pool_type": "avg", "global_pool": "True",
                                "pooling_convention": "valid"}, [entry])


def separate_splits(draft):
    """A split of a convolution's channels is as many convolutions: nothing is copied apart."""
    pending = draft.of("SliceChannel")
    while pending:
        split = pending.pop()
        if split.attrs["axis"] != "1" or split.attrs.get("squeeze_axis") in ("True", "1"):
            continue
        source = split.inputs[0][0]
        if source.op not in _BY_CHANNEL + ("Convolution",) or any(
                reader is not split for reader in draft.readers(source)):
            continue
        parts = int(split.attrs["num_outputs"])
        copies = [Op(source.op, f"{source.name}_{i}", dict(source.attrs), list(source.inputs))
                  for i in range(parts)]
        splits_input = source.op in _BY_CHANNEL
        if source.op == "Convolution":
            groups = int(source.attrs.get("num_group", 1))
            if groups > 1 and groups % parts:
                continue
            splits_input = groups > 1
            for i, copy in enumerate(copies):
                _take_part(draft, copy, i, parts)
        if splits_input:
            earlier = Op("SliceChannel", f"{source.name}_split", dict(split.attrs),
                         [source.inputs[0]])
            for i, copy in enumerate(copies):
                copy.inputs[0] = (earlier, i)
            pending.append(earlier)
        for i, copy in enumerate(copies):
            draft.replace((split, i), (copy, 0))


def _take_part(draft, conv, part, parts):
    """Keeps one of `parts` equal shares of a convolution's output channels."""
    channels, groups = int(conv.attrs["num_filter"]), int(conv.attrs.get("num_group", 1))
    conv.attrs["num_filter"] = str(channels // parts)
    conv.attrs["num_group"] = str(max(groups // parts, 1))
    share = slice(part * channels // parts, (part + 1) * channels // parts)
    conv.inputs[1:] = [draft.variable(f"{entry[0].name}_{part}", draft.value(entry)[share])
                       for entry in conv.inputs[1:]]


def order_by_radix(draft):
    """Logits ordered by group, then split, are reordered in the weights that compute them.

    The grouped 1x1 convolution of a vector becomes a dense one, since its groups would no longer
    be contiguous.
    """
    for swap in draft.of("SwapAxis"):
        inner, outer = swap.inputs[0][0], draft.readers(swap)
        conv = inner.inputs[0][0] if inner.op == "Reshape" else None
        if (conv is None or conv.op != "Convolution" or {swap.attrs["dim1"], swap.attrs["dim2"]}
                != {"1", "2"} or [reader.op for reader in outer] != ["Reshape"]):
            continue
        shape = _integers(inner.attrs["shape"])
        if (len(shape) != 4 or shape[0] != 0 or min(shape[1:3]) < 1 or shape[3] != -1
                or not draft.has_one_reader(conv) or not draft.has_one_reader(inner)
                or _integers(outer[0].attrs["shape"]) != (0, -1, 1, 1)):
            continue
        weight, channels = draft.value(conv.inputs[1]), int(conv.attrs["num_filter"])
        order = np.arange(channels).reshape(shape[1], shape[2], -1).swapaxes(0, 1).ravel()
        dense = _without_groups(weight, int(conv.attrs.get("num_group", 1)))
        conv.attrs["num_group"] = "1"
        conv.inputs[1:] = [draft.variable(f"{entry[0].name}_by_radix", value[order])
                           for entry, value in zip(conv.inputs[1:], [
                               dense, *map(draft.value, conv.inputs[2:])])]
        draft.replace((outer[0], 0), (conv, 0))


def _without_groups(weight, groups):
    """Returns the weight (C_out, C_in, ...) of the dense convolution that equals a grouped one."""
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    dense = np.zeros((weight.shape[0], groups * columns) + weight.shape[2:], weight.dtype)
    for i in range(groups):
        dense[i * rows:(i + 1) * rows, i * columns:(i + 1) * columns] = (
            weight[i * rows:(i + 1) * rows])
    return dense


def difference_of_logits(draft):
    """A softmax over two is the sigmoid of their difference."""
    for softmax in draft.of("softmax"):
        inner, outer = softmax.inputs[0][0], draft.readers(softmax)
        if (softmax.attrs.get("axis") != "1" or inner.op != "Reshape"
                or _integers(inner.attrs["shape"]) != (0, 2, -1, 1, 1)
                or [reader.op for reader in outer] != ["Reshape"]
                or _integers(outer[0].attrs["shape"]) != (0, -1, 1, 1)):
            continue
        splits = draft.readers(outer[0])
        if [split.op for split in splits] != ["SliceChannel"] or (
                splits[0].attrs["num_outputs"] != "2" or splits[0].attrs["axis"] != "1"):
            continue
        logits = Op("SliceChannel", softmax.name + "_split", {"num_outputs": "2", "axis": "1"},
                    [inner.inputs[0]])
        for i in range(2):
            apart = Op("elemwise_sub", f"{softmax.name}_difference{i}", {},
                       [(logits, i), (logits, 1 - i)])
            draft.replace((splits[0], i), (Op("sigmoid", f"{softmax.name}_{i}", {}, [(apart, 0)]),
                                           0))
    separate_splits(draft)


def merge_differences(draft):
    """The difference of two convolutions of one input is a convolution with their difference."""
    for minus in draft.of("elemwise_sub"):
        (first, _), (second, _) = minus.inputs
        if not (first.op == second.op == "Convolution" and first.attrs == second.attrs
                and first.inputs[0] == second.inputs[0]
                and len(first.inputs) == len(second.inputs)):
            continue
        inputs = [first.inputs[0]]
        for one, other in zip(first.inputs[1:], second.inputs[1:]):
            inputs.append(draft.variable(f"{one[0].name}_minus",
                                         draft.value(one) - draft.value(other)))
        draft.replace((minus, 0), (Op("Convolution", minus.name, dict(first.attrs), inputs), 0))


def multiply_by_broadcast(draft):
    """A gate that was expanded for the sake of training is multiplied as it is."""
    for product in draft.of("elemwise_mul"):
        factor, (gate, output) = product.inputs
        if gate.op == "broadcast_like" and output == 0 and not gate.attrs:
            draft.replace((product, 0), (Op("broadcast_mul", product.name + "_by_gate", {},
                                            [factor, gate.inputs[0]]), 0))


def pool_before_weighting(draft):
    """Average pooling of weighted splits is the weighting of pooled ones, on maps of fewer pixels.

    The splits are still as the convolutions left them, which is the layout oneDNN pools fast.
    """
    for pool in draft.of("Pooling"):
        weighted, _ = pool.inputs[0]
        if (pool.attrs["pool_type"] == "avg" and pool.attrs.get("global_pool") not in ("True", "1")
                and weighted.op in ("add_n", "broadcast_mul") and draft.has_one_reader(weighted)
                and any(op.op == "broadcast_mul" for op in (
                    weighted, *(source for source, _ in weighted.inputs)))):
            draft.replace((pool, 0), _pooled(pool, (weighted, 0), {}))


def _pooled(pool, entry, done):
    """Returns the entry that is `entry` pooled; `done` holds what was pooled before."""
    op, output = entry
    if (op, output) not in done:
        inputs, attrs = list(op.inputs), dict(op.attrs)
        if op.op in ("add_n", "elemwise_sub"):
            inputs = [_pooled(pool, each, done) for each in inputs]
            new = Op(op.op, f"{op.name}_pooled", attrs, inputs)
        elif op.op == "broadcast_mul":
            new = Op(op.op, f"{op.name}_pooled", attrs, [_pooled(pool, inputs[0], done), inputs[1]])
        else:
            new = Op("Pooling", f"{pool.name}_{len(done)}", dict(pool.attrs), [entry])
        done[op, output] = (new, 0)
    return done[op, output]


def _integers(text):
    return tuple(int(number) for number in text.strip("()[], ").replace(" ", "").split(","))
