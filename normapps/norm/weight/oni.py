"""Orthogonalization by Newton's iteration, ONI (Huang et al. 2020): how orthogonal is a choice.

The paper iterates B ← ½(3B − B³S) on S = VVᵀ and returns BV. Here the rows themselves are
iterated, X ← ½(3X − XXᵀX) from X = V: the same numbers in exact arithmetic, as B commutes with S,
and stable for any T, where the paper's form amplifies what rounding brings in (Newton-Schulz).
Differs from the authors' code: its column path leaves out the division that bounds the spectrum,
and diverges; and there is no eps.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..undo import Undo
from .matrix import Axes, find_layers
from .proxy import Proxy, add_proxies_


def oni_(
    module: nn.Module,
    *,
    iterations: int = 5,
    scale: float = sqrt(2),
    name: str = "weight",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Undo:
    """Centre the rows of the weight and bring its singular values towards `scale`.

    The Parameter objects stay, as the proxy that is trained; see `newton_rows`.

    Args:
        module: layer or network, changed in place.
        iterations: T: more make it more orthogonal; 0 bounds the singular values only.
        scale: what no singular value exceeds; √2 keeps the variance through a ReLU.
        name: the parameter.
        include, exclude: shell patterns of layer names.

    Returns:
        A handle that takes it back: the parameters as they are then, not orthogonal.

    Raises:
        InputError: no such layer, a weight that is parametrized already, rows of one element, or
            a negative number of iterations.
    """
    if iterations < 0:
        raise InputError(f"iterations {iterations}: must be at least 0")
    layers = find_layers(module, name, include, exclude)
    for path, layer in layers:
        if Axes.of(layer).matrix(layer.get_parameter(name)).shape[1] < 2:
            raise InputError(f"{path}: rows of one element are nothing but their mean; exclude it")
    return add_proxies_(
        [layer for _, layer in layers],
        name,
        lambda axes, shape: NewtonOrthogonal(axes, shape, iterations, scale),
    )


def newton_rows(weight: Tensor, iterations: int = 5, scale: float = sqrt(2)) -> Tensor:
    """Return scale·X_T of X_{t+1} = ½(3X − XXᵀX), X_0 = V/√‖VVᵀ‖_F, V = w − mean(w) of each row.

    As T grows this is scale·(VVᵀ)^-½V: orthogonal rows, where they are fewer than the inputs;
    else orthogonal columns but for the direction (1, …, 1), which centring has taken out.

    Args:
        weight: (out, fan_in) float32 or better; of zeros come zeros.
        iterations: T.
        scale: of the singular values, all of which lie in 0…scale.
    """
    rows = weight - weight.mean(1, keepdim=True)
    bound: Tensor = torch.linalg.matrix_norm(_smaller_gram(rows))
    rows = rows / bound.clamp_min(torch.finfo(rows.dtype).tiny).sqrt()
    for _ in range(iterations):
        rows = 1.5 * rows - 0.5 * _cube(rows)
    # of tall weights the centred direction is rounding that every step makes half as large again
    return scale * (rows - rows.mean(1, keepdim=True))


def _smaller_gram(rows: Tensor) -> Tensor:
    return rows @ rows.t() if rows.shape[0] <= rows.shape[1] else rows.t() @ rows


def _cube(rows: Tensor) -> Tensor:
    gram = _smaller_gram(rows)
    return gram @ rows if rows.shape[0] <= rows.shape[1] else rows @ gram


class NewtonOrthogonal(Proxy):
    """The parametrization behind `oni_`."""

    def __init__(
        self, axes: Axes, shape: torch.Size, iterations: int = 5, scale: float = sqrt(2)
    ) -> None:
        super().__init__(axes, shape)
        self.iterations, self.scale = iterations, scale

    def rows(self, matrix: Tensor) -> Tensor:
        """Return the rows after `iterations`."""
        return newton_rows(matrix, self.iterations, self.scale)

    def extra_repr(self) -> str:
        """Return what `print(network)` shows in the brackets."""
        return f"iterations={self.iterations}, scale={self.scale:.4g}"
