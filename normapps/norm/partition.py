"""Partition: which elements of an activation share one set of statistics.

An activation (N, C, *S) is seen as groups (G, D, M): G groups, each with D jointly normalized
dimensions and M samples of them (Huang et al. 2023, "Normalization Techniques in Training DNNs",
sec. 4.1). The diagonal methods use the moments of each of the G·D rows, the whitening methods the
D×D covariance of each group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import InputError, unknown

_SIZED = ("group", "ghost", "channel_group")
_KINDS = ("batch", "instance", "layer", "position", *_SIZED)


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

    Raises:
        InputError: an unknown kind, or a size that is below 1 or that the kind does not take.
    """

    kind: str
    size: int = field(default=1)

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise unknown("partition", self.kind, _KINDS)
        if self.size < 1:
            raise InputError(f"partition size {self.size}: must be at least 1")
        if self.size > 1 and self.kind not in _SIZED:
            raise InputError(f"partition size {self.size}: '{self.kind}' takes none")

    def shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return (G, D, M) for an activation of `shape` (N, C, *S).

        Raises:
            InputError: no channel axis, no elements, or `size` does not divide N or C.
        """
        return self._layout(shape).groups

    def view(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """Return x in a shape where the G·D rows are reduced over whole axes, and these axes.

        What is left after reducing them is the rows in order. Never a copy, whatever the strides:
        this is how the diagonal methods look at an activation.
        """
        layout = self._layout(x.shape)
        return x.reshape(layout.sizes), layout.reduced

    def rows(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Shape values (G, D), or (1, D) meant for every group, to broadcast against `view`.

        Raises:
            InputError: the values fit no activation of `shape`.
        """
        layout = self._layout(shape)
        self.check_fit(values, shape)
        sizes = [1 if axis in layout.reduced else size for axis, size in enumerate(layout.sizes)]
        return values.expand(layout.groups[0], -1).reshape(sizes)

    def check_fit(self, values: Tensor, shape: Sequence[int]) -> None:
        """Check that values (G, D, ...), or (1, D, ...), fit an activation of `shape`.

        Raises:
            InputError: they do not.
        """
        groups, width, _ = self.shape(shape)
        if values.shape[1] == width and (values.shape[0] == 1 or values.shape[0] == groups):
            return
        one = "" if groups == 1 else f" or 1 x {width}"
        raise InputError(
            f"moments of {values.shape[0]} x {values.shape[1]} (groups x dimensions) do not fit"
            f" {tuple(shape)}: partition '{self.kind}' needs {groups} x {width}{one}"
        )

    def split(self, x: Tensor) -> Tensor:
        """Reshape x: (N, C, *S) to groups (G, D, M), without a copy where the strides allow it.

        Raises:
            InputError: no channel axis, no elements, or `size` does not divide N or C.
        """
        layout = self._layout(x.shape)
        return x.reshape(layout.sizes).permute(layout.order).reshape(layout.groups)

    def join(self, groups: Tensor, shape: Sequence[int]) -> Tensor:
        """Undo `split`: groups (G, D, M) back to an activation of `shape` (N, C, *S)."""
        layout = self._layout(shape)
        apart = groups.reshape([layout.sizes[axis] for axis in layout.order])
        return apart.permute([layout.order.index(axis) for axis in range(apart.dim())]).reshape(
            tuple(shape)
        )

    def _layout(self, shape: Sequence[int]) -> _Layout:
        self._check(shape)
        n, c, *space = shape if len(shape) > 2 else (*shape, 1)
        k, spatial = self.size, list(range(2, len(space) + 2))
        if self.kind in ("batch", "channel_group"):
            return _Layout([n, c, *space], [0, *spatial], k if self.kind == "channel_group" else c)
        if self.kind == "instance":
            return _Layout([n, c, *space], spatial, c)
        if self.kind == "position":
            return _Layout([n, c, *space], [1], 1)
        behind = [axis + 1 for axis in spatial]
        if self.kind == "ghost":
            return _Layout([k, n // k, c, *space], [1, *behind], c)
        return _Layout([n, k, c // k, *space], [2, *behind], 1)

    def _check(self, shape: Sequence[int]) -> None:
        if len(shape) < 2 or 0 in shape:
            raise InputError(f"shape {tuple(shape)}: needs (N, C, ...) without an empty axis")
        if self.kind in ("group", "channel_group") and shape[1] % self.size:
            raise InputError(f"{self.kind} size {self.size} does not divide {shape[1]} channels")
        if self.kind == "ghost" and shape[0] % self.size:
            raise InputError(f"ghost size {self.size} does not divide a batch of {shape[0]}")


@dataclass(frozen=True)
class _Layout:
    """An activation's view shape, the axes its statistics run over, and the D of its groups."""

    sizes: list[int]
    reduced: list[int]
    width: int

    @property
    def order(self) -> list[int]:
        """The axes of the view, those of the rows first."""
        kept = [axis for axis in range(len(self.sizes)) if axis not in self.reduced]
        return kept + self.reduced

    @property
    def groups(self) -> tuple[int, int, int]:
        """(G, D, M)."""
        samples = math.prod([self.sizes[axis] for axis in self.reduced])
        rows = math.prod([self.sizes[axis] for axis in self.order]) // samples
        return rows // self.width, self.width, samples


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
