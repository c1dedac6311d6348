"""The photo-real mode: local maps of colours, straight lines, sizes, masks, strengths."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normapps.style import color, photo
from normapps.style.photo import WORKED, ColorField, draw_photo


def _keep(image: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
    return image


def _lines(height: int = 180, width: int = 240) -> Tensor:
    """Slanted dark bars on a bright sky, (1, 3, H, W)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    bars = ((0.4 * x + y) % 40 < 12).float()
    sky = torch.linspace(0.5, 0.8, height)[:, None].expand(height, width)
    grey = torch.where(bars > 0, 0.25, sky)
    return torch.stack([grey, 0.9 * grey, 0.8 * grey])[None]


def _strokes(image: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
    """Paint like a careless hand: shifted, wavy, blurred, in other colours that change sideways."""
    _, _, height, width = image.shape
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    wavy = torch.stack([x + 0.04 * torch.sin(25 * y), y + 0.04 * torch.sin(25 * x)], -1)
    bent = F.grid_sample(F.avg_pool2d(image, 5, 1, 2), wavy[None], align_corners=True)
    left = torch.einsum(
        "ij,njhw->nihw", torch.tensor([[0.2, 0.9, 0], [0, 0.3, 0], [0, 0, 1.2]]), bent
    )
    return torch.lerp(left, bent.flip(1), (x + 1) / 2).clamp(0, 1)


def _edges(image: Tensor) -> Tensor:
    grey = image.mean(1)
    return torch.stack([grey[:, 1:, :-1] - grey[:, :-1, :-1], grey[:, :-1, 1:] - grey[:, :-1, :-1]])


def test_straight_lines_stay_straight() -> None:
    image = _lines()
    painted, real = _strokes(image, []), draw_photo(image, [None], _strokes)
    wanted, strokes, ours = (_edges(x).flatten() for x in (image, painted, real))
    assert F.cosine_similarity(strokes, wanted, 0) < 0.3
    assert F.cosine_similarity(ours, wanted, 0) > 0.99
    assert (real.mean((2, 3)) - painted.mean((2, 3))).abs().max() < 0.03


def test_colours_are_those_of_their_place() -> None:
    image = _lines()
    painted, real = _strokes(image, []), draw_photo(image, [None], _strokes)
    for side in (slice(0, 60), slice(180, 240)):
        want, got, was = (x[..., side].mean((2, 3)) for x in (painted, real, image))
        assert (got - want).abs().max() < 0.06
        assert (was - want).abs().max() > 0.1


def test_a_map_of_colours_is_found_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo, "_RIDGE", 0.0)
    colors = torch.rand(1, 3, 60, 90, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    # an optimal map is symmetric
    matrix = torch.tensor([[0.7, 0.1, 0], [0.1, 0.5, 0.05], [0, 0.05, 0.8]])
    shift = torch.tensor([0.1, 0.2, 0.0]).view(1, 3, 1, 1)
    painted = torch.einsum("ij,njhw->nihw", matrix, colors) + shift
    field = ColorField.fit(colors, painted)
    assert torch.allclose(field.apply(colors, slice(0, 60), 60), painted, atol=1e-4)


def test_what_is_not_painted_stays_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    for height, width in ((50, 70), (1, 1), (3, 90), (700, 40)):
        pixels = torch.randint(0, 256, (1, 3, height, width), generator=generator).byte()
        assert torch.equal(draw_photo(pixels, [None], _keep), pixels)


def test_large_pictures_are_painted_small_and_keep_their_detail() -> None:
    image = F.interpolate(_lines(), scale_factor=4)
    sizes = []

    def draw(small: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        sizes.append(tuple(small.shape[2:]))
        return _strokes(small, masks)

    real = draw_photo(image, [None], draw)
    assert sizes == [(WORKED * 3 // 4, WORKED)]
    small = draw_photo(_lines(), [None], _strokes)
    assert F.cosine_similarity(_edges(real).flatten(), _edges(image).flatten(), 0) > 0.99
    assert (F.avg_pool2d(real, 4) - small).abs().max() < 0.06


def test_bands_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = (_lines() * 255).byte()
    mask = torch.linspace(0, 1, 240).expand(1, 1, 180, 240)

    def draw(small: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        return (_strokes(small / 255, masks) * 255).round().byte()

    whole = draw_photo(pixels, [mask, 1 - mask], draw)
    monkeypatch.setattr(color, "_BAND", 7 * 240)
    parts = draw_photo(pixels, [mask, 1 - mask], draw)
    assert (whole.int() - parts.int()).abs().max() <= 1
    assert whole.dtype == torch.uint8


def test_each_region_has_maps_of_its_own_up_to_its_edge() -> None:
    """No window mixes the regions, though windows are wider than the way to the edge."""
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)) * 0.2 + 0.4
    left = torch.zeros(1, 1, 64, 96)
    left[..., :48] = 1

    def draw(small: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        first, second = masks
        assert first is not None
        assert second is not None
        return first * (small + 0.2) + second * (small - 0.3)

    real = draw_photo(image, [left, 1 - left], draw)
    assert torch.allclose(real[..., :48], image[..., :48] + 0.2, atol=1e-4)
    assert torch.allclose(real[..., 48:], image[..., 48:] - 0.3, atol=1e-4)


def test_what_no_mask_covers_stays() -> None:
    image, mask = _lines(), torch.zeros(1, 1, 180, 240)
    mask[..., :100] = 1
    real = draw_photo(image, [mask], _strokes)
    assert torch.equal(real[..., 100:], image[..., 100:])
    assert not torch.allclose(real[..., :100], image[..., :100], atol=0.05)


def test_flat_skies_do_not_get_the_contrast_of_strokes() -> None:
    generator = torch.Generator().manual_seed(3)
    sky = 0.5 + 0.004 * torch.randn(1, 3, 80, 80, generator=generator)

    def draw(small: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        return small + 0.1 * torch.randn(small.shape, generator=generator)

    assert draw_photo(sky, [None], draw).std() < 4 * 0.004
