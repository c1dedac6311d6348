"""The loss for steady video: zero for what moves with its photo, large for a grid that stays."""

from __future__ import annotations

import torch

from normapps.style.temporal import shifted, unsteadiness


def test_a_shift_moves_whole_pixels_and_mirrors_at_the_edge() -> None:
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    moved = shifted(image, 1, 2)
    assert torch.equal(moved[..., 1:, 2:], image[..., :2, :2])
    assert moved[0, 0, 1].tolist() == [2.0, 1.0, 0.0, 1.0]


def test_what_moves_with_the_photo_is_steady_and_a_grid_is_not() -> None:
    photo = torch.rand(1, 3, 96, 96)
    grid = (torch.arange(96) % 4 == 0).float().expand(1, 3, 96, 96)
    moved = shifted(photo, 3, 5)
    assert unsteadiness(2 * photo, 2 * moved, 3, 5) == 0
    got = unsteadiness(photo + grid, moved + grid, 3, 5)  # 5 is no multiple of the grid's 4
    assert torch.isclose(got, torch.tensor(0.5), atol=1e-6)
