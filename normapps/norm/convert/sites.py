"""Sites: the norm layers of any model, whoever's they are, and how to read them.

Layers of torch, timm and torchvision are known by their qualified class name, so that neither
timm nor torchvision is needed to know them. A class that only derives from one of them may do
anything in its forward pass; it is refused by name rather than guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from ..layers.base import NormLayer
from ..registry import NORMS
from .origin import origin_of

_TORCH, _TIMM = "torch.nn.modules", "timm.layers"
_ACT, _META = f"{_TIMM}.norm_act", "timm.models.metaformer"

_CLASSES: dict[tuple[str, str], tuple[str, ...]] = {
    ("batch", "1d"): (f"{_TORCH}.batchnorm.BatchNorm1d",),
    ("batch", "2d"): (
        f"{_TORCH}.batchnorm.BatchNorm2d",
        f"{_ACT}.BatchNormAct2d",
        f"{_ACT}.FrozenBatchNormAct2d",
        f"{_TIMM}.split_batchnorm.SplitBatchNorm2d",
        "torchvision.ops.misc.FrozenBatchNorm2d",
    ),
    ("batch", "3d"): (f"{_TORCH}.batchnorm.BatchNorm3d",),
    ("batch", "any"): (f"{_TORCH}.batchnorm.SyncBatchNorm", f"{_ACT}.SyncBatchNormAct"),
    ("group", "any"): (
        f"{_TORCH}.normalization.GroupNorm",
        *(f"{_TIMM}.norm.{name}" for name in ("GroupNorm", "GroupNorm1")),
        *(f"{_ACT}.{name}" for name in ("GroupNormAct", "GroupNorm1Act")),
        f"{_META}.GroupNorm1NoBias",
    ),
    ("layer", "tokens"): (
        f"{_TORCH}.normalization.LayerNorm",
        *(f"{_TIMM}.norm.{name}" for name in ("LayerNorm", "LayerNormFp32")),
        *(f"{_ACT}.{name}" for name in ("LayerNormAct", "LayerNormActFp32")),
        f"{_META}.LayerNormNoBias",
    ),
    ("position", "2d"): (
        *(f"{_TIMM}.norm.LayerNorm{name}" for name in ("2d", "2dFp32", "Exp2d")),
        *(f"{_ACT}.{name}" for name in ("LayerNormAct2d", "LayerNormAct2dFp32")),
        f"{_META}.LayerNorm2dNoBias",
        "torchvision.models.convnext.LayerNorm2d",
    ),
    ("rms", "tokens"): (
        f"{_TORCH}.normalization.RMSNorm",
        *(f"{_TIMM}.norm.{name}" for name in ("RmsNorm", "RmsNormFp32")),
        *(f"{_ACT}.{name}" for name in ("RmsNormAct", "RmsNormActFp32")),
    ),
    ("rms", "2d"): (
        *(f"{_TIMM}.norm.{name}" for name in ("RmsNorm2d", "RmsNorm2dFp32")),
        *(f"{_ACT}.{name}" for name in ("RmsNormAct2d", "RmsNormAct2dFp32")),
    ),
    ("instance", "1d"): (f"{_TORCH}.instancenorm.InstanceNorm1d",),
    ("instance", "2d"): (f"{_TORCH}.instancenorm.InstanceNorm2d",),
    ("instance", "3d"): (f"{_TORCH}.instancenorm.InstanceNorm3d",),
}

KNOWN = {name: place for place, names in _CLASSES.items() for name in names}
"""Qualified class name → (name of the layer of ours that computes the same, layout)."""

KINDS = {"batch": "batch", "layer": "layer", "position": "layer", "group": "group"}
KINDS |= {"instance": "instance", "rms": "rms"}
"""Name of a layer of ours → the kind of layers it belongs to."""

_BASES = {_BatchNorm: "batch", _InstanceNorm: "instance", nn.LayerNorm: "layer"}
_BASES |= {nn.GroupNorm: "group", nn.RMSNorm: "rms"}

_PARAMETERS = {"weight", "bias"}
_BUFFERS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@dataclass
class Site:
    """A norm layer in a model.

    Attributes:
        module: the layer, which stands at each of `names`.
        names: the first is the one that `named_modules` gives.
        kinds: the kinds that it belongs to: its own, and that of the layer it came from.
        norm: the registry name of the layer of ours that it is or that computes the same; None
            where the layer cannot be read, and then `refusal` says why.
        layout: see `layers.base.LAYOUTS`.
        num_features: channels C.
        is_frozen: normalizes with fixed statistics in training too.
        is_ours: is a layer of ours.
    """

    module: nn.Module
    names: list[str]
    kinds: frozenset[str]
    norm: str | None = None
    layout: str = "any"
    num_features: int = 0
    is_frozen: bool = False
    is_ours: bool = False
    refusal: str = ""
    places: list[tuple[nn.Module, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The first name, for messages; the root has none of its own."""
        return self.names[0] or "the model itself"

    def tensor(self, key: str) -> Tensor | None:
        """Return a parameter or buffer of the layer's own, or None."""
        found = self.module._parameters.get(key)
        return self.module._buffers.get(key) if found is None else found


def find_sites(model: nn.Module) -> list[Site]:
    """Return the norm layers of a model in the order of `named_modules`, each layer once.

    What stands inside a norm layer (the auxiliary layers of `SplitBatchNorm2d`, the parts of a
    layer of ours) belongs to it and is no site.
    """
    sites: dict[int, Site] = {}
    for name, module, parent in _walk(model):
        site = sites.get(id(module)) or read(module)
        if site is None:
            continue
        sites[id(module)] = site
        site.names.append(name)
        place = (parent, name.rpartition(".")[2])
        if parent is not None and not any(_same(place, each) for each in site.places):
            site.places.append((parent, place[1]))
    return list(sites.values())


def read(module: nn.Module) -> Site | None:
    """Return the site of a module, still without names, or None if it is no norm layer."""
    if isinstance(module, NormLayer):
        return _of_ours(module)
    known = KNOWN.get(qualified(type(module)))
    kind = KINDS[known[0]] if known else _derived_kind(module)
    if kind is None:
        return None
    refusal = _refusal(module, known is not None)
    if known is None or refusal:
        return Site(module, [], frozenset((kind,)), refusal=refusal)
    frozen = "Frozen" in type(module).__name__
    return Site(module, [], frozenset((kind,)), *known, _channels(module), frozen)


def norm_name(layer: NormLayer) -> str | None:
    """Return a layer's name in the registry; None if no class of its is registered."""
    names = {kind: name for name, kind in NORMS.items()}
    return next((names[kind] for kind in type(layer).__mro__ if kind in names), None)


def class_name(layer: nn.Module) -> str:
    """Return a layer's class with its package, such as `timm.BatchNormAct2d`."""
    kind = type(layer)
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"


def qualified(kind: type) -> str:
    """Return a class's module and name."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _walk(root: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
    """Every way to every module, (name, module, parent), not going into norm layers."""
    waiting: list[tuple[str, nn.Module, nn.Module | None]] = [("", root, None)]
    while waiting:
        name, module, parent = waiting.pop()
        yield name, module, parent
        if read(module) is None:
            below = [(key, child) for key, child in module._modules.items() if child is not None]
            prefix = f"{name}." if name else ""
            waiting += [(prefix + key, child, module) for key, child in reversed(below)]


def _same(one: tuple[nn.Module | None, str], other: tuple[nn.Module, str]) -> bool:
    return one[0] is other[0] and one[1] == other[1]


def _of_ours(layer: NormLayer) -> Site:
    name, origin = norm_name(layer), origin_of(layer)
    if name is None:
        why = "is not in the registry; add it to NORMS"
        return Site(layer, [], frozenset(), is_ours=True, refusal=why)
    kinds = {KINDS.get(name, name), name}
    if origin is not None:
        kinds.add(KINDS[origin.norm])
    frozen = bool(getattr(layer, "frozen", False))
    place = (name, layer.layout, layer.num_features, frozen, True, _replaced(layer))
    return Site(layer, [], frozenset(kinds), *place)


def _derived_kind(module: nn.Module) -> str | None:
    """The kind of a class that is not known but derives from a known one, or looks like one."""
    if isinstance(module, torch.jit.ScriptModule):
        short = {name.rpartition(".")[2]: place[0] for name, place in KNOWN.items()}
        norm = short.get(str(getattr(module, "original_name", "")))
        return None if norm is None else KINDS[norm]
    for base, kind in _BASES.items():
        if isinstance(module, base):
            return kind
    for base in type(module).__mro__:
        if qualified(base) in KNOWN:
            return KINDS[KNOWN[qualified(base)][0]]
    return "batch" if {"running_mean", "running_var"} <= module._buffers.keys() else None


def _refusal(module: nn.Module, is_known: bool) -> str:
    """Why a module cannot be read, or nothing."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled by TorchScript; convert the model before scripting it"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "does not know its channels yet; run one batch through the model first"
    if parametrize.is_parametrized(module):
        return "is parametrized; remove_parametrizations first, or leave it as it is"
    if not is_known:
        return "is not known here, and a guess could change what it computes"
    return _replaced(module) or _own_state(module)


def _replaced(module: nn.Module) -> str:
    return "has a forward of its own put in its place" if "forward" in vars(module) else ""


def _own_state(module: nn.Module) -> str:
    more = [*(module._parameters.keys() - _PARAMETERS), *(module._buffers.keys() - _BUFFERS)]
    if more:
        return f"has {', '.join(sorted(more))}, which would be lost"
    if isinstance(module, _InstanceNorm) and module.track_running_stats:
        return "tracks running statistics, which no instance norm of ours does"
    shape: Sequence[int] = getattr(module, "normalized_shape", (1,))
    if len(shape) != 1:
        return f"normalizes over {len(shape)} axes {tuple(shape)}, not over channels alone"
    return ""


def _channels(module: Any) -> int:
    for name in ("num_features", "num_channels"):
        if hasattr(module, name):
            return int(getattr(module, name))
    if hasattr(module, "normalized_shape"):
        return int(module.normalized_shape[0])
    return int(module.running_mean.shape[0])
