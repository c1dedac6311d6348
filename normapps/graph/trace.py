"""trace_channels: find a model's channel graph by running it once.

Every aten operation of one forward pass (evaluation mode, real tensors) is seen by a dispatch
mode, and its rule says how channels go on. So any Python code is followed, without tracing it
symbolically; what depends on the input's values is followed for this input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..engine.device import evaluating
from ..errors import InputError
from ..norm.precision import without_autocast
from .assembly import assemble
from .atoms import Axes, Axis, Ledger
from .call import Call
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
    _refuse_wrapped(model)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    leaves = _leaves(arguments)
    plain = without_autocast(leaves[0]) if leaves else nullcontext()
    tracer = _Tracer(model)
    functions = _FunctionWatch(tracer)
    with _random_state(leaves), evaluating(model), plain, tracer.watching(model), functions, tracer:
        try:
            outputs = model(*arguments)
        except Exception as error:
            shapes = ", ".join(str(tuple(each.shape)) for each in leaves)
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"{type(model).__name__} does not run on an input of shape {shapes} ({said[0]});"
                " give inputs that it takes"
            ) from error
    for tensor in _leaves(outputs):
        tracer.keep_output(tensor)
    return assemble(model, tracer.labels, tracer.ledger)


def _random_state(tensors: list[Tensor]) -> AbstractContextManager[None]:
    """Leave the generators as they are, whatever a forward draws."""
    devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.is_cuda})
    return torch.random.fork_rng(devices=devices)


def _refuse_wrapped(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("channels of TorchScript cannot be cut; slim the model it was made of")
    for name, module in model.named_modules():
        said = f"module '{name}'" if name else "the model"
        if hasattr(module, "_orig_mod"):
            raise InputError(f"{said} is made by torch.compile; slim its `_orig_mod`")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise InputError(f"{said} is compiled in place; slim a model that is not")
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            raise InputError(f"{said} is {type(module).__name__}; slim its `module`")


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
        values = _bound(func, args, kwargs or {})
        outputs = _flat(result)
        call = Call(_name(func), values, outputs, self._owner(), self.labels, self.ledger)
        call.held = self._held
        call.sizes, call.given = self._sizes, self._running[-1][1] if self._running else []
        written = _written(func, values)
        if written is None:
            self._label(call, follow(call))
        elif len(written) == 1 and isinstance(written[0], Tensor):
            self._overwrite(call, follow(call)[0], written[0])
        elif written:
            give_up(call)
        return result

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Know which module runs, until the block ends."""
        handles = []
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(self._enter(name)))
                handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

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

    def _enter(self, name: str) -> Any:
        return lambda module, args: self._running.append((name, _leaves(args)))

    def _leave(self, *_: Any) -> None:
        self._running.pop()

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


def _name(func: Any) -> str:
    name: str = func.overloadpacket.__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _bound(func: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, defaults filled in."""
    schema = func._schema.arguments
    values = {each.name: each.default_value for each in schema if each.has_default_value()}
    values.update({each.name: value for each, value in zip(schema, args, strict=False)})
    return values | kwargs


def _written(func: Any, values: dict[str, Any]) -> list[Any] | None:
    """The arguments that an operation writes to; None if it writes to none."""
    found = [
        values.get(each.name)
        for each in func._schema.arguments
        if each.alias_info is not None and each.alias_info.is_write
    ]
    return found or None


def _flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [tensor for each in result for tensor in _flat(each)]
    return []


def _leaves(outputs: Any, depth: int = 8) -> list[Tensor]:
    """Every tensor in a result: of tuples, dicts, and the attributes of other objects."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if depth == 0:
        return []
    if isinstance(outputs, Mapping):
        items: Any = outputs.values()
    elif isinstance(outputs, list | tuple | set):
        items = outputs
    else:
        items = getattr(outputs, "__dict__", {}).values()
    return [tensor for each in items for tensor in _leaves(each, depth - 1)]
