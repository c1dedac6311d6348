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
    """Notices, until the version of a weight that was read changes, what it does not tell.

    That is a write into a normalized weight that was handed out, a copy, and a write to `.data` of
    the parameter underneath. Sums of their bits tell: exact in any order, and NaN has bits too.
    """

    def __init__(self, layer_type: str, is_on: bool = True) -> None:
        self.layer_type, self.is_on = layer_type, is_on
        self.mark: Mark | None = None
        self.bits: Tensor | None = None  # of the parameter
        self.handed: tuple[Tensor, int, Tensor] | None = None  # the copy, its version and bits

    def check(self, weight: Tensor, mark: Mark | None) -> bool:
        """Return if the parameter was changed since the last look, with its mark as it was.

        Args:
            weight: the parameter.
            mark: its own.

        Raises:
            InputError: what was handed out at the last read was written into.
        """
        if not self.is_on or mark is None:
            return False
        if self._is_over(mark):
            self.is_on, self.bits, self.handed = False, None, None
            return False
        if self.handed is not None and _is_written(*self.handed):
            self.handed = None
            raise InputError(
                f"{self.layer_type}: the normalized weight, a copy, was written in place (nn.init, "
                ".data, add_) to no effect; assign layer.weight = w, or use init_(network, fn)"
            )
        before = self.bits if mark == self.mark else None
        self.mark, self.bits = mark, _bits(weight)
        return before is not None and not torch.equal(before, self.bits)

    def look(self, weight: Tensor, mark: Mark | None) -> None:
        """Take the parameter as it is now for unchanged."""
        if self.is_on and mark is not None and not self._is_over(mark):
            self.mark, self.bits = mark, _bits(weight)

    def hand_out(self, normalized: Tensor, mark: Mark | None) -> None:
        """Watch a copy that is about to be handed out, computed from the weight of this mark."""
        if self.is_on and mark is not None:
            copy = normalized.detach()
            self.handed = copy, _version(copy), _bits(copy)

    def moved(self) -> None:
        """Expect the parameter at another address, of other values: moved or converted."""
        self.mark = self.bits = None

    def _is_over(self, mark: Mark) -> bool:
        return self.handed is not None and self.mark is not None and mark != self.mark


def _is_written(copy: Tensor, version: int, bits: Tensor) -> bool:
    return _version(copy) != version or not torch.equal(_bits(copy), bits)


@torch.no_grad()
def _bits(x: Tensor) -> Tensor:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.detach().view(integers[x.element_size()]).sum()


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def mark_of(weight: Tensor) -> Mark | None:
    """Return what changes whenever the values do, or None where torch.func hides it."""
    with suppress(RuntimeError):
        return weight.data_ptr(), _version(weight)
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
