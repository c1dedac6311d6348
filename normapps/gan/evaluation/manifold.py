"""Precision, recall, density and coverage: are the pictures good, and are all kinds there?

Each set is seen as the union of balls around its pictures, reaching to the k-th nearest neighbour
in the same set. Precision and recall: Kynkäänniemi et al. 2019, eq. 2 and 3; density and coverage:
Naeem et al. 2020, eq. 4 and 5, which an outlier moves less. A picture on the surface of a ball is
inside for the former and not for the latter, as in the code of the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError

_ROWS = 1024
"""Rows of distances at a time: memory grows with one set, not with the product."""


@dataclass(frozen=True)
class ManifoldScores:
    """How a set of drawn pictures lies among real ones; 1 is best but for density.

    Attributes:
        precision: share of drawn pictures inside the real ones' balls.
        recall: share of real pictures inside the drawn ones' balls.
        density: number of real balls that a drawn picture lies in, over k; can exceed 1, and is
            about 1 for sets that do not differ.
        coverage: share of real pictures in whose ball a drawn one lies.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_scores(real: Tensor, fake: Tensor, k: int = 5) -> ManifoldScores:
    """Return precision, recall, density and coverage; memory is linear in the larger set.

    Args:
        real, fake: (N, D) and (M, D) features. Equal numbers compare fairly: recall and coverage
            depend on both.
        k: which neighbour a ball reaches to.

    Raises:
        InputError: unlike widths, or no more than k pictures.
    """
    _check(real, fake, k)
    real, fake = real.double(), fake.double()
    of_real, of_fake = _radii(real, k), _radii(fake, k)
    precise, balls, recalled, covered = 0, 0, 0, 0
    for _, distances in _distances(fake, real):
        hits = distances < of_real
        precise += int((distances <= of_real).any(1).sum())
        balls += int(hits.sum())
    for rows, distances in _distances(real, fake):
        recalled += int((distances <= of_fake).any(1).sum())
        covered += int((distances.amin(1) < of_real[rows]).sum())
    drawn, known = len(fake), len(real)
    return ManifoldScores(precise / drawn, recalled / known, balls / (k * drawn), covered / known)


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance from each picture to its k-th nearest other one: (N,)."""
    # the picture itself is the nearest, at 0
    return torch.cat([rows.kthvalue(k + 1, dim=1).values for _, rows in _distances(x, x)])


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Distances from some rows of x at a time to all of y, with which rows they are."""
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        yield rows, torch.cdist(x[rows], y)


def _check(real: Tensor, fake: Tensor, k: int) -> None:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise InputError(
            f"features are {tuple(real.shape)} and {tuple(fake.shape)}; they must be (N, D) and "
            "(M, D)"
        )
    if k < 1 or min(len(real), len(fake)) <= k:
        raise InputError(
            f"{len(real)} real and {len(fake)} drawn pictures: neighbour k = {k} needs more than k "
            "of each, and k from 1"
        )
