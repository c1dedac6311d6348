"""Weak augmentation: identity, what each strength does, seeds, shapes, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from normapps.data.augment import augment
from normapps.errors import InputError

NOTHING = {"crop": 1.0, "shift": 0.0, "flip": 0.0, "jitter": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch(photos: dict[str, np.ndarray]) -> Tensor:
    """Four photographs, (4, 3, 96, 128) uint8."""
    names = ("coffee", "china", "flower", "rocket")
    parts = [torch.from_numpy(photos[name][100:196, 200:328]) for name in names]
    return torch.stack(parts).permute(0, 3, 1, 2).contiguous()


def test_no_strength_is_the_identity(batch: Tensor) -> None:
    assert torch.equal(augment(batch, seeded(), **NOTHING), batch)


def test_resampling_without_a_move_is_the_identity(batch: Tensor) -> None:
    found = augment(batch, seeded(), **NOTHING | {"flip": 1e-9})
    assert torch.equal(found, batch)


def test_a_flip_mirrors_left_and_right(batch: Tensor) -> None:
    assert torch.equal(augment(batch, seeded(), **NOTHING | {"flip": 1.0}), batch.flip(3))


def test_half_the_pictures_are_flipped(batch: Tensor) -> None:
    many = batch[:1].repeat(400, 1, 1, 1)[:, :, :8, :8]
    found = augment(many, seeded(), **NOTHING | {"flip": 0.5})
    flipped = (found == many.flip(3)).flatten(1).all(1)
    assert ((found == many).flatten(1).all(1) ^ flipped).all()
    assert 150 < flipped.sum() < 250  # 5 standard deviations


def test_a_crop_is_a_window_scaled_up() -> None:
    # a ramp stays a ramp, of a slope times the window's side, within its ends
    ramp = torch.linspace(20, 220, 101).round().to(torch.uint8).expand(200, 1, 101, 101)
    found = augment(ramp, seeded(), **NOTHING | {"crop": 0.5}).double()
    slope = (found[:, 0, 50, 90] - found[:, 0, 50, 10]) / 80 / 2
    assert slope.min() > 0.49
    assert slope.max() < 1.01
    assert slope.max() - slope.min() > 0.4
    assert found.min() >= 20
    assert found.max() <= 220
    assert torch.allclose(found[:, :, 0], found[:, :, 100], atol=1)


def test_a_shift_mirrors_beyond_the_edge() -> None:
    ramp = torch.arange(100, dtype=torch.uint8).expand(300, 1, 100, 100)
    found = augment(ramp, seeded(), **NOTHING | {"shift": 0.1}).double()
    moved = found[:, 0, 50, 50] - 50
    assert moved.abs().max() <= 10
    assert moved.min() < -8
    assert moved.max() > 8
    far = found[moved > 5]
    assert (far[:, 0, 50, -1] < 99).all()  # came back at the edge


def test_jitter_keeps_within_its_factors() -> None:
    flat = torch.full((500, 3, 4, 4), 100, dtype=torch.uint8)
    found = augment(flat, seeded(), **NOTHING | {"jitter": 0.3}).double()
    assert found.flatten(1).std(1).max() == 0
    assert found.min() == 70
    assert found.max() == 130


def test_jitter_changes_contrast_and_saturation(batch: Tensor) -> None:
    many = batch[1:2].repeat(64, 1, 1, 1)
    found = augment(many, seeded(), **NOTHING | {"jitter": 0.4}).double()
    ratio = found.std((1, 2, 3)) / found.mean((1, 2, 3))
    assert ratio.max() / ratio.min() > 1.5
    colour = (found.amax(1) - found.amin(1)).mean((1, 2)) / found.std((1, 2, 3))
    assert colour.max() / colour.min() > 1.3


@given(seed=st.integers(0, 2**31), length=st.integers(1, 5), channels=st.sampled_from([1, 3, 4]))
def test_one_seed_makes_one_result(seed: int, length: int, channels: int) -> None:
    images = torch.randint(0, 256, (length, channels, 9, 7), dtype=torch.uint8)
    options = {"crop": 0.6, "shift": 0.1, "flip": 0.5, "jitter": 0.3}
    first, again = (augment(images, seeded(seed), **options) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == images.shape
    assert first.dtype == torch.uint8


def test_draws_do_not_depend_on_strengths(batch: Tensor) -> None:
    left, right = seeded(), seeded()
    augment(batch, left, **NOTHING)
    augment(batch, right, crop=0.5, shift=0.2, flip=0.5, jitter=0.5)
    assert torch.equal(left.get_state(), right.get_state())


def test_every_picture_has_its_own_draw(batch: Tensor) -> None:
    many = batch[:1].repeat(20, 1, 1, 1)
    found = augment(many, seeded())
    assert len({picture.numpy().tobytes() for picture in found}) == 20


@pytest.mark.parametrize(
    ("name", "value"),
    [("crop", 0.0), ("crop", 1.1), ("shift", -0.1), ("shift", 0.6), ("flip", 2.0), ("jitter", 1.0)],
)
def test_strengths_out_of_range_are_refused(batch: Tensor, name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"{name} {value}: must be"):
        augment(batch, seeded(), **{name: value})


def test_what_is_no_batch_is_refused(batch: Tensor) -> None:
    for wrong in (batch.float(), batch[0]):
        with pytest.raises(InputError, match=r"must be \(N, C, H, W\) uint8"):
            augment(wrong, seeded())
