"""Which operators of an ONNX file become int8, and which tensors they read and give.

Needs the extra `deploy`; loads no torch.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..engine.ort import shortened
from ..errors import InputError, NormappsError

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators with weights that onnxruntime has int8 kernels for on a CPU."""

BETWEEN = (
    *("Add", "Mul", "Concat", "Sigmoid"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
)
"""Operators that pass int8 on between layers, where all that they read is int8.

A squeeze-and-excitation gate or a SiLU in float between int8 layers costs more than int8 layers
gain; so all of it is int8.
"""

ACTIVATIONS = ("Relu", "Clip")
"""Operators that rounding to a grid includes: its ends clip."""

FLOAT_OUTPUT = ("Gemm", "MatMul")
"""Layers whose int8 kernel gives float at no cost: so a classifier's logits are not rounded."""


@dataclass(frozen=True)
class Node:
    """A layer of an ONNX file that can become int8.

    Attributes:
        name: of the node.
        op: its operator, one of `LAYERS`.
        module: the torch module, by the name of its weight; None where the exporter kept none.
        weight: the initializer that holds the weight.
        output: the tensor that it gives.
    """

    name: str
    op: str
    module: str | None
    weight: str
    output: str


def read_model(path: str | os.PathLike[str]) -> Any:
    """Read an ONNX file into a `ModelProto` in which every node has a name of its own.

    A name that is missing or taken is made from the operator and its place, so that the same file
    always gives the same names. A mean over height and width is given its own name,
    `GlobalAveragePool`: as `ReduceMean`, which torch's exporter writes, it has no int8 kernel.

    Raises:
        NormappsError: onnx is not installed.
        InputError: the file is missing or no ONNX.
    """
    try:
        import onnx
    except ImportError as error:
        raise NormappsError("ONNX needs the package onnx: install normapps[deploy]") from error
    if not os.path.isfile(path):
        raise InputError(f"{os.fspath(path)}: no such file")
    try:
        model = onnx.load(os.fspath(path))
    except Exception as error:  # of protobuf, of onnx
        raise InputError(f"{os.fspath(path)}: is no ONNX ({shortened(error)})") from error
    if not model.graph.node:
        raise InputError(f"{os.fspath(path)}: is no ONNX network (it has no operators)")
    _name_nodes(model)
    _name_pools(model)
    return model


def _name_nodes(model: Any) -> None:
    taken: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{place}"
        taken.add(node.name)


def _name_pools(model: Any) -> None:
    from onnx import helper, numpy_helper

    values = {each.name: each for each in model.graph.initializer}
    known = (*model.graph.value_info, *model.graph.input)
    ranks = {each.name: len(each.type.tensor_type.shape.dim) for each in known}
    for node in model.graph.node:
        if node.op_type == "ReduceMean" and ranks.get(node.input[0]) == 4:
            options = {each.name: helper.get_attribute_value(each) for each in node.attribute}
            axes = options.get("axes", ())  # an attribute until opset 18
            if len(node.input) > 1 and node.input[1] in values:
                axes = numpy_helper.to_array(values[node.input[1]])
            if sorted(int(each) % 4 for each in axes) == [2, 3] and options.get("keepdims", 1):
                inputs, outputs, name = [node.input[0]], list(node.output), node.name
                node.CopyFrom(helper.make_node("GlobalAveragePool", inputs, outputs, name))


def quantizable(path: str | os.PathLike[str]) -> tuple[Node, ...]:
    """Return the layers of an ONNX file that can become int8, in the order they run.

    They are convolutions, linear layers and products with a matrix whose weight is in the file.

    Raises:
        NormappsError: onnx is not installed.
        InputError: the file is missing or no ONNX.
    """
    return layers_of(read_model(path))


def layers_of(model: Any) -> tuple[Node, ...]:
    """Return what `quantizable` does, of a `ModelProto`."""
    constants = _constants(model)
    return tuple(
        Node(node.name, node.op_type, _module_of(node.input[1]), node.input[1], node.output[0])
        for node in model.graph.node
        if node.op_type in LAYERS and node.input[1] in constants
    )


def passing(model: Any, chosen: Collection[str]) -> tuple[str, ...]:
    """Return the nodes that pass int8 on when the chosen layers (node names) are int8.

    An operator that reads a single float tensor stays float: to round the others for it would cost
    accuracy and time for nothing.
    """
    bounds = bounds_of(model)
    rounded: set[str] = set()
    found = []
    for node in model.graph.node:
        passes = node.name in bounds or node.op_type in BETWEEN
        if node.name in chosen and node.op_type not in FLOAT_OUTPUT:
            rounded.add(node.output[0])
        elif passes and rounded.issuperset(_read(node)):
            rounded.add(node.output[0])
            found.append(node.name)
    return tuple(found)


def activation_tensors(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the tensors whose ranges `write_int8` asks for when every layer becomes int8.

    Of a layer and the ReLU behind it only the ReLU's output counts: they become one operator.

    Raises:
        NormappsError: onnx is not installed.
        InputError: the file is missing or no ONNX.
    """
    model = read_model(path)
    return tensors_of(model, [each.name for each in layers_of(model)])


def tensors_of(model: Any, chosen: Collection[str]) -> tuple[str, ...]:
    """Return the tensors that are rounded when the chosen layers (node names) are int8."""
    included = {*chosen, *passing(model, chosen)}
    inner = fused(model, included)
    found: dict[str, None] = {}
    for node in model.graph.node:
        if node.name in included:
            given = () if node.op_type in FLOAT_OUTPUT else node.output[:1]
            found.update(dict.fromkeys((*_read(node), *given)))
    return tuple(each for each in found if each not in inner)


def fused(model: Any, included: Collection[str]) -> dict[str, str]:
    """Return the tensors that only an included ReLU or clip reads, each with what that gives.

    Of several one after the other, each gives what the last one does.
    """
    readers = Counter(tensor for node in model.graph.node for tensor in node.input)
    readers.update(each.name for each in model.graph.output)
    found: dict[str, str] = {}
    for node in reversed(model.graph.node):
        if node.op_type in ACTIVATIONS and node.name in included and readers[node.input[0]] == 1:
            found[node.input[0]] = found.get(node.output[0], node.output[0])
    return found


def bounds_of(model: Any) -> dict[str, tuple[float, float]]:
    """Return the (low, high) of each ReLU and clip (node name) that a grid can stand for.

    A clip whose bounds are not in the file, or that leaves out 0, which every grid has, is none.
    """
    values = {each.name: each for each in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "Relu":
            found[node.name] = (0.0, math.inf)
        elif node.op_type == "Clip" and all(not each or each in values for each in node.input[1:]):
            low, high = _bounds(node, values)
            if low <= 0 <= high:
                found[node.name] = (low, high)
    return found


def _bounds(clip: Any, values: Mapping[str, Any]) -> tuple[float, float]:
    from onnx import numpy_helper

    ends = [-math.inf, math.inf]
    for place, name in enumerate(clip.input[1:3]):
        if name:
            ends[place] = float(numpy_helper.to_array(values[name]))
    return ends[0], ends[1]


def _read(node: Any) -> tuple[str, ...]:
    """Return the activations that an operator reads."""
    return tuple(node.input if node.op_type in BETWEEN else node.input[:1])


def _constants(model: Any) -> set[str]:
    return {each.name for each in model.graph.initializer}


def _module_of(weight: str) -> str | None:
    name, dot, last = weight.rpartition(".")
    return name if dot and last == "weight" else None
