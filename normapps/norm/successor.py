"""Successor: the layer of ours that takes a norm layer's place, with all that was the other's."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .layers.base import NormLayer
from .origin import Origin, origin_of, set_origin
from .registry import create_norm, norm_class, norm_options
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
    if norm_class(norm).taxonomy.operation not in _SAME_EPS:
        found.pop("eps", None)  # a ridge on a covariance is another thing than eps
    if site.is_ours and norm == site.norm:
        found |= {name: vars(old)[name] for name in known if name in vars(old)}
    return {name: value for name, value in found.items() if name in known}


def _take_parameters(site: Site, made: Successor, init: str) -> None:
    layer = made.layer
    for name in ("weight", "bias"):
        old, new = site.tensor(name), layer._parameters.get(name)
        if old is None:
            if new is not None and not _needs(layer, name):
                layer.register_parameter(name, None)
            elif new is not None:
                made.notes.append(f"{name} is new")
            continue
        if new is None:
            made.notes.append(f"{name} dropped")
        elif new.shape == old.shape:
            _take(made, name, old, new, init)
        else:
            _spread(made, name, old, new, init)


def _take(made: Successor, name: str, old: Tensor, new: Tensor, init: str) -> None:
    """Let the new layer hold the very parameter (or a view of the buffer) of the old one."""
    kept = old if isinstance(old, nn.Parameter) else nn.Parameter(old, requires_grad=False)
    made.layer._parameters[name] = kept
    if init == "default":
        made.fills.append((kept, new.detach()))


def _spread(made: Successor, name: str, old: Tensor, new: nn.Parameter, init: str) -> None:
    """Start every row of a bank from the one row that the old layer has."""
    new.requires_grad_(old.requires_grad if isinstance(old, nn.Parameter) else False)
    if new.dim() == 2 and new.shape[1:] == old.shape:
        if init == "carry":
            new.data.copy_(old.detach().expand_as(new))
    else:
        made.notes.append(f"{name} starts anew")


def _needs(layer: nn.Module, name: str) -> bool:
    """Whether a layer cannot do without a parameter: its class has no option to leave it out."""
    options = inspect.signature(type(layer).__init__).parameters
    return ("affine" if name == "weight" else "bias") not in options


def _take_buffers(site: Site, made: Successor, init: str) -> None:
    buffers = made.layer._buffers
    wanted = [key for key in ("running_mean", "running_var", "running_cov") if key in buffers]
    if not wanted or all(buffers[key] is None for key in wanted):
        return
    mean, var = site.tensor("running_mean"), _variance(site)
    if init == "default":
        return
    if mean is None or var is None:
        made.notes.append("statistics start anew")
        return
    found = {"running_mean": mean, "running_var": var, _COUNTER: site.tensor(_COUNTER)}
    if "running_cov" in buffers:
        found["running_cov"] = _covariance(site, var, buffers["running_cov"])
    for key, old in found.items():
        if key in buffers and not _take_buffer(buffers, key, old):
            made.notes.append(f"{key} starts anew")


def _take_buffer(buffers: dict[str, Tensor | None], key: str, old: Tensor | None) -> bool:
    """Let the new layer hold the very buffer of the old one, or spread it over a bank's rows."""
    new = buffers[key]
    if old is None:
        if key == _COUNTER:
            buffers[key] = None  # Frozen layers have none, and no key may come up
        return key == _COUNTER
    if new is None or new.shape == old.shape:
        buffers[key] = old
        return True
    if new.shape[1:] == old.shape:
        new.copy_(old.expand_as(new))
        return True
    return False


def _variance(site: Site) -> Tensor | None:
    var, cov = site.tensor("running_var"), site.tensor("running_cov")
    if var is None and cov is not None:
        return cov.diagonal(dim1=-2, dim2=-1).reshape(-1).clone()
    return var


def _covariance(site: Site, var: Tensor, like: Tensor | None) -> Tensor | None:
    own = site.tensor("running_cov")
    if own is not None and like is not None and own.shape == like.shape:
        return own
    if like is None or like.dim() != 3 or like.shape[:2].numel() != var.numel():
        return None
    return torch.diag_embed(var.reshape(like.shape[:2])).contiguous()


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
