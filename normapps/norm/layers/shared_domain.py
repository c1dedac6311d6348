"""Banks of domains that share one scale and shift: what AutoDIAL, TransNorm and DWT stand on."""

from __future__ import annotations

from typing import Any

import torch

from .base import Piece
from .domain import DomainNorm
from .tracking import Tracked


class Shared(Tracked, total=False):
    """The options of every bank that shares its scale and shift; see `SharedDomainNorm`."""

    unseen: str


class SharedDomainNorm(DomainNorm):
    """`DomainNorm` with one `weight` and `bias` (C,) for all domains, as a batch norm has.

    Args:
        num_features: channels C.
        num_domains: K.
        eps: added to the variance.
        momentum: weight of a batch in the running moments; None averages all batches.
        affine, bias: have `weight`, and `bias`, (C,).
        unseen: `mean` or `nearest`.
        sync, process_group: see `Tracking`; processes may differ in their domains.
        layout, act, drop: see `NormLayer`.

    Raises:
        InputError: fewer than 1 channel or domain, an unknown `unseen` or layout.
    """

    def __init__(
        self,
        num_features: int,
        num_domains: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        bias: bool = True,
        unseen: str = "mean",
        sync: bool = False,
        process_group: Any = None,
        layout: str = "any",
        act: Piece = None,
        drop: Piece = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            *(num_features, num_domains, eps, momentum, affine),
            bias=bias,
            share_affine=True,
            unseen=unseen,
            sync=sync,
            process_group=process_group,
            layout=layout,
            act=act,
            drop=drop,
            device=device,
            dtype=dtype,
        )
