"""An ONNX graph in which layers give noise of known moments instead of what they compute.

Needs the extra `deploy`; loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.ort import open_session
from ..errors import InputError

_CHANNELS_FIRST = ("Conv", "ConvTranspose", "BatchNormalization", "Gemm")
"""Operators whose channels are axis 1; of the others they are the last axis."""


@dataclass(frozen=True)
class Gaussian:
    """What a layer gives: channels of these moments.

    Attributes:
        layer: its name, for messages.
        mean, std: (C,) float64.
        axis: of the channels in its output.
    """

    layer: str
    mean: np.ndarray
    std: np.ndarray
    axis: int


def gaussians(
    model: Any, statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, Gaussian]:
    """Return the tensors whose moments are known, by name.

    They are the outputs of layers whose weight is that of a module with statistics (a bias that is
    added behind it included) and of batch norms that are still in the graph: mean β, std |γ|.

    Args:
        model: a `ModelProto`.
        statistics: module → mean and std, (C,) each.
    """
    constants = constants_of(model)
    readers = readers_of(model)
    found = {}
    for node in model.graph.node:
        axis = 1 if node.op_type in _CHANNELS_FIRST else -1
        if node.op_type == "BatchNormalization":
            gamma, beta = (constants.get(each) for each in node.input[1:3])
            if gamma is not None and beta is not None:
                found[node.output[0]] = _gaussian(node.name, beta, np.abs(gamma), axis)
        else:
            for module in _modules(node, constants):
                if module in statistics:
                    output = _with_bias(node, readers, constants)
                    found[output] = _gaussian(module, *statistics[module], axis)
    return found


def noisy(
    model: Any,
    given: Mapping[str, Gaussian],
    outputs: Sequence[str],
    shape: Sequence[int],
    *,
    correlation: float,
    seed: int,
) -> Any:
    """Return a graph with some outputs of the model's, in which the given tensors are noise.

    The noise is drawn in the graph, anew in every run, and the model's input stays the only one.

    Args:
        model: a `ModelProto`; it stays as it is.
        given: by tensor.
        outputs: tensors.
        shape: of the input, (N, C, H, W).
        correlation: share of the variance that all positions of an image's channel have in common.
        seed: of all noise.

    Raises:
        InputError: a tensor has another number of channels than its moments, or the model does
            not run on such an input.
    """
    from onnx import helper, numpy_helper

    shapes = _shapes(model, list(given), shape)
    _check_channels(given, shapes)
    made: list[Any] = []
    values: list[Any] = []
    for place, (tensor, gaussian) in enumerate(given.items()):
        nodes, constants = _draw(tensor, gaussian, shapes[tensor], correlation, seed + 2 * place)
        made += nodes
        values += [numpy_helper.from_array(each, name) for name, each in constants.items()]
    kept = [node for node in model.graph.node if not set(node.output) & given.keys()]
    nodes = _needed([*made, *kept], outputs)
    copy = helper.make_graph(
        nodes,
        model.graph.name,
        list(model.graph.input),
        [helper.make_empty_tensor_value_info(each) for each in outputs],
        [*model.graph.initializer, *values],
    )
    return helper.make_model(
        copy,
        opset_imports=model.opset_import,
        functions=list(model.functions),
        ir_version=model.ir_version,
    )


def constants_of(model: Any) -> dict[str, np.ndarray]:
    """Return the tensors that the file holds, by name."""
    from onnx import numpy_helper

    found = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def readers_of(model: Any) -> dict[str, list[Any]]:
    """Return the nodes that read each tensor; the graph's own outputs are read by None, too."""
    found: dict[str, list[Any]] = {each.name: [None] for each in model.graph.output}
    for node in model.graph.node:
        for tensor in node.input:
            found.setdefault(tensor, []).append(node)
    return found


def _modules(node: Any, constants: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yield the module whose weight a node reads, by the names that the exporter keeps."""
    for tensor in node.input[1:2]:
        name, _, last = tensor.rpartition(".")
        if tensor in constants and last == "weight":
            yield name


def _with_bias(
    node: Any, readers: Mapping[str, list[Any]], constants: Mapping[str, np.ndarray]
) -> str:
    """The output of a node, or of the sum with its bias that a product of matrices leaves over."""
    output = str(node.output[0])
    (reader, *others) = readers.get(output, [None])
    if node.op_type != "MatMul" or reader is None or others or reader.op_type != "Add":
        return output
    added = next(each for each in (*reader.input, "") if each != output)
    return str(reader.output[0]) if added in constants else output


def _gaussian(layer: str, mean: np.ndarray, std: np.ndarray, axis: int) -> Gaussian:
    mean, std = (np.asarray(each, np.float64).reshape(-1) for each in (mean, std))
    if len(mean) != len(std) or not np.isfinite(mean + std).all() or (std < 0).any():
        raise InputError(
            f"layer '{layer}': statistics of {len(mean)} means and {len(std)} deviations, which"
            " must be as many, finite, and no deviation negative"
        )
    return Gaussian(layer, mean, std, axis)


def _shapes(model: Any, tensors: Sequence[str], shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor for a batch, by running one image."""
    from onnx import ModelProto, helper

    probe = ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(each) for each in tensors)
    session = open_session(probe.SerializeToString())
    found = session.run(np.zeros((1, *shape[1:]), np.float32), list(tensors))
    return {
        name: (shape[0] * each.shape[0], *each.shape[1:])
        for name, each in zip(tensors, found, strict=True)
    }


def _check_channels(given: Mapping[str, Gaussian], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for tensor, gaussian in given.items():
        channels = shapes[tensor][gaussian.axis]
        if channels != len(gaussian.mean):
            raise InputError(
                f"layer '{gaussian.layer}': gives {channels} channels, its statistics have"
                f" {len(gaussian.mean)}; give those of this file's network"
            )


def _draw(
    tensor: str, gaussian: Gaussian, shape: tuple[int, ...], correlation: float, seed: int
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Nodes that give `tensor`: mean + std·√c · one a channel + std·√(1 − c) · one a position."""
    from onnx import helper

    axis = gaussian.axis % len(shape)
    across = [-1 if place == axis else 1 for place in range(len(shape))]
    common = [size if place in (0, axis) else 1 for place, size in enumerate(shape)]
    nodes, constants = [], {f"{tensor}/mean": gaussian.mean}
    parts = (("common", common, correlation), ("own", shape, 1 - correlation))
    for part, size, share in parts:
        normal, std, scaled = (f"{tensor}/{part}{end}" for end in ("", "/std", "/scaled"))
        # its own scale is left at 1: onnxruntime aborts at 0
        draw: dict[str, Any] = {"shape": size, "seed": float(seed)}
        nodes.append(helper.make_node("RandomNormal", [], [normal], normal, **draw))
        nodes.append(helper.make_node("Mul", [normal, std], [scaled], scaled))
        constants[std] = gaussian.std * share**0.5
        seed += 1
    both = f"{tensor}/both"
    scaled_parts = [f"{tensor}/{part}/scaled" for part, _, _ in parts]
    nodes.append(helper.make_node("Add", scaled_parts, [both], both))
    nodes.append(helper.make_node("Add", [both, f"{tensor}/mean"], [tensor], f"{tensor}/noise"))
    return nodes, {name: _across(each, across) for name, each in constants.items()}


def _across(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return values.astype(np.float32).reshape(shape)


def _needed(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    """The nodes that some outputs depend on, in their order."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]
