"""Ranges of an ONNX file's tensors, measured by running it on real images.

Needs the extra `deploy`; loads no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..engine.ort import Session, open_session
from ..errors import InputError, unknown
from .layers import layers_of, read_model, tensors_of
from .ranges import METHODS, Histogram, limits_of, range_of

_HELD = 256 * 2**20
"""Bytes of activations that one run may hand over: a big network's at once would fill memory."""


def measure_ranges(
    path: str | os.PathLike[str],
    batches: Iterable[np.ndarray],
    *,
    method: str = "min-max",
    percentile: float = 99.99,
    threads: int | None = None,
) -> dict[str, tuple[float, float]]:
    """Return the (low, high) of every tensor that `write_int8` rounds.

    Batches are run in slices, and every tensor is counted and dropped as soon as it is there, so
    that memory is that of some pictures however many there are. The ranges do not depend on how
    the pictures come in batches, but for float32 sums in another order.

    Args:
        path: the float network, of one input.
        batches: (N, C, H, W) float32 as the network takes them, at least one.
        method, percentile: as `range_of` takes them.
        threads: as `open_session` takes it.

    Raises:
        NormappsError: the extra is not installed.
        InputError: the file is missing, no ONNX or does not run on the batches, there are none, an
            activation is nan or infinite (the line names the tensor), or the method is unknown.
    """
    if method not in METHODS:
        raise unknown("range method", method, METHODS)
    if method == "min-max":
        return _measure_limits(path, batches, threads)
    histograms = measure_histograms(path, batches, threads=threads)
    return {name: range_of(each, method, percentile) for name, each in histograms.items()}


def measure_histograms(
    path: str | os.PathLike[str], batches: Iterable[np.ndarray], *, threads: int | None = None
) -> dict[str, Histogram]:
    """Return the histogram of every tensor that `write_int8` rounds, for ranges of several kinds.

    Arguments and errors are those of `measure_ranges`.
    """
    found: dict[str, Histogram] = {}
    for name, values in _activations(path, batches, threads):
        try:
            found.setdefault(name, Histogram()).add(values)
        except InputError as error:
            raise _named(path, name, error) from error
    return found


def _measure_limits(
    path: str | os.PathLike[str], batches: Iterable[np.ndarray], threads: int | None
) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for name, values in _activations(path, batches, threads):
        try:
            low, high = limits_of(values)
        except InputError as error:
            raise _named(path, name, error) from error
        before = found.get(name, (math.inf, -math.inf))
        found[name] = min(low, before[0]), max(high, before[1])
    return found


def _named(path: str | os.PathLike[str], name: str, error: InputError) -> InputError:
    return InputError(f"{os.fspath(path)}: tensor {name}: {error}")


@dataclass(frozen=True)
class _Part:
    """Some of the tensors, and how many pictures may be run for them at a time."""

    session: Session
    names: tuple[str, ...]
    pictures: int


def _activations(
    path: str | os.PathLike[str], batches: Iterable[np.ndarray], threads: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and values of one tensor after the other, the network's input first."""
    model = read_model(path)
    names = tensors_of(model, [each.name for each in layers_of(model)])
    entry = open_session(path, threads=threads).input_name
    parts = [
        _part(path, model, group, step, threads)
        for group, step in _groups(model, [each for each in names if each != entry])
    ]
    empty = True
    for batch in batches:
        empty = empty and not len(batch)
        if entry in names and len(batch):
            yield entry, batch
        for part in parts:
            for start in range(0, len(batch), part.pictures):
                values = part.session.run(batch[start : start + part.pictures], part.names)
                yield from zip(part.names, values, strict=True)
    if empty:
        raise InputError(f"{os.fspath(path)}: no images to measure ranges on; give at least one")


def _groups(model: Any, names: Sequence[str]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield tensors that one picture's run may hand over at once, and for how many pictures."""
    sizes = _bytes_of(model)
    group: list[str] = []
    held = 0
    for name in names:
        size = sizes.get(name, 0)
        if group and held + size > _HELD:
            yield tuple(group), 1
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield tuple(group), max(1, _HELD // max(held, 1))


def _bytes_of(model: Any) -> dict[str, int]:
    """Return the bytes of one picture's float32 tensors, where the file tells their shape."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        each.name: 4 * math.prod(max(1, size.dim_value) for size in each.type.tensor_type.shape.dim)
        for each in (*graph.value_info, *graph.output)
    }


def _part(
    path: str | os.PathLike[str],
    model: Any,
    names: tuple[str, ...],
    pictures: int,
    threads: int | None,
) -> _Part:
    """Open the network with the tensors as its outputs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    for name in names:
        kind = onnx.TensorProto.FLOAT
        copy.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    session = open_session(copy.SerializeToString(), threads=threads)
    batch = session.input_shape[0] if session.input_shape else None
    return _Part(replace(session, name=os.fspath(path)), names, batch or pictures)
