"""Layers without int8 weights keep theirs when onnxruntime optimizes an int8 file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from normapps.engine.ort import open_session
from normapps.quant.int8 import write_int8
from normapps.quant.keep_float import keep_float


def pair(source: str, low: float = -4.0, high: float = 4.0) -> tuple[list[Any], dict[str, Any]]:
    """A QuantizeLinear and DequantizeLinear behind a tensor."""
    scale, zero = f"{source}_scale", f"{source}_zero"
    values = {
        scale: np.array((high - low) / 255, np.float32),
        zero: np.array(round(-low / (high - low) * 255), np.uint8),
    }
    ends = [scale, zero]
    return [
        helper.make_node("QuantizeLinear", [source, *ends], [f"{source}_q"], f"{source}_q"),
        helper.make_node(
            "DequantizeLinear", [f"{source}_q", *ends], [f"{source}_dq"], f"{source}_dq"
        ),
    ], values


def enclosed(op: str, weight: np.ndarray, shape: list[Any], **attributes: Any) -> onnx.ModelProto:
    """image → pair → ReLU → pair → layer of float weights → pair."""
    nodes, values = pair("image")
    relu = helper.make_node("Relu", ["image_dq"], ["relu"], "relu")
    before, scales = pair("relu", 0.0, 4.0)
    layer = helper.make_node(op, ["relu_dq", "weight", "bias"], ["y"], "layer", **attributes)
    behind, last = pair("y", -20.0, 20.0)
    values |= {**scales, **last, "weight": weight.astype(np.float32)}
    width = weight.shape[0]
    if op == "ConvTranspose" or (op == "Gemm" and not attributes.get("transB")):
        width = weight.shape[1]
    values["bias"] = np.linspace(-1, 1, width).astype(np.float32)
    graph = helper.make_graph(
        [*nodes, relu, *before, layer, *behind],
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y_dq", TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(each, name) for name, each in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def uneven(*shape: int) -> np.ndarray:
    """Weights that rounding per tensor ruins: the first output channel's are a thousand times."""
    weight = np.random.default_rng(0).standard_normal(shape)
    weight.reshape(-1)[0] = 1000
    return weight


LAYERS = {
    "Conv": (uneven(4, 6, 3, 3), {}),
    "grouped": (uneven(6, 2, 3, 3), {"group": 3}),
    "ConvTranspose": (uneven(6, 4, 2, 2), {}),
    "Gemm": (uneven(6, 4), {}),
    "transposed": (uneven(4, 6), {"transB": 1}),
    "one channel": (uneven(4, 1, 3, 3), {}),
}
OPS = {"grouped": "Conv", "transposed": "Gemm", "one channel": "Conv"}


@pytest.mark.parametrize("kind", LAYERS)
def test_onnxruntime_computes_the_layer_with_its_own_weights(kind: str, tmp_path: Path) -> None:
    weight, attributes = LAYERS[kind]
    op = OPS.get(kind, kind)
    channels = 1 if kind == "one channel" else 6
    shape = ["n", channels] if op == "Gemm" else ["n", channels, 8, 8]
    model = enclosed(op, weight, shape, **attributes)
    plain = enclosed(op, weight, shape, **attributes)
    assert keep_float(model) == ("layer",)
    onnx.checker.check_model(model, full_check=True)
    size = (16, channels) if op == "Gemm" else (16, channels, 8, 8)
    image = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    if kind == "one channel":  # the ReLU's output, unrounded
        image = np.rint(image / (8 / 255)) * np.float32(8 / 255)
    (reference,) = ReferenceEvaluator(plain).run(None, {"image": image})
    step = 40 / 255
    (found,) = open_session(model.SerializeToString()).run(image)
    assert np.abs(found - reference).max() < (3 if kind == "one channel" else 1.01) * step
    assert np.abs(found - reference).mean() < 0.1 * step


def test_onnxruntime_would_have_rounded_the_weights() -> None:
    """Without the change: the reason why it is there. Gone one day, `keep_float` may go, too."""
    weight, _ = LAYERS["Conv"]
    model = enclosed("Conv", weight, ["n", 6, 8, 8])
    image = np.random.default_rng(1).standard_normal((4, 6, 8, 8)).astype(np.float32)
    (reference,) = ReferenceEvaluator(model).run(None, {"image": image})
    (found,) = open_session(model.SerializeToString()).run(image)
    assert np.abs(found - reference).mean() > 1


def test_int8_layers_and_layers_of_float_inputs_stay_as_they_are() -> None:
    model = enclosed("Conv", uneven(4, 6, 3, 3), ["n", 6, 8, 8])
    layer = next(each for each in model.graph.node if each.name == "layer")
    layer.input[1] = "weight_dq"  # made by a node: an int8 weight
    before = model.SerializeToString()
    assert keep_float(model) == ()
    layer.input[0], layer.input[1] = "relu", "weight"
    assert keep_float(model) == ()
    layer.input[0], layer.input[1] = "relu_dq", "weight_dq"
    assert model.SerializeToString() == before


def test_a_layer_of_the_image_reads_it_unrounded() -> None:
    model = enclosed("Conv", uneven(4, 6, 3, 3), ["n", 6, 8, 8])
    layer = next(each for each in model.graph.node if each.name == "layer")
    layer.input[0] = "image_dq"
    assert keep_float(model) == ("layer",)
    assert layer.input[0] == "image"


def test_an_excluded_first_layer_reads_the_image_itself(tmp_path: Path) -> None:
    values = {
        name: uneven(4, width, 3, 3).astype(np.float32) for name, width in (("a", 3), ("b", 4))
    }
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["x"], "first"),
        helper.make_node("Conv", ["x", "b"], ["y"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 4, 4])],
        [numpy_helper.from_array(each, name) for name, each in values.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "net.onnx")
    ranges = {"image": (-4.0, 4.0), "x": (-9.0, 9.0), "y": (-9.0, 9.0)}
    write_int8(tmp_path / "net.onnx", tmp_path / "int8.onnx", ranges, exclude=["first"])
    written = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(written)
    first = next(each for each in written.graph.node if each.name == "first")
    assert list(first.input[:2]) == ["image", "a"]
