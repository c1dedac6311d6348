"""Partition: which elements of an activation share one set of statistics.

An activation (N, C, *S) is seen as groups (G, D, M): G groups, each with D jointly normalized
dimensions and M samples of them (Huang et al. 2023, "Normalization Techniques in Training DNNs",
sec. 4.1). The diagonal methods use the moments of each of the G·D rows, the whitening methods the
D×D covariance of each group.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError

_KINDS = ("batch", "instance", "layer", "position", "group", "ghost", "channel_group")


@dataclass(frozen=True)
class Partition:
    """How (N, C, *S) splits into groups (G, D, M).

    Args:
        kind: one of

            - `batch`: G=1, D=C, M=N·S
            - `instance`: G=N, D=C, M=S
            - `layer`: G=N, D=1, M=C·S
            - `position`: G=N·S, D=1, M=C
            - `group`: G=N·n, D=1, M=C/n·S (n = `size` groups)
            - `ghost`: G=n, D=C, M=N/n·S (n = `size` chunks of the batch)
            - `channel_group`: G=C/d, D=d, M=N·S (d = `size` channels whitened together)
        size: the number that `group`, `ghost` and `channel_group` need.
    """

    kind: str
    size: int = field(default=1)

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InputError(f"unknown partition '{self.kind}'; known: {', '.join(_KINDS)}")
        if self.size < 1:
            raise InputError(f"partition size {self.size}: must be at least 1")

    def split(self, x: Tensor) -> Tensor:
        """Reshape x: (N, C, *S) to groups (G, D, M).

        Raises:
            InputError: x has no channel dimension, or `size` does not divide N or C.
        """
        if x.dim() < 2:
            raise InputError(f"shape {tuple(x.shape)}: needs (N, C, ...)")
        n, c = x.shape[:2]
        self._check(n, c)
        x = x.reshape(n, c, -1)
        if self.kind == "instance":
            return x
        if self.kind in ("layer", "group"):
            return x.reshape(n * self.size, 1, -1)
        if self.kind == "position":
            return x.transpose(1, 2).reshape(-1, 1, c)
        if self.kind == "ghost":
            return x.reshape(self.size, -1, c, x.shape[2]).transpose(1, 2).flatten(2)
        width = self.size if self.kind == "channel_group" else c
        return x.transpose(0, 1).reshape(c // width, width, -1)

    def join(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Undo `split`: groups (G, D, M) back to an activation of `shape` (N, C, *S)."""
        n, c = shape[:2]
        if self.kind in ("instance", "layer", "group"):
            return groups.reshape(shape)
        if self.kind == "position":
            return groups.reshape(n, -1, c).transpose(1, 2).reshape(shape)
        if self.kind == "ghost":
            per_chunk = groups.reshape(self.size, c, n // self.size, -1)
            return per_chunk.transpose(1, 2).reshape(shape)
        return groups.reshape(c, n, -1).transpose(0, 1).reshape(shape)

    def _check(self, n: int, c: int) -> None:
        if self.kind in ("group", "channel_group") and c % self.size:
            raise InputError(f"{self.kind} size {self.size} does not divide {c} channels")
        if self.kind == "ghost" and n % self.size:
            raise InputError(f"ghost size {self.size} does not divide a batch of {n}")


BATCH = Partition("batch")
INSTANCE = Partition("instance")
LAYER = Partition("layer")
POSITION = Partition("position")


def groups(n: int) -> Partition:
    """Partition of group normalization: n groups of channels in each sample."""
    return Partition("group", n)


def ghost(n: int) -> Partition:
    """Partition of ghost batch normalization: n chunks of the batch."""
    return Partition("ghost", n)


def channel_groups(d: int) -> Partition:
    """Partition of grouped whitening: d channels share one covariance over the batch."""
    return Partition("channel_group", d)
