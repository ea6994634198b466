"""interop.graph: what a symbol file may hold, and the edits of an export."""
import json

import mxnet as mx
import pytest

from gluon_resnest.errors import UserError
from gluon_resnest.interop.graph import MAX_BYTES, MAX_NODES, BadGraph, parse_graph, read_graph


def small_symbol():
    """Convolution, batch norm, dropout, pooling, dense layer: a classifier in five operators."""
    x = mx.sym.Convolution(mx.sym.var("data"), name="conv", kernel=(3, 3), stride=(1, 1),
                           dilate=(1, 1), pad=(1, 1), num_filter=4, num_group=1, no_bias=True)
    x = mx.sym.Dropout(mx.sym.BatchNorm(x, name="bn"), p=0.5, name="drop")
    x = mx.sym.Pooling(x, global_pool=True, kernel=(1, 1), pool_type="avg", name="pool")
    return mx.sym.FullyConnected(mx.sym.Flatten(x), num_hidden=3, name="fc")


@pytest.fixture
def document():
    """The small classifier as a JSON object, to be damaged."""
    return json.loads(small_symbol().tojson())


def node(document, name):
    """Returns the node called `name`."""
    return next(node for node in document["nodes"] if node["name"] == name)


def test_written_graph_is_read_by_mxnet_as_the_same_network():
    symbol = small_symbol()
    again = mx.sym.load_json(parse_graph(symbol.tojson()).to_json())
    assert again.list_inputs() == symbol.list_inputs()
    assert again.list_outputs() == symbol.list_outputs()
    assert again.infer_shape(data=(2, 3, 8, 9)) == symbol.infer_shape(data=(2, 3, 8, 9))


def test_parsing_inverts_writing():
    graph = parse_graph(small_symbol().tojson())
    assert parse_graph(graph.to_json()) == graph


def test_without_removes_every_node_of_an_operator_and_nothing_else():
    graph = parse_graph(small_symbol().tojson())
    operators = graph.operators()
    assert operators.pop("Dropout") == 1
    assert graph.without("Dropout").operators() == operators
    assert graph.without("Dropout").variables() == graph.variables()


def test_without_keeps_the_output_when_it_is_the_last_node():
    graph = parse_graph(mx.sym.Dropout(small_symbol(), p=0.1).tojson()).without("Dropout")
    assert graph.nodes[graph.head].name == "fc"


ATTRIBUTE_FAULTS = [
    ("conv", "num_group", "0", "integers from 1"),             # SIGFPE in MXNet
    ("conv", "num_group", "-1", "integers from 1"),
    ("conv", "stride", "(0, 0)", "integers from 1"),
    ("conv", "kernel", "(0, 0)", "integers from 1"),
    ("conv", "kernel", "(3, 3, 3)", "2 of them"),
    ("conv", "kernel", "(" * 50 + "3" + ")" * 50, "2 of them"),
    ("conv", "num_filter", "9" * 40, "integers from 1"),
    ("conv", "pad", "(1000000, 0)", "integers from 0"),
    ("conv", "layout", "NHWC", "NCHW"),
    ("bn", "eps", "nan", "a number"),
    ("bn", "output_mean_var", "True", "False"),
    ("pool", "pool_type", "lp", "avg or max"),
    ("fc", "num_hidden", "0", "integers from 1"),
    ("fc", "num_hidden", "(5,)", "integers from 1"),
]


@pytest.mark.parametrize("name, key, text, expected", ATTRIBUTE_FAULTS)
def test_attribute_out_of_range_is_refused(document, name, key, text, expected):
    node(document, name).setdefault("attrs", {})[key] = text
    with pytest.raises(BadGraph, match=f"{name}.* has {key}=.*expected .*{expected}"):
        parse_graph(json.dumps(document))


@pytest.mark.parametrize("axes", ["(0, 0, 1, 1)", "(0, 1, 2)", "(0, 1, 2, 4)"])
def test_a_transposition_is_of_all_axes_once(axes):
    document = json.loads(mx.sym.transpose(mx.sym.var("data"), axes=(0, 2, 3, 1)).tojson())
    parse_graph(json.dumps(document))
    document["nodes"][1]["attrs"]["axes"] = axes        # ends the process in MXNet
    with pytest.raises(BadGraph, match="expected each of the integers from 0 to 3 once"):
        parse_graph(json.dumps(document))


def test_regions_that_are_parameters_are_refused():
    """Their image numbers would have MXNet read beyond the maps."""
    maps, regions = mx.sym.var("data"), mx.sym.var("regions")
    align = dict(pooled_size=(2, 2), spatial_scale=0.5)
    computed = mx.sym.contrib.ROIAlign(maps, mx.sym.relu(regions), **align)
    parse_graph(computed.tojson())
    given = mx.sym.contrib.ROIAlign(maps, regions, **align)
    with pytest.raises(BadGraph, match="are parameters; expected computed ones"):
        parse_graph(given.tojson())


def _head_output(document):
    document["heads"] = [[document["heads"][0][0], 5000, 0]]      # SIGBUS in MXNet


def _head_node(document):
    document["heads"] = [[10 ** 6, 0, 0]]


def _head_missing(document):
    del document["heads"]


def _head_variable(document):
    document["heads"] = [[0, 0, 0]]


def _two_heads(document):
    document["heads"] *= 2


def _forward_reference(document):
    node(document, "conv")["inputs"][0][0] = len(document["nodes"]) - 1


def _self_reference(document):
    node(document, "conv")["inputs"][0][0] = document["nodes"].index(node(document, "conv"))


def _negative_reference(document):
    node(document, "conv")["inputs"][0][0] = -1


def _hidden_output(document):
    node(document, "drop")["inputs"][0][1] = 3                    # BatchNorm's invisible outputs


def _float_reference(document):
    node(document, "conv")["inputs"][0][0] = 0.0


def _unknown_operator(document):
    node(document, "conv")["op"] = "Convolutoin"


def _custom_operator(document):
    node(document, "drop").update(op="Custom", attrs={"op_type": "anything"})


def _unknown_attribute(document):
    node(document, "conv")["attrs"]["library"] = "evil.so"


def _missing_attribute(document):
    del node(document, "conv")["attrs"]["kernel"]


def _attribute_number(document):
    node(document, "conv")["attrs"]["num_group"] = 1


def _too_few_inputs(document):
    node(document, "conv")["inputs"].pop()


def _bias_without_input(document):
    node(document, "conv")["attrs"]["no_bias"] = "False"


def _subgraph(document):
    node(document, "conv")["subgraphs"] = []


def _same_variable_twice(document):
    node(document, "conv_weight")["name"] = "data"


def _unprintable_name(document):
    node(document, "conv")["name"] = "a\nb"


def _no_nodes(document):
    document["nodes"] = []


def _node_is_text(document):
    document["nodes"][0] = "data"


def _long_chain(document):
    copy = {"op": "Flatten", "name": "x", "inputs": [[0, 0, 0]]}
    document["nodes"] += [copy] * (MAX_NODES + 1)


FAULTS = {
    _head_output: "its output refers to output 5000 of fc, which has 1",
    _head_node: "its output refers to node 1000000",
    _head_missing: "exactly one output",
    _head_variable: "its output is a variable",
    _two_heads: "exactly one output",
    _forward_reference: r"\(conv\) refers to node \d+, which is not before it",
    _self_reference: r"\(conv\) refers to node \d+, which is not before it",
    _negative_reference: r"\(conv\) refers to node -1",
    _hidden_output: "refers to output 3 of bn, which has 1",
    _float_reference: r"\(conv\) refers to \[0.0, 0, 0\]",
    _unknown_operator: "operator 'Convolutoin'.* did you mean 'Convolution'",
    _custom_operator: "operator 'Custom'",
    _unknown_attribute: "unknown attribute 'library'",
    _missing_attribute: "lacks the attribute kernel",
    _attribute_number: "has num_group=1, expected integers",
    _too_few_inputs: "Convolution, has 1 inputs",
    _bias_without_input: "Convolution, has 2 inputs",
    _subgraph: "unknown parts subgraphs",
    _same_variable_twice: "two variables are called",
    _unprintable_name: "no proper name",
    _no_nodes: "no list of nodes",
    _node_is_text: "node 0 is not an object",
    _long_chain: f"more than {MAX_NODES}",
}


@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__.strip("_"))
def test_damaged_structure_is_refused(document, damage):
    damage(document)
    with pytest.raises(BadGraph, match=FAULTS[damage]):
        parse_graph(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "null", "1" * 10_000])
def test_text_that_is_no_graph_is_refused(text):
    with pytest.raises(BadGraph):
        parse_graph(text)


def test_unreadable_files_are_refused_in_one_sentence(tmp_path):
    file = tmp_path / "x-symbol.json"
    with pytest.raises(UserError, match="x-symbol.json.*No such file"):
        read_graph(file)
    file.write_bytes(b"\xff\xfe\x00junk")
    with pytest.raises(UserError, match="not the graph of an exported classifier"):
        read_graph(file)
    file.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(UserError, match="larger than 16 MB"):
        read_graph(file)
