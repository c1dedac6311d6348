"""Layers that were left float in an int8 ONNX file, and stay it when onnxruntime opens the file.

onnxruntime (seen in 1.32) rounds the weight of any Conv, ConvTranspose or Gemm that it finds
between DequantizeLinear and QuantizeLinear, per tensor, whoever wrote the file and why. It does
not where the input is dequantized channel by channel. Needs the extra `deploy`; loads no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_ROUNDED = ("Conv", "ConvTranspose", "Gemm")
"""Operators that onnxruntime rounds unasked."""


def keep_float(model: Any) -> tuple[str, ...]:
    """Give every float layer of an int8 network an input that onnxruntime leaves float.

    The values stay what they were: a layer gets a DequantizeLinear of its own, with one scale,
    repeated for each channel. One that reads the network's input, or a single channel, reads it
    unrounded.

    Args:
        model: a `ModelProto` with QDQ pairs, its nodes sorted; changed in place.

    Returns:
        The names of the nodes that were changed.
    """
    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    makers = {tensor: node for node in graph.node for tensor in node.output}
    inputs = {each.name for each in graph.input}
    changed = []
    for node in list(graph.node):
        if node.op_type not in _ROUNDED or node.input[1] not in constants:
            continue
        rounded = makers.get(node.input[0])
        if rounded is None or rounded.op_type != "DequantizeLinear":
            continue
        before = makers.get(rounded.input[0])
        channels = _channels(node, constants[node.input[1]].dims)
        if before is not None and (before.input[0] in inputs or channels == 1):
            node.input[0] = before.input[0]
        else:
            _give_own(graph, node, rounded, channels, constants)
        changed.append(node.name)
    return tuple(changed)


def _channels(node: Any, weight: Any) -> int:
    """The number of channels that a layer reads, by the shape of its weight."""
    attributes = {each.name: each.i for each in node.attribute}
    if node.op_type == "Conv":
        return int(weight[1]) * int(attributes.get("group", 1))
    if node.op_type == "Gemm" and attributes.get("transB", 0):
        return int(weight[1])
    return int(weight[0])


def _give_own(
    graph: Any, node: Any, rounded: Any, channels: int, constants: dict[str, Any]
) -> None:
    """Put a DequantizeLinear with a scale a channel before a node."""
    from onnx import helper, numpy_helper

    names = []
    for name in rounded.input[1:]:
        value = numpy_helper.to_array(constants[name]).reshape(-1)
        names.append(f"{node.name}/{name}")
        graph.initializer.append(numpy_helper.from_array(np.repeat(value, channels), names[-1]))
    output = f"{node.name}/input"
    made = helper.make_node(
        "DequantizeLinear", [rounded.input[0], *names], [output], f"{output}/dequantize", axis=1
    )
    node.input[0] = output
    graph.node.insert(next(i for i, each in enumerate(graph.node) if each.name == node.name), made)
