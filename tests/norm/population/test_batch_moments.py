"""Batch moments without a gradient: the numbers of float64, in every memory format."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from normapps.errors import InputError
from normapps.norm.population import batch_moments as module
from normapps.norm.population.batch_moments import batch_moments


def _tokens(x: Tensor) -> Tensor:
    """The same (N, C, *S) with the channels last in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _gaps(x: Tensor) -> Tensor:
    """The same in a memory format that is neither: every second element of a larger tensor."""
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    return wide[..., ::2]


FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "last": _tokens,
    "gaps": _gaps,
}


def _check(x: Tensor, tolerance: float) -> None:
    """Mean to `tolerance` standard deviations, variance to `tolerance` of itself."""
    rows = x.double().movedim(1, 0).flatten(1)
    mean, var = rows.mean(1), rows.var(1, unbiased=False)
    found = batch_moments(x)
    scale = var.sqrt().clamp_min(1e-30)
    assert found.count.tolist() == [rows.shape[1]]
    assert found.mean.dtype == found.var.dtype == torch.promote_types(x.dtype, torch.float32)
    assert float(((found.mean[0] - mean).abs() / scale).max()) < tolerance
    torch.testing.assert_close(found.var[0].double(), var, rtol=tolerance, atol=1e-30)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 7), (3, 5, 4, 6), (2, 3, 2, 3, 4), (1, 4, 5, 5)])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_agrees_with_float64(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    _check(FORMATS[layout]((2 * torch.randn(shape) + 1).to(dtype)), 1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "last"])
def test_many_blocks_are_pooled(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 7)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 2 * 4 * 3 * 30)
    x = torch.randn(5, 3, 5, 6) + torch.arange(5.0).view(5, 1, 1, 1)
    _check(FORMATS[layout](x), 1e-5)


@pytest.mark.parametrize("channels", [1, 3, 24, 100, 128, 130])
@pytest.mark.parametrize("side", [63, 64])
@pytest.mark.parametrize("blocks", [1, 3])
def test_neighbours_measured_as_one_are_pooled(
    channels: int, side: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In columns of unlike levels: neighbours are not alike."""
    x = torch.randn(4, channels, side, side) * torch.rand(channels, 1, 1)
    x = x + torch.arange(side) % 8
    monkeypatch.setattr(module, "_ROWS", -(-4 * side**2 // blocks))
    _check(_tokens(x), 1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "last"])
@pytest.mark.parametrize("level", [1e4, 1e6])
def test_a_large_mean_does_not_drown_a_variance_of_1e_2(layout: str, level: float) -> None:
    torch.manual_seed(0)
    x = 0.1 * torch.randn(8, 6, 64, 64)
    x[:, :3] += level  # beside channels that are harmless
    rows = x.double().movedim(1, 0).flatten(1)
    found = batch_moments(FORMATS[layout](x))
    torch.testing.assert_close(
        found.var[0].double(), rows.var(1, unbiased=False), rtol=1e-5, atol=0
    )
    assert float((found.mean[0].double() - rows.mean(1)).abs().max()) < 1e-7 * level


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_level_of_the_mean_costs_digits(dtype: torch.dtype) -> None:
    """Channels side by side on both sides of what the mean of squares is good for."""
    torch.manual_seed(0)
    levels = torch.tensor([0, 1, 3, 3.1, 3.2, 3.5, -6, 10, 20, 30])  # a float32 mean holds these
    x = torch.randn(8, 10, 56, 56) + levels.view(-1, 1, 1)
    _check(x.to(dtype), 1e-5)


def test_squares_that_overflow_are_taken_about_a_shift() -> None:
    torch.manual_seed(0)
    x = 3e19 * (1 + 1e-2 * torch.randn(4, 2, 20, 20))
    x[:, 1] = torch.randn(4, 20, 20)
    _check(x, 1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "last"])
def test_a_dead_channel_has_variance_0(layout: str) -> None:
    x = torch.full((16, 2, 40, 40), 0.1)
    x[:, 1] = torch.randn(16, 40, 40)
    found = batch_moments(FORMATS[layout](x))
    assert float(found.var[0, 0]) < 1e-16
    torch.testing.assert_close(found.mean[0, 0], torch.tensor(0.1))


@pytest.mark.parametrize("layout", ["contiguous", "last"])
@given(offset=st.floats(-1e5, 1e5), first=st.floats(-50, 50), samples=st.integers(1, 9))
def test_the_first_sample_may_be_anything(
    layout: str, offset: float, first: float, samples: int
) -> None:
    """It is what the contiguous path takes for its shift."""
    x = torch.randn(samples, 2, 9, 8, generator=torch.Generator().manual_seed(1)) + offset
    x[0] += first
    rows = x.double().movedim(1, 0).flatten(1)
    found = batch_moments(FORMATS[layout](x))
    torch.testing.assert_close(
        found.var[0].double(), rows.var(1, unbiased=False), rtol=1e-4, atol=0
    )


def test_not_finite_stays_not_finite() -> None:
    for change in FORMATS.values():
        x = torch.randn(4, 2, 3, 3)
        x[1, 0, 0, 0] = float("nan")
        found = batch_moments(change(x))
        assert not torch.isfinite(found.mean + found.var)[0, 0]
        assert torch.isfinite(found.mean + found.var)[0, 1]


def test_autocast_changes_nothing() -> None:
    x = torch.randn(4, 3, 8, 8)
    expected = batch_moments(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = batch_moments(x)
    assert torch.equal(found.var, expected.var)


def test_without_the_kernel_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "batch_norm_update_stats")
    _check(_tokens(torch.randn(4, 3, 5, 5)), 1e-5)


@pytest.mark.parametrize("x", [torch.zeros(4), torch.zeros(0, 3), torch.zeros(4, 3).int()])
def test_what_has_no_moments_is_refused(x: Tensor) -> None:
    with pytest.raises(InputError):
        batch_moments(x)
