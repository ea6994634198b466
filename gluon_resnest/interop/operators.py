"""What the operators of MXNet's graphs cost and see, as tables.

One multiply-accumulate counts once. Only convolutions and dense layers count as MACs, as in the
paper; products of two maps (attention gates, swish) are counted apart.
"""
import ast
import math


def _per_output(weight):
    """Each element of the output sums over its row of the weight, the input of that index."""
    def count(inputs, output):
        return math.prod(output) * math.prod(inputs[weight][1:])
    return count


def _per_input(inputs, output):
    """Each element of the input goes to its row of the weight."""
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


# Operator -> its multiply-accumulates, from (shapes of inputs, shape of output).
MACS = {
    "Convolution": _per_output(weight=1),
    "FullyConnected": _per_output(weight=1),
    "Deconvolution": _per_input,
    "_contrib_DeformableConvolution": _per_output(weight=2),            # map, offsets, weight
    "_contrib_ModulatedDeformableConvolution": _per_output(weight=3),   # map, offsets, mask, weight
}
PRODUCTS = {"elemwise_mul", "_mul", "_Mul", "broadcast_mul"}
# Operators whose output is their input in inference, and takes no memory.
VIEWS = {"Reshape", "Flatten", "expand_dims", "squeeze", "_copy", "BlockGrad", "Dropout"}
GLOBAL = {"_contrib_AdaptiveAvgPooling2D", "FullyConnected"}
_WORDS = {"Convolution": "convolution", "Deconvolution": "transposed convolution",
          "FullyConnected": "dense", "BatchNorm": "batch norm", "SliceChannel": "split",
          "Pooling": "pooling", "_contrib_AdaptiveAvgPooling2D": "global pooling",
          "_contrib_DeformableConvolution": "deformable convolution",
          "_contrib_ModulatedDeformableConvolution": "deformable convolution",
          "elemwise_add": "addition", "_plus": "addition", "add_n": "addition",
          "broadcast_add": "addition", "elemwise_sub": "subtraction",
          "elemwise_mul": "multiplication", "broadcast_mul": "multiplication",
          "Reshape": "reshape", "Flatten": "flatten", "Dropout": "dropout", "SwapAxis": "swap axes",
          "broadcast_like": "broadcast", "_copy": "copy",
          "Concat": "concatenation", "_contrib_BilinearResize2D": "resizing"}

PIXEL = ((1, 1), (1, 1))


def macs(op, inputs, output):
    """Returns the multiply-accumulates of an operator, given the shapes of inputs and output."""
    return MACS[op](inputs, output) if op in MACS else 0


def products(op, output):
    """Returns how many products of two maps' elements an operator forms."""
    return math.prod(output) if op in PRODUCTS else 0


def outputs(op, attrs):
    """Returns how many outputs an operator has in the graph."""
    return int(attrs["num_outputs"]) if op == "SliceChannel" else 1


def pair(attrs, key, default):
    """Returns a (h, w) attribute of a node."""
    numbers = ast.literal_eval(attrs.get(key, "None")) or (default, default)
    return tuple(numbers) if len(numbers) == 2 else (default, default)


def _is_global(op, attrs):
    return op in GLOBAL or attrs.get("global_pool") in ("True", "1")


def reach(op, attrs, sources):
    """Returns (field, jump) of an output, each (h, w) in pixels of the image.

    Field: what a pixel of the output depends on. Jump: from a pixel to its neighbour. `PIXEL` is
    that of the image; None is behind global pooling, where every pixel depends on the whole image.

    Args:
      sources: the same of each input that is not a parameter.
    """
    known = [source for source in sources if source]
    if not known or _is_global(op, attrs):
        return None
    field = tuple(max(field[axis] for field, _ in known) for axis in (0, 1))
    jump = known[0][1]
    if "kernel" in attrs:
        kernel, stride = pair(attrs, "kernel", 1), pair(attrs, "stride", 1)
        dilate = pair(attrs, "dilate", 1)
        if op == "Deconvolution":
            jump = tuple(jump[axis] / stride[axis] for axis in (0, 1))
        field = tuple(field[axis] + (kernel[axis] - 1) * dilate[axis] * jump[axis]
                      for axis in (0, 1))
        if op != "Deconvolution":
            jump = tuple(jump[axis] * stride[axis] for axis in (0, 1))
    return field, jump


def kind(op, attrs):
    """Names an operator in words."""
    if op == "Activation":
        return attrs["act_type"]
    word = _WORDS.get(op, op)
    if op == "Pooling":
        word = f"{attrs['pool_type']} pooling"
    if _is_global(op, attrs) and op != "FullyConnected":
        return "global pooling"
    if "kernel" in attrs:
        word += " {}x{}".format(*pair(attrs, "kernel", 1))
    groups = int(attrs.get("num_group", 1))
    if groups > 1:
        word += " depthwise" if groups == int(attrs["num_filter"]) else " grouped"
    return word
