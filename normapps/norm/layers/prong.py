"""Natural neural networks (Desjardins et al. 2015): whitened by a population, the same function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..matrix import multiply
from ..moments import Moments
from ..precision import without_autocast
from .base import NormLayer, Taxonomy, place_of
from .population import pooled
from .tracking import Tracked
from .whitening import Grouped, Whitening, keep_precise


class ProngNorm(Whitening):
    """y = V·U(x − c) + d: whitened by the population, then a matrix that is trained.

    U = (Σ+εI)^-½ and c are constants of the gradient, of a population that training follows all
    the time. Every `every` batches they are taken from it anew, and V and d change so that V·U,
    and with it the function of the network, stays what it was (alg. 1):

        V ← V·U·U'⁻¹,  d ← d + V·U(c' − c)

    What changes is how gradient descent on V moves the function: as if on whitened inputs, which
    is the natural gradient with the layer's input covariance. In the paper V is the weight of the
    layer that follows; a normalization layer does not know that one, so it has its own V, and the
    product of the two can do no more than the paper's. As V·U is kept, nothing that a network
    computes is normalized: this is a change of coordinates for the descent alone, and another
    population (AdaBN) changes no output. Momentum of an optimizer stays in the old basis.

    Differs from the paper: Σ is a running one and not measured for each change; groups of channels
    have matrices of their own; U is symmetric, which for the gradient is the same.

    Args:
        num_features, eps, momentum, affine, bias, group_size, layout, act, drop: see `Whitening`.
            The paper whitens all channels together, group_size=None.
        every: batches between two changes of basis; None: at calls of `refresh_` alone, which is
            also what a compiled layer does.
        sync, process_group: see `Tracking`; to be set where processes train together, or their
            bases would come apart.

    Attributes:
        weight: (G, d, d) V, from the identity. An old (C,) is loaded as its diagonal.
        bias: (C,) d; without it c stays.
        basis: (G, d, d) U.
        center: (C,) c.

    Raises:
        InputError: no channels, or a group size or an interval below 1.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch, channel groups, all so far",
        "whiten (ZCA)",
        "linear",
        "Desjardins et al. 2015",
        "2 passes of d products an element, eigh O(d³) a group at times; inference a 1×1 conv",
    )
    method: ClassVar[str] = "zca"
    running_mean: Tensor
    running_cov: Tensor
    num_batches_tracked: Tensor
    basis: Tensor
    center: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-3,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        group_size: int | None = 16,
        every: int | None = 100,
        **carried: Unpack[Tracked],
    ) -> None:
        options: Grouped = {"group_size": group_size, **carried}
        super().__init__(num_features, eps, momentum, affine, **options)
        if every is not None and every < 1:
            raise InputError(f"every {every}: must be at least 1 batch, or None")
        self.every = every
        self._batches: int | None = None
        if affine:
            eye = torch.eye(self.group_size, **place_of(carried))
            self.weight = nn.Parameter(eye.repeat(num_features // self.group_size, 1, 1))
        own = self.population()
        self.register_buffer("basis", self.whitening(own))
        self.register_buffer("center", own.mean.flatten().clone())

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S).

        Raises:
            InputError: in training, no sample at all.
        """
        if not self.uses_population:
            with torch.no_grad():
                self.moments(x)
        matrix, shift = self.map(self.population())
        return multiply(x, self.partition(), matrix, shift)

    def map(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Return what the layer does: y = matrix·x + shift in each group, by the present basis.

        Args:
            moments: give the dtype; the basis may be older.

        Returns:
            matrix (G, d, d) and shift (G, d).
        """
        with without_autocast(moments.mean):
            matrix = self.recovered(self.basis.to(moments.mean))
            shift = -(matrix @ self.center.to(matrix).reshape(*matrix.shape[:2], 1)).squeeze(2)
        return matrix, shift if self.bias is None else shift + self.bias.reshape(shift.shape)

    def recovered(self, matrix: Tensor) -> Tensor:
        """Return V times the whitening matrices (G, d, d)."""
        return matrix if self.weight is None else self.weight.to(matrix) @ matrix

    def pass_empty(self, x: Tensor) -> Tensor:
        """Return (0, C, *S); with `sync`, follow what the other processes measure.

        Raises:
            InputError: no process has a sample.
        """
        if not self.uses_population:
            with torch.no_grad():
                self.joined(self.no_moments(x), 0, x)
        return NormLayer.pass_empty(self, x)

    @torch.no_grad()
    def refresh_(self) -> None:
        """Take U and c from the present population; V·U and the layer's function stay.

        Without `weight` there is nothing to keep it with, and the function changes.
        """
        population = self.population()
        new = self.whitening(population)
        if self.weight is not None:
            kept = self.weight.to(self.basis) @ self.basis
            self.weight.copy_(_divided(kept, new))
            if self.bias is not None:
                moved = population.mean - self.center.reshape(population.mean.shape)
                self.bias.add_((kept @ moved.unsqueeze(2)).reshape(self.bias.shape))
        self.basis.copy_(new)
        if self.weight is None or self.bias is not None:
            self.center.copy_(population.mean.flatten())

    @torch.no_grad()
    def remember(self, measured: Moments) -> None:
        """Follow a batch, the first ones as an average of all; change the basis when it is time."""
        share = self.next_share(measured.mean)
        share = share.maximum(self.num_batches_tracked.to(share).reciprocal())
        moved = pooled(self.population().to(measured.mean), measured, share)
        self.running_mean.copy_(moved.mean.flatten())
        self.running_cov.copy_(torch.as_tensor(moved.cov))
        if self._is_due():
            self.refresh_()

    @property
    def least_samples(self) -> int:
        """How many samples a channel the layer can measure: the rest is remembered."""
        return 1

    def extra_repr(self) -> str:
        """Return what `print(layer)` shows in the brackets."""
        return f"{super().extra_repr()}, every={self.every}"

    def _is_due(self) -> bool:
        """Whether to change the basis; counted here, as reading a buffer would wait for a GPU."""
        if self.every is None or torch.compiler.is_compiling():
            return False
        if self._batches is None:
            self._batches = int(self.num_batches_tracked) - 1
        self._batches += 1
        return self._batches % self.every == 0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ProngNorm:
        """Follow a cast, but keep the basis in float32 or better."""
        before = {name: self._buffers[name] for name in ("basis", "center")}
        super()._apply(fn, recurse)
        keep_precise(self, before)
        return self

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        """Take a (C,) scale as the diagonal of V, and U and c from statistics that come alone."""
        self._batches = None
        scale = state_dict.get(prefix + "weight")
        if scale is not None and scale.shape == (self.num_features,):
            state_dict[prefix + "weight"] = scale.reshape(-1, self.group_size).diag_embed()
        var = state_dict.get(prefix + "running_var")
        if var is not None and prefix + "basis" not in state_dict:
            mean = state_dict.get(prefix + "running_mean", self.running_mean)
            state_dict[prefix + "center"] = mean
            state_dict[prefix + "basis"] = self.whitening(self._diagonal(mean, var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _diagonal(self, mean: Tensor, var: Tensor) -> Moments:
        """Full moments of a batch norm's (C,) running ones."""
        mean, var = (each.to(self.basis).reshape(-1, self.group_size) for each in (mean, var))
        return Moments(mean.new_zeros(len(mean)), mean, var, var.diag_embed(), self.partition())


def _divided(matrix: Tensor, by: Tensor) -> Tensor:
    """matrix·by⁻¹ of (G, d, d), in float64, which not every device has."""
    quotient: Tensor = torch.linalg.solve(by.cpu().double(), matrix.cpu().double(), left=False)
    return quotient.to(matrix)
