"""The kernel distance against sums over pairs, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normapps.errors import InputError
from normapps.gan.evaluation.kernel import kernel_distance


def drawn(count: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def reference(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate pair by pair."""
    a, b = x.double().tolist(), y.double().tolist()

    def kernel(p: list[float], q: list[float]) -> float:
        return (sum(s * t for s, t in zip(p, q, strict=True)) / len(p) + 1) ** 3

    def within(points: list[list[float]]) -> float:
        n = len(points)
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
        return sum(kernel(points[i], points[j]) for i, j in pairs) / (n * (n - 1))

    across = sum(kernel(p, q) for p in a for q in b) / (len(a) * len(b))
    return within(a) + within(b) - 2 * across


def test_one_subset_of_everything_is_the_unbiased_estimate() -> None:
    x, y = drawn(20, 5, 0), drawn(20, 5, 1, 0.7)
    assert kernel_distance(x, y) == (pytest.approx(reference(x, y), rel=1e-10), 0.0)


def test_subsets_scatter_about_the_whole() -> None:
    x, y = drawn(400, 8, 0), drawn(300, 8, 1, 0.5)
    whole, _ = kernel_distance(x[:300], y)
    mean, deviation = kernel_distance(x, y, subsets=200, subset_size=100, seed=3)
    assert abs(mean - whole) < 4 * deviation / 200**0.5 + 0.1 * whole
    assert 0 < deviation < whole


def test_subsets_are_drawn_without_replacement_from_both() -> None:
    """Of two sets in which each picture is there once, no pair of equal ones is ever counted."""
    x = torch.eye(6, dtype=torch.float64) * 100
    mean, _ = kernel_distance(x, x[:5], subsets=50, subset_size=5)
    # within a set unlike pictures have kernel 1; across, the equal ones have (100²/6+1)³
    big = (100**2 / 6 + 1) ** 3
    fewest, most = 2 - 2 * (5 * big + 20) / 25, 2 - 2 * (4 * big + 21) / 25
    assert fewest <= mean <= most


def test_of_sets_that_do_not_differ_is_nothing_on_average() -> None:
    values = [kernel_distance(drawn(50, 4, s), drawn(50, 4, 1000 + s))[0] for s in range(60)]
    found = torch.tensor(values)
    assert abs(found.mean()) < 3 * found.std() / 60**0.5
    assert found.min() < 0 < found.max()


def test_the_same_seed_draws_the_same() -> None:
    x, y = drawn(60, 4, 0), drawn(60, 4, 1)
    first = kernel_distance(x, y, subsets=3, subset_size=20, seed=5)
    assert first == kernel_distance(x, y, subsets=3, subset_size=20, seed=5)
    assert first != kernel_distance(x, y, subsets=3, subset_size=20, seed=6)


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(InputError, match=r"\(4, 3\) and \(4, 2\)"):
        kernel_distance(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(InputError, match="1 drawn"):
        kernel_distance(torch.zeros(4, 3), torch.zeros(1, 3))
    with pytest.raises(InputError, match="0 subsets"):
        kernel_distance(torch.zeros(4, 3), torch.zeros(4, 3), subsets=0)
