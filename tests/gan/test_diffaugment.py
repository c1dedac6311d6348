"""DiffAugment against loops over single pictures that repeat its draws; gradients; refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from normapps.errors import InputError
from normapps.gan.diffaugment import POLICIES, check_policy, diff_augment

ALL = "color,translation,cutout"
SUBSETS = [",".join(c) for n in (1, 2, 3) for c in itertools.combinations(POLICIES, n)]


def _seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _color(x: np.ndarray, generator: torch.Generator) -> np.ndarray:
    brightness, saturation, contrast = (
        torch.rand(len(x), generator=generator).double().numpy() for _ in range(3)
    )
    out = np.empty_like(x)
    for n, picture in enumerate(x):
        lit = picture + brightness[n] - 0.5
        grey = lit.mean(0)
        vivid = grey + (lit - grey) * 2 * saturation[n]
        out[n] = vivid.mean() + (vivid - vivid.mean()) * (contrast[n] + 0.5)
    return out


def _translation(x: np.ndarray, generator: torch.Generator) -> np.ndarray:
    reach = [int(side / 8 + 0.5) for side in x.shape[2:]]
    shifts = [torch.randint(-r, r + 1, (len(x),), generator=generator).numpy() for r in reach]
    out = np.zeros_like(x)
    height, width = x.shape[2:]
    for n, row, column in itertools.product(range(len(x)), range(height), range(width)):
        y, z = row + shifts[0][n], column + shifts[1][n]
        if 0 <= y < height and 0 <= z < width:
            out[n, :, row, column] = x[n, :, y, z]
    return out


def _cutout(x: np.ndarray, generator: torch.Generator) -> np.ndarray:
    sides = [int(side / 2 + 0.5) for side in x.shape[2:]]
    centers = [
        torch.randint(0, whole + 1 - hole % 2, (len(x),), generator=generator).numpy()
        for whole, hole in zip(x.shape[2:], sides, strict=True)
    ]
    out = x.copy()
    for n in range(len(x)):
        top, left = (int(c[n]) - side // 2 for c, side in zip(centers, sides, strict=True))
        bottom, right = top + sides[0], left + sides[1]
        out[n, :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 0
    return out


EXPECTED = {"color": _color, "translation": _translation, "cutout": _cutout}


def _pictures(channels: int = 3, side: int = 9) -> Tensor:
    return torch.rand(16, channels, side, side + 3, generator=_seeded(1)).double() * 2 - 1


@pytest.mark.parametrize("policy", SUBSETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_policy_is_what_a_loop_over_pictures_gives(policy: str, channels: int) -> None:
    x = _pictures(channels)
    plain, generator = x.numpy(), _seeded()
    for name in policy.split(","):
        plain = EXPECTED[name](plain, generator)
    got = diff_augment(x, policy, _seeded())
    assert got.shape == x.shape
    torch.testing.assert_close(got, torch.from_numpy(plain), rtol=1e-6, atol=1e-6)


def test_the_reference_moves_and_cuts_pictures() -> None:
    """Else the test above would compare nothing."""
    x = _pictures().numpy()
    for change in EXPECTED.values():
        moved = change(x, _seeded()) != x
        assert moved.any((1, 2, 3)).sum() > 10


@pytest.mark.parametrize("policy", [*POLICIES, ALL])
def test_it_is_differentiable(policy: str) -> None:
    x = _pictures(2, 4)[:2].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: diff_augment(x, policy, _seeded()), (x,))


def test_pictures_are_changed_each_by_draws_of_its_own() -> None:
    x = _pictures()[:1].expand(8, -1, -1, -1)
    for name in POLICIES:
        got = diff_augment(x, name, _seeded())
        assert len({tuple(each.flatten().tolist()) for each in got}) > 1, name


def test_the_seed_decides_and_torchs_own_generator_is_left_alone() -> None:
    x = _pictures()
    state = torch.random.get_rng_state()
    one, same, other = (diff_augment(x, ALL, _seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(0)
    without = diff_augment(x, ALL)
    torch.manual_seed(0)
    assert torch.equal(diff_augment(x, ALL), without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_kept_and_no_policy_changes_nothing(dtype: torch.dtype) -> None:
    x = _pictures().to(dtype)
    assert diff_augment(x, ALL).dtype == dtype
    assert diff_augment(x, "") is x
    assert torch.equal(
        diff_augment(x, " color , cutout", _seeded()), diff_augment(x, "color,cutout", _seeded())
    )


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="unknown augmentation 'colour'; did you mean 'color'"):
        diff_augment(_pictures(), "colour")
    with pytest.raises(InputError, match="unknown augmentation 'cut'"):
        check_policy("color,cut")
