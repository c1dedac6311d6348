"""The largest singular value of a linear map known by its products, and its two vectors.

Power iteration takes one cheap step towards it, restarted Lanczos finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..precision import without_autocast

TINY = 1e-12  # of the last vector goes into the next: all of it where the weight is zero
_BASIS = 20  # vectors that Lanczos keeps before it starts again from the best of them
_RESIDUAL = 1e-4  # relative; the error of σ is about its square


class Map(Protocol):
    """A linear map A that a weight defines."""

    def forward(self, weight: Tensor, v: Tensor, plus: Tensor | None = None) -> Tensor:
        """Return A v, of u's shape, and `plus` times `TINY` added."""

    def adjoint(self, weight: Tensor, u: Tensor, plus: Tensor | None = None) -> Tensor:
        """Return Aᵀ u, of v's shape, and `plus` times `TINY` added."""

    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of v."""


def iterate(
    operator: Map, weight: Tensor, u: Tensor, v: Tensor, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Take one power iteration: u ← Av/‖Av‖, v ← Aᵀu/‖Aᵀu‖; a zero weight keeps both.

    Args:
        operator: the map A of `weight`.
        weight: in the layer's shape.
        u, v: of norm 1.
        out: written into, u and v themselves if need be.
    """
    to_u, to_v = out or (None, None)
    u = _normalized(operator.forward(weight, v, u), to_u)
    return u, _normalized(operator.adjoint(weight, u, v), to_v)


def lag(operator: Map, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return the largest element of |Aᵀu/‖Aᵀu‖ − v|: 0 if v was computed from this weight."""
    return (_normalized(operator.adjoint(weight, u, v)) - v).abs().amax()


@torch.no_grad()
def top_pair(
    operator: Map, weight: Tensor, start: Tensor | None = None, steps: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Return u, v and σ of the largest singular value, by restarted Lanczos on AᵀA.

    The start is drawn from a generator of its own on the CPU: one weight gives one result, on
    every process. All products are in float64.

    Args:
        operator: the map.
        weight: in the layer's shape.
        start: a v believed to be near; mixed with the drawn one, so that it cannot mislead.
        steps: the most products with AᵀA.

    Returns:
        u and v of norm 1, and σ = uᵀAv, in float64. A zero map has arbitrary u, v and σ = 0, a
        weight with NaN or infinity has arbitrary u, v and σ = NaN.
    """
    weight = weight.detach()
    weight = (weight.cpu() if weight.device.type == "mps" else weight).double()
    v = _start(operator, start).to(weight.device)
    with without_autocast(weight):
        if not bool(weight.isfinite().all()):
            u = operator.forward(torch.zeros_like(weight), v)
            return _drawn(u.shape).to(u), v, u.new_tensor(float("nan"))
        left = steps
        while left > 0:
            taken = min(left, _BASIS, v.numel())
            v, is_converged = _lanczos(operator, weight, v, taken)
            left -= taken
            if is_converged:
                break
        u = operator.forward(weight, v)
        sigma: Tensor = torch.linalg.vector_norm(u)
        u = u / sigma if float(sigma) > 0 else _drawn(u.shape).to(u)
        return u, v, sigma


def _lanczos(operator: Map, weight: Tensor, v: Tensor, steps: int) -> tuple[Tensor, bool]:
    """Return the best vector of a Krylov space of AᵀA, fully orthogonalized, and if it is exact."""
    basis, mapped = [v.flatten()], []
    for _ in range(steps):
        w = operator.adjoint(weight, operator.forward(weight, basis[-1].view(v.shape))).flatten()
        mapped.append(w)
        known = torch.stack(basis)
        for _ in range(2):  # once is not enough in finite precision
            w = w - known.t() @ (known @ w)
        norm = torch.linalg.vector_norm(w)
        if float(norm) <= 1e-12 * float(torch.linalg.vector_norm(mapped[-1])):
            break
        basis.append(w / norm)
    known, images = torch.stack(basis[: len(mapped)]), torch.stack(mapped)
    values, vectors = torch.linalg.eigh(known @ images.t())
    best = vectors[:, -1] @ known
    residual = torch.linalg.vector_norm(vectors[:, -1] @ images - values[-1] * best)
    return _normalized(best).view(v.shape), float(residual) <= _RESIDUAL * float(values[-1])


def _start(operator: Map, near: Tensor | None) -> Tensor:
    drawn = _drawn(operator.input_shape())
    if near is None or not bool(near.isfinite().all()):
        return drawn
    return _normalized(near.detach().cpu().double() + 0.1 * drawn)


def _drawn(shape: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return _normalized(torch.randn(tuple(shape), generator=generator, dtype=torch.float64))


def _normalized(x: Tensor, out: Tensor | None = None) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x)
    return torch.div(x, norm, out=out)
