"""Condition: how a label, latent, map, style or domain reaches a layer inside `forward(x)`.

All conditional layers of a network share one holder; a wrapper puts the condition in before the
forward pass and takes it out afterwards. What is recomputed in the backward pass (gradient
checkpointing) finds the condition of its own forward pass again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .layers.base import NormLayer
from .nesting import tensors_in


class _Slot(threading.local):
    """What one thread holds; set in __init__, because dynamo cannot trace class defaults here."""

    def __init__(self) -> None:
        self.held: Any = None
        self.restored: Any = None


class Condition:
    """The holder: one object, shared by all conditional layers of a network.

    Each thread sees what it holds itself. A copy, also a pickled one, holds nothing.
    """

    def __init__(self) -> None:
        self._slot = _Slot()

    def __reduce__(self) -> tuple[type[Condition], tuple[()]]:
        return type(self), ()

    @property
    def value(self) -> Any:
        """The condition of this thread: the innermost held, or what `restore` put back."""
        slot = self._slot
        if slot.restored is not None and _in_backward():
            return slot.restored
        return slot.held

    @contextmanager
    def holding(self, value: Any) -> Iterator[None]:
        """Hold a condition within the block, in this thread."""
        slot = self._slot
        # outside a backward pass, what one left that ended in an exception is dropped
        put_back = slot.restored if slot.restored is not None and _in_backward() else None
        before, slot.held, slot.restored = slot.held, value, None
        try:
            yield
        finally:
            slot.held, slot.restored = before, put_back

    def restore(self, value: Any) -> None:
        """Within a backward pass, put a condition back in this thread until the pass has ended."""
        place = vars(self._slot)
        if place["restored"] is value:
            return
        place["restored"] = value
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(_clearing(place))  # may run in another thread


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
        x = self.enter(x)
        empty = x.shape[0] == 0
        return self.leave(self.pass_empty(x) if empty else self.normalize_by(x, condition))


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

        Under gradient checkpointing the condition is there again when the backward pass comes to
        this call, from the output or from a tensor within that the output depends on. Backward
        passes of two calls may run together: autograd finishes the later call first. A tensor that
        the output does not depend on, and the second of a double backward pass, are not provided
        for: there, without checkpointing only.
        """
        with self.condition.holding(condition):
            out = self.model(x, *args, **options)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            given = (x, condition, args, options)
            _restore_in_backward(out, given, self.condition, condition)
        return out


def _restore_in_backward(out: Any, given: Any, holder: Condition, value: Any) -> None:
    """Have every autograd node of a call, from its output to what it was given, restore a value.

    Every node, because a loss may enter at any tensor that was kept within the network.
    """

    def restore(_: Any) -> None:
        holder.restore(value)

    ends = {each.grad_fn for each in tensors_in(given)}
    queue: list[Any] = [each.grad_fn for each in tensors_in(out)]
    while queue:
        node = queue.pop()
        # a marked node is this call's, or belongs to an earlier one, whose tensor was kept
        if node is None or node in ends or holder in node.metadata:
            continue
        node.metadata[holder] = True
        following = [each for each, _ in node.next_functions]
        if following:  # not a leaf's
            node.register_prehook(restore)
        queue += following


def _clearing(place: dict[str, Any]) -> Callable[[], None]:
    def clear() -> None:
        place["restored"] = None

    return clear


def _in_backward() -> bool:
    if torch.compiler.is_compiling():
        return True
    task: Any = getattr(torch._C, "_current_graph_task_id", None)
    return task is None or task() != -1
