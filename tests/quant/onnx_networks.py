"""ONNX networks written node by node, and the same in float64 numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

SIZE = 12


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    batch: int | str = "batch",
    channels: int = 3,
) -> Path:
    """Save a network from `x`, (batch, channels, 12, 12), to what its last node gives."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, SIZE, SIZE])
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "network", [value], [output], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=True), path)
    return path


def constants(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of the residual network; the depthwise filters are of very different size."""
    random = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * random.standard_normal(shape)).astype(np.float32)

    spread = np.geomspace(0.05, 2, 8, dtype=np.float32)
    return {
        "stem.weight": normal(8, 3, 3, 3, scale=0.3),
        "stem.bias": normal(8, scale=0.2),
        "deep.weight": normal(8, 1, 3, 3, scale=0.5) * spread[:, None, None, None],
        "deep.bias": normal(8, scale=0.3),
        "point.weight": normal(8, 8, 1, 1, scale=0.3),
        "point.bias": normal(8, scale=0.2),
        "head.weight": normal(5, 8),
        "head.bias": normal(5),
        "zero": np.array(0, dtype=np.float32),
        "six": np.array(6, dtype=np.float32),
        "places": np.array([-1, -2], dtype=np.int64),
        "flat": np.array([0, -1], dtype=np.int64),
    }


def residual_nodes(head: bool = True) -> list[onnx.NodeProto]:
    """Convolution, depthwise, pointwise with a shortcut, and with `head` a classifier of 5."""
    node = helper.make_node
    body = [
        node("Conv", ["x", "stem.weight", "stem.bias"], ["a"], "stem", pads=[1] * 4),
        node("Relu", ["a"], ["b"], "relu"),
        node("Conv", ["b", "deep.weight", "deep.bias"], ["c"], "deep", pads=[1] * 4, group=8),
        node("Clip", ["c", "zero", "six"], ["d"], "clip"),
        node("Conv", ["d", "point.weight", "point.bias"], ["e"], "point"),
        node("Add", ["e", "b"], ["f"], "add"),
        node("Relu", ["f"], ["g"], "last"),
    ]
    classifier = [
        node("ReduceMean", ["g", "places"], ["h"], "mean", keepdims=1),
        node("Reshape", ["h", "flat"], ["i"], "reshape"),
        node("Gemm", ["i", "head.weight", "head.bias"], ["y"], "head", transB=1),
    ]
    return [*body, *classifier] if head else body


def residual(path: Path, *, head: bool = True, seed: int = 0, batch: int | str = "batch") -> Path:
    return save(path, residual_nodes(head), constants(seed), batch)


def pictures(count: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, group: int = 1) -> np.ndarray:
    """Stride 1, output as large as the input, in float64."""
    pad = weight.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    form = "nchwij,cij->nchw" if group > 1 else "nchwij,ocij->nohw"
    used = weight[:, 0] if group > 1 else weight
    return np.asarray(np.einsum(form, windows, used) + bias[:, None, None])
