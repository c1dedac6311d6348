"""`--size` and `--style-size` move the size of strokes, with the shipped network."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from normapps import Stylizer
from normapps.data.images import Picture, fit


@pytest.fixture(scope="module")
def stylizer() -> Stylizer:
    return Stylizer.load(device="cpu", dtype="float32")


def _cycles(pixels: np.ndarray) -> float:
    """Mean spatial frequency of a picture's brightness in cycles a pixel, weighted by power."""
    side = min(pixels.shape[:2])
    grey = pixels[:side, :side].astype(float) @ [0.299, 0.587, 0.114]
    window = np.hanning(side)
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window[:, None] * window)) ** 2
    lines = np.fft.fftfreq(side)
    radius = np.hypot(lines[:, None], lines)
    power[radius <= 4 / side] = 0
    return float((power * radius).sum() / power.sum())


@pytest.mark.parametrize(
    ("painting", "sizes"), [("astronaut", (128, 256, 512)), ("chelsea", (128, 256))]
)
def test_a_painting_seen_larger_gives_bolder_strokes(
    stylizer: Stylizer, photos: dict[str, np.ndarray], painting: str, sizes: tuple[int, ...]
) -> None:
    """On even noise, whose own detail stays the same, twice the size coarsens by 5 % or more.

    Up to the painting's own size: enlarged, it has no larger strokes to show. The strokes alone:
    what `detail` keeps of the noise is as fine as the noise, whatever the painting.
    """
    noise = np.random.default_rng(0).normal(128, 20, (192, 192, 3)).clip(0, 255)
    content, source = Picture(noise.astype(np.uint8)), Picture(photos[painting])
    styles = [stylizer.style(source, size=size) for size in sizes]
    found = [_cycles(stylizer(content, style, detail=0).pixels) for style in styles]
    assert all(larger < 0.95 * smaller for smaller, larger in pairwise(found))


def test_a_larger_result_has_finer_strokes_for_its_size(
    stylizer: Stylizer, photos: dict[str, np.ndarray]
) -> None:
    """The strokes alone, counted across the picture; the photo, only enlarged, has no more."""
    style, photo = stylizer.style(Picture(photos["astronaut"])), fit(photos["coffee"], 160)
    small, large = (
        stylizer(Picture(photo), style, size=size, detail=0).pixels for size in (160, 320)
    )
    enlarged = fit(photo, 320)
    gain = 2 * _cycles(large) / _cycles(small)
    assert gain > 1.15
    assert gain > 1.1 * 2 * _cycles(enlarged) / _cycles(photo)
