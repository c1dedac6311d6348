"""Whitening of channel groups over the batch: decorrelated BN (ZCA), Cholesky, IterNorm.

Huang et al. 2018 and 2019; Siarohin et al. 2019. What is kept is the running covariance, from
which the matrix is derived again at inference; a running average of the matrices, as in the
papers' code, whitens worse (and collapses for PCA).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..matrix import multiply
from ..moments import Moments
from ..operations import whitening_matrix
from ..partition import BATCH, Partition, channel_groups
from ..precision import without_autocast
from .base import AffineNorm, Recovery, Taxonomy, largest_divisor, place_of
from .tracking import Tracked, Tracking

_CONVOLUTIONS: dict[str, type[nn.Conv2d] | type[nn.Conv3d]] = {"2d": nn.Conv2d, "3d": nn.Conv3d}


class Grouped(Tracked, total=False):
    """The options of every layer that whitens groups of channels; see `Whitening`."""

    group_size: int | None


class Whitening(Tracking, AffineNorm):
    """Decorrelate and standardize groups of channels over the batch, then scale and shift.

    y = γ·W(x−μ)+β with the W of `method` and W(Σ+εI)Wᵀ = I. Training measures μ and Σ in float32
    or better and moves the running ones towards them; inference uses those, and is one product
    with a fixed matrix a group: `fold` makes it a convolution.

    Args:
        num_features: channels C.
        eps: ridge added to Σ.
        momentum: weight of a batch in the running moments; None averages all batches.
        affine, bias: have `weight`, and `bias`.
        track_running_stats: keep a population; without it, inference measures the batch too.
        group_size: channels whitened together, all of them if None; the largest divisor of C
            that is not above it is taken.
        sync, process_group: see `Tracking`.
        layout, act, drop: see `NormLayer`.

    Attributes:
        group_size: channels d whitened together, in fact.
        running_mean: (C,).
        running_cov: (C/d, d, d), biased. An old `running_var` is loaded as its diagonal. Like
            `running_mean` in float32 or better, also in a network that is turned into half
            precision: rounded to half, the covariance loses its small eigenvalues.

    Raises:
        InputError: no channels, or a group size below 1.
    """

    method: ClassVar[str]
    _version = 2
    running_cov: Tensor | None
    _cast: torch.dtype  # what the network was cast to, and what is folded is made in

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-3,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        group_size: int | None = 16,
        sync: bool = False,
        process_group: Any = None,
        **carried: Unpack[Recovery],
    ) -> None:
        super().__init__(num_features, eps, affine, **carried)
        limit = num_features if group_size is None else group_size
        self.group_size = largest_divisor(num_features, limit)
        self.track(momentum, sync, process_group)
        self.track_running_stats = track_running_stats
        self._track_covariance(place_of(carried))

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        matrix, shift = self.map(self.moments(x))
        return multiply(x, self._partition_of(matrix), matrix, shift)

    def map(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Return what whitening and recovery together do: y = matrix·x + shift in each group.

        Args:
            moments: full moments by `partition()`.

        Returns:
            matrix (G, d, d) and shift (G, d), or with another recovery (1, C, C) and (1, C).
        """
        with without_autocast(moments.mean):
            matrix = self.recovered(self.whitening(moments))
            mean = moments.mean.reshape(*matrix.shape[:2], 1)
            shift = -(matrix @ mean).squeeze(2)
        return matrix, shift if self.bias is None else shift + self.bias.reshape(shift.shape)

    def whitening(self, moments: Moments) -> Tensor:
        """Return the whitening matrices (G, d, d)."""
        return whitening_matrix(moments, self.method, self.eps)

    def recovered(self, matrix: Tensor) -> Tensor:
        """Return the whitening matrices with the recovery's scale in them."""
        if self.weight is None:
            return matrix
        return self.weight.reshape(*matrix.shape[:2], 1).to(matrix) * matrix

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """Return what the layer does at inference as an ordinary module without statistics.

        Returns:
            A 1×1 convolution with a group for each group of channels (`2d`, `3d`; `Pointwise`
            where the number of axes is open) or a linear layer (`tokens`); in a `nn.Sequential`
            with `drop` and `act`, where there are any.

        Raises:
            InputError: the layer tracks no population.
        """
        return self._module(*self.map(self.population()))

    def partition(self) -> Partition:
        """Return the partition whose moments are tracked."""
        return channel_groups(self.group_size)

    def measure(self, x: Tensor, partition: Partition) -> Moments:
        """Measure this process's batch (N, C, *S)."""
        return Moments.of(x, partition, full=True)

    def population(self) -> Moments:
        """Return the running moments in float32 or better; their count is not known, and 0.

        Raises:
            InputError: the layer tracks none.
        """
        if self.running_mean is None or self.running_cov is None:
            raise InputError(
                f"{type(self).__name__} tracks no population: make it with track_running_stats"
            )
        dtype = torch.promote_types(self.running_cov.dtype, torch.float32)
        cov = self.running_cov.to(dtype)
        var = cov.diagonal(dim1=1, dim2=2)
        mean = self.running_mean.to(dtype).reshape(var.shape)
        return Moments(mean.new_zeros(len(mean)), mean, var, cov, self.partition())

    @torch.no_grad()
    def remember(self, measured: Moments) -> None:
        """Move the running moments towards a batch's."""
        share = self.next_share(measured.mean)
        pairs = (self.running_mean, measured.mean.flatten()), (self.running_cov, measured.cov)
        for running, new in pairs:
            if running is not None and new is not None:
                running.lerp_(new.to(running), share.to(running))

    @property
    def least_samples(self) -> int:
        """How many samples a channel the layer can measure: in training, those of full rank."""
        return self.group_size + 1 if self.training else 2

    @property
    def remedy(self) -> str:
        """What helps where there are too few samples."""
        if not self.training:
            return super().remedy
        return (
            "give larger batches (drop_last=True), a smaller group_size than "
            f"{self.group_size}, or freeze the layer (freeze_norm_)"
        )

    def no_moments(self, x: Tensor) -> Moments:
        """Return the moments, of count 0, that stand for an empty batch (0, C, *S)."""
        none = super().no_moments(x)
        cov = none.mean.unsqueeze(2).expand(-1, -1, none.mean.shape[1])
        return replace(none, cov=cov)

    def _track_covariance(self, place: Any) -> None:
        """Register the buffers of a full population, standard normal at first."""
        if not self.track_running_stats:
            for name in ("running_mean", "running_cov", "num_batches_tracked"):
                self.register_buffer(name, None)
            return
        d = self.group_size
        groups = self.num_features // d
        self._cast = place["dtype"] or torch.get_default_dtype()
        place = {**place, "dtype": torch.promote_types(self._cast, torch.float32)}
        self.register_buffer("running_mean", torch.zeros(self.num_features, **place))
        self.register_buffer("running_cov", torch.eye(d, **place).repeat(groups, 1, 1))
        counter = torch.tensor(0, dtype=torch.long, device=place["device"])
        self.register_buffer("num_batches_tracked", counter)

    def _partition_of(self, matrix: Tensor) -> Partition:
        return self.partition() if matrix.shape[1] == self.group_size else BATCH

    def _module(self, matrix: Tensor, shift: Tensor) -> nn.Module:
        """The map as a module, with `drop` and `act` behind it."""
        dtype = self._cast
        module = _folded(matrix.to(dtype), shift.to(dtype), self.layout).train(self.training)
        behind = [piece for piece in (self.drop, self.act) if not isinstance(piece, nn.Identity)]
        return nn.Sequential(module, *behind) if behind else module

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Whitening:
        """Follow a cast, but keep the running moments in float32 or better."""
        before = {name: self._buffers[name] for name in ("running_mean", "running_cov")}
        parent: Any = super()
        parent._apply(fn, recurse)
        keep_precise(self, before)
        mean = before["running_mean"]
        if mean is not None:
            self._cast = fn(mean.new_empty(0, dtype=self._cast)).dtype
        return self

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        """Take a batch norm's `running_var` as the diagonal, and a counter that is missing as 0."""
        var = state_dict.get(prefix + "running_var")
        if self.running_cov is not None:
            new = prefix + "running_cov" not in state_dict
            if var is not None and var.shape == (self.num_features,) and new:
                diagonal = state_dict.pop(prefix + "running_var").reshape(-1, self.group_size)
                state_dict[prefix + "running_cov"] = diagonal.diag_embed()
            if (local_metadata.get("version") or 1) < self._version:
                counter = torch.tensor(0, dtype=torch.long)
                state_dict.setdefault(prefix + "num_batches_tracked", counter)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class ZCANorm(Whitening):
    """`Whitening` by W = Σ^-½: decorrelated batch normalization, nearest to its input."""

    taxonomy: ClassVar = Taxonomy(
        "batch, channel groups",
        "whiten (ZCA)",
        "affine",
        "Huang et al. 2018",
        "2 passes of d products an element, eigh O(d³) a group; inference a 1×1 convolution",
    )
    method: ClassVar[str] = "zca"


class CholeskyNorm(Whitening):
    """`Whitening` by W = L⁻¹ with LLᵀ = Σ: the cheapest, and not the same in each channel."""

    taxonomy: ClassVar = Taxonomy(
        "batch, channel groups",
        "whiten (Cholesky)",
        "affine",
        "Siarohin et al. 2019",
        "2 passes of d products an element, Cholesky O(d³) a group; inference a 1×1 convolution",
    )
    method: ClassVar[str] = "cholesky"


class IterNorm(Whitening):
    """`Whitening` by Newton's iteration for Σ^-½, in part only: see `whitening_matrix`.

    The coupled form, which equals the paper's in exact arithmetic and, unlike it, is stable.

    Args:
        num_features, eps, momentum, affine, track_running_stats, group_size, bias, sync,
            process_group, layout, act, drop: see `Whitening`.
        iterations: T; more whiten more.

    Raises:
        InputError: no channels, a group size or a number of iterations below 1.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch, channel groups",
        "whiten (Newton)",
        "affine",
        "Huang et al. 2019",
        "2 passes of d products an element, 3T products O(d³) a group; inference a 1×1 convolution",
    )
    method: ClassVar[str] = "newton"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        group_size: int | None = 64,
        iterations: int = 5,
        **carried: Unpack[Tracked],
    ) -> None:
        options: Grouped = {"group_size": group_size, **carried}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **options)
        if iterations < 1:
            raise InputError(f"iterations {iterations}: must be at least 1")
        self.iterations = iterations

    def whitening(self, moments: Moments) -> Tensor:
        """Return the whitening matrices (G, d, d)."""
        return whitening_matrix(moments, self.method, self.eps, self.iterations)


class Pointwise(nn.Conv1d):
    """A 1×1 convolution of (N, C, *S), whatever S is."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, *S)."""
        return super().forward(x.reshape(*x.shape[:2], -1)).reshape(x.shape)


def keep_precise(layer: nn.Module, before: Mapping[str, Tensor | None]) -> None:
    """Give buffers that a cast has rounded back in float32 or better, where they are now.

    Args:
        layer: it holds them.
        before: by their names, as they were.
    """
    for name, old in before.items():
        new = getattr(layer, name)
        if old is None or new is None:
            continue
        precise = torch.promote_types(new.dtype, torch.float32)
        if precise != new.dtype:
            setattr(layer, name, old.to(new.device, precise))


def _folded(matrix: Tensor, shift: Tensor, layout: str) -> nn.Module:
    """matrix·x + shift as a module."""
    groups, width, _ = matrix.shape
    place: Any = {"device": matrix.device, "dtype": matrix.dtype}
    made: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
    if layout == "tokens":
        made = nn.Linear(groups * width, groups * width, **place)
        matrix = torch.block_diag(*matrix)
    else:
        kind = _CONVOLUTIONS.get(layout, Pointwise)
        made = kind(groups * width, groups * width, 1, groups=groups, **place)
    made.load_state_dict({"weight": matrix.reshape(made.weight.shape), "bias": shift.flatten()})
    return made
