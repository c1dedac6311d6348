"""Whether two networks give the same: their outputs, and what their batch norms read and give.

Outputs alone can hide an error behind a unit that is dead on these inputs. So the kept channels of
what goes into and comes out of every batch norm are compared, too: in front of the activation, and
of the gate, that could hide it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.device import evaluating
from ..norm.precision import without_autocast
from .graph import ChannelGraph, Keep

Inputs = Tensor | tuple[Any, ...]


def difference_of(
    silent: nn.Module,
    slimmed: nn.Module,
    inputs: Inputs,
    tolerance: float = 1e-5,
    layers: Mapping[str, Keep] | None = None,
) -> float:
    """Compare any two networks that should give the same output, as `verify` does.

    Args:
        silent: what the difference is relative to; stays as it is.
        slimmed: the other one; stays as it is.
        inputs: a tensor, or a tuple of arguments.
        tolerance: beyond which float64 decides.
        layers: name of each layer to compare, too → (C,) bool, which channels `slimmed` has left.

    Returns and raises what `verify` does.
    """
    layers = layers or {}
    difference = compared(silent, slimmed, inputs, layers)
    return settled(difference, silent, slimmed, inputs, tolerance, layers)


def settled(
    difference: float,
    silent: nn.Module,
    slimmed: nn.Module,
    inputs: Inputs,
    tolerance: float,
    layers: Mapping[str, Keep],
) -> float:
    """Return the difference in float64 where it exceeds the tolerance, which may be rounding."""
    if difference <= tolerance:
        return difference
    try:
        pair = [_wide(copy.deepcopy(model)) for model in (silent, slimmed)]
        return compared(pair[0], pair[1], _moved(inputs, pair[0]), layers)
    except (RuntimeError, TypeError):  # a forward that insists on its own precision
        return difference


def kept_channels(graph: ChannelGraph, keep: Keep) -> dict[str, Keep]:
    """Say which channels each batch norm is left with, by its name."""
    return {name: keep[atoms] for name, atoms in graph.scales.items()}


def compared(
    silent: nn.Module, slimmed: nn.Module, inputs: Inputs, layers: Mapping[str, Keep]
) -> float:
    """Compare two networks in their own precision."""
    known = [dict(model.named_modules()) for model in (silent, slimmed)]
    layers = {name: kept for name, kept in layers.items() if all(name in each for each in known)}
    with _watched(silent, layers, whole=True) as mine:
        one = _run(silent, inputs)
    with _watched(slimmed, layers, whole=False) as theirs:
        other = _run(slimmed, inputs)
    return max(_difference(one, other), _worst(mine, theirs))


def _run(model: nn.Module, inputs: Inputs) -> Any:
    tensors = dict(_tensors(inputs))
    plain = without_autocast(next(iter(tensors.values()))) if tensors else nullcontext()
    with evaluating(model), plain:  # rounding to 8 bits would be all that is seen
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@contextmanager
def _watched(
    model: nn.Module, layers: Mapping[str, Keep], *, whole: bool
) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Collect, for each call of a layer, two figures a kept channel of what it reads and gives."""
    seen: dict[tuple[str, int], Tensor] = {}

    def watch(name: str, kept: Keep) -> Any:
        channels = torch.from_numpy(kept.nonzero()[0]) if whole else None
        size = len(kept) if whole else int(kept.sum())

        def note(module: nn.Module, args: Any, out: Any) -> None:
            for value in (*args[:1], out):
                if isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == size:
                    seen[name, sum(key[0] == name for key in seen)] = _figures(value, channels)

        return note

    handles = [
        model.get_submodule(name).register_forward_hook(watch(name, kept))
        for name, kept in layers.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _figures(value: Tensor, channels: Tensor | None) -> Tensor:
    """(N, C, …) → (2, C): the mean and the root mean square of each channel."""
    if channels is not None and len(channels) < value.shape[1]:
        value = value.index_select(1, channels.to(value.device))
    flat = value.detach().transpose(0, 1).flatten(1)
    size = torch.linalg.vector_norm(flat, dim=1) / math.sqrt(flat.shape[1])
    return torch.stack([flat.mean(1), size]).cpu()


def _worst(
    mine: Mapping[tuple[str, int], Tensor], theirs: Mapping[tuple[str, int], Tensor]
) -> float:
    """The largest relative difference of layers; one that ran in one network only counts, too."""
    if mine.keys() != theirs.keys():
        return math.inf
    return max((_relative(mine[key], theirs[key]) for key in mine), default=0.0)


def _wide(model: nn.Module) -> nn.Module:
    """In float64, on the CPU where the device has none."""
    first = next(model.parameters(), None)
    return model.cpu().double() if first is not None and first.is_mps else model.double()


def _moved(value: Any, model: nn.Module) -> Any:
    """Inputs in float64, on the CPU where the model went there."""
    first = next(model.parameters(), None)
    if isinstance(value, Tensor):
        value = value.cpu() if first is not None and first.is_cpu else value
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_moved(each, model) for each in value)
    if isinstance(value, dict):
        return {key: _moved(each, model) for key, each in value.items()}
    return value


def _difference(one: Any, other: Any) -> float:
    """The largest relative difference of all tensors in two outputs of one structure."""
    mine, theirs = dict(_tensors(one)), dict(_tensors(other))
    if not mine or mine.keys() != theirs.keys():
        return math.inf
    return max(_relative(mine[path], theirs[path]) for path in mine)


def _relative(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return math.inf
    if one.numel() == 0:
        return 0.0
    one, other = (_plain(each) for each in (one, other))
    if not bool(one.isfinite().all() and other.isfinite().all()):
        return math.inf
    gap, size = float((one - other).abs().max()), float(one.abs().max())
    if gap == 0:
        return 0.0
    return gap / size if size > 0 else math.inf


def _plain(value: Tensor) -> Tensor:
    """In float64 on the CPU; a complex number is two."""
    value = torch.view_as_real(value) if value.is_complex() else value
    return value.detach().cpu().double()


def _tensors(out: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(out, Tensor):
        yield path, out
    elif isinstance(out, Mapping):
        for key, value in out.items():
            yield from _tensors(value, f"{path}.{key}")
    elif isinstance(out, list | tuple):
        for index, value in enumerate(out):
            yield from _tensors(value, f"{path}.{index}")
    elif dataclasses.is_dataclass(out) and not isinstance(out, type):
        yield from _tensors(vars(out), path)
