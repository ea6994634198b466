"""Writes a deploy graph as ONNX, operator by operator; batch, height and width stay free.

The writer is our own: `mx.onnx.export_model` stamps a newer operator set than the one it writes
and lists parameters as inputs, which keeps engines from folding them.
"""
import numpy as np

from gluon_resnest.errors import MissingExtra, UserError

OPSET, IR_VERSION = 13, 7       # what the oldest onnxruntime of this package's extra reads
OUTPUT = "output"
SIDES = ("height", "width")     # names of the image's free sides


def to_onnx(graph, arrays, *, inputs, output_rank, note=""):
    """Returns the `onnx.ModelProto` of a graph, checked.

    Args:
      graph, arrays: from `rewriting.deploy_graph`, arrays under `arg:` names.
      inputs: (name, channels) of the image input, (N, channels, height, width).
      output_rank: dimensions of the output.
      note: what the file says about where it came from.

    Raises:
      UserError: if the graph has an operator or attribute that this writer does not know.
      MissingExtra: if onnx is not installed.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise MissingExtra("onnx", "onnx") from error
    writer = _Writer(helper)
    for node in graph.nodes:
        writer.add(graph, node)
    name, channels = inputs
    image = helper.make_tensor_value_info(name, TensorProto.FLOAT,
                                          ["batch", channels, *SIDES])
    free = ["batch", *(f"size{i}" for i in range(1, output_rank))]
    result = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, free)
    writer.nodes.append(helper.make_node("Identity", [writer.names[graph.head]], [OUTPUT]))
    used = {text for node in writer.nodes for text in node.input}
    constants = {**{label[4:]: array for label, array in arrays.items()}, **writer.constants}
    initializers = [numpy_helper.from_array(np.ascontiguousarray(array), label)
                    for label, array in constants.items() if label in used]
    model = helper.make_model(
        helper.make_graph(writer.nodes, "network", [image], [result], initializers),
        opset_imports=[helper.make_opsetid("", OPSET)], producer_name="gluon_resnest",
        doc_string=note)
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model


class _Writer:
    """Collects ONNX nodes; `names[i]` is what the first output of node i is called."""

    def __init__(self, helper):
        self.nodes, self.names, self.constants = [], [], {}
        self._helper = helper

    def add(self, graph, node):
        """Appends what one node of the graph is in ONNX."""
        if node.op == "null":
            self.names.append(node.name)
            return
        translate = _OPERATORS.get(node.op)
        if translate is None:
            raise UserError(f"the operator {node.op} of {node.name} has no ONNX form here; export "
                            "for --target mxnet")
        inputs = [self.output(graph, source, output) for source, output in node.inputs]
        self.names.append(node.name)
        translate(self, node, inputs)

    def output(self, graph, source, output):
        """Returns what an output of a node is called."""
        name = self.names[source]
        return f"{name}.{output}" if graph.nodes[source].op == "SliceChannel" else name

    def emit(self, kind, node, inputs, outputs=None, **attributes):
        outputs = outputs or [node.name]
        self.nodes.append(self._helper.make_node(kind, inputs, outputs, name=outputs[0],
                                                 **attributes))

    def constant(self, node, suffix, value, dtype=np.int64):
        """Returns the name of a new constant."""
        name = f"{node.name}.{suffix}"
        self.constants[name] = np.array(value, dtype)
        return name


def _convolution(writer, node, inputs):
    attrs = node.attrs
    kernel = _integers(attrs["kernel"])
    pad = _integers(attrs.get("pad", "(0, 0)"))
    options = {"strides": _integers(attrs.get("stride", "(1, 1)")),
               "dilations": _integers(attrs.get("dilate", "(1, 1)")), "kernel_shape": kernel,
               "group": int(attrs.get("num_group", 1)), "pads": pad + pad}
    if node.op == "Convolution":
        writer.emit("Conv", node, inputs, **options)
    else:
        writer.emit("ConvTranspose", node, inputs, **options,
                    output_padding=_integers(attrs.get("adj", "(0, 0)")))


def _dense(writer, node, inputs):
    if _true(node, "flatten", True):
        flat = f"{node.name}.flat"
        writer.emit("Flatten", node, inputs[:1], [flat], axis=1)
        inputs = [flat, *inputs[1:]]
    writer.emit("Gemm", node, inputs, transB=1)


def _pooling(writer, node, inputs):
    attrs, average = node.attrs, node.attrs["pool_type"] == "avg"
    if _true(node, "global_pool", False):
        writer.emit("GlobalAveragePool" if average else "GlobalMaxPool", node, inputs)
        return
    pad = _integers(attrs.get("pad", "(0, 0)"))
    options = {"kernel_shape": _integers(attrs["kernel"]), "pads": pad + pad,
               "strides": _integers(attrs.get("stride", "(1, 1)")),
               "ceil_mode": int(attrs.get("pooling_convention") == "full")}
    if average:
        options["count_include_pad"] = int(_true(node, "count_include_pad", True))
    writer.emit("AveragePool" if average else "MaxPool", node, inputs, **options)


def _activation(writer, node, inputs):
    kinds = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softrelu": "Softplus",
             "softsign": "Softsign"}
    writer.emit(kinds[node.attrs["act_type"]], node, inputs)


def _reshape(writer, node, inputs):
    shape = writer.constant(node, "shape", _integers(node.attrs["shape"]))
    writer.emit("Reshape", node, [*inputs, shape])


def _swap(writer, node, inputs):
    first, second = int(node.attrs["dim1"]), int(node.attrs["dim2"])
    order = list(range(max(first, second, 3) + 1))
    order[first], order[second] = second, first
    writer.emit("Transpose", node, inputs, perm=order)


def _split(writer, node, inputs):
    writer.emit("Split", node, inputs, [f"{node.name}.{i}" for i in range(
        int(node.attrs["num_outputs"]))], axis=int(node.attrs["axis"]))


def _softmax(writer, node, inputs):
    writer.emit("Softmax", node, inputs, axis=int(node.attrs.get("axis", -1)))


def _concat(writer, node, inputs):
    writer.emit("Concat", node, inputs, axis=int(node.attrs.get("dim", 1)))


def _batch_norm(writer, node, inputs):
    if _true(node, "fix_gamma", True):
        raise UserError(f"the batch norm {node.name} has a fixed scale and no convolution before "
                        "it; export for --target mxnet")
    writer.emit("BatchNormalization", node, inputs, epsilon=float(node.attrs.get("eps", 1e-3)))


def _adaptive_pooling(writer, node, inputs):
    if set(_integers(node.attrs["output_size"])) != {1}:
        raise UserError(f"the pooling {node.name} to {node.attrs['output_size']} has no ONNX form; "
                        "export for --target mxnet")
    writer.emit("GlobalAveragePool", node, inputs)


def _resize_like(writer, node, inputs):
    """MXNet's bilinear resizing puts the corners of both maps onto each other."""
    image, like = inputs
    writer.emit("Resize", node, [image, "", "", _size_like(writer, node, image, like)],
                mode="linear", coordinate_transformation_mode="align_corners")


def _broadcast_like(writer, node, inputs):
    if {_integers(node.attrs[f"{side}_axes"]) == [2, 3] for side in ("lhs", "rhs")} != {True}:
        raise UserError(f"{node.name} broadcasts other axes than height and width, which has no "
                        "ONNX form here; export for --target mxnet")
    writer.emit("Expand", node, [inputs[0], _size_like(writer, node, *inputs)])


def _size_like(writer, node, image, like):
    """Returns the name of a shape: batch and channels of one, height and width of another."""
    parts = []
    for label, source, begin, end in (("image", image, 0, 2), ("like", like, 2, 4)):
        shape, part = f"{node.name}.{label}_shape", f"{node.name}.{label}_part"
        writer.emit("Shape", node, [source], [shape])
        bounds = [writer.constant(node, f"{label}_{i}", [value])
                  for i, value in enumerate((begin, end))]
        writer.emit("Slice", node, [shape, *bounds], [part])
        parts.append(part)
    sizes = f"{node.name}.sizes"
    writer.emit("Concat", node, parts, [sizes], axis=0)
    return sizes


def _simple(kind):
    def translate(writer, node, inputs):
        writer.emit(kind, node, inputs)
    return translate


_OPERATORS = {
    "Convolution": _convolution, "Deconvolution": _convolution, "FullyConnected": _dense,
    "Pooling": _pooling, "Activation": _activation, "Reshape": _reshape, "SwapAxis": _swap,
    "SliceChannel": _split, "softmax": _softmax, "Concat": _concat, "BatchNorm": _batch_norm,
    "_contrib_AdaptiveAvgPooling2D": _adaptive_pooling, "_contrib_BilinearResize2D": _resize_like,
    "broadcast_like": _broadcast_like,
    "Flatten": _simple("Flatten"), "sigmoid": _simple("Sigmoid"), "relu": _simple("Relu"),
    "tanh": _simple("Tanh"), "exp": _simple("Exp"), "add_n": _simple("Sum"),
    **{op: _simple("Identity") for op in ("_copy", "BlockGrad")},
    **{op: _simple("Add") for op in ("elemwise_add", "_Plus", "broadcast_add")},
    **{op: _simple("Sub") for op in ("elemwise_sub", "_Minus", "broadcast_sub")},
    **{op: _simple("Mul") for op in ("elemwise_mul", "_Mul", "broadcast_mul")},
    "broadcast_div": _simple("Div"),
}


def _integers(text):
    return [int(number) for number in text.strip("()[], ").replace(" ", "").split(",")]


def _true(node, attribute, default):
    return node.attrs.get(attribute, str(default)) in ("True", "1")
