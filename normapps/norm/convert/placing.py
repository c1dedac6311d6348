"""Placing: layers put where others stand, everywhere in a model, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..undo import Undo
from .sites import Site
from .successor import Successor

Plans = Sequence[tuple[Site, Successor]]
"""Sites, and what is to stand at each."""

_INTERNAL = frozenset(vars(nn.Module()))


@torch.no_grad()
def place_(model: nn.Module, plans: Plans, undo: Undo | None = None) -> None:
    """Put each successor at all places of its site.

    Also where a module refers to the old layer by a plain attribute, a list or a dict beside the
    children that torch knows of.

    Args:
        model: the network, or what holds it.
        plans: sites of the network and what is to stand there.
        undo: gets the steps back.
    """
    new = {id(site.module): successor.layer for site, successor in plans}
    if undo is not None:
        for site, successor in plans:
            undo.add(_Back(site.module, successor.layer, model))
    for site, successor in plans:
        for target, value in successor.fills:
            target.copy_(value)
        for parent, key in site.places:
            parent._modules[key] = successor.layer
            if undo is not None:
                undo.add(_Child(parent, key, site.module))
    for module in model.modules():
        for name, value in vars(module).items():
            changed = value if name in _INTERNAL else _renewed(value, new)
            if changed is not value:
                vars(module)[name] = changed
                if undo is not None:
                    undo.add(_Attribute(module, name, value))


def _renewed(value: Any, new: dict[int, nn.Module]) -> Any:
    """A plain attribute's value with the new layers in it; the same object if it has none."""
    if isinstance(value, nn.Module):
        return new.get(id(value), value)
    if isinstance(value, MethodType) and id(value.__self__) in new:
        return getattr(new[id(value.__self__)], value.__name__)
    if type(value) in (list, tuple):
        items = [_renewed(each, new) for each in value]
        same = all(a is b for a, b in zip(items, value, strict=True))
        return value if same else type(value)(items)
    if type(value) is dict:
        pairs = {key: _renewed(each, new) for key, each in value.items()}
        return value if all(pairs[key] is value[key] for key in value) else pairs
    return value


class _Child:
    """Puts a child back."""

    def __init__(self, parent: nn.Module, key: str, child: nn.Module) -> None:
        self.parent, self.key, self.child = parent, key, child

    def __call__(self) -> None:
        self.parent._modules[self.key] = self.child


class _Attribute:
    """Puts a plain attribute back."""

    def __init__(self, module: nn.Module, name: str, value: Any) -> None:
        self.module, self.name, self.value = module, name, value

    def __call__(self) -> None:
        vars(self.module)[self.name] = self.value


class _Back:
    """Gives an old layer back the values it had, where its successor stands now.

    The two share their parameters; the successor may have been trained, moved to another device,
    switched to training or inference.
    """

    def __init__(self, old: nn.Module, new: nn.Module, model: nn.Module) -> None:
        self.old, self.new, self.model = old, new, model
        self.values = [(each, _copy(each), _grad(each)) for each in _tensors(old)]
        self.modes = [(each, each.training) for each in old.modules()]
        self.mode = new.training
        self.place = _place(new) or _place(model)

    @torch.no_grad()
    def __call__(self) -> None:
        place = _place(self.new) or _place(self.model)
        for tensor, value, requires_grad in self.values:
            if place is not None and place != self.place:
                dtype = place[1] if tensor.is_floating_point() else tensor.dtype
                tensor.data = tensor.data.to(place[0], dtype)
            tensor.copy_(value)
            tensor.requires_grad_(requires_grad)
        is_switched = self.new.training != self.mode
        for each, mode in self.modes:
            each.training = self.new.training if is_switched else mode


def _place(module: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    """Where a layer is and in what precision; None if it holds nothing."""
    held = (each for each in _tensors(module) if each.is_floating_point())
    return next(((each.device, each.dtype) for each in held), None)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _grad(tensor: Tensor) -> bool:
    return tensor.requires_grad
