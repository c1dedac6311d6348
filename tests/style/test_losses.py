from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normapps.style.losses import (
    content_distance,
    gram,
    gram_distance,
    lattice,
    structure_distance,
    style_distance,
)
from normapps.style.quality import ssim


def features(seed: int, channels: int = 5, height: int = 6, width: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, channels, height, width, generator=generator, dtype=torch.float64)
    return x * torch.arange(1, channels + 1).view(-1, 1, 1) + 0.3


def numpy_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flat = x.reshape(x.shape[0], -1)
    mean = flat.sum(1) / flat.shape[1]
    var = ((flat - mean[:, None]) ** 2).sum(1) / flat.shape[1]
    return mean, np.sqrt(var + 1e-5)


def numpy_style(output: np.ndarray, style: np.ndarray) -> float:
    got, wanted = numpy_moments(output), numpy_moments(style)
    distance = sum(((a - b) ** 2).sum() for a, b in zip(got, wanted, strict=True))
    return float(distance / sum((b**2).sum() for b in wanted))


def numpy_gram(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(x.shape[0], -1)
    return np.einsum("ip,jp->ij", flat, flat) / flat.shape[1]


def test_style_distance_is_the_relative_squared_distance_of_moments() -> None:
    pairs = [(features(0), features(1, height=9)), (features(2, 3), features(3, 3))]
    got = style_distance([o for o, _ in pairs], [s for _, s in pairs])
    want = [np.mean([numpy_style(o[n].numpy(), s[n].numpy()) for o, s in pairs]) for n in range(2)]
    assert got.shape == (2,)
    assert got.tolist() == pytest.approx(want, rel=1e-6)


def test_gram_distance_is_the_mean_relative_frobenius_distance() -> None:
    pairs = [(features(0), features(1, width=4)), (features(2, 3), features(3, 3))]
    got = gram_distance([o for o, _ in pairs], [s for _, s in pairs])
    want = []
    for n in range(2):
        grams = [(numpy_gram(o[n].numpy()), numpy_gram(s[n].numpy())) for o, s in pairs]
        want.append(np.mean([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in grams]))
    assert got.tolist() == pytest.approx(want, rel=1e-5)


def test_gram_is_uncentred_and_does_not_grow_with_the_picture() -> None:
    x = features(0)
    assert gram(x)[1].numpy() == pytest.approx(numpy_gram(x[1].numpy()), rel=1e-6)
    assert torch.allclose(gram(x), gram(x.repeat(1, 1, 2, 3)), rtol=1e-5)


def test_distances_of_the_thing_itself_are_zero() -> None:
    x = [features(0), features(1, 3)]
    assert style_distance(x, x).tolist() == [0, 0]
    assert gram_distance(x, x).tolist() == [0, 0]
    assert content_distance(x[0], x[0]).item() == 0


def test_content_distance_ignores_each_maps_scale_and_shift() -> None:
    x, y = features(0), features(7)
    moved = y * 3.0 - 2.0
    assert content_distance(x, moved).item() == pytest.approx(
        content_distance(x, y).item(), rel=1e-4
    )
    standardized = [
        (z - z.mean((2, 3), keepdim=True)) / (z.var((2, 3), keepdim=True, correction=0)).sqrt()
        for z in (x, y)
    ]
    want = (standardized[0] - standardized[1]).square().mean().item()
    assert content_distance(x, y).item() == pytest.approx(want, rel=1e-3)


def naive_lattice(image: np.ndarray, period: int = 4) -> float:
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    height, width = grey.shape
    fine = np.empty_like(grey)
    for row in range(height):
        for column in range(width):
            rows = slice(max(0, row - 2), row + 3)
            window = grey[rows, max(0, column - 2) : column + 3]
            fine[row, column] = grey[row, column] - window.mean()
    whole = fine[: height - height % period, : width - width % period]
    cells = [whole[i::period, j::period].mean() for i in range(period) for j in range(period)]
    return float(np.std(cells) / (np.std(fine) + 1e-4))


def test_structure_distance_is_one_minus_ssim_of_all_pictures(astronaut: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(-40, 41, astronaut.shape)
    drawn = (astronaut[::-1], np.clip(astronaut + noise, 0, 255).astype(np.uint8))
    one, two = (
        torch.from_numpy(np.stack(each).copy()).permute(0, 3, 1, 2) / 255
        for each in (drawn, (astronaut, astronaut))
    )
    want = 1 - np.mean([ssim(each, astronaut) for each in drawn])
    assert structure_distance(one, two).item() == pytest.approx(want, abs=1e-5)
    assert structure_distance(two, two).item() == pytest.approx(0, abs=1e-6)


def test_lattice_is_what_its_definition_says() -> None:
    image = np.random.default_rng(0).random((3, 18, 23))
    got = lattice(torch.from_numpy(image)[None]).item()
    assert got == pytest.approx(naive_lattice(image), rel=1e-4)


def test_lattice_sees_a_grid_of_its_period_and_no_other(astronaut: np.ndarray) -> None:
    photo = torch.from_numpy(astronaut).permute(2, 0, 1)[None] / 255
    where = torch.arange(512)
    grids = {p: ((where[:, None] % p == 0) & (where % p == 0)).float() * 0.1 for p in (4, 5)}
    clean, four, five = (lattice(x).item() for x in (photo, photo + grids[4], photo + grids[5]))
    assert clean < 0.03
    assert four > 0.2
    assert five < 0.03


def test_lattice_of_a_pure_grid_is_one_and_of_a_flat_picture_zero() -> None:
    grid = torch.zeros(1, 3, 64, 64)
    grid[..., ::4, ::4] = 1
    assert lattice(grid).item() == pytest.approx(1, abs=0.02)
    assert lattice(torch.full((1, 3, 32, 32), 0.5)).item() == 0


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 3), st.floats(-0.5, 0.5), st.integers(0, 99))
def test_lattice_ignores_contrast_and_brightness(gain: float, shift: float, seed: int) -> None:
    image = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(seed))
    changed = lattice(image * gain + shift).item()
    assert changed == pytest.approx(lattice(image).item(), rel=0.01)


def test_a_flat_picture_gives_finite_gradients() -> None:
    flat = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    terms = [
        lattice(flat).sum(),
        style_distance([flat], [features(0, 3)[:1].float()]).sum(),
        gram_distance([flat], [flat.detach()]).sum(),
        content_distance(flat, features(0, 3, 16, 16)[:1].float()),
    ]
    torch.stack(terms).sum().backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()
