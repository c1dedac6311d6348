"""Int8 files: the integers of a float64 simulation, and what stays float or is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_networks import SIZE, constants, convolve, pictures, residual, save

from normapps.engine.ort import open_session
from normapps.errors import InputError
from normapps.quant.calibration import measure_ranges
from normapps.quant.int8 import write_int8
from normapps.quant.kernels import float_operators, kernels
from normapps.quant.layers import quantizable

Ranges = dict[str, tuple[float, float]]


def step_of(ends: tuple[float, float]) -> float:
    return (max(ends[1], 0.0) - min(ends[0], 0.0)) / 255


def rounded(x: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Fake quantization to uint8, in float64."""
    step = step_of(ends)
    zero = np.round(-min(ends[0], 0.0) / step)
    return np.asarray((np.clip(np.round(x / step) + zero, 0, 255) - zero) * step)


def scales_of(weight: np.ndarray, per_channel: bool) -> np.ndarray:
    """Scale of each output channel, as (channels,)."""
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    return np.asarray((largest if per_channel else np.full_like(largest, largest.max())) / 127)


class Simulation:
    """The residual network in int8, computed in float64."""

    def __init__(self, ranges: Ranges, per_channel: bool) -> None:
        self.ranges, self.per_channel = ranges, per_channel
        self.held = {name: each.astype(np.float64) for name, each in constants().items()}

    def layer(self, name: str, entry: str) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = self.held[f"{name}.weight"], self.held[f"{name}.bias"]
        scales = scales_of(weight, self.per_channel)
        by_row = scales.reshape(-1, *[1] * (weight.ndim - 1))
        unit = scales * step_of(self.ranges[entry])
        return np.round(weight / by_row) * by_row, np.round(bias / unit) * unit

    def body(self, x: np.ndarray) -> np.ndarray:
        r = self.ranges
        x = rounded(x, r["x"])
        b = rounded(np.maximum(convolve(x, *self.layer("stem", "x")), 0), r["b"])
        d = rounded(np.clip(convolve(b, *self.layer("deep", "b"), group=8), 0, 6), r["d"])
        e = rounded(convolve(d, *self.layer("point", "d")), r["e"])
        return rounded(np.maximum(e + b, 0), r["g"])

    def logits(self, x: np.ndarray) -> np.ndarray:
        pooled = rounded(self.body(x).mean((2, 3)), self.ranges["h"])
        weight, bias = self.layer("head", "i")
        return np.asarray(rounded(pooled, self.ranges["i"]) @ weight.T + bias)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_feature_map_is_that_of_the_simulation_within_a_step(
    tmp_path: Path, per_channel: bool
) -> None:
    path = residual(tmp_path / "a.onnx", head=False)
    ranges = measure_ranges(path, [pictures(6, seed=3)])
    write_int8(path, tmp_path / "b.onnx", ranges, per_channel=per_channel)
    session = open_session(tmp_path / "b.onnx", threads=1)
    assert session.input_shape == (None, 3, SIZE, SIZE)
    simulation = Simulation(ranges, per_channel)
    for batch in (1, 3):
        x = pictures(batch, seed=batch)
        (found,) = session.run(x)
        apart = np.abs(found - simulation.body(x)) / step_of(ranges["g"])
        assert apart.max() < 1.001
        assert np.mean(apart < 0.001) > 0.99
    assert kernels(tmp_path / "b.onnx")["QLinearConv"] == 3
    assert not float_operators(tmp_path / "b.onnx")


@pytest.mark.parametrize("per_channel", [True, False])
def test_logits_are_those_of_the_simulation_and_not_rounded(
    tmp_path: Path, per_channel: bool
) -> None:
    path = residual(tmp_path / "a.onnx")
    ranges = measure_ranges(path, [pictures(6, seed=3)])
    write_int8(path, tmp_path / "b.onnx", ranges, per_channel=per_channel)
    simulation = Simulation(ranges, per_channel)
    a_step_each = step_of(ranges["h"]) * np.abs(constants()["head.weight"]).sum(1).max()
    for batch in (1, 3):
        x = pictures(batch, seed=batch)
        (found,) = open_session(tmp_path / "b.onnx", threads=1).run(x)
        assert np.abs(found - simulation.logits(x)).max() < a_step_each
        (wanted,) = open_session(path, threads=1).run(x)
        assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    model = onnx.load(tmp_path / "b.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.node[-1].op_type == "Gemm"
    assert kernels(tmp_path / "b.onnx")["QGemm"] == 1
    assert kernels(tmp_path / "b.onnx")["QLinearGlobalAveragePool"] == 1


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def test_weights_are_symmetric_int8_and_activations_uint8(tmp_path: Path) -> None:
    path = residual(tmp_path / "a.onnx")
    ranges = measure_ranges(path, [pictures(3)])
    write_int8(path, tmp_path / "b.onnx", ranges)
    found = initializers(tmp_path / "b.onnx")
    for name in ("stem", "deep", "point", "head"):
        weight = found[f"{name}.weight_quantized"]
        assert weight.dtype == np.int8
        assert (np.abs(weight).reshape(len(weight), -1).max(1) == 127).all()
        scales = scales_of(constants()[f"{name}.weight"], per_channel=True)
        np.testing.assert_allclose(found[f"{name}.weight_scale"], scales, rtol=1e-6)
        assert not found[f"{name}.weight_zero_point"].any()
        assert found[f"{name}.bias_quantized"].dtype == np.int32
    for name, ends in ranges.items():
        assert found[f"{name}_zero_point"].dtype == np.uint8
        assert found[f"{name}_scale"] == pytest.approx(step_of(ends), rel=1e-6)


def test_seven_bits_for_processors_that_saturate(tmp_path: Path) -> None:
    path = residual(tmp_path / "a.onnx")
    ranges = measure_ranges(path, [pictures(3)])
    write_int8(path, tmp_path / "b.onnx", ranges, reduce_range=True)
    largest = max(
        np.abs(initializers(tmp_path / "b.onnx")[f"{name}.weight_quantized"]).max()
        for name in ("stem", "deep", "point", "head")
    )
    assert 60 <= largest <= 64
    (found,) = open_session(tmp_path / "b.onnx").run(pictures(3))
    (wanted,) = open_session(path).run(pictures(3))
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


def test_an_excluded_layer_stays_float(tmp_path: Path) -> None:
    path = residual(tmp_path / "a.onnx")
    ranges = measure_ranges(path, [pictures(3)])
    write_int8(path, tmp_path / "b.onnx", ranges, exclude=["deep"])
    found = initializers(tmp_path / "b.onnx")
    np.testing.assert_array_equal(found["deep.weight"], constants()["deep.weight"])
    np.testing.assert_array_equal(found["deep.bias"], constants()["deep.bias"])
    assert "stem.weight" not in found
    assert float_operators(tmp_path / "b.onnx") == ("Conv deep",)
    assert kernels(tmp_path / "b.onnx")["QLinearConv"] == 2


@pytest.mark.parametrize("left", ["one", "two"])
def test_an_excluded_layer_stays_float_though_it_shares_its_weight(
    tmp_path: Path, left: str
) -> None:
    shared = ["point.weight", "point.bias"]
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight", "stem.bias"], ["a"], "stem", pads=[1] * 4),
        helper.make_node("Conv", ["a", *shared], ["b"], "one"),
        helper.make_node("Conv", ["b", *shared], ["c"], "two"),
    ]
    path = save(tmp_path / "a.onnx", nodes, constants())
    write_int8(path, tmp_path / "b.onnx", measure_ranges(path, [pictures(2)]), exclude=[left])
    found = initializers(tmp_path / "b.onnx")
    (node,) = [each for each in onnx.load(tmp_path / "b.onnx").graph.node if each.name == left]
    for name, original in zip(node.input[1:], shared, strict=True):
        np.testing.assert_array_equal(found[name], constants()[original])
    assert found["point.weight_quantized"].dtype == np.int8


def test_one_int8_layer_alone_rounds_nothing_else(tmp_path: Path) -> None:
    path = residual(tmp_path / "a.onnx", head=False)
    ranges = measure_ranges(path, [pictures(3)])
    write_int8(path, tmp_path / "b.onnx", ranges, exclude=["stem", "point"])
    x = pictures(2)
    held = {name: each.astype(np.float64) for name, each in constants().items()}
    b = np.maximum(convolve(x, held["stem.weight"], held["stem.bias"]), 0)
    weight, bias = Simulation(ranges, per_channel=True).layer("deep", "b")
    deep = np.clip(convolve(rounded(b, ranges["b"]), weight, bias, group=8), 0, 6)
    e = convolve(rounded(deep, ranges["d"]), held["point.weight"], held["point.bias"])
    (found,) = open_session(tmp_path / "b.onnx").run(x)
    # a value of d on the edge of a step may fall to either side
    assert np.abs(found - np.maximum(e + b, 0)).max() < step_of(ranges["d"])
    assert np.median(np.abs(found - np.maximum(e + b, 0))) < 1e-5


def test_a_relu_holds_though_its_range_is_wider(tmp_path: Path) -> None:
    path = residual(tmp_path / "a.onnx", head=False)
    ranges = measure_ranges(path, [pictures(3)])
    wide = ranges | {"b": (-5.0, ranges["b"][1]), "d": (-9.0, 9.0), "g": (-5.0, ranges["g"][1])}
    write_int8(path, tmp_path / "b.onnx", wide)
    (found,) = open_session(tmp_path / "b.onnx").run(pictures(3))
    assert found.min() == 0
    clipped = ranges | {"d": (0.0, 6.0)}
    np.testing.assert_allclose(
        found,
        Simulation(clipped, per_channel=True).body(pictures(3)),
        atol=1.001 * step_of(ranges["g"]),
    )


def test_a_clip_above_zero_holds(tmp_path: Path) -> None:
    held = constants() | {"one": np.array(1, dtype=np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], "stem"),
        helper.make_node("Clip", ["a", "one", "six"], ["b"], "clip"),
    ]
    path = save(tmp_path / "a.onnx", nodes, held)
    write_int8(path, tmp_path / "b.onnx", measure_ranges(path, [pictures(2)]))
    (found,) = open_session(tmp_path / "b.onnx").run(pictures(2))
    assert found.min() == 1
    assert kernels(tmp_path / "b.onnx")["QLinearConv"] == 1


def test_what_cannot_be_written_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    path, out = residual(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    ranges = measure_ranges(path, [pictures(2)])
    with pytest.raises(InputError, match=r"unknown layer 'stam'; did you mean 'stem'"):
        write_int8(path, out, ranges, exclude=["stam"])
    with pytest.raises(InputError, match=r"a\.onnx: no layer would be int8, all 4 are excluded"):
        write_int8(path, out, ranges, exclude=["stem", "deep", "point", "head"])
    with pytest.raises(InputError, match=r"a\.onnx: tensor d has no range"):
        write_int8(path, out, {name: ends for name, ends in ranges.items() if name != "d"})
    for ends in ((0.0, np.nan), (-np.inf, 1.0), (2.0, 1.0)):
        with pytest.raises(InputError, match=r"a\.onnx: tensor d: a range from"):
            write_int8(path, out, ranges | {"d": ends})
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]


def test_a_network_without_layers_and_a_corrupt_file_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", [helper.make_node("Relu", ["x"], ["y"])], {})
    with pytest.raises(InputError, match=r"no layer would be int8, it has no Conv") as error:
        write_int8(path, tmp_path / "b.onnx", {"x": (0, 1), "y": (0, 1)})
    assert "\n" not in str(error.value)
    path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"a\.onnx: is no ONNX"):
        write_int8(path, tmp_path / "b.onnx", {})


def test_an_older_file_is_kept_unless_told(tmp_path: Path) -> None:
    path, out = residual(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    ranges = measure_ranges(path, [pictures(2)])
    out.write_bytes(b"older")
    with pytest.raises(InputError, match=r"b\.onnx: exists already; --overwrite"):
        write_int8(path, out, ranges)
    assert out.read_bytes() == b"older"
    write_int8(path, out, ranges, overwrite=True)
    assert open_session(out).output_names == ("y",)


def test_a_transposed_convolution_stays_float_and_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], "stem", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("ConvTranspose", ["b", "up.weight"], ["c"], "up", strides=[2, 2]),
    ]
    held = constants() | {"up.weight": np.ones((8, 4, 2, 2), dtype=np.float32)}
    path = save(tmp_path / "a.onnx", nodes, held)
    write_int8(path, tmp_path / "b.onnx", measure_ranges(path, [pictures(2)]))
    assert float_operators(tmp_path / "b.onnx") == ("ConvTranspose up",)


def test_gates_between_int8_layers_are_int8(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], "stem", pads=[1] * 4),
        helper.make_node("Sigmoid", ["a"], ["s"], "sigmoid"),
        helper.make_node("Mul", ["a", "s"], ["b"], "silu"),
        helper.make_node("Conv", ["b", "point.weight"], ["c"], "point"),
        helper.make_node("Concat", ["b", "c"], ["d"], "both", axis=1),
        helper.make_node("MaxPool", ["d"], ["e"], "pool", kernel_shape=[2, 2]),
        helper.make_node("AveragePool", ["e"], ["f"], "mean", kernel_shape=[2, 2]),
    ]
    path = save(tmp_path / "a.onnx", nodes, constants())
    ranges = measure_ranges(path, [pictures(4)])
    write_int8(path, tmp_path / "b.onnx", ranges)
    counts = kernels(tmp_path / "b.onnx")
    assert {"QLinearSigmoid", "QLinearMul", "QLinearConcat", "QLinearAveragePool"} <= counts.keys()
    assert not {"Sigmoid", "Mul", "Concat", "AveragePool"} & counts.keys()
    (found,) = open_session(tmp_path / "b.onnx").run(pictures(4))
    (wanted,) = open_session(path).run(pictures(4))
    assert np.abs(found - wanted).max() < 4 * step_of(ranges["d"])


def test_a_network_that_torch_exported_becomes_int8(tmp_path: Path) -> None:
    import torch
    from torch import nn

    from normapps.models.onnx import to_onnx

    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3))
    pool = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model = nn.Sequential(body, pool).eval()
    x = pictures(3)
    to_onnx(model, torch.from_numpy(x), tmp_path / "a.onnx")
    assert [each.module for each in quantizable(tmp_path / "a.onnx")] == ["0.0", "0.3", "1.3"]
    write_int8(tmp_path / "a.onnx", tmp_path / "b.onnx", measure_ranges(tmp_path / "a.onnx", [x]))
    session = open_session(tmp_path / "b.onnx")
    for batch in (x, x[:1]):
        (found,) = session.run(batch)
        wanted = model(torch.from_numpy(batch)).detach().numpy()
        assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()
    counts = kernels(tmp_path / "b.onnx")
    assert (counts["QLinearConv"], counts["QGemm"]) == (2, 1)
