"""Ghost batch normalization (Hoffer et al. 2017): the batch in chunks, each by its own moments."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError, unknown
from ..distributed import gather
from ..moments import Moments
from ..partition import BATCH, INSTANCE
from ..pooling import pool
from .base import LAYOUTS, NormLayer, Taxonomy
from .batch import BatchNorm
from .tracking import Tracked


class GhostBatchNorm(BatchNorm):
    """Batch norm of each of `num_splits` chunks of the batch, consecutive and equally large.

    The population moves by the moments of the whole batch, so that it is batch norm's (the
    paper's moves chunk by chunk and misses the variance between the chunks); inference is batch
    norm. `sync` merges the population across processes; the chunks are this process's own.

    Args:
        num_features: channels C.
        num_splits: number of chunks, by which a batch in training must divide.
        eps, momentum, affine, track_running_stats, bias, sync, process_group: see `BatchNorm`.
        layout, act, drop: see `NormLayer`.

    Raises:
        InputError: no channels, or fewer than one chunk.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch, chunks",
        "standardize",
        "affine",
        "Hoffer et al. 2017",
        "2 passes; inference 1, 0 when folded",
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        num_splits: int = 2,
        **carried: Unpack[Tracked],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **carried)
        if num_splits < 1:
            raise InputError(f"num_splits {num_splits}: must be at least 1")
        self.num_splits = num_splits

    @classmethod
    def for_layout(cls, layout: str) -> type[NormLayer]:
        """Return the subclass that is torch's class for a layout, too.

        Raises:
            InputError: an unknown layout.
        """
        if layout not in LAYOUTS:
            raise unknown("layout", layout, LAYOUTS)
        kinds = {"1d": GhostBatchNorm1d, "2d": GhostBatchNorm2d, "3d": GhostBatchNorm3d}
        return kinds.get(layout, cls)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        if self.uses_population or not self.training:
            return super().normalize(x)
        self._check_chunks(x)
        chunks = x.chunk(self.num_splits)
        if self.running_mean is None:
            return torch.cat([self._by_kernel(each, None, None, True, 0.0) for each in chunks])
        precise = torch.promote_types(self.running_mean.dtype, torch.float32)
        shape = 2, self.num_splits, self.num_features
        mean, var = self.running_mean.new_zeros(shape, dtype=precise)
        y = torch.cat([self._by_chunk(*each) for each in zip(chunks, mean, var, strict=True)])
        self._remember_chunks(mean, var, x.numel() // mean.numel())
        return y

    def pass_empty(self, x: Tensor) -> Tensor:
        """Return (0, C, *S) at inference.

        Raises:
            InputError: in training, as for every batch without equal chunks.
        """
        if self.training and not self.uses_population:
            self._check_chunks(x)
        return super().pass_empty(x)

    def _by_chunk(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Standardize a chunk and leave its moments, in float32 or better, in `mean` and `var`."""
        pair = (self.weight, self.bias)
        weight, bias = (None if each is None else each.to(mean.dtype) for each in pair)
        return F.batch_norm(x, mean, var, weight, bias, True, 1.0, self.eps)

    @torch.no_grad()
    def _remember_chunks(self, mean: Tensor, unbiased: Tensor, samples: int) -> None:
        """Remember the whole batch by the moments (K, C) that the kernel found in the chunks."""
        count = mean.new_full((len(mean),), samples)
        var = unbiased * ((samples - 1) / samples)
        whole = pool(Moments(count, mean, var, None, INSTANCE), BATCH)
        self.remember(gather(whole, self.process_group) if self.sync else whole)

    def _check_chunks(self, x: Tensor) -> None:
        if len(x) % self.num_splits:
            raise InputError(
                f"{type(self).__name__} got {tuple(x.shape)} in training: a batch of {len(x)} has "
                f"no {self.num_splits} equal chunks (num_splits); give batches that it divides "
                "(drop_last=True)"
            )
        samples = x.numel() // (self.num_features * self.num_splits)
        if samples < self.least_samples:
            raise InputError(
                f"{type(self).__name__} got {tuple(x.shape)} in training: {samples} sample(s) a "
                f"channel and chunk, needs {self.least_samples}; give larger batches, fewer "
                "chunks (num_splits), or freeze the layer (freeze_norm_)"
            )


class GhostBatchNorm1d(GhostBatchNorm, nn.BatchNorm1d):
    """`GhostBatchNorm` of (N, C) or (N, C, L)."""

    own_layout: ClassVar[str] = "1d"


class GhostBatchNorm2d(GhostBatchNorm, nn.BatchNorm2d):
    """`GhostBatchNorm` of (N, C, H, W)."""

    own_layout: ClassVar[str] = "2d"


class GhostBatchNorm3d(GhostBatchNorm, nn.BatchNorm3d):
    """`GhostBatchNorm` of (N, C, D, H, W)."""

    own_layout: ClassVar[str] = "3d"
