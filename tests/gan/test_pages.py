"""Grids with a row a class: where pictures and names come."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from normapps.gan.pages import class_grid


def _mean(page: Image.Image, top: int, height: int) -> float:
    return float(np.asarray(page.convert("L"))[top : top + height].mean())


def test_a_class_begins_a_row_and_leaves_its_last_open() -> None:
    images = torch.randint(255, (2, 3, 3, 4, 4), dtype=torch.uint8)
    page = np.asarray(class_grid(images, ["a", "b"], columns=2, labels=False))
    assert page.shape == (4 * 6 - 2, 2 * 6 - 2, 3)
    for of_class, top in ((0, 0), (1, 12)):
        for place, (row, column) in enumerate(((0, 0), (0, 6), (6, 0))):
            found = page[top + row : top + row + 4, column : column + 4]
            assert np.array_equal(found, images[of_class, place].permute(1, 2, 0).numpy())
        assert np.all(page[top + 6 : top + 10, 6:] == 255)


def test_names_stand_beside_their_rows() -> None:
    images = torch.full((3, 2, 1, 28, 28), 255, dtype=torch.uint8)
    page = class_grid(images, ["", "name", ""], scale=2)
    bare = class_grid(images, ["", "name", ""], scale=2, labels=False)
    assert page.height == bare.height
    assert page.width > bare.width
    tops = [_mean(page, top, 56) for top in (0, 58, 116)]
    assert tops[0] == tops[2] == 255
    assert tops[1] < 254
    assert class_grid(images, ()).size == class_grid(images, ["a"] * 3, labels=False).size


def test_long_and_foreign_names_are_cut_not_refused() -> None:
    images = torch.zeros(1, 1, 1, 28, 28, dtype=torch.uint8)
    longest = class_grid(images, ["n" * 24]).width
    assert class_grid(images, ["n" * 300]).width <= longest
    assert class_grid(images, ["犬\n→ é"]).height == 28
