"""Masks: read from drawings and cut-outs, fitted to pictures, and what they leave."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normapps.errors import InputError
from normapps.style.masks import Mask, fit_masks, read_mask


def _half(height: int = 40, width: int = 60) -> np.ndarray:
    values = np.zeros((height, width), np.uint8)
    values[:, : width // 2] = 255
    return values


def test_a_drawing_is_read_as_its_brightness(tmp_path: Path) -> None:
    drawing = np.zeros((4, 3, 3), np.uint8)
    drawing[0], drawing[1] = 255, (255, 0, 0)
    Image.fromarray(drawing).save(tmp_path / "m.png")
    got = read_mask(tmp_path / "m.png", feather=3)
    assert got.values[:, 0].tolist() == [255, 76, 0, 0]  # BT.601: red weighs 0.299
    assert (got.feather, got.name) == (3, str(tmp_path / "m.png"))


@pytest.mark.parametrize("opaque", [False, True])
def test_transparency_counts_where_there_is_any(tmp_path: Path, opaque: bool) -> None:
    """A cut-out's own brightness says nothing; an opaque RGBA drawing's says all."""
    colours = np.random.default_rng(0).integers(1, 255, (8, 8, 3), dtype=np.uint8)
    alpha = np.full((8, 8), 255, np.uint8) if opaque else _half(8, 8)
    Image.fromarray(np.dstack([colours, alpha])).save(tmp_path / "m.png")
    grey = np.rint(colours @ np.array([0.299, 0.587, 0.114]))
    got = read_mask(tmp_path / "m.png").values
    assert np.abs(got - (grey if opaque else alpha.astype(float))).max() <= (1 if opaque else 0)


def test_a_mask_takes_the_size_of_the_picture() -> None:
    fitted = Mask(_half()).fitted(600, 400)
    assert fitted.shape == (400, 600)
    assert fitted.dtype == np.uint8
    assert (fitted[:, :290] == 255).all()
    assert (fitted[:, 310:] == 0).all()
    assert np.array_equal(Mask(_half()).fitted(60, 40), _half())


def test_feather_is_the_width_of_the_fading() -> None:
    """A straight edge becomes the error function, of deviation feather / 4."""
    row = Mask(_half(100, 200), feather=40).fitted(200, 100)[50]
    want = [255 * 0.5 * math.erfc((x + 0.5 - 100) / 10 / math.sqrt(2)) for x in range(200)]
    assert np.abs(row - np.array(want)).max() < 6  # Pillow's Gaussian is three boxes
    assert row[75] > 250
    assert row[125] < 5


def test_the_rest_is_what_the_others_leave() -> None:
    soft = np.linspace(0, 255, 60).astype(np.uint8)[None].repeat(40, 0)
    first, second = fit_masks([Mask(soft, feather=8), None], 60, 40)
    assert np.array_equal(first.astype(int) + second, np.full((40, 60), 255))
    right = (255 - _half()) // 2
    rest, left, half = fit_masks([None, Mask(_half()), Mask(right)], 60, 40)
    assert np.array_equal(left, _half())
    assert np.array_equal(half, right)
    assert np.array_equal(rest, 255 - _half() - right)


def test_masks_that_cannot_serve_say_why() -> None:
    with pytest.raises(InputError, match=r"sky\.png: is black everywhere; make white"):
        Mask(np.zeros((4, 4), np.uint8), name="sky.png")
    with pytest.raises(InputError, match=r"\(4, 4, 3\) uint8; a mask must be \(H, W\) uint8"):
        Mask(np.ones((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="feather -1: must be"):
        Mask(_half(), feather=-1)
    with pytest.raises(InputError, match="mask: is 60×40, the picture 40×60; give a mask of"):
        Mask(_half()).fitted(40, 60)
    dot = np.zeros((400, 600), np.uint8)
    dot[200, 300] = 255
    with pytest.raises(InputError, match="nothing is left of it at 6×4"):
        Mask(dot).fitted(6, 4)
    with pytest.raises(InputError, match="two styles without a mask"):
        fit_masks([Mask(_half()), None, None], 60, 40)
    with pytest.raises(InputError, match="leave nothing for the style without one"):
        fit_masks([Mask(np.full((40, 60), 254, np.uint8)), None], 60, 40)


def test_a_mask_may_be_off_by_what_rounding_makes() -> None:
    """A thumbnail of the picture's is the picture's shape, though not to the pixel."""
    assert Mask(_half(67, 100)).fitted(1000, 667).shape == (667, 1000)
    with pytest.raises(InputError, match="give a mask of the picture's shape"):
        Mask(_half(69, 100)).fitted(1000, 667)
