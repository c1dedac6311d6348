"""Contact sheets show every picture where it belongs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normapps import Stylizer
from normapps.data.images import Picture
from normapps.errors import InputError
from normapps.models.adain_tiny import AdainTiny
from normapps.style.sheet import contact_sheet
from normapps.style.styles import Style


@pytest.fixture(scope="module")
def stylizer() -> Stylizer:
    torch.manual_seed(0)
    return Stylizer(AdainTiny(width=8, deep=8, hidden=4), "weights")


@pytest.fixture(scope="module")
def styles(stylizer: Stylizer) -> list[Style]:
    return [stylizer.style(torch.rand(3, 32, 32), name=name) for name in ("one", "two")]


def _photo(value: int) -> Picture:
    return Picture(np.full((40, 60, 3), value, np.uint8))


def test_each_photo_has_a_row_of_its_own(stylizer: Stylizer, styles: list[Style]) -> None:
    page = contact_sheet(stylizer, [_photo(50), _photo(200)], styles, tile=60).pixels
    assert page.shape == (2 * (40 + 20 + 8) + 8, 3 * (60 + 8) + 8, 3)
    originals = [page[8 + 20 + row * 68 + 20, 8 + 30] for row in (0, 1)]
    assert np.abs(np.array(originals) - [[50] * 3, [200] * 3]).max() <= 1
    assert (page[8:28] < 128).any()  # the labels


def test_columns_and_strength_can_be_chosen(stylizer: Stylizer, styles: list[Style]) -> None:
    page = contact_sheet(stylizer, [_photo(50)], styles, tile=60, columns=1)
    assert page.pixels.shape[:2] == (3 * 68 + 8, 68 + 8)
    plain, full = (
        contact_sheet(stylizer, [_photo(50)], styles, tile=60, columns=3, alpha=alpha).pixels
        for alpha in (0.0, 1.0)
    )
    assert np.array_equal(plain[28:68, 76:136], plain[28:68, 144:204])
    assert not np.array_equal(full[28:68, 76:136], full[28:68, 144:204])


def test_the_method_can_be_chosen(stylizer: Stylizer, styles: list[Style]) -> None:
    photo = Picture(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    pages = [
        contact_sheet(stylizer, [photo], styles, tile=60, method=method).pixels
        for method in ("auto", "adain", "wct")
    ]
    assert np.array_equal(pages[0], pages[1])
    assert not np.array_equal(pages[0], pages[2])


def test_an_empty_sheet_is_refused(stylizer: Stylizer, styles: list[Style]) -> None:
    with pytest.raises(InputError, match="at least one photo"):
        contact_sheet(stylizer, [], styles)
