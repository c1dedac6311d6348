"""trace_channels: find a model's channel graph by running it once.

Every aten operation of one forward pass (evaluation mode, real tensors) is seen by a dispatch
mode, and its rule says how channels go on. So any Python code is followed, without tracing it
symbolically; what depends on the input's values is followed for this input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .assembly import assemble
from .atoms import Axes, Axis, Ledger
from .call import Call
from .dispatch import bound, flat, leaves, name_of, refuse_wrapped, run_under, watching, written
from .graph import ChannelGraph
from .labels import Labels, named
from .rules import follow, give_up
from .rules_attention import SCALED, scaled_by_size
from .sizes import names_read


def trace_channels(model: nn.Module, inputs: Tensor | tuple[Any, ...]) -> ChannelGraph:
    """Run a model once and return its channel graph.

    The model is run in evaluation mode without gradients and autocast, in its own precision, and
    comes out as it went in.

    Args:
        model: any module; what it computes has to depend on shapes, not on values.
        inputs: what `model(*inputs)` takes; a batch of one is enough. The graph's costs are
            those of this size.

    Raises:
        InputError: the model does not run on these inputs, or is wrapped by `torch.compile`,
            TorchScript or (Distributed)DataParallel.
    """
    refuse_wrapped(model, "slim")
    tracer = _Tracer(model)
    hooks = watching(model, tracer.enter, tracer.leave)
    outputs = run_under(model, inputs, hooks, _FunctionWatch(tracer), tracer)
    for tensor in leaves(outputs):
        tracer.keep_output(tensor)
    return assemble(model, tracer.labels, tracer.ledger)


class _Tracer(TorchDispatchMode):
    """Follows the channels through every operation that runs under it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        self.labels = Labels(named(model))
        self.ledger = Ledger()
        self._running: list[tuple[str, list[Tensor]]] = []
        self._sizes: frozenset[int] = frozenset()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        values = bound(func, args, kwargs or {})
        outputs = flat(result)
        call = Call(name_of(func), values, outputs, self._owner(), self.labels, self.ledger)
        call.held = self._held
        call.sizes, call.given = self._sizes, self._running[-1][1] if self._running else []
        targets = written(func, values)
        if targets is None:
            self._label(call, follow(call))
        elif len(targets) == 1 and isinstance(targets[0], Tensor):
            self._overwrite(call, follow(call)[0], targets[0])
        elif targets:
            give_up(call)
        return result

    def enter(self, name: str, module: nn.Module) -> Callable[..., None]:
        """Return the hook in front of a module."""
        return lambda module, args: self._running.append((name, leaves(args)))

    def leave(self, *_: Any) -> None:
        """End a module's call."""
        self._running.pop()

    def keep_output(self, tensor: Tensor) -> None:
        """Keep the channels of what the model returns."""
        for axis in self.labels.of(tensor).axes:
            if axis is not None:
                self.ledger.pin(axis.ids, "an output of the network")

    def scaled(self, query: Any, scale: float | None) -> None:
        """Keep the channels by whose number attention is about to be scaled."""
        axis = scaled_by_size(query, scale, self.labels)
        if axis is not None:
            where = self._owner() or "the model"
            self.ledger.pin(axis.ids, SCALED.format(where=where))

    @contextmanager
    def reshaping(self, sizes: frozenset[int]) -> Iterator[None]:
        """Know the sizes that code gives to a reshape, until the block ends."""
        before, self._sizes = self._sizes, sizes
        try:
            yield
        finally:
            self._sizes = before

    def _held(self, size: int) -> bool:
        owner = self._model.get_submodule(self._owner())
        return size in [vars(owner).get(key) for key in names_read(type(owner))]

    def _owner(self) -> str:
        return self._running[-1][0] if self._running else ""

    def _label(self, call: Call, found: list[Axes]) -> None:
        for index, output in enumerate(call.outputs):
            axes = found[index] if index < len(found) else (None,) * output.dim()
            self.labels.add(output, axes, call.tensors)

    def _overwrite(self, call: Call, axes: Axes, written: Tensor) -> None:
        """Relabel a tensor; others in its memory must agree, or the channels stay."""
        label = self.labels.of(written)
        if label.others():
            for old, new in zip(label.axes, axes, strict=True):
                self._agree(call, old, new)
        label.axes = axes

    def _agree(self, call: Call, old: Axis | None, new: Axis | None) -> None:
        reason = "{where} writes into a part of a tensor"
        if old is None or new is None:
            call.pin(old or new, reason)
            return
        self.ledger.tie(old.ids, new.ids)
        lost = old.silent & ~new.silent
        call.pin(Axis(new.ids[lost], new.silent[lost]), reason)


class _FunctionWatch(TorchFunctionMode):
    """Sees what falls into operations that no longer tell where a scale or a size is from."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._tracer.scaled(args[0] if args else given.get("query"), given.get("scale"))
        if func not in _RESHAPES:
            return func(*args, **given)
        sizes = _flat_sizes((args[1:], given))
        with self._tracer.reshaping(frozenset(size for size in sizes if size > 0)):
            return func(*args, **given)


def _flat_sizes(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if not isinstance(value, list | tuple):
        return []
    return [size for each in value for size in _flat_sizes(each)]


_RESHAPES = (torch.reshape, Tensor.reshape, Tensor.view)
