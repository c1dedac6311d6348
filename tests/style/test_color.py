"""Keeping colours: hue of the content under the output's light, or its colour moments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normapps.errors import InputError
from normapps.norm import INSTANCE, Moments
from normapps.style.color import preserve_color

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
