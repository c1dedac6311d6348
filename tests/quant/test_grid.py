"""Grids: ONNX Runtime's scales and integers to the bit, the gradient's equations, properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from normapps.errors import InputError
from normapps.quant.grid import (
    Grid,
    activation_grid,
    integers,
    range_grid,
    rounded,
    weight_grid,
)

LIMITS = st.floats(-1e4, 1e4, width=32)
BITS = st.sampled_from([2, 4, 6, 8, 16])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def qdq(x: np.ndarray, grid: Grid, kind: Any, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    """What ONNX Runtime makes of x: the integers, and the floats that they stand for."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    helper, proto = onnx.helper, onnx.TensorProto
    number = proto.INT8 if kind == np.int8 else proto.UINT8
    constants = [
        onnx.numpy_helper.from_array(np.squeeze(grid.scale.numpy()), "s"),
        onnx.numpy_helper.from_array(np.squeeze(grid.zero_point.numpy()).astype(kind), "z"),
    ]
    along = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **along),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **along),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", proto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("q", number, x.shape),
         helper.make_tensor_value_info("y", proto.FLOAT, x.shape)],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    q, y = session.run(None, {"x": x})
    return q, y


@pytest.mark.parametrize(("per_channel", "axis"), [(False, 0), (True, 0), (True, 1)])
def test_weights_have_the_scale_and_integers_of_onnxruntime(per_channel: bool, axis: int) -> None:
    utils = pytest.importorskip("onnxruntime.quantization.quant_utils")
    kind = pytest.importorskip("onnx").TensorProto.INT8
    weight = normal(7, 5, 3, 3) * torch.logspace(-3, 3, 7)[:, None, None, None]
    grid = weight_grid(weight, per_channel=per_channel, axis=axis)
    parts = weight.numpy().swapaxes(0, axis) if per_channel else weight.numpy()[None]
    scales = grid.scale.flatten()
    assert len(scales) == len(parts)
    ours = integers(weight, grid).numpy()
    rows = ours.swapaxes(0, axis) if per_channel else ours[None]
    for part, scale, row in zip(parts, scales, rows, strict=True):
        zero, expected = utils.compute_data_quant_params(part, kind, symmetric=True)
        assert zero == 0
        assert expected == scale.numpy()
        assert np.array_equal(utils.quantize_nparray(kind, part, expected, zero), row)
    q, y = qdq(weight.numpy(), grid, np.int8, axis if per_channel else None)
    assert np.array_equal(ours, q)
    assert np.array_equal(rounded(weight, grid).numpy(), y)


# the zero point is near a tie: with a scale in float32 it would be another
@example(low=-18.866418838500977, high=4.431095600128174)
@example(low=-15.050536155700684, high=0.5189840197563171)
@given(low=LIMITS, high=LIMITS)
def test_activations_have_the_scale_and_zero_point_of_onnxruntime(low: float, high: float) -> None:
    utils = pytest.importorskip("onnxruntime.quantization.quant_utils")
    low, high = min(low, high), max(low, high)
    ends = (np.array(each, dtype=np.uint8) for each in (0, 255))
    zero, scale = utils.compute_scale_zp(np.float32(low), np.float32(high), *ends)
    grid = activation_grid(low, high)
    assert grid.scale.numpy() == scale
    assert grid.zero_point.numpy() == zero


def test_activations_round_as_onnxruntime_does_ties_and_what_lies_beyond_too() -> None:
    for grid in (activation_grid(-1.7, 3.4), activation_grid(0, 255), activation_grid(-127, 128)):
        spread = normal(4000) * 100 * grid.scale
        ties = (torch.arange(-300, 300) + 0.5) * grid.scale
        x = torch.cat([spread, ties, torch.tensor([0.0, 1e9, -1e9, torch.inf, -torch.inf])])
        q, y = qdq(x.numpy(), grid, np.uint8, None)
        assert np.array_equal(integers(x, grid).numpy(), q)
        assert np.array_equal(rounded(x, grid).numpy(), y)


def test_weights_are_rounded_to_the_equation() -> None:
    """In float64, so that nothing is near a tie; the scale is max|w| / (2^(bits−1) − 1)."""
    weight = normal(6, 4, 3).double()
    for bits in (4, 6, 8):
        grid = weight_grid(weight, per_channel=True, bits=bits)
        s = weight.abs().flatten(1).max(1).values[:, None, None] / (2 ** (bits - 1) - 1)
        assert torch.equal(grid.scale, s)
        assert torch.allclose(rounded(weight, grid), (weight / s).round() * s, rtol=1e-12)
        assert int(integers(weight, grid).abs().max()) == 2 ** (bits - 1) - 1


@given(low=LIMITS, high=LIMITS, bits=BITS, seed=st.integers(0, 99))
def test_properties_of_an_activation_grid(low: float, high: float, bits: int, seed: int) -> None:
    low, high = min(low, high), max(low, high)
    grid = activation_grid(low, high, bits=bits)
    assert float(rounded(torch.zeros(1), grid)) == 0
    inside = torch.rand(50, generator=torch.Generator().manual_seed(seed)) * (high - low) + low
    once = rounded(inside, grid)
    assert torch.equal(rounded(once, grid), once)
    first, last = grid.range
    assert bool(((once >= first) & (once <= last)).all())
    # the zero point is rounded, so an end of the range can lie half a step beyond the grid
    inner = inside.clamp(float(first), float(last))
    error = (rounded(inner, grid) - inner).abs().max()
    assert float(error) <= float(grid.scale) * 0.5 + 1e-6 * max(abs(low), abs(high))


@given(bits=BITS, per_channel=st.booleans(), seed=st.integers(0, 99))
def test_properties_of_a_weight_grid(bits: int, per_channel: bool, seed: int) -> None:
    weight = normal(5, 3, 2, seed=seed)
    grid = weight_grid(weight, per_channel=per_channel, bits=bits)
    once = rounded(weight, grid)
    assert torch.equal(rounded(once, grid), once)
    assert torch.equal(integers(-weight, grid), -integers(weight, grid))
    assert bool(((once - weight).abs() <= grid.scale * (0.5 + 1e-5 * 2**bits / 255)).all())
    largest = weight.abs().argmax()
    assert torch.allclose(once.flatten()[largest], weight.flatten()[largest], rtol=1e-6)


def test_silent_channels_have_a_scale_and_stay_silent() -> None:
    weight = torch.zeros(3, 2, 1, 1)
    weight[1] = 2.0
    weight[2] = 1e-40  # its scale would be no normal number
    grid = weight_grid(weight, per_channel=True)
    assert torch.equal(grid.scale.flatten(), torch.tensor([1.0, 2 / 127, 1.0]))
    assert torch.equal(rounded(weight, grid)[[0, 2]], torch.zeros(2, 2, 1, 1))
    assert float(activation_grid(0, 0).scale) == 1


def test_half_precision_is_rounded_in_float32() -> None:
    weight = normal(4, 300).to(torch.bfloat16)
    grid = weight_grid(weight, per_channel=False)
    wide = weight_grid(weight.float(), per_channel=False)
    assert grid.scale.dtype == torch.float32
    assert torch.equal(grid.scale, wide.scale)
    assert torch.equal(rounded(weight, grid), rounded(weight.float(), wide).to(torch.bfloat16))


def test_the_gradient_goes_through_the_rounding_and_stops_beyond_the_ends() -> None:
    x = torch.tensor([-3.0, -1.001, -0.5, 0.3, 2.0, 2.9], requires_grad=True)
    rounded(x, activation_grid(-1, 2)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]  # −1.001 rounds to an end, not beyond it
    weight = normal(4, 9).requires_grad_()
    rounded(weight, weight_grid(weight, per_channel=True)).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(4, 9))


def test_the_gradient_to_the_limits_is_that_of_learned_steps() -> None:
    """Inside, d/ds = round(x/s) − x/s; above, the value is s·255 + low, below it is low."""
    low, high = (torch.tensor(each, requires_grad=True) for each in (-1.0, 2.5))
    x = torch.tensor([-4.0, -0.47, 0.311, 1.9, 7.0])
    weights = torch.tensor([1.0, 3.0, -2.0, 5.0, 0.5])
    (rounded(x, range_grid(low, high)) * weights).sum().backward()
    s = 3.5 / 255
    inside = [float(w) * (round(v / s) - v / s) for v, w in zip(x.tolist(), weights, strict=True)]
    by_step = sum(inside[1:4])
    # beyond the ends: −z·s and (255 − z)·s with z = −low/s, whose rounding the gradient ignores
    z = round(1 / s)
    beyond_step = -z * 1.0 + (255 - z) * 0.5
    dz_low, dz_high = -1 / s + 1 / (255 * s**2), -1 / (255 * s**2)
    expected_low = -(by_step + beyond_step) / 255 - s * 1.5 * dz_low
    expected_high = (by_step + beyond_step) / 255 - s * 1.5 * dz_high
    assert low.grad is not None
    assert high.grad is not None
    assert float(low.grad) == pytest.approx(expected_low, rel=1e-4)
    assert float(high.grad) == pytest.approx(expected_high, rel=1e-4)


@pytest.mark.parametrize("limits", [(2.0, 1.0), (0.0, float("nan")), (float("-inf"), 1.0)])
def test_limits_that_are_no_range_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="must be finite, the smaller limit first"):
        activation_grid(*limits)


@pytest.mark.parametrize("bits", [1, 17])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(InputError, match=f"{bits} bits: must be between 2 and 16"):
        activation_grid(0, 1, bits=bits)
    with pytest.raises(InputError, match=f"{bits} bits: must be between 2 and 16"):
        weight_grid(torch.ones(2, 2), per_channel=True, bits=bits)
