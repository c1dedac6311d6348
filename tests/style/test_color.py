"""Keeping colours: hue of the content under the output's light, or its colour moments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normapps.errors import InputError
from normapps.norm import INSTANCE, Moments, transport
from normapps.style import color
from normapps.style.color import into_gamut, move_colors, pair_colors, preserve_color

WEIGHTS = torch.tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    output, content = torch.rand(2, 1, 3, 20, 30, generator=generator) * 0.4 + 0.3
    return output, content


def test_luma_takes_light_from_one_and_chroma_from_the_other(pair: tuple[Tensor, Tensor]) -> None:
    output, content = pair
    kept = preserve_color(output, content, "luma")
    light = (kept * WEIGHTS).sum(1)
    assert torch.allclose(light, (output * WEIGHTS).sum(1), atol=1e-5)
    chroma, want = (x - (x * WEIGHTS).sum(1, keepdim=True) for x in (kept, content))
    assert torch.allclose(
        torch.nn.functional.cosine_similarity(chroma, want), torch.ones(1), atol=1e-3
    )


def test_luma_stays_inside_the_gamut_without_changing_light() -> None:
    content = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    output = torch.full((1, 3, 1, 1), 0.9)
    kept = preserve_color(output, content, "luma")
    assert 0 <= kept.min() <= kept.max() <= 1
    assert (kept * WEIGHTS).sum().item() == pytest.approx(0.9, abs=1e-5)
    assert kept[0, 0] > kept[0, 1]


def test_transport_gives_the_contents_colour_moments(pair: tuple[Tensor, Tensor]) -> None:
    output, content = pair
    kept = preserve_color(output, content * 0.5 + 0.2, "transport")
    own, want = (Moments.of(x, INSTANCE, full=True) for x in (kept, content * 0.5 + 0.2))
    assert torch.allclose(own.mean, want.mean, atol=1e-3)
    assert own.cov is not None
    assert want.cov is not None
    assert torch.allclose(own.cov, want.cov, atol=1e-3)


def test_flat_pictures_do_not_fail() -> None:
    flat = torch.full((1, 3, 4, 4), 0.25)
    for mode in ("none", "luma", "transport"):
        assert torch.allclose(preserve_color(flat, flat, mode), flat, atol=1e-4)


def test_an_unknown_mode_is_named(pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="preserve_color 'hue'"):
        preserve_color(*pair, "hue")


def _moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (3,) and biased covariance (3, 3) of the colours, in float64."""
    colors = image[0].double().flatten(1)
    centred = colors - colors.mean(1, keepdim=True)
    return colors.mean(1), centred @ centred.T / colors.shape[1]


def _colors(seed: int, spread: float = 0.1, level: float = 0.5) -> Moments:
    """Moments of correlated colours that stay far from the gamut's edges."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.randn(3, 3, generator=generator)
    x = torch.rand(1, 3, 30, 40, generator=generator) - 0.5
    mixed = torch.einsum("ij,njhw->nihw", turn / turn.norm(), x)
    return Moments.of(level + spread * mixed, INSTANCE, full=True)


def test_moved_colours_have_the_paintings_moments_and_the_least_displacement(
    pair: tuple[Tensor, Tensor],
) -> None:
    photo, colors = pair[0].double(), _colors(1)
    moved = move_colors(photo, [(colors, None)])
    mean, cov = _moments(photo)
    # Pitié & Kokaram 2007, eq. 12, with the ridge on both sides
    assert colors.cov is not None
    ridge = 1e-3 * torch.eye(3).double()
    values, vectors = torch.linalg.eigh(cov + ridge)
    root = (vectors * values.sqrt()) @ vectors.T
    inner, turned = torch.linalg.eigh(root @ (colors.cov[0].double() + ridge) @ root)
    matrix = root.inverse() @ (turned * inner.sqrt()) @ turned.T @ root.inverse()
    want = matrix @ (photo[0].flatten(1) - mean[:, None]) + colors.mean[0].double()[:, None]
    assert want.min() > 0
    assert want.max() < 1
    assert torch.allclose(moved[0].flatten(1), want, atol=1e-6)


def test_strength_goes_from_the_photo_to_the_painting(pair: tuple[Tensor, Tensor]) -> None:
    photo, colors = pair[0], _colors(2)
    full, half, none = (move_colors(photo, [(colors, None)], alpha) for alpha in (1.0, 0.5, 0.0))
    assert torch.allclose(none, photo, atol=1e-6)
    assert torch.allclose(half, (photo + full) / 2, atol=1e-5)
    pixels = (photo * 255).round().byte()
    assert torch.equal(move_colors(pixels, [(colors, None)], 0.0), pixels)


def test_noise_of_a_grey_photo_stays_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    grey = torch.rand(1, 1, 40, 40, generator=generator).mul(0.5).add(0.25)
    noisy = grey + 0.002 * torch.randn(1, 3, 40, 40, generator=generator)
    colors = Moments.of(torch.rand(1, 3, 50, 50, generator=generator), INSTANCE, full=True)
    moved = move_colors(noisy, [(colors, None)])
    chroma = moved - moved.mean(1, keepdim=True)
    assert chroma.std((2, 3)).max() < 0.03  # the painting's is .24


def test_pictures_of_many_bands_are_moved_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(0, 256, (1, 3, 37, 23), generator=torch.Generator().manual_seed(3))
    mask = torch.linspace(0, 1, 37 * 23).view(1, 1, 37, 23)
    regions = [(_colors(4), mask), (_colors(5), 1 - mask)]
    whole = move_colors(pixels.byte(), regions)
    monkeypatch.setattr(color, "_BAND", 100)
    assert torch.equal(move_colors(pixels.byte(), regions), whole)
    assert whole.dtype == torch.uint8


def test_regions_have_colours_of_their_own_and_blend(pair: tuple[Tensor, Tensor]) -> None:
    photo, (first, second) = pair[0], (_colors(6), _colors(7, level=0.4))
    left = torch.zeros(1, 1, 20, 30)
    left[..., :10], left[..., 10:15] = 1, 0.5
    right = 1 - left
    right[..., 25:] = 0
    moved = move_colors(photo, [(first, left), (second, right)])
    alone = [
        transport(photo, Moments.of(photo, full=True, weight=mask), colors, "ot", 1e-3)
        for mask, colors in ((left, first), (right, second))
    ]
    assert torch.allclose(moved[..., :10], alone[0][..., :10], atol=1e-5)
    middle = (alone[0] + alone[1])[..., 10:15] / 2
    assert torch.allclose(moved[..., 10:15], middle, atol=1e-5)
    assert torch.allclose(moved[..., 15:25], alone[1][..., 15:25], atol=1e-5)
    assert torch.equal(moved[..., 25:], photo[..., 25:])


def test_an_empty_region_does_no_harm(pair: tuple[Tensor, Tensor]) -> None:
    photo, nothing = pair[0], torch.zeros(1, 1, 20, 30)
    moved = move_colors(photo, [(_colors(8), nothing), (_colors(9), 1 - nothing)])
    assert torch.allclose(moved, move_colors(photo, [(_colors(9), None)]), atol=1e-6)


def test_colours_come_into_the_gamut_half_way_between_cut_and_pale() -> None:
    inside = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(into_gamut(inside), inside, atol=1e-6)
    outside = torch.tensor([1.2, 0.9, -0.1]).view(1, 3, 1, 1)
    luma = 0.299 * 1.2 + 0.587 * 0.9 - 0.114 * 0.1
    pale = luma + (outside - luma) * (1 - luma) / (1.2 - luma)
    want = (torch.tensor([1.0, 0.9, 0.0]).view(1, 3, 1, 1) + pale) / 2
    assert torch.allclose(into_gamut(outside), want, atol=1e-5)
    wild = 5 * torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    assert 0 <= into_gamut(wild).min() <= into_gamut(wild).max() <= 1


@pytest.mark.parametrize("method", ["ot", "newton"])
def test_pairs_get_what_each_would_get_alone(method: str) -> None:
    generator = torch.Generator().manual_seed(3)
    photos, paintings = torch.rand(2, 3, 3, 24, 30, generator=generator).square()
    paintings = paintings * torch.tensor([0.3, 0.9, 0.6]).view(1, 3, 1, 1)
    photos[2] = 0.5  # nothing varies: the ridge alone keeps the map finite
    found = pair_colors(photos, paintings, method)
    for photo, painting, got in zip(photos, paintings, found, strict=True):
        wanted = Moments.of(painting[None], INSTANCE, full=True)
        own = Moments.of(photo[None], INSTANCE, full=True)
        moved = transport(photo[None], own, wanted, "ot", 1e-3)
        assert torch.allclose(got, moved[0].clamp(0, 1), atol=1e-5)
