"""trace_flow: run a model once and keep who made which tensor, who reads it, and in which module.

Where `trace_channels` follows channels by a rule an operation, this keeps the operations
themselves, so that they can be asked about, and run again on other numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .dispatch import bound, flat, leaves, name_of, run_under, watching, written
from .labels import named


@dataclass(frozen=True)
class Value:
    """A tensor as it was at one time: what is written in place becomes another value."""

    number: int


@dataclass(frozen=True, eq=False)
class Op:
    """One aten operation that ran.

    Attributes:
        index: its place in `Flow.ops`.
        name: without overload and trailing underscore: "add".
        owner: name of the innermost module that ran it; "" is the model.
        arguments: by the names of its schema; tensors are `Value`s.
        reads, gives: the values among arguments and results, in order.
        parameters: state-dict names of parameters and buffers that it reads themselves.
    """

    index: int
    name: str
    owner: str
    arguments: Mapping[str, Any]
    reads: tuple[Value, ...]
    gives: tuple[Value, ...]
    parameters: tuple[str, ...]
    _function: Any
    _given: tuple[Any, Mapping[str, Any]]

    def run(self, known: Mapping[Value, Tensor]) -> list[Tensor]:
        """Run the operation again on other tensors; returns the tensors of its result.

        Raises:
            KeyError: `known` lacks a value that it reads.
            Exception: whatever the operation raises.
        """
        args, kwargs = _filled(self._given, known)
        return flat(self._function(*args, **kwargs))


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """One call of a module: its name, the values it took and gave, and the operations it ran."""

    name: str
    takes: tuple[Value, ...]
    gives: tuple[Value, ...]
    ops: range


@dataclass(frozen=True, eq=False)
class Layout:
    """How a value lay in memory: its shape and strides."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(eq=False)
class Flow:
    """What one forward pass computed.

    Attributes:
        ops: in the order they ran.
        calls: of modules, in the order they ended.
        outputs: the values that the model returned.
        layouts: of every value.
        names: value of each parameter and buffer that was read, by state-dict name.
    """

    ops: list[Op] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    outputs: tuple[Value, ...] = ()
    layouts: dict[Value, Layout] = field(default_factory=dict)
    names: dict[str, Value] = field(default_factory=dict)
    _makers: dict[Value, Op] = field(default_factory=dict)
    _readers: dict[Value, list[Op]] = field(default_factory=lambda: defaultdict(list))
    _by_name: dict[str, list[ModuleCall]] = field(default_factory=lambda: defaultdict(list))

    def maker(self, value: Value) -> Op | None:
        """Return the operation that gave a value; None for inputs, parameters and constants."""
        return self._makers.get(value)

    def readers(self, value: Value) -> list[Op]:
        """Return the operations that read a value, each once."""
        return self._readers.get(value, [])

    def calls_of(self, name: str) -> list[ModuleCall]:
        """Return the calls of a module, by its name in `named_modules`."""
        return self._by_name.get(name, [])

    def readers_of(self, parameter: str) -> list[Op]:
        """Return the operations that read a parameter or buffer itself, by its state-dict name."""
        value = self.names.get(parameter)
        return [] if value is None else self.readers(value)

    def add_op(self, op: Op) -> None:
        """Note an operation that ran."""
        self.ops.append(op)
        for value in dict.fromkeys(op.reads):
            self._readers[value].append(op)
        for value in op.gives:
            self._makers[value] = op

    def add_call(self, call: ModuleCall) -> None:
        """Note a module's call that ended."""
        self.calls.append(call)
        self._by_name[call.name].append(call)


def trace_flow(model: nn.Module, inputs: Tensor | tuple[Any, ...]) -> Flow:
    """Run a model once and return what it computed, operation by operation.

    The model is run in evaluation mode without gradients and autocast, in its own precision, and
    comes out as it went in. All tensors of the pass are held until it ends.

    Args:
        model: any module.
        inputs: what `model(*inputs)` takes.

    Raises:
        InputError: the model does not run on these inputs.
    """
    recorder = _Recorder(model)
    outputs = run_under(model, inputs, watching(model, recorder.enter, recorder.leave), recorder)
    recorder.flow.outputs = recorder.values(leaves(outputs))
    return recorder.flow


class _Recorder(TorchDispatchMode):
    """Notes every operation that runs under it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = Flow()
        self._names: dict[int, list[str]] = defaultdict(list)
        for name, tensor in named(model):
            self._names[id(tensor)].append(name)
        self._values: dict[int, Value] = {}
        self._held: list[Tensor] = []  # alive: an id, and an address, stay one tensor's
        self._memory: dict[int, list[Tensor]] = defaultdict(list)
        self._count = 0
        self._running: list[tuple[str, tuple[Value, ...], int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = (args, kwargs or {})
        result = func(*args, **given[1])
        named_arguments = bound(func, *given)
        read = [each for each in leaves(list(named_arguments.values())) if isinstance(each, Tensor)]
        values = self.values(read)
        names = tuple(name for each in read for name in self._names.get(id(each), ()))
        noted = _replaced(named_arguments, self._value), _replaced(given, self._value)
        gives = self._given(flat(result), flat(written(func, named_arguments) or []))
        owner = self._running[-1][0] if self._running else ""
        op = (len(self.flow.ops), name_of(func), owner, noted[0], values, gives, names)
        self.flow.add_op(Op(*op, func, noted[1]))
        return result

    def values(self, tensors: list[Tensor]) -> tuple[Value, ...]:
        """Return the values of tensors, as they are now."""
        return tuple(map(self._value, tensors))

    def enter(self, name: str, module: nn.Module) -> Callable[..., None]:
        """Return the hook in front of a module."""

        def hook(module: nn.Module, args: Any) -> None:
            self._running.append((name, self.values(leaves(args)), len(self.flow.ops)))

        return hook

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Note a module's call that ends."""
        name, takes, start = self._running.pop()
        ops = range(start, len(self.flow.ops))
        self.flow.add_call(ModuleCall(name, takes, self.values(leaves(output)), ops))

    def _given(self, results: list[Tensor], written: list[Tensor]) -> tuple[Value, ...]:
        """Values of what is new: results, and all tensors in a memory that was written to."""
        fresh = [each for each in results if id(each) not in self._values]
        changed = {id(each): each for one in written for each in self._sharing(one)}
        return tuple(self._renewed(each) for each in [*fresh, *changed.values()])

    def _sharing(self, tensor: Tensor) -> list[Tensor]:
        self._value(tensor)
        place = _place(tensor)
        return self._memory[place] if place else [tensor]

    def _value(self, tensor: Tensor) -> Value:
        found = self._values.get(id(tensor))
        return self._renewed(tensor) if found is None else found

    def _renewed(self, tensor: Tensor) -> Value:
        if id(tensor) not in self._values:
            self._held.append(tensor)
            if place := _place(tensor):
                self._memory[place].append(tensor)
        self._count += 1
        value = self._values[id(tensor)] = Value(self._count)
        self.flow.layouts[value] = Layout(tuple(tensor.shape), _strides(tensor))
        for name in self._names.get(id(tensor), ()):
            self.flow.names.setdefault(name, value)
        return value


def _place(tensor: Tensor) -> int:
    """Where a tensor's memory is; 0 where it has none of its own."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return 0
    return tensor.untyped_storage().data_ptr()


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.stride()) if tensor.layout is torch.strided else ()


def _replaced(item: Any, value: Any) -> Any:
    """Arguments with values in place of tensors."""
    if isinstance(item, Tensor):
        return value(item)
    if isinstance(item, dict):
        return {key: _replaced(each, value) for key, each in item.items()}
    if isinstance(item, list | tuple):
        return type(item)(_replaced(each, value) for each in item)
    return item


def _filled(item: Any, known: Mapping[Value, Tensor]) -> Any:
    """Arguments with tensors in place of values."""
    if isinstance(item, Value):
        return known[item]
    if isinstance(item, dict):
        return {key: _filled(each, known) for key, each in item.items()}
    if isinstance(item, list | tuple):
        return type(item)(_filled(each, known) for each in item)
    return item
