"""Recovery: affine per channel or sample, alone or at once, and another image's moments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from normapps.errors import InputError
from normapps.norm import BATCH, INSTANCE, Moments, Partition, adain, affine, transport
from normapps.norm.recovery import recover, standardization

EPS = 1e-5


def _features(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale, shift = torch.rand(2, shape[1], generator=generator, dtype=torch.float64) * 3
    view = (-1, *[1] * (len(shape) - 2))
    return x * (scale + 0.1).view(view) + shift.view(view)


# AdaIN


@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 3),
    one_style=st.booleans(),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
)
def test_the_output_has_the_moments_of_the_style(
    seed: int, images: int, one_style: bool, size: tuple[int, int]
) -> None:
    content = _features(images, 4, *size, seed=seed)
    style = Moments.of(_features(1 if one_style else images, 4, 5, 7, seed=seed + 1))
    got = Moments.of(adain(content, style, eps=1e-12))
    torch.testing.assert_close(got.mean, style.mean.expand(images, -1))
    torch.testing.assert_close(got.var, style.var.expand(images, -1), rtol=1e-6, atol=1e-9)


def test_adain_is_equation_8() -> None:
    content, style = _features(2, 3, 8, 8), _features(2, 3, 5, 6, seed=1)
    got = adain(content, Moments.of(style))
    means = [x.mean((2, 3), keepdim=True) for x in (content, style)]
    deviations = [
        (x.var((2, 3), keepdim=True, correction=0) + EPS).sqrt() for x in (content, style)
    ]
    want = deviations[1] * (content - means[0]) / deviations[0] + means[1]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 1, 1), (1, 3, 20), (1, 2, 3, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_content_in_its_own_style_is_unchanged(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    content = _features(*shape).to(dtype)
    torch.testing.assert_close(adain(content, Moments.of(content)), content)


def test_a_flat_content_takes_the_mean_of_the_style() -> None:
    style = Moments.of(_features(1, 3, 5, 5))
    flat = torch.ones(2, 3, 4, 4, dtype=torch.float64)
    got = adain(flat, style)
    torch.testing.assert_close(got, style.mean[..., None, None].expand_as(flat))


def test_a_tile_with_the_moments_of_the_whole_is_a_tile_of_the_whole() -> None:
    content, style = _features(1, 3, 8, 12), Moments.of(_features(1, 3, 5, 5, seed=1))
    whole = adain(content, style)
    tile = adain(content[..., 2:6, 3:9], style, own=Moments.of(content))
    torch.testing.assert_close(tile, whole[..., 2:6, 3:9])


@given(alpha=st.floats(0, 1))
def test_strength_blends_content_and_result(alpha: float) -> None:
    content, style = _features(2, 3, 6, 6), Moments.of(_features(1, 3, 5, 5, seed=1))
    want = alpha * adain(content, style) + (1 - alpha) * content
    torch.testing.assert_close(adain(content, style, alpha=alpha), want)
    assert torch.equal(adain(content, style, alpha=0), content)


def test_a_style_of_several_pictures_and_a_diagonal_of_a_full_one() -> None:
    content, pictures = _features(2, 3, 6, 6), _features(4, 3, 5, 5, seed=1)
    style = Moments.of(pictures, BATCH, full=True)
    got = Moments.of(adain(content, style, eps=1e-12))
    torch.testing.assert_close(got.var, style.var.expand(2, -1), rtol=1e-6, atol=1e-9)
    source = Moments.of(content)
    torch.testing.assert_close(adain(content, style), transport(content, source, style, "diagonal"))


@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (3, 3, 5, 5), (1, 1, 5, 5)])
def test_a_style_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"do not fit \(2, 3, 6, 6\).* needs 2 x 3 or 1 x 3"):
        adain(_features(2, 3, 6, 6), Moments.of(_features(*shape)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(dtype: torch.dtype, autocast: bool) -> None:
    content = _features(2, 3, 16, 16).to(dtype)
    style = Moments.of(_features(1, 3, 5, 5, seed=1).to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got = adain(content, style)
    assert got.dtype == dtype
    torch.testing.assert_close(got, adain(content.float(), style).to(dtype))


def test_adain_keeps_channels_last() -> None:
    content, style = _features(2, 3, 6, 5), Moments.of(_features(1, 3, 5, 5, seed=1))
    got = adain(content.to(memory_format=torch.channels_last), style)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, adain(content, style))
    assert adain(content, style).is_contiguous()


def test_gradients_reach_content_and_style() -> None:
    content = _features(2, 3, 3, 2).requires_grad_()
    style = _features(1, 3, 2, 2, seed=1).requires_grad_()

    def stylized(content: Tensor, style: Tensor) -> Tensor:
        return adain(content, Moments.of(style), eps=0.1)

    assert torch.autograd.gradcheck(stylized, (content, style))
    assert torch.autograd.gradgradcheck(stylized, (content, style))


# affine


@pytest.mark.parametrize("rows", [None, 1, 2])
@pytest.mark.parametrize("space", [(), (4,), (4, 5), (2, 3, 4)])
def test_affine_multiplies_and_adds_per_channel(rows: int | None, space: tuple[int, ...]) -> None:
    x = _features(2, 3, *space)
    weight, bias = torch.rand(2, *([3] if rows is None else [rows, 3]), dtype=torch.float64)
    for w, b in ((weight, bias), (weight, None), (None, bias), (None, None)):
        got = affine(x, w, b)
        for n in range(2):
            for c in range(3):
                row = 0 if rows == 1 else n
                scale = 1 if w is None else w[c] if rows is None else w[row, c]
                shift = 0 if b is None else b[c] if rows is None else b[row, c]
                torch.testing.assert_close(got[n, c], x[n, c] * scale + shift)


@pytest.mark.parametrize("given_", ["both", "weight", "bias"])
def test_affine_keeps_half_precision_and_the_memory_format(given_: str) -> None:
    x = _features(2, 3, 4, 5).to(torch.bfloat16).to(memory_format=torch.channels_last)
    weight = None if given_ == "bias" else torch.rand(3)
    bias = None if given_ == "weight" else torch.rand(3)
    got = affine(x, weight, bias)
    assert got.dtype == torch.bfloat16
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, affine(x.float(), weight, bias).bfloat16())


@pytest.mark.parametrize("shape", [(2,), (3, 3), (2, 1), (2, 3, 1)])
def test_an_affine_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    x, good = torch.ones(2, 3, 4, 4), torch.ones(3)
    with pytest.raises(InputError, match=r"must be \(3,\) or \(2, 3\)"):
        affine(x, torch.ones(shape), good)
    with pytest.raises(InputError, match=r"must be \(3,\) or \(2, 3\)"):
        affine(x, good, torch.ones(shape))


# standardization and affine at once


@pytest.mark.parametrize("partition", [BATCH, INSTANCE], ids=lambda partition: partition.kind)
@pytest.mark.parametrize("rows", [None, 1, 2])
@pytest.mark.parametrize("given_", ["both", "weight", "bias", "neither"])
def test_recover_standardizes_and_recovers(
    partition: Partition, rows: int | None, given_: str
) -> None:
    x, shape = _features(2, 3, 4, 5), [3] if rows is None else [rows, 3]
    weight = torch.rand(shape, dtype=torch.float64) if given_ in ("both", "weight") else None
    bias = torch.rand(shape, dtype=torch.float64) if given_ in ("both", "bias") else None
    axes = (0, 2, 3) if partition == BATCH else (2, 3)
    centred = x - x.mean(axes, keepdim=True)
    want = centred / (centred.square().mean(axes, keepdim=True) + 0.1).sqrt()
    if weight is not None:
        want = want * weight.reshape(-1, 3, 1, 1)
    if bias is not None:
        want = want + bias.reshape(-1, 3, 1, 1)
    got = recover(x, standardization(Moments.of(x, partition), 0.1), weight, bias)
    torch.testing.assert_close(got, want)


def test_recover_is_precise_in_half_precision() -> None:
    x = _features(2, 3, 16, 16).bfloat16()
    given = standardization(Moments.of(x, BATCH)), torch.rand(3), torch.rand(3)
    got = recover(x, *given)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, recover(x.float(), *given).bfloat16())  # rounded once, at the end


def test_a_recovery_that_does_not_fit_is_refused() -> None:
    x = torch.rand(2, 3, 4, 4)
    given = standardization(Moments.of(x[:, :2], INSTANCE))
    with pytest.raises(InputError, match=r"recovery of \(2, 2\): must be \(3,\) or \(2, 3\)"):
        recover(x, given, None, None)
