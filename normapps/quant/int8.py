"""ONNX files with int8 layers, for onnxruntime on the CPU.

Static quantization, U8S8: activations asymmetric uint8, weights symmetric int8, biases int32 (Jacob
et al. 2018). The file stays a float network with pairs of QuantizeLinear and DequantizeLinear
("QDQ") around what is rounded; onnxruntime turns those into integer operators when it opens it.
Needs the extra `deploy`; loads no torch.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..engine.ort import shortened
from ..errors import InputError, NormappsError, unknown
from ..files import atomic_path
from .keep_float import keep_float
from .layers import (
    ACTIVATIONS,
    BETWEEN,
    FLOAT_OUTPUT,
    LAYERS,
    bounds_of,
    fused,
    layers_of,
    passing,
    read_model,
    tensors_of,
)


def write_int8(
    float_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    ranges: Mapping[str, tuple[float, float]],
    *,
    per_channel: bool = True,
    exclude: Collection[str] = (),
    reduce_range: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a float ONNX file again with its layers in int8; sizes that were open stay open.

    Weights are rounded to −127…127 with scale max|w|/127, biases to int32 with the scale of input
    times weight, activations to 0…255 over their range, widened to hold 0. What a linear layer or
    matrix product gives stays float, as that costs no time: so do a classifier's logits.

    Args:
        float_path: the network; batch norms folded, or their convolutions are rounded unfolded.
        out_path: file to write.
        ranges: (low, high) of every tensor of `activation_tensors`; those of excluded layers may
            be missing.
        per_channel: a scale for each output channel of a weight, not one for all.
        exclude: names of nodes (`Node.name`) that stay float.
        reduce_range: round weights to 7 bits, so that a CPU without VNNI, which adds pairs of
            products in int16, does not saturate (see `has_vnni`).
        overwrite: replace an older file.

    Raises:
        NormappsError: the extra is not installed.
        InputError: the network is missing, no ONNX, or has no layer left that could be int8; an
            excluded name is none of its layers'; a range is missing, not finite or upside down; or
            the file exists or cannot be written.
    """
    model = read_model(float_path)
    chosen = _chosen(model, float_path, exclude)
    nodes = [*chosen, *passing(model, chosen)]
    covered = _covered(float_path, tensors_of(model, chosen), ranges)
    _bound(model, nodes, covered)
    _unshare(model, nodes)
    with atomic_path(out_path, overwrite=overwrite) as temporary, _quiet():
        try:
            rounded = _rounded(model, nodes, covered, per_channel, reduce_range)
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise InputError(
                f"{os.fspath(float_path)}: onnxruntime cannot quantize it ({shortened(error)})"
            ) from error
        temporary.write_bytes(rounded.SerializeToString())


def _chosen(model: Any, path: str | os.PathLike[str], exclude: Collection[str]) -> list[str]:
    layers = [each.name for each in layers_of(model)]
    for name in exclude:
        if name not in layers:
            raise unknown("layer", name, layers)
    chosen = [each for each in layers if each not in exclude]
    if not chosen:
        why = f"all {len(layers)} are excluded" if layers else f"it has no {' or '.join(LAYERS)}"
        raise InputError(f"{os.fspath(path)}: no layer would be int8, {why}")
    return chosen


def _covered(
    path: str | os.PathLike[str], tensors: Sequence[str], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    for name in tensors:
        if name not in ranges:
            raise InputError(f"{os.fspath(path)}: tensor {name} has no range; measure it")
        low, high = ranges[name]
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise InputError(
                f"{os.fspath(path)}: tensor {name}: a range from {low} to {high};"
                " both must be finite, the first not above the second"
            )
    return {name: ranges[name] for name in tensors}


def _bound(model: Any, nodes: Sequence[str], ranges: dict[str, tuple[float, float]]) -> None:
    """Keep ranges behind a ReLU or clip within its bounds; the tensor before it gets the same.

    The operator itself is left out of the int8 network: without this, a range that is wider, as
    one from statistics may be, would let through what it clips.
    """
    bounds, inner = bounds_of(model), fused(model, nodes)
    for node in reversed(model.graph.node):
        output = node.output[0]
        if node.name in bounds and node.name in nodes and output in ranges:
            low, high = np.clip(ranges[output], *bounds[node.name])
            ranges[output] = (float(low), float(high))
            if node.input[0] in inner:
                ranges[node.input[0]] = ranges[output]


def _unshare(model: Any, nodes: Collection[str]) -> None:
    """Give float operators copies of the constants that they share with int8 ones.

    The quantizer rounds a constant for all that read it: a layer that is excluded, and has its
    weight in common with one that is not, would be rounded with it.
    """
    from onnx import TensorProto

    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    rounded = {each for node in graph.node if node.name in nodes for each in node.input}
    copies: dict[str, Any] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if node.name not in nodes and name in rounded and name in constants:
                if name not in copies:
                    copies[name] = TensorProto()
                    copies[name].CopyFrom(constants[name])
                    copies[name].name = f"{name}_float"
                node.input[place] = copies[name].name
    graph.initializer.extend(copies.values())


def _rounded(
    model: Any,
    nodes: list[str],
    ranges: Mapping[str, tuple[float, float]],
    per_channel: bool,
    reduce_range: bool,
) -> Any:
    """Return the network with the nodes (names) in int8."""
    try:
        from onnxruntime.quantization import QDQQuantizer, QuantType
        from onnxruntime.quantization.calibrate import TensorData
    except ImportError as error:
        raise NormappsError(
            "int8 needs the package onnxruntime: install normapps[deploy]"
        ) from error
    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    quantizer = QDQQuantizer(
        model,
        per_channel,
        reduce_range,
        QuantType.QInt8,
        QuantType.QUInt8,
        data,
        nodes,
        [],
        [*LAYERS, *BETWEEN, *ACTIVATIONS],
        {"OpTypesToExcludeOutputQuantization": list(FLOAT_OUTPUT)},
    )
    rounded = quantizer.quantize_model()
    quantizer.model.topological_sort()  # as ONNX asks for; onnxruntime itself does without
    keep_float(rounded)
    return rounded


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
