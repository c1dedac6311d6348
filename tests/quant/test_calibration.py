"""Ranges measured by running an ONNX file, against the same network in float64."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_networks import SIZE, constants, convolve, pictures, residual, save

from normapps.errors import InputError
from normapps.quant import calibration
from normapps.quant.calibration import measure_histograms, measure_ranges
from normapps.quant.layers import activation_tensors
from normapps.quant.ranges import range_of


def activations(x: np.ndarray) -> dict[str, np.ndarray]:
    """Every rounded tensor of the residual network, in float64."""
    held = {name: each.astype(np.float64) for name, each in constants().items()}
    b = np.maximum(convolve(x, held["stem.weight"], held["stem.bias"]), 0)
    d = np.clip(convolve(b, held["deep.weight"], held["deep.bias"], group=8), 0, 6)
    e = convolve(d, held["point.weight"], held["point.bias"])
    g = np.maximum(e + b, 0)
    pooled = g.mean((2, 3))
    return {"x": x, "b": b, "d": d, "e": e, "g": g, "h": pooled, "i": pooled}


def test_limits_are_those_of_all_pictures(tmp_path: Path) -> None:
    path, x = residual(tmp_path / "a.onnx"), pictures(7)
    found = measure_ranges(path, [x[:3], x[3:]], threads=1)
    assert tuple(found) == activation_tensors(path)
    for name, values in activations(x).items():
        np.testing.assert_allclose(found[name], (values.min(), values.max()), rtol=1e-5, atol=1e-6)


def test_histograms_hold_every_value(tmp_path: Path) -> None:
    path, x = residual(tmp_path / "a.onnx"), pictures(4)
    found = measure_histograms(path, [x], threads=1)
    for name, values in activations(x).items():
        assert found[name].count == values.size
        middle = (found[name].counts @ found[name].centres()) / values.size
        assert middle == pytest.approx(values.mean(), abs=1e-3)


def test_other_methods_are_those_of_the_histograms(tmp_path: Path) -> None:
    path, x = residual(tmp_path / "a.onnx"), pictures(60)
    low, high = measure_ranges(path, [x], method="percentile", percentile=98.0)["x"]
    np.testing.assert_allclose((low, high), np.percentile(x, [1, 99]), atol=0.01)
    found = measure_ranges(path, [x], method="mse")
    histograms = measure_histograms(path, [x])
    assert found == {name: range_of(each, "mse") for name, each in histograms.items()}
    assert found != measure_ranges(path, [x])


@pytest.mark.parametrize("held", [1, 3000, 40_000])
def test_a_big_network_is_measured_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    path, x = residual(tmp_path / "a.onnx"), pictures(5)
    wanted = measure_histograms(path, [x], threads=1)
    monkeypatch.setattr(calibration, "_HELD", held)
    runs = []
    original = calibration.Session.run

    def spy(self: calibration.Session, inputs: np.ndarray, names: tuple[str, ...]) -> list[object]:
        runs.append((len(inputs), names))
        return list(original(self, inputs, names))

    monkeypatch.setattr(calibration.Session, "run", spy)
    found = measure_histograms(path, [x], threads=1)
    parts = {names for _, names in runs}
    assert len(parts) > 1 or max(count for count, _ in runs) < 5
    for name, each in wanted.items():
        assert found[name].count == each.count
        assert found[name].low == pytest.approx(each.low, rel=1e-5, abs=1e-6)
        assert found[name].high == pytest.approx(each.high, rel=1e-5, abs=1e-6)


def test_a_file_of_fixed_batches_is_run_by_them(tmp_path: Path) -> None:
    x = pictures(4)
    fixed = measure_ranges(residual(tmp_path / "a.onnx", batch=2), [x])
    for name, ends in measure_ranges(residual(tmp_path / "b.onnx"), [x]).items():
        assert fixed[name] == pytest.approx(ends, rel=1e-5)


def test_batches_may_be_a_generator_that_is_read_once(tmp_path: Path) -> None:
    def batches() -> Iterator[np.ndarray]:
        yield pictures(2)
        yield pictures(2, seed=5)

    found = measure_ranges(residual(tmp_path / "a.onnx"), batches())
    both = np.concatenate([pictures(2), pictures(2, seed=5)])
    assert found["x"] == (both.min(), both.max())


@pytest.mark.parametrize("method", ["min-max", "mse"])
def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path, method: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first"),
        helper.make_node("Conv", ["a", "v"], ["b"], "second"),
    ]
    held = {
        "w": np.full((1, 3, 1, 1), 1e30, dtype=np.float32),
        "v": np.full((1, 1, 1, 1), 1e30, dtype=np.float32),
    }
    path = save(tmp_path / "big.onnx", nodes, held)
    x = np.ones((1, 3, SIZE, SIZE), dtype=np.float32)
    with pytest.raises(InputError, match=r"big\.onnx: tensor b: .*inf.*finite") as error:
        measure_ranges(path, [x], method=method)
    assert "\n" not in str(error.value)
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"tensor x: .*nan"):
        measure_ranges(path, [x], method=method)


def test_what_cannot_be_measured_is_named(tmp_path: Path) -> None:
    path = residual(tmp_path / "a.onnx")
    for batches in ([], [pictures(0)]):
        with pytest.raises(InputError, match=r"a\.onnx: no images"):
            measure_ranges(path, batches)
    with pytest.raises(InputError, match="unknown range method 'mes'; did you mean 'mse'"):
        measure_ranges(path, [pictures(1)], method="mes")
    with pytest.raises(InputError, match=r"a\.onnx: onnxruntime cannot run"):
        measure_ranges(path, [np.zeros((1, 4, SIZE, SIZE), dtype=np.float32)])
    with pytest.raises(InputError, match="no such file"):
        measure_ranges(tmp_path / "none.onnx", [pictures(1)])
