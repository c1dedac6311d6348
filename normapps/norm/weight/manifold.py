"""Weights kept on a manifold while any optimizer trains them: unit rows, or orthonormal ones.

Riemannian optimization by retraction (Absil et al. 2008, ch. 3 and 4; for deep networks: Huang et
al. 2017, projection based weight normalization, Ozay & Okatani 2018 and Li et al. 2020). Around a
step of the optimizer, W being the weight as a matrix (out, fan_in):

    g ← g projected onto the tangent space at W
    W ← retraction of what the optimizer made of W
    m ← the first moment projected onto the tangent space at the new W

    oblique   every row of length 1        g − diag(gWᵀ)W      rows divided by their lengths
    stiefel   WWᵀ = I (WᵀW = I if tall)    g − sym(gWᵀ)W       Q of the QR of Wᵀ, or (WWᵀ)^-½W

Weight decay has no effect on such a weight: W is normal to the tangent space, what it shortens the
retraction makes up for. Second moments (Adam's) are numbers an element, not a vector, and stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ...errors import InputError, unknown
from ..precision import without_autocast
from ..stepping import around_steps_
from ..symmetric import inverse_sqrt, symmetrized
from ..undo import Undo
from .matrix import Axes, find_layers, in_float32, in_float64

MOMENTA = ("momentum_buffer", "exp_avg")
"""What optimizers call the average of gradients in their state."""

_EXACT = 1e-5
"""Distance from the manifold that is rounding: a weight that near is left as it is."""


def constrain_(
    optimizer: Optimizer,
    module: nn.Module,
    manifold: str = "stiefel",
    *,
    retraction: str = "qr",
    name: str = "weight",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Undo:
    """Keep weights on a manifold in every step of an optimizer, from now on.

    The weights go there at once, to the nearest point; those that are on it to rounding, as after
    a checkpoint was loaded, stay as they are, so that a run resumes exactly. The optimizer stays
    what it is, its state dict too; call this again for a new one or a copy.

    Args:
        optimizer: any of torch or timm that has the weights; changed in place.
        module: layer or network, changed in place.
        manifold: `oblique`, rows of length 1, or `stiefel`, orthonormal rows (columns, where they
            are fewer).
        retraction: of `stiefel`: `qr`, the cheaper, or `polar`, the nearest point.
        name: the parameter.
        include, exclude: shell patterns of layer names.

    Returns:
        A handle that takes the constraint away; the weights stay where they are.

    Raises:
        InputError: no such layer, a weight that is parametrized or that the optimizer does not
            have, an unknown name, LBFGS, or a weight without a nearest point (rows of zeros, or
            that depend on each other).

    Example:
        >>> optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        >>> constrain_(optimizer, model, "stiefel", exclude=["fc"])
    """
    kept = _kept(optimizer, module, _geometry(manifold, retraction), name, include, exclude)
    if isinstance(optimizer, LBFGS):
        raise InputError("LBFGS: its line search leaves the manifold; take another optimizer")
    for each in kept:
        each.enter_()

    def before() -> None:
        for each in kept:
            if each.parameter.grad is not None:
                each.project_(each.parameter.grad)

    def after() -> None:
        for each in kept:
            if each.parameter.grad is not None:
                each.retract_()
                each.project_momenta_(optimizer)

    return around_steps_(optimizer, before, after)


def oblique_tangent(weight: Tensor, vector: Tensor) -> Tensor:
    """Return V − diag(VWᵀ)W: each row of V without what is along the unit row of W.

    Args:
        weight, vector: (out, fan_in).
    """
    return vector - (vector * weight).sum(1, keepdim=True) * weight


def unit_rows(weight: Tensor) -> Tensor:
    """Return the rows of (out, fan_in) divided by their lengths; a row of zeros stays."""
    length = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    rows: Tensor = weight / length.clamp_min(torch.finfo(weight.dtype).tiny)
    return rows


def stiefel_tangent(weight: Tensor, vector: Tensor) -> Tensor:
    """Return V − sym(VWᵀ)W, the nearest vector that keeps WWᵀ = I to first order.

    Args:
        weight, vector: (out, fan_in); transposed where that is tall.
    """
    if weight.shape[0] > weight.shape[1]:
        return stiefel_tangent(weight.t(), vector.t()).t()
    return vector - symmetrized(vector @ weight.t()) @ weight


def qr_rows(weight: Tensor) -> Tensor:
    """Return Qᵀ of Wᵀ = QR with a positive diagonal of R: orthonormal rows (columns, if tall)."""
    if weight.shape[0] > weight.shape[1]:
        return qr_rows(weight.t()).t()
    q, r = torch.linalg.qr(weight.t())
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype)
    rows: Tensor = (q * signs).t()
    return rows


def polar_rows(weight: Tensor) -> Tensor:
    """Return (WWᵀ)^-½W, the nearest matrix of orthonormal rows (columns, if tall)."""
    if weight.shape[0] > weight.shape[1]:
        return polar_rows(weight.t()).t()
    precise = in_float64(weight)
    return (inverse_sqrt(precise @ precise.t()) @ precise).to(weight.dtype)


@dataclass(frozen=True)
class Geometry:
    """A manifold of matrices.

    Attributes:
        tangent: (W, V) → V projected onto the tangent space at W.
        retract: a matrix near the manifold → one on it.
        nearest: any matrix → the nearest one on it.
        square: shape → ‖W‖²_F of every point.
    """

    tangent: Callable[[Tensor, Tensor], Tensor]
    retract: Callable[[Tensor], Tensor]
    nearest: Callable[[Tensor], Tensor]
    square: Callable[[tuple[int, ...]], int]


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0]


RETRACTIONS: dict[str, Callable[[Tensor], Tensor]] = {"qr": qr_rows, "polar": polar_rows}
MANIFOLDS: dict[str, Callable[[str], Geometry]] = {
    "oblique": lambda retraction: Geometry(oblique_tangent, unit_rows, unit_rows, _rows),
    "stiefel": lambda retraction: Geometry(
        stiefel_tangent, RETRACTIONS[retraction], polar_rows, min
    ),
}


class Constraint:
    """One weight that is kept on a manifold."""

    def __init__(self, path: str, parameter: nn.Parameter, axes: Axes, geometry: Geometry) -> None:
        self.path, self.parameter = path, parameter
        self.axes, self.geometry = axes, geometry

    @torch.no_grad()
    def enter_(self) -> None:
        """Move the weight to the nearest point, unless it is there to rounding.

        Raises:
            InputError: there is none.
        """
        with without_autocast(self.parameter):
            matrix = self._matrix(self.parameter)
            nearest = self.geometry.nearest(matrix)
            again = self.geometry.nearest(nearest)
        if not torch.allclose(nearest, again, rtol=0, atol=_EXACT) or self._is_short(nearest):
            raise InputError(
                f"{self.path}: rows of zeros, or that depend on each other, have no nearest point "
                "on the manifold; initialise the weight first"
            )
        if not torch.allclose(nearest, matrix, rtol=0, atol=self._rounding()):
            self._write(nearest)

    def project_(self, vector: Tensor) -> None:
        """Project a vector of the weight's shape onto the tangent space, in place."""
        with without_autocast(vector):
            tangent = self.geometry.tangent(self._matrix(self.parameter), self._matrix(vector))
        vector.copy_(self.axes.stored(tangent, vector.shape))

    def project_momenta_(self, optimizer: Optimizer) -> None:
        """Project what the optimizer keeps of former gradients, in place."""
        state = optimizer.state.get(self.parameter, {})
        for key in MOMENTA:
            if isinstance(state.get(key), Tensor):
                self.project_(state[key])

    def retract_(self) -> None:
        """Take the weight back to the manifold, in place."""
        with without_autocast(self.parameter):
            self._write(self.geometry.retract(self._matrix(self.parameter)))

    def _matrix(self, tensor: Tensor) -> Tensor:
        return in_float32(self.axes.matrix(tensor.detach()))

    def _write(self, matrix: Tensor) -> None:
        self.parameter.copy_(self.axes.stored(matrix, self.parameter.shape))

    def _is_short(self, nearest: Tensor) -> bool:
        """Whether a row or singular value that ought to be 1 is 0."""
        square = float(torch.linalg.vector_norm(nearest).square())
        return not square > self.geometry.square(nearest.shape) - 0.5

    def _rounding(self) -> float:
        return max(_EXACT, 2 * torch.finfo(self.parameter.dtype).eps)


def _geometry(manifold: str, retraction: str) -> Geometry:
    if manifold not in MANIFOLDS:
        raise unknown("manifold", manifold, MANIFOLDS)
    if retraction not in RETRACTIONS:
        raise unknown("retraction", retraction, RETRACTIONS)
    return MANIFOLDS[manifold](retraction)


def _kept(
    optimizer: Optimizer,
    module: nn.Module,
    geometry: Geometry,
    name: str,
    include: Sequence[str],
    exclude: Sequence[str],
) -> list[Constraint]:
    """The weights, each once."""
    trained = {id(each) for group in optimizer.param_groups for each in group["params"]}
    kept: dict[int, Constraint] = {}
    for path, layer in find_layers(module, name, include, exclude):
        weight = layer.get_parameter(name)
        if id(weight) not in trained:
            raise InputError(f"{path}: the optimizer does not have '{name}'; exclude the layer")
        kept.setdefault(id(weight), Constraint(path, weight, Axes.of(layer), geometry))
    return list(kept.values())
