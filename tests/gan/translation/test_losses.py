"""Losses over maps of logits, by numbers worked out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from normapps.errors import InputError
from normapps.gan.translation.losses import LOSSES, discriminator_loss, generator_loss


def maps(seed: int) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 1, s, s, generator=drawn, dtype=torch.float64) for s in (4, 2)]


def arrays(logits: list[Tensor]) -> list[np.ndarray]:
    return [each.numpy() for each in logits]


def test_least_squares() -> None:
    real, fake = maps(0), maps(1)
    wanted = [
        0.5 * ((a - 1) ** 2).mean() + 0.5 * (b**2).mean()
        for a, b in zip(arrays(real), arrays(fake), strict=True)
    ]
    assert float(discriminator_loss("least-squares", real, fake)) == pytest.approx(np.mean(wanted))
    wanted = [((b - 1) ** 2).mean() for b in arrays(fake)]
    assert float(generator_loss("least-squares", fake)) == pytest.approx(np.mean(wanted))


def test_hinge() -> None:
    real, fake = maps(2), maps(3)
    wanted = [
        np.maximum(0, 1 - a).mean() + np.maximum(0, 1 + b).mean()
        for a, b in zip(arrays(real), arrays(fake), strict=True)
    ]
    assert float(discriminator_loss("hinge", real, fake)) == pytest.approx(np.mean(wanted))
    wanted = [-b.mean() for b in arrays(fake)]
    assert float(generator_loss("hinge", fake)) == pytest.approx(np.mean(wanted))


@pytest.mark.parametrize("kind", LOSSES)
def test_a_small_map_counts_as_much_as_a_large_one(kind: str) -> None:
    large, small = torch.full((1, 1, 8, 8), 0.3), torch.full((1, 1, 1, 1), -0.4)
    both = generator_loss(kind, [large, small])
    each = [generator_loss(kind, [one]) for one in (large, small)]
    torch.testing.assert_close(both, torch.stack(each).mean())


@pytest.mark.parametrize("kind", LOSSES)
def test_halves_are_summed_in_float32(kind: str) -> None:
    half = [torch.full((1, 1, 64, 64), 1.0078125, dtype=torch.bfloat16)]
    assert generator_loss(kind, half).dtype == torch.float32
    assert discriminator_loss(kind, half, half).dtype == torch.float32


@pytest.mark.parametrize("kind", LOSSES)
def test_the_players_pull_in_opposite_directions(kind: str) -> None:
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    down = torch.autograd.grad(
        discriminator_loss(kind, [logits.detach() + 1], [logits + 0.5]), logits
    )
    up = torch.autograd.grad(generator_loss(kind, [logits + 0.5]), logits)
    assert (down[0] > 0).all()
    assert (up[0] < 0).all()


def test_unknown_losses_are_named() -> None:
    with pytest.raises(InputError, match="did you mean 'hinge'"):
        generator_loss("hing", [])
    with pytest.raises(InputError, match="unknown loss"):
        discriminator_loss("hing", [], [])
