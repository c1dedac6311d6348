"""Condition: how a label, latent, map, style or domain reaches a layer inside `forward(x)`.

All conditional layers of a network share one holder; a wrapper puts the condition in before the
forward pass and takes it out afterwards. What is recomputed in the backward pass (gradient
checkpointing) finds the condition of its own forward pass again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .layers.base import NormLayer


class Condition:
    """The holder: one object, shared by all conditional layers of a network."""

    def __init__(self) -> None:
        self.value: Any = None

    @contextmanager
    def holding(self, value: Any) -> Iterator[None]:
        """Hold a condition within the block."""
        before, self.value = self.value, value
        try:
            yield
        finally:
            self.value = before


class ConditionalLayer(NormLayer):
    """A layer whose recovery, or whose moments, depend on a condition.

    The condition is given to `forward`, or comes from the wrapper around the network.
    """

    condition: Condition

    def carry(self, *args: Any, **options: Any) -> None:
        """Also get a holder, which a wrapper replaces by the network's own."""
        super().carry(*args, **options)
        self.condition = Condition()

    def normalize_by(self, x: Tensor, condition: Any) -> Tensor:
        """Normalize and recover (N, C, *S) under a condition."""
        raise NotImplementedError

    def forward(self, x: Tensor, condition: Any = None) -> Tensor:
        """Normalize x under a condition, then apply `drop` and `act`.

        Raises:
            InputError: no condition, or one that does not fit; x does not fit.
        """
        condition = self.condition.value if condition is None else condition
        if condition is None:
            raise InputError(
                f"{type(self).__name__} needs a condition: call it as layer(x, condition), or the "
                "network as ConditionedModel(network)(x, condition)"
            )
        return self.leave(self.normalize_by(self.enter(x), condition))


class ConditionedModel(nn.Module):
    """`model(x, condition)` for a network whose layers want a condition but whose forward has none.

    Args:
        model: a network with conditional layers. They are given one common holder.

    Raises:
        InputError: the network has no conditional layer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.condition = Condition()
        layers = [layer for layer in model.modules() if isinstance(layer, ConditionalLayer)]
        if not layers:
            raise InputError(
                f"{type(model).__name__} has no conditional layer; make some by convert_norm"
            )
        for layer in layers:
            layer.condition = self.condition

    def forward(self, x: Tensor, condition: Any, *args: Any, **options: Any) -> Any:
        """Run the network under a condition; further arguments are the network's.

        Under gradient checkpointing the condition is there again when the backward pass of this
        call begins, and gone when the backward pass ends. Backward passes of two calls may run
        together: autograd finishes the later call first.
        """
        with self.condition.holding(condition):
            out = self.model(x, *args, **options)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            for tensor in _tensors(out):
                if tensor.requires_grad:
                    tensor.register_hook(_Restore(self.condition, condition))
        return out


class _Restore:
    """A gradient hook that puts a condition back until the backward pass has ended."""

    def __init__(self, holder: Condition, value: Any) -> None:
        self.holder, self.value = holder, value

    def __call__(self, grad: Tensor) -> None:
        self.holder.value = self.value
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(self._clear)

    def _clear(self) -> None:
        self.holder.value = None


def _tensors(out: Any) -> Iterator[Tensor]:
    """The tensors of an output, which may be nested in lists, tuples and dicts."""
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, dict):
        for each in out.values():
            yield from _tensors(each)
    elif isinstance(out, (list, tuple)):
        for each in out:
            yield from _tensors(each)
