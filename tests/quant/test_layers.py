"""Which operators become int8, which tensors are rounded, and names that hold."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_networks import constants, residual, residual_nodes, save

from normapps.errors import InputError, NormappsError
from normapps.quant.layers import (
    activation_tensors,
    bounds_of,
    fused,
    passing,
    quantizable,
    read_model,
    tensors_of,
)


def test_layers_with_weights_are_found_in_order(tmp_path: Path) -> None:
    found = quantizable(residual(tmp_path / "a.onnx"))
    assert [each.name for each in found] == ["stem", "deep", "point", "head"]
    assert [each.op for each in found] == ["Conv", "Conv", "Conv", "Gemm"]
    assert [each.module for each in found] == ["stem", "deep", "point", "head"]
    assert found[1].weight == "deep.weight"
    assert [each.output for each in found] == ["a", "c", "e", "y"]


def test_a_product_of_two_activations_is_no_layer_and_a_plain_name_no_module(
    tmp_path: Path,
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["a"], "square"),
        helper.make_node("MatMul", ["a", "table"], ["b"], "linear"),
    ]
    path = save(tmp_path / "a.onnx", nodes, {"table": np.ones((12, 2), dtype=np.float32)})
    (only,) = quantizable(path)
    assert (only.name, only.module) == ("linear", None)


def test_tensors_before_a_relu_and_logits_are_not_rounded(tmp_path: Path) -> None:
    path = residual(tmp_path / "a.onnx")
    assert activation_tensors(path) == ("x", "b", "d", "e", "g", "h", "i")


def test_what_a_float_layer_gives_is_not_passed_on(tmp_path: Path) -> None:
    model = read_model(residual(tmp_path / "a.onnx"))
    every = passing(model, ["stem", "deep", "point", "head"])
    assert every == ("relu", "clip", "add", "last", "mean")
    assert passing(model, ["stem", "deep", "head"]) == ("relu", "clip")
    assert tensors_of(model, ["stem", "deep", "head"]) == ("x", "b", "d", "i")
    assert tensors_of(model, ["point"]) == ("d", "e")


def test_a_chain_of_clips_is_one_with_its_layer(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], "stem"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Clip", ["b", "zero", "six"], ["c"], "clip"),
        helper.make_node("Sigmoid", ["c"], ["d"], "gate"),
    ]
    model = read_model(save(tmp_path / "a.onnx", nodes, constants()))
    assert fused(model, ["stem", "relu", "clip"]) == {"a": "c", "b": "c"}
    assert fused(model, ["stem", "clip"]) == {"b": "c"}
    assert tensors_of(model, ["stem"]) == ("x", "c", "d")


def test_a_tensor_read_twice_or_given_out_stays(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], "stem"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Add", ["a", "b"], ["c"], "add"),
    ]
    model = read_model(save(tmp_path / "a.onnx", nodes, constants()))
    assert tensors_of(model, ["stem"]) == ("x", "a", "b", "c")


def test_only_clips_around_zero_can_be_left_to_the_grid(tmp_path: Path) -> None:
    held = {
        "one": np.array(1, dtype=np.float32),
        "six": np.array(6, dtype=np.float32),
        "minus": np.array(-1, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Clip", ["x", "one", "six"], ["a"], "above"),
        helper.make_node("Clip", ["a", "minus", "six"], ["b"], "around"),
        helper.make_node("Clip", ["b", "", "six"], ["c"], "half"),
        helper.make_node("ReduceMax", ["c"], ["m"], "max", keepdims=0),
        helper.make_node("Clip", ["c", "", "m"], ["d"], "computed"),
        helper.make_node("Relu", ["d"], ["e"], "relu"),
    ]
    model = read_model(save(tmp_path / "a.onnx", nodes, held))
    assert bounds_of(model) == {
        "around": (-1, 6),
        "half": (-np.inf, 6),
        "relu": (0, np.inf),
    }


def test_nodes_get_names_of_their_own(tmp_path: Path) -> None:
    nodes = residual_nodes()
    for node in nodes:
        node.name = "" if node.op_type == "Conv" else "same"
    path = save(tmp_path / "a.onnx", nodes, constants())
    names = [node.name for node in read_model(path).graph.node]
    assert names[:4] == ["Conv_0", "same", "Conv_2", "Clip_3"]
    assert len(set(names)) == len(names)
    assert [node.name for node in read_model(path).graph.node] == names


@pytest.mark.parametrize(
    ("axes", "keepdims", "is_pool"),
    [
        ([-1, -2], 1, True),
        ([2, 3], 1, True),
        ([1], 1, False),
        ([1, 2, 3], 1, False),
        ([-2, -1], 0, False),
    ],
)
def test_a_mean_over_height_and_width_is_a_pool(
    tmp_path: Path, axes: list[int], keepdims: int, is_pool: bool
) -> None:
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], "mean", keepdims=keepdims)]
    path = save(tmp_path / "a.onnx", nodes, {"axes": np.array(axes, dtype=np.int64)})
    (node,) = read_model(path).graph.node
    assert node.op_type == ("GlobalAveragePool" if is_pool else "ReduceMean")
    assert (node.name, list(node.output)) == ("mean", ["y"])
    assert list(node.input) == (["x"] if is_pool else ["x", "axes"])


@pytest.mark.parametrize("content", [b"", b"no network at all", b"\x08\x07\x12\x04junk"])
def test_a_corrupt_file_is_named_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.onnx: is no ONNX") as error:
        quantizable(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_missing_package_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"none\.onnx: no such file"):
        activation_tensors(tmp_path / "none.onnx")
    path = residual(tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(NormappsError, match=r"normapps\[deploy\]"):
        quantizable(path)


def test_the_file_is_as_it_was(tmp_path: Path) -> None:
    path = residual(tmp_path / "a.onnx")
    before = path.read_bytes()
    read_model(path)
    assert path.read_bytes() == before
    assert onnx.load(path).graph.node[7].op_type == "ReduceMean"
