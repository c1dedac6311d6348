"""Ranges from statistics alone, against formulas, simulations and a network that is Gaussian."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from normapps.errors import InputError
from normapps.quant.calibration import measure_ranges
from normapps.quant.noise_graph import gaussians
from normapps.quant.statistics_ranges import closed_ranges, statistics_ranges

Statistics = dict[str, tuple[np.ndarray, np.ndarray]]


def save(path: Path, nodes: list[Any], values: dict[str, np.ndarray], out: str) -> Path:
    """A network of images (N, 3, H, W) as a file."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(each.astype(np.float32), name) for name, each in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    onnx.save(model, path)
    return path


def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], f"node_{output}", **attributes)


def conv(name: str, source: str, width: tuple[int, int], size: int = 1) -> tuple[Any, Any]:
    draw = np.random.default_rng(len(name) + sum(map(ord, name)))
    values = {f"{name}.weight": draw.standard_normal((width[1], width[0], size, size))}
    values[f"{name}.bias"] = draw.standard_normal(width[1])
    made = node("Conv", f"{source} {name}.weight {name}.bias", name, pads=[size // 2] * 4)
    return made, values


def moments(seed: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.standard_normal(width), draw.uniform(0.3, 2, width)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """conv a → ReLU → conv b → clip; both added, joined, pooled, and a classifier without norm."""
    (a, values), (b, more) = conv("a", "image", (3, 5), 3), conv("b", "a_relu", (5, 5))
    draw = np.random.default_rng(0)
    last = {"fc.weight": draw.standard_normal((4, 10)), "fc.bias": draw.standard_normal(4)}
    bounds = {"zero": np.array(0.0), "six": np.array(6.0)}
    nodes = [
        a,
        node("Relu", "a", "a_relu"),
        b,
        node("Clip", "b zero six", "b_clip"),
        node("Add", "a_relu b", "sum"),
        node("Concat", "sum b_clip", "joined", axis=1),
        node("GlobalAveragePool", "joined", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat fc.weight fc.bias", "logits", transB=1),
    ]
    folder = tmp_path_factory.mktemp("onnx")
    return save(folder / "net.onnx", nodes, {**values, **more, **last, **bounds}, "logits")


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    return {"a": moments(1, 5), "b": moments(2, 5), "elsewhere": moments(3, 7)}


SHAPE = (16, 3, 12, 12)


def reach(mean: np.ndarray, std: np.ndarray, deviations: float) -> tuple[float, float]:
    return float((mean - deviations * std).min()), float((mean + deviations * std).max())


def test_layers_with_statistics_have_six_deviations_cut_by_what_follows(
    network: Path, statistics: Statistics
) -> None:
    found = statistics_ranges(network, statistics, SHAPE)
    (_, high), b = reach(*statistics["a"], 6), reach(*statistics["b"], 6)
    assert found["a_relu"] == pytest.approx((0.0, high))
    assert found["b"] == pytest.approx(b)  # the sum reads it, too, before the clip
    other = statistics_ranges(network, statistics, SHAPE, deviations=3)
    assert other["b"] == pytest.approx(reach(*statistics["b"], 3))


def test_the_input_has_the_range_of_pictures(network: Path, statistics: Statistics) -> None:
    found = statistics_ranges(
        network, statistics, SHAPE, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.1)
    )
    assert found["image"] == pytest.approx((-3.0, 7.0))


def test_what_lies_between_agrees_with_a_simulation(network: Path, statistics: Statistics) -> None:
    found = statistics_ranges(network, statistics, (64, 3, 12, 12), runs=8)
    draw = np.random.default_rng(7)

    def noise(name: str) -> np.ndarray:
        mean, std = (each[:, None, None] for each in statistics[name])
        common, own = draw.standard_normal((512, 5, 1, 1)), draw.standard_normal((512, 5, 12, 12))
        return mean + std * math.sqrt(0.5) * (common + own)

    relu, b = np.maximum(noise("a"), 0), noise("b")
    summed = relu + b
    mean, std = summed.mean((0, 2, 3)), summed.std((0, 2, 3))
    assert found["sum"] == pytest.approx(reach(mean, std, 6), rel=0.05)
    pooled = np.concatenate([summed, np.clip(b, 0, 6)], 1).mean((2, 3))
    name = "flat" if "flat" in found else "pool"
    low, high = found[name]
    width = pooled.max() - pooled.min()
    assert low == pytest.approx(pooled.min(), abs=0.15 * width)
    assert high == pytest.approx(pooled.max(), abs=0.15 * width)


def test_a_concatenation_has_the_ranges_of_its_parts(network: Path, statistics: Statistics) -> None:
    found = statistics_ranges(network, statistics, SHAPE)
    parts = [found["sum"], found["b_clip"]] if "b_clip" in found else [found["sum"]]
    assert found["joined"][0] == pytest.approx(min(low for low, _ in parts))
    assert found["joined"][1] == pytest.approx(max(high for _, high in parts))


def test_what_only_clips_read_has_their_bounds(tmp_path: Path) -> None:
    bounds = {"low": np.array(-1.0), "high": np.array(2.0)}
    a, values = conv("a", "image", (3, 5))
    nodes = [a, node("Clip", "a low high", "clip"), node("Relu", "a", "relu")]
    nodes.append(node("Add", "clip relu", "sum"))
    path = save(tmp_path / "net.onnx", nodes, {**values, **bounds}, "sum")
    known = {"a": (np.zeros(5), np.full(5, 0.5))}
    model = onnx.load(path)
    found = closed_ranges(model, gaussians(model, known), 6)
    assert found == {"a": (-1.0, 3.0), "clip": (-1.0, 2.0), "relu": (0.0, 3.0)}
    assert closed_ranges(model, gaussians(model, known), 1)["a"] == (-0.5, 0.5)


def test_moments_of_a_sum_are_those_of_all_runs(network: Path, statistics: Statistics) -> None:
    """One image a run, each of one value: all of the variance lies between the runs."""
    found = statistics_ranges(network, statistics, (1, 3, 4, 4), correlation=1.0, runs=600)
    draw = np.random.default_rng(7)
    (mean, std), (mean_b, std_b) = statistics["a"], statistics["b"]
    relu = np.maximum(mean + std * draw.standard_normal((9999, 5)), 0)
    summed = relu + mean_b + std_b * draw.standard_normal((9999, 5))
    assert found["sum"] == pytest.approx(reach(summed.mean(0), summed.std(0), 6), rel=0.08)


def test_layers_before_the_first_read_noise_in_the_range_of_pictures(tmp_path: Path) -> None:
    pre, values = conv("pre", "image", (3, 2))
    a, more = conv("a", "pre", (2, 2))
    values["pre.weight"], values["pre.bias"] = np.ones((2, 3, 1, 1)), np.zeros(2)
    path = save(tmp_path / "net.onnx", [pre, a], {**values, **more}, "a")
    known = {"a": (np.zeros(2), np.ones(2))}
    options: dict[str, Any] = {"mean": (0.5, 0.0, -1.0), "std": (1.0, 2.0, 1.0)}
    low, high = statistics_ranges(path, known, (4, 3, 16, 16), **options)["pre"]
    assert -0.5 + 0 + 1 <= low < 0.8
    assert 2.5 < high <= 0.5 + 0.5 + 2 + 1e-6


def test_uncorrelated_noise_leaves_a_pool_at_its_mean(
    network: Path, statistics: Statistics
) -> None:
    def width(correlation: float) -> float:
        found = statistics_ranges(network, statistics, SHAPE, correlation=correlation)
        low, high = found["pool"]
        return high - low

    assert width(0.0) < 0.8 * width(0.5) < width(1.0)


def test_ranges_are_those_of_a_network_that_really_is_gaussian(tmp_path: Path) -> None:
    """White images through a convolution are Gaussian; the largest of n is as Gumbel's law says."""
    a, values = conv("a", "image", (3, 4), 3)
    b, more = conv("b", "swish", (4, 4))
    nodes = [a, node("Sigmoid", "a", "gate"), node("Mul", "a gate", "swish"), b]
    path = save(tmp_path / "net.onnx", nodes, {**values, **more}, "b")
    draw = np.random.default_rng(3)
    batches = [draw.standard_normal((16, 3, 24, 24), np.float32) for _ in range(4)]
    wanted = measure_ranges(path, batches)
    weight = values["a.weight"]
    gaussian = {"a": (values["a.bias"], np.sqrt(np.square(weight).sum((1, 2, 3))))}
    peak = math.sqrt(2 * math.log(64 * 24 * 24))
    largest = peak - math.log(2 * math.pi * peak**2) / (2 * peak)
    found = statistics_ranges(
        path,
        gaussian,
        (16, 3, 24, 24),
        std=(0.1,),
        mean=(0.5,),
        deviations=largest,
        correlation=0.0,
    )
    for name in ("a", "gate", "swish"):
        assert found[name] == pytest.approx(wanted[name], rel=0.12, abs=0.03), name
    # b reads channels that are independent only in the noise, so its range is near, no more
    assert found["b"] == pytest.approx(wanted["b"], rel=0.3)


def test_a_batch_norm_that_stayed_gives_beta_and_gamma(tmp_path: Path) -> None:
    gamma, beta = np.array([1.0, -3.0, 0.5]), np.array([0.2, 1.0, -2.0])
    values = {"gamma": gamma, "beta": beta, "zero": np.zeros(3), "one": np.ones(3)}
    a, more = conv("a", "norm", (3, 2))
    nodes = [node("BatchNormalization", "image gamma beta zero one", "norm"), a]
    path = save(tmp_path / "net.onnx", nodes, {**values, **more}, "a")
    found = statistics_ranges(path, {}, (2, 3, 4, 4))
    assert found["norm"] == pytest.approx((1 - 18, 1 + 18))


def test_a_product_of_matrices_has_its_statistics_behind_its_bias(tmp_path: Path) -> None:
    """A linear layer of tokens is MatMul and Add; a Gemm holds its bias itself."""
    draw = np.random.default_rng(0)
    values = {"fc.weight": draw.standard_normal((6, 2)), "fc.bias": np.array([10.0, 20.0])}
    nodes = [
        node("MatMul", "image fc.weight", "product"),
        node("Add", "fc.bias product", "biased"),
        node("MatMul", "biased last", "out"),
    ]
    values["last"] = draw.standard_normal((2, 2))
    path = save(tmp_path / "net.onnx", nodes, values, "out")
    known = {"fc": (np.array([1.0, 2.0]), np.array([0.1, 0.2]))}
    found = statistics_ranges(path, known, (2, 3, 4, 6), deviations=5)
    assert found["biased"] == pytest.approx((0.5, 3.0))


def test_one_seed_gives_the_same_ranges_and_progress_counts(
    network: Path, statistics: Statistics
) -> None:
    told: list[tuple[int, int]] = []
    first = statistics_ranges(
        network, statistics, SHAPE, runs=3, progress=lambda *each: told.append(each)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert first == statistics_ranges(network, statistics, SHAPE, runs=3)
    assert first != statistics_ranges(network, statistics, SHAPE, runs=3, seed=9)
    more = statistics_ranges(network, statistics, SHAPE, runs=6)
    assert more["sum"] != pytest.approx(first["sum"], rel=1e-6)  # every run draws anew


def test_a_file_without_statistics_is_refused(network: Path) -> None:
    with pytest.raises(InputError, match=r"net.onnx: no layer has batch norm statistics"):
        statistics_ranges(network, {"c": moments(0, 5)}, SHAPE)


def test_statistics_of_another_width_name_the_layer(network: Path) -> None:
    with pytest.raises(InputError, match="layer 'b': gives 5 channels, its statistics have 7"):
        statistics_ranges(network, {"b": moments(0, 7)}, SHAPE)


@pytest.mark.parametrize(
    "wrong",
    [(np.zeros(5), -np.ones(5)), (np.full(5, np.nan), np.ones(5)), (np.zeros(5), np.ones(4))],
)
def test_statistics_that_are_none_are_refused(
    network: Path, wrong: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(InputError, match="layer 'a': statistics of 5 means"):
        statistics_ranges(network, {"a": wrong}, SHAPE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shape": (3, 12, 12)}, "shape"),
        ({"deviations": 0}, "deviations 0"),
        ({"correlation": 1.5}, "correlation 1.5"),
        ({"runs": 0}, "runs 0"),
        ({"std": (0.0,)}, "std"),
        ({"mean": (0.5, 0.5)}, "3 channels"),
    ],
)
def test_numbers_out_of_range_are_refused(
    network: Path, statistics: Statistics, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        statistics_ranges(network, statistics, **{"shape": SHAPE, **options})
