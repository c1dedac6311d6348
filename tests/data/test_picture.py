from __future__ import annotations

import numpy as np
import pytest

from normapps.data.picture import Picture, resize, with_pixels
from normapps.errors import InputError


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_pixels_of_another_kind_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"they must be \(H, W, 3\) uint8"):
        Picture(pixels)


@pytest.mark.parametrize("alpha", [np.zeros((4, 3), np.uint8), np.zeros((3, 4), np.float32)])
def test_alpha_must_fit(alpha: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"alpha is .*; it must be \(3, 4\) uint8"):
        Picture(np.zeros((3, 4, 3), np.uint8), alpha)


def test_size_is_width_and_height() -> None:
    assert Picture(np.zeros((3, 4, 3), np.uint8)).size == (4, 3)


def test_other_pixels_of_another_kind_are_refused() -> None:
    picture = Picture(np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(InputError, match="float64"):
        with_pixels(picture, np.zeros((3, 4, 3)))


def test_resize_keeps_a_constant_and_the_mean(coffee: np.ndarray) -> None:
    assert (resize(np.full((9, 7, 3), 77, np.uint8), 20, 5) == 77).all()
    small = resize(coffee, 75, 50)
    assert small.shape == (50, 75, 3)
    blocks = coffee.reshape(50, 8, 75, 8, 3).mean(axis=(1, 3))
    assert np.abs(small - blocks).mean() < 4
    assert np.abs(small.mean(axis=(0, 1)) - coffee.mean(axis=(0, 1))).max() < 0.5


def test_resize_takes_alpha_and_views_and_the_same_size(chelsea: np.ndarray) -> None:
    assert resize(chelsea[..., 0], 10, 20).shape == (20, 10)
    same = resize(chelsea, 451, 300)
    np.testing.assert_array_equal(same, chelsea)
    assert not np.shares_memory(same, chelsea)
    flipped = resize(chelsea[:, ::-1], 100, 60)
    assert np.abs(flipped[:, ::-1].astype(int) - resize(chelsea, 100, 60)).max() <= 1
    assert resize(chelsea, 1, 1).shape == (1, 1, 3)


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_resize_to_nothing_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"cannot resize to {size[0]}×{size[1]}"):
        resize(np.zeros((4, 4, 3), np.uint8), *size)
