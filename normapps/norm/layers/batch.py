"""Batch normalization (Ioffe & Szegedy 2015), by torch's kernel, with what stands behind it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import unknown
from ..distributed import is_joined
from ..operations import standardize
from ..recovery import affine as recover
from .base import LAYOUTS, NormLayer, Piece, Taxonomy, check_features
from .tracking import Tracking


class BatchNorm(Tracking, _BatchNorm):
    """Standardize each channel over the batch, then scale and shift it.

    Training uses the batch's biased variance, inference the running moments; `frozen` uses the
    running moments in training too. To the bit what torch's layers compute, which its 1d, 2d and
    3d forms also are by class. `sync=True` measures the batches of all processes together
    (Chan's formula, so they may differ in size); that path, unlike torch's `SyncBatchNorm`, runs
    on a CPU too.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: weight of a batch in the running moments; None averages all batches.
        affine, bias: have `weight`, and `bias`.
        track_running_stats: keep a population; without it, inference measures the batch too.
        sync, process_group: see `Tracking`.
        layout, act, drop: see `NormLayer`.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch",
        "standardize",
        "affine",
        "Ioffe & Szegedy 2015",
        "2 passes; inference 1, 0 when folded",
    )
    own_layout: ClassVar[str] = "any"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        sync: bool = False,
        process_group: Any = None,
        layout: str | None = None,
        act: Piece = None,
        drop: Piece = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_features(num_features)
        place: Any = {"device": device, "dtype": dtype}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **place)
        if not bias:
            self.register_parameter("bias", None)
        self.track(momentum, sync, process_group)
        self.carry(self.own_layout if layout is None else layout, act, drop)

    @classmethod
    def for_layout(cls, layout: str) -> type[NormLayer]:
        """Return the subclass that is torch's class for a layout, too.

        Raises:
            InputError: an unknown layout.
        """
        if layout not in LAYOUTS:
            raise unknown("layout", layout, LAYOUTS)
        return {"1d": BatchNorm1d, "2d": BatchNorm2d, "3d": BatchNorm3d}.get(layout, cls)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        if self.uses_population:
            return self._by_kernel(x, self.running_mean, self.running_var, False, 0.0)
        if self.sync and is_joined():
            return recover(standardize(x, self.moments(x), self.eps), self.weight, self.bias)
        self.check_samples(x.numel() // self.num_features, x)
        if not self.training or self.running_mean is None or self.running_var is None:
            return self._by_kernel(x, None, None, True, 0.0)
        share = self.next_share(self.running_mean) if self.momentum is None else None
        if share is None:
            self._count()
            momentum = self.momentum or 0.0
            return self._by_kernel(x, self.running_mean, self.running_var, True, momentum)
        return self._averaged(x, self.running_mean, self.running_var, share)

    def _averaged(self, x: Tensor, mean: Tensor, var: Tensor, share: Tensor) -> Tensor:
        """With momentum None: the kernel takes a number, and reading one back would wait."""
        new_mean, new_var = torch.zeros_like(mean), torch.ones_like(var)
        y = self._by_kernel(x, new_mean, new_var, True, 1.0)
        with torch.no_grad():
            mean.lerp_(new_mean, share)
            var.lerp_(new_var, share)
        return y

    def _by_kernel(
        self, x: Tensor, mean: Tensor | None, var: Tensor | None, training: bool, momentum: float
    ) -> Tensor:
        return F.batch_norm(x, mean, var, self.weight, self.bias, training, momentum, self.eps)

    def _count(self) -> None:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        """Without a counter, as after a frozen layer of others, do not ask for one."""
        if self.num_batches_tracked is None:
            state_dict.pop(prefix + "num_batches_tracked", None)
            local_metadata = {**local_metadata, "version": self._version}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class BatchNorm1d(BatchNorm, nn.BatchNorm1d):
    """`BatchNorm` of (N, C) or (N, C, L)."""

    own_layout: ClassVar[str] = "1d"


class BatchNorm2d(BatchNorm, nn.BatchNorm2d):
    """`BatchNorm` of (N, C, H, W)."""

    own_layout: ClassVar[str] = "2d"


class BatchNorm3d(BatchNorm, nn.BatchNorm3d):
    """`BatchNorm` of (N, C, D, H, W)."""

    own_layout: ClassVar[str] = "3d"
