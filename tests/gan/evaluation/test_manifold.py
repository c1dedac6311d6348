"""Precision, recall, density and coverage against loops over sorted distances, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from normapps.errors import InputError
from normapps.gan.evaluation import manifold
from normapps.gan.evaluation.manifold import ManifoldScores, manifold_scores


def drawn(count: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def reference(real: Tensor, fake: Tensor, k: int) -> ManifoldScores:
    a, b = real.double().numpy(), fake.double().numpy()

    def radii(x: np.ndarray) -> list[float]:
        return [sorted(float(np.linalg.norm(p - q)) for q in x)[k] for p in x]

    of_real, of_fake = radii(a), radii(b)
    hits = np.array(
        [[np.linalg.norm(p - q) < r for q, r in zip(a, of_real, strict=True)] for p in b]
    )
    back = [[np.linalg.norm(p - q) < r for q, r in zip(b, of_fake, strict=True)] for p in a]
    return ManifoldScores(
        float(hits.any(1).mean()),
        float(np.any(back, axis=1).mean()),
        float(hits.sum() / (k * len(b))),
        float(hits.any(0).mean()),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equal_the_definitions(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifold, "_ROWS", 7)  # so that there are several blocks, one not full
    real, fake = drawn(40, 3, 0), drawn(31, 3, 1, 0.8)
    found, wanted = manifold_scores(real, fake, k), reference(real, fake, k)
    assert found == wanted
    assert 0 < wanted.precision < 1
    assert 0 < wanted.recall < 1
    assert 0 < wanted.coverage < 1


def test_by_hand_on_a_line() -> None:
    """Real 0, 1, 3 have radii 1, 1, 2 (k = 1); drawn 0.5, 10, 10.5 have 9.5, .5, .5."""
    real, fake = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [10.0], [10.5]])
    found = manifold_scores(real, fake, 1)
    assert found == ManifoldScores(1 / 3, 1.0, 2 / 3, 2 / 3)


def test_the_surface_counts_for_precision_and_recall_alone() -> None:
    """Equal pictures have balls of radius 0."""
    same = torch.ones(6, 3)
    assert manifold_scores(same, same, 2) == ManifoldScores(1.0, 1.0, 0.0, 0.0)


def test_a_mode_left_out_costs_recall_and_coverage_not_precision() -> None:
    real = torch.cat([drawn(100, 4, 0), drawn(100, 4, 1, 50.0)])
    found = manifold_scores(real, drawn(200, 4, 2))
    assert found.precision > 0.8
    assert found.recall < 0.6
    assert found.coverage < 0.6


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(InputError, match="5 drawn pictures"):
        manifold_scores(torch.zeros(9, 2), torch.zeros(5, 2))
    with pytest.raises(InputError, match="k = 0"):
        manifold_scores(torch.zeros(9, 2), torch.zeros(9, 2), 0)
    with pytest.raises(InputError, match=r"\(9, 2\) and \(9, 3\)"):
        manifold_scores(torch.zeros(9, 2), torch.zeros(9, 3))
