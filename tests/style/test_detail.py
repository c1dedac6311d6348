"""The finest lines: a share of them is the photo's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from normapps.style import color
from normapps.style.detail import keep_detail_, mix_detail
from normapps.style.onnx import detail as numpys


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn, photo = torch.rand(2, 1, 3, 22, 34, generator=generator) * 0.5 + 0.25
    return drawn, photo


def _by_pixel(drawn: np.ndarray, photo: np.ndarray, share: float) -> np.ndarray:
    """The definition, one pixel after the other."""
    out = drawn.copy()
    greys = [np.tensordot([0.299, 0.587, 0.114], x, 1) for x in (drawn, photo)]
    for y, x in np.ndindex(drawn.shape[1:]):
        window = (slice(max(0, y - 2), y + 3), slice(max(0, x - 2), x + 3))
        own, wanted = (grey[y, x] - grey[window].mean() for grey in greys)
        out[:, y, x] += share * (wanted - own)
    return out


def test_it_is_what_it_says(pair: tuple[Tensor, Tensor]) -> None:
    drawn, photo = pair
    want = _by_pixel(drawn[0].double().numpy(), photo[0].double().numpy(), 0.3)
    np.testing.assert_allclose(mix_detail(drawn, photo, 0.3)[0].numpy(), want, atol=1e-5)
    assert torch.equal(mix_detail(drawn, photo, 0.0), drawn)
    assert torch.allclose(mix_detail(photo, photo, 0.7), photo)


@pytest.mark.parametrize("rows", [1, 2, 5, 22])
def test_bands_leave_no_seam(
    pair: tuple[Tensor, Tensor], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, photo = pair
    want = mix_detail(drawn, photo, 0.8).clamp(0, 1)
    monkeypatch.setattr(color, "_BAND", rows * drawn.shape[3])
    keep_detail_(drawn, photo, 0.8)
    assert torch.allclose(drawn, want, atol=1e-6)


def test_pixels_stay_pixels(pair: tuple[Tensor, Tensor]) -> None:
    drawn, photo = ((x * 255).byte() for x in pair)
    want = (mix_detail(drawn / 255, photo / 255, 0.5).clamp(0, 1) * 255).round().byte()
    keep_detail_(drawn, photo, 0.5)
    assert torch.equal(drawn, want)


def test_numpy_does_the_same(pair: tuple[Tensor, Tensor]) -> None:
    drawn, photo = pair
    cells = torch.nn.functional.pixel_unshuffle(drawn, 2)
    found = numpys.mix_detail(cells.numpy(), photo[0].permute(1, 2, 0).numpy(), 0.4)
    want = torch.nn.functional.pixel_unshuffle(mix_detail(drawn, photo, 0.4), 2)
    np.testing.assert_allclose(found, want.numpy(), atol=1e-6)
