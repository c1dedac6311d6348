"""Shares of regions, tile by tile; moments of small ones; what no mask covers stays the photo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from normapps.errors import InputError
from normapps.norm import INSTANCE, Moments
from normapps.style.regions import Layout, keep_uncovered, settle
from normapps.style.tiles import tiles

CPU = torch.device("cpu")


def _layout(masks: list[Tensor]) -> Layout:
    return Layout.of(list(masks), torch.zeros(1, 3, *masks[0].shape[2:]), 8, 16)


def _whole(layout: Layout, stride: int = 1) -> Tensor:
    """The shares of the whole picture, all regions, cut as one tile."""
    height, width = layout.masks[0].shape
    (tile,) = tiles(height, width, max(height, width), 8)
    shares = layout.cut(tile, CPU)
    out = torch.zeros(1, layout.count, height // stride, width // stride)
    maps = shares.at(stride)
    out[:, list(shares.regions)] = torch.ones(1) if maps is None else maps
    return out


@given(st.integers(1, 3), st.integers(0, 1000), st.booleans())
def test_shares_sum_to_one(count: int, seed: int, in_bytes: bool) -> None:
    """Against float64: overlapping masks share in proportion, the rest is what is missing."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 256, (count, 16, 24)).astype(np.uint8)
    masks = [torch.from_numpy(each)[None, None] for each in values]
    given = masks if in_bytes else [mask.float() / 255 for mask in masks]
    total = values.sum(0) / 255.0
    full = total >= 1 - 2.1 * count / 255
    want = values / 255.0 / np.where(full, total, 1)
    rest = np.where(full, 0, 1 - total)
    layout = _layout(given)
    assert layout.has_rest == bool(rest.any())
    got = _whole(layout)[0].double().numpy()
    assert np.abs(got[:count] - want).max() < 1e-6
    if layout.has_rest:
        assert np.abs(got[count] - rest).max() < 1e-6
    assert np.abs(got.sum(0) - 1).max() < 1e-6


def test_shares_at_a_level_are_means_of_cells() -> None:
    mask = 0.9 * torch.rand(1, 1, 16, 24)
    cells = mask.double().view(2, 8, 3, 8).mean((1, 3))
    assert (_whole(_layout([mask]), 8)[0, 0] - cells).abs().max() < 1e-6


def test_complements_that_round_leave_no_rest() -> None:
    soft = torch.arange(0, 240).to(torch.uint8).view(1, 1, 10, 24)
    short = 253 - soft
    assert not _layout([soft, short]).has_rest
    assert _layout([soft, 250 - soft]).has_rest


def test_a_tile_names_the_regions_that_it_holds() -> None:
    left, right = torch.zeros(1, 1, 16, 48), torch.zeros(1, 1, 16, 48)
    left[..., :16], right[..., 32:] = 1, 1
    layout = _layout([left, right])
    found = [layout.cut(tile, CPU) for tile in tiles(16, 48, 16, 0)]
    assert [shares.regions for shares in found] == [(0,), (2,), (1,)]
    assert all(shares.maps is None for shares in found)
    wide = [layout.cut(tile, CPU) for tile in tiles(16, 48, 16, 8)]
    assert [shares.regions for shares in wide] == [(0, 2), (0, 1, 2), (1, 2)]


def test_tiles_of_shares_are_parts_of_the_whole() -> None:
    masks = [torch.rand(1, 1, 37, 51) * (torch.rand(1, 1, 37, 51) > 0.5) for _ in range(2)]
    layout = _layout(masks)
    whole = _whole(layout)
    for tile in tiles(40, 56, 16, 8):
        shares = layout.cut(tile, CPU)
        want = tile.cut(whole)[:, list(shares.regions)]
        assert shares.maps is not None
        assert torch.allclose(shares.maps, want)


def test_one_region_without_a_mask_is_the_whole() -> None:
    image = torch.zeros(1, 3, 16, 16)
    layout = Layout.of([None], image, 8, 16)
    (tile,) = tiles(16, 16, 16, 0)
    assert (layout.count, layout.cut(tile, CPU).maps) == (1, None)
    with pytest.raises(InputError, match="mask none: must be"):
        Layout.of([None, None], image, 8, 16)
    with pytest.raises(InputError, match=r"mask \(1, 1, 8, 16\): must be \(1, 1, 16, 16\)"):
        Layout.of([torch.ones(1, 1, 8, 16)], image, 8, 16)


def _measured(x: Tensor) -> Moments:
    return Moments.of(x, INSTANCE, full=True)


def test_small_regions_borrow_from_the_whole() -> None:
    """Against the formula on the samples themselves, in float64."""
    large, small = torch.randn(1, 4, 10, 100).double(), 3 + 2 * torch.randn(1, 4, 2, 3).double()
    parts = [_measured(large), _measured(small)]
    all_samples = torch.cat([large.flatten(2), small.flatten(2)], 2)[0]
    for got, samples in zip(settle(parts), (large, small), strict=True):
        own = samples.flatten(2)[0]
        share = (4 / (own.shape[1] + 4)) ** 2
        mean = (1 - share) * own.mean(1) + share * all_samples.mean(1)
        square = (1 - share) * own @ own.T / own.shape[1]
        square += share * all_samples @ all_samples.T / all_samples.shape[1]
        assert got.cov is not None
        assert torch.allclose(got.mean[0], mean)
        assert torch.allclose(got.cov[0], square - mean[:, None] * mean)
        assert torch.allclose(got.var[0], got.cov[0].diagonal())


def test_an_empty_region_has_the_moments_of_the_whole() -> None:
    part = _measured(torch.randn(1, 4, 9, 9))
    whole, empty = settle([part, None])
    for got in (whole, empty):
        assert torch.allclose(got.mean, part.mean)
        assert torch.allclose(got.var, part.var)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_no_mask_covers_stays_the_photo(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    photo, drawn = (torch.rand(1, 3, 21, 30) for _ in range(2))
    masks = [torch.rand(1, 1, 21, 30) * 0.7 for _ in range(2)]
    masks[0][..., :10], masks[1][..., :10] = 0, 0
    masks[0][..., 20:] = 1
    cover = (masks[0] + masks[1]).double()
    cover = torch.where(cover >= 1 - 4.2 / 255, 1, cover)
    if dtype == torch.uint8:
        photo, drawn = ((255 * x).to(dtype) for x in (photo, drawn))
    want = photo.double() * (1 - cover) + drawn.double() * cover
    keep_uncovered(drawn, photo, masks, rows=8)
    assert drawn.dtype == dtype
    assert (drawn.double() - want).abs().max() < (0.51 if dtype == torch.uint8 else 1e-6)
    assert torch.equal(drawn[..., :10], photo[..., :10])
