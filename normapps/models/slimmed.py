"""A network of fewer channels, as what differs from the one it was cut from.

An architecture is code, and its code makes it at full width. So a slimmed network is kept as its
base and its `Edits`: the shapes of the tensors that shrank and the sizes that modules hold as
attributes. `apply_edits_` gives a fresh base these shapes; weights are loaded after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError


@dataclass(frozen=True)
class Edits:
    """What makes a slimmed network of its base; JSON values only.

    Attributes:
        attributes: module name ("" is the model itself) → attribute → its value, such as
            `{"layer1.0.conv1": {"out_channels": 40}}`; only those that differ.
        shapes: name in the state dict → shape; only tensors that differ. A bias that the base has
            not is made.
        indices: name of a buffer outside the state dict → of each dimension the indices that
            stay, or None for all: such a buffer comes from code and is in no file of weights.
    """

    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    indices: Mapping[str, Sequence[Sequence[int] | None]] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return what the builder "slimmed" takes beside its base."""
        return {key: value for key, value in asdict(self).items() if value}


@torch.no_grad()
def apply_edits_(model: nn.Module, edits: Edits) -> None:
    """Give a network the shapes of a slimmed one.

    Each tensor keeps its first indices, and so its dtype, device and initialization (a network to
    train from scratch); a new bias is 0. Tensors that modules share stay shared.

    Args:
        model: freshly built, of the architecture that the edits were made for; changed in place.
        edits: of `slim_model`.

    Raises:
        InputError: a module, attribute or tensor is not there or does not fit; the model may
            have changed in part.
    """
    done: dict[int, Tensor] = {}
    for name, shape in edits.shapes.items():
        _narrow(model, name, [int(size) for size in shape], done)
    for name, kept in edits.indices.items():
        owner, leaf = _owner(model, name)
        old = getattr(owner, leaf, None)
        if not isinstance(old, Tensor) or len(kept) != old.dim():
            raise InputError(f"slimmed model: no buffer '{name}' of {len(kept)} dimensions")
        setattr(owner, leaf, cut(old, kept))
    for name, values in edits.attributes.items():
        set_attributes_(_module(model, name), name, values)


def set_attributes_(module: nn.Module, name: str, values: Mapping[str, Any]) -> None:
    """Set attributes of a module; a list becomes a tuple where there was one.

    Args:
        module: changed in place.
        name: of the module, for the message.
        values: attribute → JSON value of the kind that is there.

    Raises:
        InputError: there is no such attribute, or it holds another kind of value.
    """
    for key, value in values.items():
        old = getattr(module, key, None)
        if isinstance(old, bool) or not isinstance(old, int | Sequence):
            raise InputError(f"slimmed model: module '{name}' holds no size in '{key}'")
        if isinstance(old, int) is not isinstance(value, int):
            raise InputError(f"slimmed model: '{name}.{key}' is {old!r}; {value!r} is no such size")
        setattr(module, key, tuple(value) if isinstance(old, tuple) else value)


def cut(tensor: Tensor, kept: Sequence[Sequence[int] | Tensor | None]) -> Tensor:
    """Return the entries of a tensor that stay, in memory of their own.

    Args:
        tensor: of any shape; a parameter gives a parameter.
        kept: of each dimension the indices that stay, or None for all.
    """
    value = tensor.detach()
    for dim, indices in enumerate(kept):
        if indices is not None:
            index = torch.as_tensor(indices, dtype=torch.int64, device=value.device)
            value = value.index_select(dim, index)
    return like(tensor, value)


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """Return a value as what `tensor` is: a parameter, with or without gradient, or a buffer."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value


def _narrow(model: nn.Module, name: str, shape: list[int], done: dict[int, Tensor]) -> None:
    owner, leaf = _owner(model, name)
    old = getattr(owner, leaf, None)
    if old is None and leaf == "bias" and len(shape) == 1:
        weight = getattr(owner, "weight", torch.empty(0))
        owner.register_parameter("bias", nn.Parameter(weight.new_zeros(shape)))
        return
    if not isinstance(old, Tensor):
        raise InputError(f"slimmed model: no tensor '{name}' in {type(model).__name__}")
    if list(old.shape) == shape:  # a module of two names, seen under the first
        return
    if len(shape) != old.dim() or any(n > m for n, m in zip(shape, old.shape, strict=True)):
        raise InputError(f"slimmed model: '{name}' is {tuple(old.shape)}, and not {tuple(shape)}")
    if id(old) not in done:
        first = old.detach()[tuple(slice(size) for size in shape)]
        done[id(old)] = like(old, first.clone(memory_format=torch.contiguous_format))
    setattr(owner, leaf, done[id(old)])


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return _module(model, path), leaf


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise InputError(
            f"slimmed model: no module '{name}' in {type(model).__name__}; was it made of another"
            " architecture, or by another version of timm?"
        ) from error
