"""A causal transformer as exporters write it: which weights it has, and its ONNX graph (operator set 17).

Normalization before each part, GELU by Erf, query, key and value from one product, positions learned, the head not tied to the embedding.
"""

from collections import namedtuple
from math import sqrt

import numpy
from onnx import TensorProto, helper, numpy_helper

Size = namedtuple("Size", "vocabulary width layers heads context")

EPSILON = 1e-5
# Added to the scores of tokens to come.
NEVER = -1e9


def shapes(size):
    """Shape of each weight by its name."""
    width, inner = size.width, 4 * size.width

    def norm(name):
        return {f"{name}.scale": (width,), f"{name}.bias": (width,)}

    def linear(name, rows, columns):
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (columns,)}

    found = {"tokens.weight": (size.vocabulary, width), "positions.weight": (size.context, width)}
    for layer in range(size.layers):
        at = f"layers.{layer}"
        found |= norm(f"{at}.norm1") | linear(f"{at}.attention.in", width, 3 * width) | linear(f"{at}.attention.out", width, width)
        found |= norm(f"{at}.norm2") | linear(f"{at}.up", width, inner) | linear(f"{at}.down", inner, width)
    return found | norm("norm") | {"head.weight": (width, size.vocabulary)}


class Graph:
    """Nodes and constants under construction."""

    def __init__(self):
        self.nodes, self.constants = [], {}

    def constant(self, name, values, kind=numpy.float32):
        self.constants[name] = numpy_helper.from_array(numpy.array(values, kind), name)
        return name

    def op(self, kind, name, *inputs, count=1, **attributes):
        names = [name] if count == 1 else [f"{name}.{index}" for index in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return name if count == 1 else names

    def norm(self, name, value):
        return self.op("LayerNormalization", name, value, f"{name}.scale", f"{name}.bias", axis=-1, epsilon=EPSILON)

    def linear(self, name, value):
        return self.op("Add", name, self.op("MatMul", f"{name}.product", value, f"{name}.weight"), f"{name}.bias")


def attention(graph, size, at, value, mask):
    parts = graph.op("Split", f"{at}.split", graph.linear(f"{at}.in", value), count=3, axis=2)
    heads = [graph.op("Reshape", f"{part}.heads", part, "heads") for part in parts]
    query, key, value = (
        graph.op("Transpose", f"{part}.turned", part, perm=perm)
        for part, perm in zip(heads, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    )
    scores = graph.op("Mul", f"{at}.scaled", graph.op("MatMul", f"{at}.scores", query, key), "shrink")
    shares = graph.op("Softmax", f"{at}.shares", graph.op("Add", f"{at}.masked", scores, mask), axis=-1)
    mixed = graph.op("Transpose", f"{at}.mixed.turned", graph.op("MatMul", f"{at}.mixed", shares, value), perm=[0, 2, 1, 3])
    return graph.linear(f"{at}.out", graph.op("Reshape", f"{at}.joined", mixed, "joined"))


def gelu(graph, name, value):
    half = graph.op("Erf", f"{name}.erf", graph.op("Div", f"{name}.div", value, "root"))
    scaled = graph.op("Mul", f"{name}.mul", value, graph.op("Add", f"{name}.add", half, "one"))
    return graph.op("Mul", name, scaled, "half")


def model(size, weights):
    """The model of `weights`, tensors for all names of `shapes`: int64 `input_ids` [batch, tokens] to `logits` [batch, tokens, vocabulary]."""
    graph = Graph()
    graph.constant("heads", [0, 0, size.heads, size.width // size.heads], numpy.int64)
    graph.constant("joined", [0, 0, size.width], numpy.int64)
    for name, value in (("shrink", sqrt(size.heads / size.width)), ("root", sqrt(2)), ("one", 1), ("half", 0.5)):
        graph.constant(name, value)
    for name, values in (("from", [0]), ("second", [1]), ("end", [2]), ("from both", [0, 0]), ("both", [0, 1])):
        graph.constant(name, values, numpy.int64)
    graph.constant("mask", numpy.triu(numpy.full((size.context, size.context), NEVER), 1))
    shape = graph.op("Shape", "shape", "input_ids")
    count = graph.op("Slice", "count", shape, "second", "end")
    counts = graph.op("Concat", "counts", count, count, axis=0)
    mask = graph.op("Slice", "mask.cut", "mask", "from both", counts, "both")
    positions = graph.op("Slice", "positions", "positions.weight", "from", count, "from")
    state = graph.op("Add", "embedded", graph.op("Gather", "tokens", "tokens.weight", "input_ids"), positions)
    for layer in range(size.layers):
        at = f"layers.{layer}"
        added = attention(graph, size, f"{at}.attention", graph.norm(f"{at}.norm1", state), mask)
        state = graph.op("Add", f"{at}.attended", state, added)
        up = graph.linear(f"{at}.up", graph.norm(f"{at}.norm2", state))
        state = graph.op("Add", f"{at}.state", state, graph.linear(f"{at}.down", gelu(graph, f"{at}.gelu", up)))
    graph.op("MatMul", "logits", graph.norm("norm", state), "head.weight")
    made = helper.make_graph(
        graph.nodes,
        "transformer",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens", size.vocabulary])],
        [*weights, *graph.constants.values()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
