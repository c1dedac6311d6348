"""Knowing that a parameter has changed, and that a write did not reach it.

A parametrized weight is computed at each read, so that its parameter must be watched from outside.
"""

from __future__ import annotations

import functools
import weakref
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ...errors import InputError

Mark = tuple[int, int]  # a tensor's address and version counter: the identity of its values

_WATCHED: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


class WriteGuard:
    """Notices, until the weight first changes, that a normalized weight was written into."""

    def __init__(self, layer_type: str, is_on: bool = True) -> None:
        self.layer_type, self.is_on = layer_type, is_on
        self.mark: Mark | None = None
        self.source: Tensor | None = None
        self.handed: Tensor | None = None

    def check(self, normalized: Tensor, mark: Mark | None, source: Tensor) -> None:
        """Compare what was handed out at the last read with what that should still be.

        Args:
            normalized: the weight about to be handed out.
            mark: of the parameter that it was computed from.
            source: what else it was computed from; another object may give another weight.

        Raises:
            InputError: they differ.
        """
        if not self.is_on or mark is None:
            return
        self.mark = self.mark or mark
        if mark != self.mark:
            self.is_on, self.handed, self.source = False, None, None
            return
        handed = self.handed if self.source is source else None
        self.handed, self.source = normalized.detach(), source
        if handed is not None and not _is_same(handed, self.handed):
            raise InputError(
                f"{self.layer_type}: the normalized weight, a copy, was written in place (nn.init, "
                ".data, add_) to no effect; assign layer.weight = w, or use init_(network, fn)"
            )

    def renewed(self) -> WriteGuard:
        """Return a guard as watchful, that has seen nothing."""
        return WriteGuard(self.layer_type, self.is_on)


def _is_same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=0.0, equal_nan=True)


def mark_of(weight: Tensor) -> Mark | None:
    """Return what changes whenever the values do, or None where torch.func hides it."""
    with suppress(RuntimeError):
        return weight.data_ptr(), 0 if weight.is_inference() else weight._version
    return None


def watch(owner: nn.Module, mark: Mark) -> None:
    """Await changes of the tensor with this mark, as long as `owner` lives."""
    _WATCHED[owner] = mark[0]


@functools.cache
def watch_optimizers() -> None:
    """Have every optimizer's step advance the version counters of the tensors that are watched.

    Fused optimizers, and those that write `p.data`, leave the counters as they were.
    """
    register_optimizer_step_post_hook(_advance_versions)


def _advance_versions(optimizer: torch.optim.Optimizer, *_: object) -> None:
    watched = set(_WATCHED.values())
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            mark = mark_of(parameter)
            if mark is not None and mark[0] in watched:
                torch.autograd.graph.increment_version(parameter)
