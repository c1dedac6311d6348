"""An independent reference for the partitions: index formulas and numpy, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from normapps.norm import Partition


class Labels(NamedTuple):
    """For each element of (N, C, S): its group, its dimension, the sample it belongs to."""

    group: np.ndarray
    dimension: np.ndarray
    sample: np.ndarray


def _labels(partition: Partition, shape: tuple[int, ...]) -> Labels:
    spatial = int(np.prod(shape[2:], dtype=int))
    n, c, s = np.indices((shape[0], shape[1], spatial))
    k, position = partition.size, n * spatial + s
    zero = np.zeros_like(n)
    found = {
        "batch": (zero, c, position),
        "instance": (n, c, s),
        "layer": (n, zero, c * spatial + s),
        "position": (position, zero, c),
        "group": (n * k + c * k // shape[1], zero, c * spatial + s),
        "ghost": (n * k // shape[0], c, position),
        "channel_group": (c // k, c % k, position),
    }[partition.kind]
    return Labels(*found)


def _moments(
    x: Tensor, partition: Partition, weight: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = _labels(partition, tuple(x.shape))
    values = x.double().numpy().reshape(labels.group.shape)
    given = torch.ones_like(x) if weight is None else weight.expand(x.shape)
    weights = given.double().numpy().reshape(labels.group.shape)
    counts, means, covs = [], [], []
    for group in np.unique(labels.group):
        inside = labels.group == group
        order = np.lexsort((labels.sample[inside], labels.dimension[inside]))
        width = labels.dimension[inside].max() + 1
        rows = values[inside][order].reshape(width, -1)
        shares = weights[inside][order].reshape(width, -1)[0]
        counts.append(shares.sum())
        means.append(np.average(rows, axis=1, weights=shares))
        covs.append(np.atleast_2d(np.cov(rows, aweights=shares, bias=True)))
    return np.array(counts), np.array(means), np.array(covs)


@pytest.fixture
def labels() -> Callable[[Partition, tuple[int, ...]], Labels]:
    """The group, dimension and sample of each element, by the definitions of the docstring."""
    return _labels


@pytest.fixture
def reference() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Counts (G,), means (G, D) and covariances (G, D, D) by numpy, from x, partition, weight."""
    return _moments
