"""CUDA graphs: what a function launched once is replayed, without the time to launch it.

A small network at 512² is done by a GPU sooner than Python has asked for its fifty kernels. A graph
asks for all at once. It is bound to its shapes and to the memory that it was recorded on: inputs
are copied in, results copied out, and weights must stay where they are.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Nested = Any
"""A tensor, or lists and tuples of such."""

Function = Callable[..., Nested]

Record = Callable[[Callable[[], Nested]], Callable[[], Nested]]
"""Runs a function and returns what runs it again, its result in the same memory each time."""

_LARGEST = 64 << 20
"""Bytes of inputs beyond which a function runs as it is: its kernels take longer than launches."""


def capture_(
    network: nn.Module, names: Sequence[str], device: torch.device, *, compile: bool = False
) -> None:
    """Have a network's methods replayed as CUDA graphs on a CUDA device; elsewhere do nothing.

    Args:
        network: on the device, its weights not to be moved or replaced afterwards.
        names: methods that are functions of tensors alone, without asking for their values.
        device: where the network lies.
        compile: compile them first, which takes a minute a size (`torch.compile`).

    Warns:
        UserWarning: `compile` was asked for without a CUDA device or a method. Later, once a
            method: what cannot be compiled or recorded runs as it is.
    """
    if device.type != "cuda" or not names:
        if compile:
            where = f"a CUDA device, not {device.type}" if names else "adain-tiny"
            warnings.warn(f"--compile: is for {where}; goes on uncompiled", stacklevel=2)
        return
    record = CudaRecorder(device)
    for name in names:
        function: Function = getattr(network, name)
        if compile:
            function = Compiled(function)
        setattr(network, name, Captured(function, record, at_once=compile))


class Captured:
    """A function of tensors that is recorded for each shape that comes again.

    Runs as it is where gradients are wanted, inputs are over 64 MiB, or recording has failed.
    For one CUDA stream; threads take turns.

    Args:
        function: of nested tensors, to nested tensors; neither may it ask for a tensor's values.
        record: makes a recording.
        most: shapes that are remembered; the one that was not wanted for longest goes.
        at_once: record a shape when it first comes, not when it comes again.
    """

    def __init__(
        self, function: Function, record: Record, most: int = 8, *, at_once: bool = False
    ) -> None:
        self.function = function
        self._at_once = at_once
        self._record: Record | None = record
        self._most = most
        self._known: OrderedDict[tuple[Any, ...], _Recording | None] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *given: Nested) -> Nested:
        """Return what the function does, in memory of its own."""
        tensors = list(_tensors(given))
        if torch.is_grad_enabled() or sum(x.nbytes for x in tensors) > _LARGEST:
            return self.function(*given)
        with self._lock:
            recording = self._find(given, tensors)
            if recording is not None:
                return recording.run(tensors)
        return self.function(*given)

    def _find(self, given: tuple[Nested, ...], tensors: Sequence[Tensor]) -> _Recording | None:
        if self._record is None:
            return None
        key = (_shape_of(given), *((x.shape, x.stride(), x.dtype, x.device) for x in tensors))
        is_due = self._at_once or key in self._known
        recording = self._known.pop(key, None)
        if recording is None and is_due:
            recording = self._recorded(given, self._record)
        if self._record is not None:
            self._known[key] = recording
            if len(self._known) > self._most:
                self._known.popitem(last=False)
        return recording

    def _recorded(self, given: tuple[Nested, ...], record: Record) -> _Recording | None:
        try:
            return _Recording(self.function, given, record)
        except RuntimeError as error:
            self._record = None
            self._known.clear()
            _say("CUDA graphs", error, "runs without them")
            return None


class Compiled:
    """A function compiled at its first call, or as it is if that fails.

    Args:
        function: of tensors.
        compiler: compiles it; `torch.compile` by default.
    """

    def __init__(self, function: Function, compiler: Function | None = None) -> None:
        self._plain = function
        self._compiled: Function | None = (compiler or torch.compile)(function)

    def __call__(self, *given: Nested) -> Nested:
        """Return what the function does."""
        if self._compiled is None:
            return self._plain(*given)
        try:
            return self._compiled(*given)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler raises, the function runs without it
            self._compiled = None
            _say("--compile", error, "goes on uncompiled")
            return self._plain(*given)


class CudaRecorder:
    """Records CUDA graphs on a device; those of one recorder share their memory.

    What is recorded with it must be run one after the other, and results be copied before the next.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, function: Callable[[], Nested]) -> Callable[[], Nested]:
        """Run a function aside, as torch asks for, then record it."""
        with torch.cuda.device(self._device):
            self._warm_up(function)
            graph = torch.cuda.CUDAGraph()
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # other threads, such as those that read pictures, may allocate meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = function()

        def replay() -> Nested:
            graph.replay()
            return result

        return replay

    def _warm_up(self, function: Callable[[], Nested]) -> None:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(2):
                function()
        here.wait_stream(aside)


class _Recording:
    """A function recorded on inputs of its own."""

    def __init__(self, function: Function, given: tuple[Nested, ...], record: Record) -> None:
        with _plain_tensors():
            self._inputs = [x.clone() for x in _tensors(given)]
            arguments = _filled(given, iter(self._inputs))
            self._replay = record(lambda: function(*arguments))

    def run(self, tensors: Sequence[Tensor]) -> Nested:
        with _plain_tensors():
            for own, x in zip(self._inputs, tensors, strict=True):
                own.copy_(x)
            result = self._replay()
            return _filled(result, (x.clone() for x in _tensors(result)))


@contextlib.contextmanager
def _plain_tensors() -> Iterator[None]:
    """No gradients, and tensors that may be written to within inference mode and without."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _tensors(nested: Nested) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
        return
    for part in nested:
        yield from _tensors(part)


def _filled(nested: Nested, tensors: Iterator[Tensor]) -> Nested:
    """The same lists and tuples with other tensors."""
    if isinstance(nested, Tensor):
        return next(tensors)
    return type(nested)(_filled(part, tensors) for part in nested)


def _shape_of(nested: Nested) -> Nested:
    return None if isinstance(nested, Tensor) else tuple(_shape_of(part) for part in nested)


def _say(what: str, error: Exception, then: str) -> None:
    reason = next(iter(str(error).strip().splitlines()), "")
    warnings.warn(f"{what}: cannot ({type(error).__name__}: {reason}); {then}", stacklevel=4)
