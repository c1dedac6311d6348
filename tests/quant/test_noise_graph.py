"""Noise that stands in an ONNX graph for a layer: its moments, its correlation, its seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from normapps.engine.ort import open_session
from normapps.quant.noise_graph import gaussians, noisy

MEAN, STD = np.array([1.0, -20.0, 0.0]), np.array([0.5, 3.0, 0.0])
SHAPE = (2000, 2, 6, 6)


def model(*nodes: Any, **values: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2, "h", "w"])],
        [helper.make_empty_tensor_value_info("y")],
        [
            numpy_helper.from_array(each.astype(np.float32), name.replace("_", "."))
            for name, each in values.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def network() -> onnx.ModelProto:
    layer = helper.make_node("Conv", ["image", "a.b.weight"], ["x"], "layer")
    doubled = helper.make_node("Add", ["x", "x"], ["y"], "doubled")
    return model(layer, doubled, a_b_weight=np.ones((3, 2, 1, 1)))


def draw(network: onnx.ModelProto, correlation: float, seed: int = 0) -> list[np.ndarray]:
    """Two runs of x and y."""
    given = gaussians(network, {"a.b": (MEAN, STD)})
    graph = noisy(network, given, ["x", "y"], SHAPE, correlation=correlation, seed=seed)
    session = open_session(graph.SerializeToString())
    image = np.zeros(SHAPE, np.float32)
    return [each for _ in range(2) for each in session.run(image, ["x", "y"])]


def test_noise_has_the_moments_and_the_rest_of_the_graph_runs(network: onnx.ModelProto) -> None:
    x, y, again, _ = draw(network, 0.0)
    assert x.shape == (2000, 3, 6, 6)
    assert np.abs(x.mean((0, 2, 3)) - MEAN).max() < 0.15
    assert x.std((0, 2, 3)) == pytest.approx(STD, rel=0.05, abs=1e-6)
    assert np.array_equal(y, 2 * x)
    assert not np.array_equal(x, again)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
def test_positions_of_an_image_share_as_much_variance_as_asked(
    network: onnx.ModelProto, correlation: float
) -> None:
    x = (draw(network, correlation)[0][:, :2].astype(np.float64) - MEAN[:2, None, None]) / STD[
        :2, None, None
    ]
    within = x.var((2, 3), ddof=1).mean()
    assert within == pytest.approx(1 - correlation, abs=0.05)
    assert x.mean((2, 3)).var() == pytest.approx(correlation + (1 - correlation) / 36, abs=0.1)


def test_channels_images_and_seeds_are_independent(network: onnx.ModelProto) -> None:
    x = draw(network, 0.5)[0].astype(np.float64)
    means = x[:, :2].mean((2, 3))
    assert abs(np.corrcoef(means.T)[0, 1]) < 0.25
    assert abs(np.corrcoef(means[:-1, 0], means[1:, 0])[0, 1]) < 0.25
    assert np.array_equal(x, draw(network, 0.5)[0])
    assert not np.array_equal(x, draw(network, 0.5, seed=1)[0])


def test_two_layers_are_drawn_apart() -> None:
    first = helper.make_node("Conv", ["image", "a.weight"], ["x"], "first")
    second = helper.make_node("Conv", ["x", "b.weight"], ["y"], "second")
    network = model(first, second, a_weight=np.ones((3, 2, 1, 1)), b_weight=np.ones((3, 3, 1, 1)))
    given = gaussians(network, {"a": (MEAN, STD), "b": (MEAN, STD)})
    graph = noisy(network, given, ["x", "y"], SHAPE, correlation=0.5, seed=0)
    assert not {"first", "second"} & {each.name for each in graph.graph.node}
    x, y = open_session(graph.SerializeToString()).run(np.zeros(SHAPE, np.float32), ["x", "y"])
    assert abs(np.corrcoef(x[:, 1].ravel(), y[:, 1].ravel())[0, 1]) < 0.15


def test_what_no_output_needs_is_left_out(network: onnx.ModelProto) -> None:
    given = gaussians(network, {"a.b": (MEAN, STD)})
    graph = noisy(network, given, ["x"], SHAPE, correlation=0.5, seed=0)
    assert "doubled" not in {each.name for each in graph.graph.node}
    assert [each.name for each in graph.graph.input] == ["image"]


def test_only_layers_with_statistics_are_noise(network: onnx.ModelProto) -> None:
    assert gaussians(network, {"a": (MEAN, STD), "b": (MEAN, STD)}) == {}
    (found,) = gaussians(network, {"a.b": (MEAN, STD)}).items()
    assert (found[0], found[1].layer, found[1].axis) == ("x", "a.b", 1)
