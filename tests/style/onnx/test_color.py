"""Keeping colours in numpy gives torch's picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normapps.errors import InputError
from normapps.norm import INSTANCE, Moments
from normapps.norm import barycenter as torch_barycenter
from normapps.style.color import move_colors as move_in_torch
from normapps.style.color import preserve_color as in_torch
from normapps.style.onnx import color
from normapps.style.onnx.color import Colors, barycenter, move_colors, preserve_color


@pytest.mark.parametrize("mode", ["luma", "transport"])
def test_it_is_torchs_in_float64(mode: str, astronaut: np.ndarray, coffee: np.ndarray) -> None:
    output, content = coffee[:200, :300], astronaut[:200, :300]
    pair = (
        torch.from_numpy(x.copy()).permute(2, 0, 1)[None].double() / 255 for x in (output, content)
    )
    want = in_torch(*pair, mode)[0].permute(1, 2, 0).mul(255).numpy()
    found = preserve_color(output, content, mode)
    assert found.dtype == np.uint8
    assert np.abs(found - want).max() <= 0.501  # rounded, and nothing else
    assert np.abs(found.astype(int) - output).mean() > 5  # and not the picture as it was


def test_none_changes_nothing_and_another_name_is_refused(coffee: np.ndarray) -> None:
    assert preserve_color(coffee, coffee, "none") is coffee
    with pytest.raises(InputError, match="did you mean 'luma'"):
        preserve_color(coffee, coffee, "lume")


def _in_torch(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].double() / 255


def _moments(pixels: np.ndarray) -> Moments:
    return Moments.of(_in_torch(pixels), INSTANCE, full=True)


@pytest.mark.parametrize("alpha", [1.0, 0.4, 0.0])
def test_moved_colours_are_torchs(
    alpha: float, astronaut: np.ndarray, coffee: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(color, "_BAND", 7000)
    photo, painting = coffee[:120, :300], astronaut[:200, :300]
    found = move_colors(photo, Colors.of(painting), alpha)
    moved = move_in_torch(_in_torch(photo), [(_moments(painting), None)], alpha)
    want = moved[0].permute(1, 2, 0).mul(255).numpy()
    assert found.dtype == np.uint8
    assert np.abs(found - want).max() <= 0.501
    assert (np.abs(found.astype(int) - photo).mean() > 5) == (alpha > 0)


def test_measured_colours_and_their_barycentre_are_torchs(
    astronaut: np.ndarray, coffee: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(color, "_BAND", 7000)
    pictures, weights = (
        (coffee[:90, :120], astronaut[:80, :90], coffee[200:, 300:]),
        (0.5, 0.3, 0.2),
    )
    want = [_moments(each) for each in pictures]
    found = [Colors.of(each) for each in pictures]
    for ours, theirs in zip(
        (*found, barycenter(found, weights)), (*want, torch_barycenter(want, weights)), strict=True
    ):
        assert np.allclose(ours.mean, theirs.mean[0])
        assert np.allclose(ours.cov, torch.as_tensor(theirs.cov)[0], atol=1e-7)
