"""Orthogonal regularizers: terms of a loss that pull weights towards orthonormal rows.

Bansal et al. 2018. W is the weight as a matrix (out, fan_in), the paper's Wᵀ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError, unknown
from ..precision import without_autocast
from .matrix import Axes, find_layers, in_float32


def soft_orthogonality(weight: Tensor) -> Tensor:
    """Return SO, ‖WWᵀ − I‖²_F, a scalar: rows of length 1, orthogonal to each other.

    Where the rows are more than the inputs it cannot come to 0: `out − fan_in` of it stays, and
    its gradient is that of the columns' ‖WᵀW − I‖²_F.

    Args:
        weight: (out, fan_in).
    """
    return _excess(weight @ weight.t()).square().sum()


def double_soft_orthogonality(weight: Tensor) -> Tensor:
    """Return DSO, ‖WWᵀ − I‖²_F + ‖WᵀW − I‖²_F, a scalar: the paper's answer to tall weights.

    The two Grams share their spectrum but for zeros, so this is 2·SO + fan_in − out: it has the
    gradient of SO with twice the strength, for any shape.

    Args:
        weight: (out, fan_in).
    """
    return soft_orthogonality(weight) + soft_orthogonality(weight.t())


def spectral_isometry(weight: Tensor, iterations: int = 2) -> Tensor:
    """Return SRIP, σ(WWᵀ − I), a scalar: the largest |s² − 1| over the singular values s.

    By power iteration, from below, the start being the largest column, so that there is nothing
    random; the gradient is that of the σ found, its vector held fixed. Differs from the paper: of
    a tall weight it is σ(WᵀW − I), as σ(WWᵀ − I) is 1 at least whatever the weight; and from the
    authors' code, which squares σ, and for ImageNet and SVHN takes WᵀW of wide weights and so runs
    into the same 1.

    Args:
        weight: (out, fan_in).
        iterations: products with the matrix, two in the paper.

    Raises:
        InputError: fewer than one iteration.
    """
    if iterations < 1:
        raise InputError(f"iterations {iterations}: must be at least 1")
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.t()
    excess = _excess(wide @ wide.t())
    found: Tensor = torch.linalg.vector_norm(excess @ _dominant(excess.detach(), iterations))
    return found


PENALTIES: dict[str, Callable[..., Tensor]] = {
    "so": soft_orthogonality,
    "dso": double_soft_orthogonality,
    "srip": spectral_isometry,
}
"""Name → the penalty of one weight (out, fan_in)."""


def orthogonal_penalty(
    module: nn.Module,
    kind: str = "srip",
    *,
    name: str = "weight",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    **options: Any,
) -> Tensor:
    """Return the sum of a penalty over the layers of a network, to be scaled and added to a loss.

    Args:
        module: layer or network.
        kind: a key of `PENALTIES`.
        name: the parameter.
        include, exclude: shell patterns of layer names.
        options: the penalty's own.

    Raises:
        InputError: an unknown kind, no such layer, or a weight that is parametrized.

    Example:
        >>> loss = task + 0.1 * orthogonal_penalty(model, "srip", exclude=["fc"])
    """
    if kind not in PENALTIES:
        raise unknown("penalty", kind, PENALTIES)
    layers = find_layers(module, name, include, exclude)
    total = torch.zeros((), device=layers[0][1].get_parameter(name).device)
    for _, layer in layers:
        weight = layer.get_parameter(name)
        with without_autocast(weight):
            matrix = in_float32(Axes.of(layer).matrix(weight))
            total = total + PENALTIES[kind](matrix, **options)
    return total


def _excess(gram: Tensor) -> Tensor:
    return gram - torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)


def _dominant(matrix: Tensor, iterations: int) -> Tensor:
    """The unit vector that a symmetric matrix stretches most, as power iteration finds it."""
    vector = matrix[torch.linalg.vector_norm(matrix, dim=1).argmax()]
    for _ in range(iterations - 1):
        vector = matrix @ _unit(vector)
    return _unit(vector)


def _unit(vector: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(vector).clamp_min(torch.finfo(vector.dtype).tiny)
    unit: Tensor = vector / length
    return unit
