"""Cutting channels out of a network: a copy whose tensors lack them, and what describes it.

Three things change: the tensors, the sizes that layers keep of themselves (`in_channels`, `groups`,
`num_features`), and the sizes by which a module's own forward splits or slices an activation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..errors import InputError
from ..models.slimmed import Edits, cut, set_attributes_
from .graph import Atoms, ChannelGraph, Cut, Keep
from .sizes import attributes_read, roles

Sizes = dict[str, dict[str, Any]]

_OWN_SIZES = (
    *("num_features", "num_channels", "channels", "normalized_shape", "dim", "features"),
    *("in_channels", "out_channels", "in_features", "out_features", "embed_dim", "groups"),
)
"""Attributes in which a layer keeps a size of its own tensors."""


def slim_model(model: nn.Module, graph: ChannelGraph, keep: Keep) -> tuple[nn.Module, Edits]:
    """Copy a network without the channels that go.

    The copy shares no memory with the model; tensors that modules of the model share, those of the
    copy share too. Training flags and hooks are copied as they are.

    Args:
        model: stays as it is.
        graph: of this model.
        keep: (count,) bool, True for atoms that stay.

    Returns:
        The slimmed network, and the edits by which a fresh model becomes its equal.

    Raises:
        InputError: a layer would be left without a channel, the graph is of another model, or an
            attribute serves two splits that no longer agree.
    """
    tensors = named_tensors(model)
    kept = {name: _kept(name, tensors, graph, keep) for name in graph.slots}
    kept = {name: each for name, each in kept.items() if any(i is not None for i in each)}
    memo = _cut_once(tensors, kept)
    attributes = _merged(
        _layer_sizes(model, tensors, memo, _groups(graph, keep)),
        _split_sizes(model, graph.cuts, keep),
    )
    slim = copy.deepcopy(model, {**memo})  # what is in the memo is not copied
    for name, values in attributes.items():
        set_attributes_(slim.get_submodule(name), name, values)
    return slim, _edits(model, tensors, kept, memo, attributes)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers under every name that they have, the state dict's among them.

    Buffers that the state dict leaves out are there too.
    """
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return found | dict(model.named_buffers(remove_duplicate=False))


def _kept(
    name: str, tensors: Mapping[str, Tensor], graph: ChannelGraph, keep: Keep
) -> list[Tensor | None]:
    """Say for each dimension which indices stay; None for all."""
    tensor = tensors.get(name)
    slots = graph.slots[name]
    if tensor is None or len(slots) != tensor.dim():
        raise InputError(f"the channel graph is of another model: it knows a tensor '{name}'")
    return [_indices(name, size, s, keep) for size, s in zip(tensor.shape, slots, strict=True)]


def _indices(name: str, size: int, atoms: Atoms | None, keep: Keep) -> Tensor | None:
    if atoms is None:
        return None
    if len(atoms) != size:
        raise InputError(f"the channel graph is of another model: '{name}' has {size} channels")
    stays = keep[atoms]
    if stays.all():
        return None
    if not stays.any():
        raise InputError(f"'{name}' would lose all of its {size} channels; keep at least one")
    return torch.from_numpy(np.flatnonzero(stays))


def _cut_once(
    tensors: Mapping[str, Tensor], kept: Mapping[str, list[Tensor | None]]
) -> dict[int, Tensor]:
    """Cut each tensor, whatever the number of its names; by the identity of the old one."""
    memo: dict[int, Tensor] = {}
    for name, indices in kept.items():
        old = tensors[name]
        if id(old) not in memo:
            memo[id(old)] = cut(old, indices)
    return memo


def _edits(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    kept: Mapping[str, list[Tensor | None]],
    memo: Mapping[int, Tensor],
    attributes: Sizes,
) -> Edits:
    saved = model.state_dict(keep_vars=True)
    shapes = {n: list(memo[id(t)].shape) for n, t in saved.items() if id(t) in memo}
    indices = {
        name: [None if each is None else each.tolist() for each in indices]
        for name, indices in kept.items()
        if name not in saved and isinstance(tensors[name], Tensor)
    }
    return Edits(attributes, shapes, indices)


def _merged(*parts: Sizes) -> Sizes:
    """Join sizes that layers and splits ask for; raises where they contradict each other."""
    whole: Sizes = {}
    for part in parts:
        for name, values in part.items():
            mine = whole.setdefault(name, {})
            for key, value in values.items():
                if mine.setdefault(key, value) != value:
                    raise _conflict(name, key, {mine[key], value})
    return whole


def _conflict(name: str, key: str, values: Iterable[Any]) -> InputError:
    wanted = " and ".join(sorted({str(value) for value in values}))
    return InputError(f"module '{name}': its '{key}' would have to be {wanted} at once")


# Layers


def _groups(graph: ChannelGraph, keep: Keep) -> dict[str, int]:
    """Groups that each convolution, by its weight's name, is left with; of those that ran."""
    return {cost.weight: cost.kept_groups(keep) for cost in graph.costs if cost.weight}


def _layer_sizes(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    memo: Mapping[int, Tensor],
    groups: Mapping[str, int],
) -> Sizes:
    """Sizes that layers keep of their own tensors, where these shrank."""
    touched: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for name, old in tensors.items():
        if id(old) in memo:
            path, _, leaf = name.rpartition(".")
            touched.setdefault(path, {})[leaf] = (old, memo[id(old)])
    found = {}
    for name, pairs in touched.items():
        left = groups.get(f"{name}.weight" if name else "weight")
        found[name] = _sizes(model.get_submodule(name), pairs, left)
    return {name: values for name, values in found.items() if values}


def _sizes(
    layer: nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]], groups: int | None
) -> dict[str, Any]:
    weight = pairs.get("weight")
    if isinstance(layer, _ConvNd):
        return _of_convolution(layer, *weight, groups) if weight else {}
    if isinstance(layer, nn.Linear):
        return _of_linear(layer, weight[1]) if weight else {}
    changed = _changes(pairs.values())
    values: dict[str, Any] = {}
    for key in _OWN_SIZES:
        old = vars(layer).get(key)
        if isinstance(old, int) and not isinstance(old, bool) and old in changed:
            values[key] = changed[old]
        elif isinstance(old, tuple) and len(old) == 1 and old[0] in changed:
            values[key] = [changed[old[0]]]
    return values


def _changes(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[int, int]:
    """Old size → new one; a size that shrank in two ways is left out."""
    every = {(n, m) for old, new in pairs for n, m in zip(old.shape, new.shape, strict=True)}
    news: dict[int, set[int]] = {}
    for old_size, new_size in every:
        news.setdefault(old_size, set()).add(new_size)
    unique = {n: m.pop() for n, m in news.items() if len(m) == 1}
    return {n: m for n, m in unique.items() if n != m}


def _of_convolution(layer: _ConvNd, old: Tensor, new: Tensor, groups: int | None) -> dict[str, Any]:
    if groups is None:  # it never ran: depthwise loses whole groups, others equally of each
        depthwise = layer.groups > 1 and old.shape[1] == 1
        groups = layer.groups * new.shape[0] // old.shape[0] if depthwise else layer.groups
    sides = (new.shape[0], new.shape[1] * groups)
    in_channels, out_channels = sides if layer.transposed else sides[::-1]
    values = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}
    return {key: value for key, value in values.items() if value != getattr(layer, key)}


def _of_linear(layer: nn.Linear, new: Tensor) -> dict[str, Any]:
    values = {"out_features": new.shape[0], "in_features": new.shape[1]}
    return {key: value for key, value in values.items() if value != getattr(layer, key)}


# Splits


def _split_sizes(model: nn.Module, cuts: Iterable[Cut], keep: Keep) -> Sizes:
    """Sizes by which forwards split, slice or view, where they hold them in attributes."""
    cuts = list(cuts)
    read = attributes_read(model, cuts)
    wanted: dict[tuple[str, str], list[Any]] = {}
    for each in cuts:
        for key, old in read[each.owner].items():
            for part in roles(old, each):
                now = [int(keep[atoms].sum()) for atoms in part]
                value = now[0] if isinstance(old, int) else now
                wanted.setdefault((each.owner, key), []).append(value)
    found: Sizes = {}
    for (name, key), values in wanted.items():
        if any(value != values[0] for value in values):
            raise _conflict(name, key, values)
        old = read[name][key]
        if values[0] != (list(old) if isinstance(old, list | tuple) else old):
            found.setdefault(name, {})[key] = values[0]
    return found
