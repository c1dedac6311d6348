"""Resizers against Pillow's float channels and TensorFlow's formula, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from normapps.errors import InputError
from normapps.gan.evaluation.resizing import describe, resize


def pictures(height: int, width: int) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), generator=draws, dtype=torch.uint8)


@pytest.mark.parametrize(("given", "size"), [((32, 32), (75, 75)), ((50, 40), (13, 21))])
def test_bicubic_is_pillows_on_float_channels(
    given: tuple[int, int], size: tuple[int, int]
) -> None:
    x = pictures(*given)
    found = resize(x, size, "bicubic")
    for picture, made in zip(x, found, strict=True):
        for channel, ours in zip(picture.numpy(), made.numpy(), strict=True):
            image = Image.fromarray(channel.astype(np.float32))
            wanted = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
            np.testing.assert_allclose(ours, wanted, atol=2e-3)


def test_bicubic_is_neither_cut_off_nor_rounded() -> None:
    edge = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    found = resize(edge, (24, 24), "bicubic")
    assert found.min() < -5
    assert found.max() > 260
    assert (found != found.round()).any()


@pytest.mark.parametrize(("given", "size"), [((5, 7), (9, 11)), ((9, 8), (4, 3))])
def test_tf1_takes_pixels_as_points_from_the_corner(
    given: tuple[int, int], size: tuple[int, int]
) -> None:
    x = pictures(*given)
    found = resize(x, size, "tf1")
    values = x.double()
    for i in range(size[0]):
        for j in range(size[1]):
            top, left = i * given[0] / size[0], j * given[1] / size[1]
            rows = int(top), min(int(top) + 1, given[0] - 1)
            columns = int(left), min(int(left) + 1, given[1] - 1)
            down, across = top - rows[0], left - columns[0]
            upper, lower = (
                values[:, :, row, columns[0]] * (1 - across)
                + values[:, :, row, columns[1]] * across
                for row in rows
            )
            wanted = upper * (1 - down) + lower * down
            torch.testing.assert_close(found[:, :, i, j].double(), wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("resizer", ["bicubic", "tf1"])
def test_what_fits_is_left_as_it_is(resizer: str) -> None:
    x = pictures(6, 9)
    assert torch.equal(resize(x, (6, 9), resizer), x.float())
    assert describe(resizer, (6, 9), (6, 9)) == "none, 6×9"


def test_an_unknown_resizer_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'bicubic'"):
        resize(pictures(4, 4), (8, 8), "bicubik")
