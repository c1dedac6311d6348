"""Successor: the layer of ours that takes a norm layer's place, with all that was the other's."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..layers.base import NormLayer
from ..layers.batch import BatchNorm
from ..layers.population import PopulationNorm
from ..registry import create_norm, norm_class, norm_options
from .origin import Origin, origin_of, set_origin
from .sites import Site

_COUNTER = "num_batches_tracked"
_SAME_EPS = ("standardize", "scale")


@dataclass
class Successor:
    """A new layer, ready to stand at a site.

    Attributes:
        layer: the new layer; it holds the old one's own parameters, buffers, activation and
            dropout, so both are the same layer until one of them goes.
        fills: values to be written into parameters that both layers hold.
        notes: what could not be carried over, for the report.
    """

    layer: nn.Module
    fills: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def succeed(site: Site, norm: str, init: str, options: dict[str, Any]) -> Successor:
    """Make the layer of ours that takes a site over; the old layer is left as it is.

    Args:
        site: where.
        norm: registry name of the new layer.
        init: `carry` the scale, shift and statistics, or leave them as by `default`.
        options: the new layer's own; they go before what the old layer has.

    Raises:
        InputError: the layer refuses its options; names the site.
    """
    old: Any = site.module
    layer = blank(site, norm, options)
    made = Successor(layer)
    _take_parameters(site, made, init)
    _take_buffers(site, made, init)
    _freeze(site, made)
    for each in layer.modules():
        each.training = old.training
    layer.act = getattr(old, "act", layer.act)
    layer.drop = getattr(old, "drop", layer.drop)
    origin = origin_of(old) if site.is_ours else Origin.of(old, str(site.norm))
    for name in origin.children if origin else ():
        if name not in ("act", "drop"):
            layer.add_module(name, old._modules[name])
            made.notes.append(f"{name} kept aside, unused")
    _take_marks(layer, origin)
    set_origin(layer, origin)
    share_hooks(old, layer)
    return made


def blank(site: Site, norm: str, options: dict[str, Any]) -> NormLayer:
    """Make a layer for a site with the site's options, device and dtype, but with new values.

    Raises:
        InputError: the layer refuses its options; names the site.
    """
    chosen = _carried(site, norm) | options
    try:
        layer = create_norm(norm, site.num_features, layout=site.layout, **chosen)
    except InputError as error:
        raise InputError(f"{site.name}: {error}") from error
    keys = ("weight", "bias", "running_mean")
    like = next((t for t in map(site.tensor, keys) if t is not None), None)
    return layer if like is None else layer.to(like.device, like.dtype)


def share_hooks(old: nn.Module, new: nn.Module) -> None:
    """Give a module the forward and backward hooks of another; their handles serve both."""
    for name, value in vars(old).items():
        if "hooks" not in name or not value:
            continue
        if vars(new).get(name):
            vars(new)[name].update(value)
        else:
            vars(new)[name] = value
    vars(new)["_is_full_backward_hook"] = vars(old).get("_is_full_backward_hook")


def _carried(site: Site, norm: str) -> dict[str, Any]:
    """The old layer's options, as far as the new layer has them."""
    old: Any = site.module
    known = norm_options(norm)
    weight, bias = site.tensor("weight"), site.tensor("bias")
    found: dict[str, Any] = {"affine": weight is not None or bias is not None}
    found["bias"] = bias is not None
    for name in ("momentum", "track_running_stats", "process_group", "num_groups", "sync"):
        if hasattr(old, name):
            found[name] = getattr(old, name)
    if isinstance(old, nn.SyncBatchNorm):
        found["sync"] = True
    if getattr(old, "eps", None) is not None or norm == "rms" == site.norm:
        found["eps"] = old.eps
    if not norm_class(norm).taxonomy.operation.startswith(_SAME_EPS):
        found.pop("eps", None)  # a ridge on a covariance is another thing than eps
    if site.is_ours and norm == site.norm:
        found |= {name: vars(old)[name] for name in known if name in vars(old)}
    return {name: value for name, value in found.items() if name in known}


def _take_parameters(site: Site, made: Successor, init: str) -> None:
    layer = made.layer
    for name in ("weight", "bias"):
        old, new = site.tensor(name), layer._parameters.get(name)
        if old is None:
            if new is not None and _has_option(layer, name):
                layer.register_parameter(name, None)
            elif new is not None:
                made.notes.append(f"{name} is new")
        elif new is None:
            made.notes.append(f"{name} dropped")
        elif new.shape == old.shape:
            _share(made, name, old, new, init)
        else:
            new.requires_grad_(isinstance(old, nn.Parameter) and old.requires_grad)
            if init == "carry":
                _spread(made, name, old)


def _has_option(layer: nn.Module, name: str) -> bool:
    """Whether a layer's class can do without its scale or shift."""
    options = inspect.signature(type(layer).__init__).parameters
    return ("affine" if name == "weight" else "bias") in options


def _share(made: Successor, name: str, old: Tensor, new: Tensor, init: str) -> None:
    """Let the new layer hold the very parameter (or a view of the buffer) of the old one."""
    kept = old if isinstance(old, nn.Parameter) else nn.Parameter(old, requires_grad=False)
    made.layer._parameters[name] = kept
    if init == "default":
        made.fills.append((kept, new.detach()))


def _take_buffers(site: Site, made: Successor, init: str) -> None:
    buffers = made.layer._buffers
    if init == "default" or buffers.get("running_mean") is None:
        return
    mean, var, cov = (site.tensor(f"running_{name}") for name in ("mean", "var", "cov"))
    if mean is None:
        made.notes.append("statistics start anew")
        return
    found = {"running_mean": mean, "running_var": var, "running_cov": cov}
    if cov is not None and var is None:
        found["running_var"] = cov.diagonal(dim1=-2, dim2=-1).flatten(-2).clone()
    found.pop("running_var" if _fits_rows(buffers.get("running_cov"), cov) else "running_cov")
    whitens = cov is not None or buffers.get("running_cov") is not None
    own = whitens or any(isinstance(each, PopulationNorm) for each in (site.module, made.layer))
    for name, old in found.items():
        new = buffers.get(name)
        if old is not None and new is not None and new.shape == old.shape:
            # some layers keep float32 in a half network, where a batch norm's kernel cannot
            buffers[name] = old.to(new.dtype) if own else old
        elif old is not None:
            _spread(made, name, old)
    _take_counter(site, made)


def _take_counter(site: Site, made: Successor) -> None:
    old, buffers = site.tensor(_COUNTER), made.layer._buffers
    if old is not None and _fits(buffers.get(_COUNTER), old):
        buffers[_COUNTER] = old
    elif old is not None:
        _spread(made, _COUNTER, old)
    elif isinstance(made.layer, BatchNorm):
        buffers[_COUNTER] = None  # frozen layers of others have none, and no key may come up


def _fits(new: Tensor | None, old: Tensor | None) -> bool:
    return new is not None and old is not None and new.shape == old.shape


def _fits_rows(new: Tensor | None, old: Tensor | None) -> bool:
    """Whether a value fits, or fits every row of a bank."""
    return new is not None and old is not None and old.shape in (new.shape, new.shape[1:])


@torch.no_grad()
def _spread(made: Successor, name: str, old: Tensor) -> None:
    """Put a value where there is room for more: every row of a bank, the diagonal of a matrix.

    How a batch norm's values are to be understood the layer itself knows, from loading them.
    """
    if old.is_meta:
        return
    try:
        unknown = made.layer.load_state_dict({name: old.detach()}, strict=False).unexpected_keys
        done = name not in unknown
    except RuntimeError:
        new: Tensor = getattr(made.layer, name)
        done = new.shape[1:] == old.shape
        if done:
            new.copy_(old.expand_as(new))
    if not done:
        made.notes.append(f"{name} starts anew")


def _freeze(site: Site, made: Successor) -> None:
    layer: Any = made.layer
    if site.is_frozen and hasattr(layer, "frozen"):
        layer.frozen = True
    elif site.is_frozen:
        made.notes.append("has no fixed statistics any more")


def _take_marks(layer: nn.Module, origin: Origin | None) -> None:
    for name, value in origin.marks() if origin else ():
        if not hasattr(layer, name):
            setattr(layer, name, value)
