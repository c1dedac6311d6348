"""Originals: torch's and timm's own layers in place of ours.

A layer of ours that came from another becomes that class again, with the class's own attributes;
one that was always ours becomes torch's class of its layout, or timm's where it carries an
activation. timm's and torchvision's classes are found among the imported modules, never imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from ...errors import InputError
from .origin import Origin, origin_of
from .sites import Site
from .successor import Successor, share_hooks

_BATCH = {"1d": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}
_INSTANCE = {"1d": nn.InstanceNorm1d, "2d": nn.InstanceNorm2d, "3d": nn.InstanceNorm3d}


def restore_original(site: Site) -> Successor:
    """Make the layer of torch or timm that computes what a layer of ours does.

    Raises:
        InputError: there is no such class, or it is timm's and timm is not imported.
    """
    layer: Any = site.module
    origin = origin_of(layer)
    notes = []
    if origin is None or origin.norm != site.norm or _was_thawed(origin, site):
        origin = Origin.of(_sample(site), str(site.norm))
    elif getattr(layer, "frozen", False) and "Frozen" not in origin.kind.__name__:
        notes.append("not frozen any more")
    if getattr(layer, "sync", False) and not issubclass(origin.kind, nn.SyncBatchNorm):
        notes.append("not synchronized any more")
    return Successor(_filled(origin, layer), notes=notes)


def _filled(origin: Origin, layer: Any) -> nn.Module:
    """A layer of the origin's class with the tensors, children and hooks of a layer of ours."""
    original = origin.blank()
    for name in ("eps", "momentum", "affine", "track_running_stats", "num_groups"):
        if name in origin.plain and hasattr(layer, name):
            setattr(original, name, getattr(layer, name))
    for name in origin.parameters:
        original.register_parameter(name, layer._parameters.get(name))
    for name in origin.buffers:
        value = layer._parameters.get(name) if name in ("weight", "bias") else None
        value = layer._buffers.get(name) if value is None else value.detach()
        original.register_buffer(name, value)
    for name in origin.children:
        original.add_module(name, layer._modules.get(name))
    original.training = layer.training
    share_hooks(layer, original)
    return original


def _was_thawed(origin: Origin, site: Site) -> bool:
    return "Frozen" in origin.kind.__name__ and not site.is_frozen


def _sample(site: Site) -> nn.Module:
    """A layer of the class that a layer of ours becomes which came from none, without values."""
    layer: Any = site.module
    carries = not all(isinstance(each, nn.Identity) for each in (layer.act, layer.drop))
    make = _makers(site.norm or "", site.layout, carries).get(site.norm or "")
    bias = layer._parameters.get("bias")
    if make is None or (site.norm == "rms" and bias is not None):
        raise InputError(
            f"{site.name}: torch has no class for the '{site.norm}' layer {type(layer).__name__} "
            f"(layout '{site.layout}'{', with an activation' if carries else ''}); exclude it, or "
            "convert it to 'batch' first"
        )
    sample: nn.Module = make(layer)
    if carries:
        sample.add_module("drop", layer.drop)
        sample.add_module("act", layer.act)
    for name in ("weight", "bias"):  # registered, so that their keys come in torch's order
        sample.register_parameter(name, layer._parameters.get(name))
    return sample


Maker = Callable[[Any], nn.Module]


def _makers(norm: str, layout: str, carries: bool) -> dict[str, Maker]:
    """Name of our layer → how to make torch's or timm's, as far as there is one."""
    if carries or (layout == "2d" and norm in ("position", "rms")):
        return _timm_makers(norm, layout, carries)
    makers: dict[str, Maker] = {}
    if layout in _BATCH:
        makers["batch"] = lambda o: _BATCH[layout](
            o.num_features, o.eps, o.momentum, o.affine, o.track_running_stats
        )
        makers["instance"] = lambda o: _INSTANCE[layout](o.num_features, o.eps, affine=o.affine)
    if layout == "tokens":
        makers["layer"] = lambda o: nn.LayerNorm(o.num_features, o.eps, o.affine)
        makers["position"] = makers["layer"]
        makers["rms"] = lambda o: nn.RMSNorm(o.num_features, o.eps, o.affine)
    else:
        makers["group"] = lambda o: nn.GroupNorm(o.num_groups, o.num_features, o.eps, o.affine)
        makers["layer"] = lambda o: nn.GroupNorm(1, o.num_features, o.eps, o.affine)
    return makers


def _timm_makers(norm: str, layout: str, carries: bool) -> dict[str, Maker]:
    timm: Any = sys.modules.get("timm.layers")
    if timm is None:
        return {}
    if not carries:
        return {
            "position": lambda o: timm.LayerNorm2d(o.num_features, o.eps, o.affine),
            "rms": lambda o: timm.RmsNorm2d(o.num_features, o.eps, o.affine),
        }
    plain = {"apply_act": False}
    makers: dict[str, Maker] = {}
    if layout == "2d":
        makers["batch"] = lambda o: timm.BatchNormAct2d(
            o.num_features, o.eps, o.momentum, o.affine, o.track_running_stats, **plain
        )
        makers["position"] = lambda o: timm.LayerNormAct2d(o.num_features, o.eps, o.affine, **plain)
    if layout == "tokens":
        makers["layer"] = lambda o: timm.LayerNormAct(o.num_features, o.eps, o.affine, **plain)
        makers["position"] = makers["layer"]
    else:
        makers["group"] = lambda o: timm.GroupNormAct(
            o.num_features, o.num_groups, o.eps, o.affine, **plain
        )
        makers["layer"] = lambda o: timm.GroupNorm1Act(o.num_features, o.eps, o.affine, **plain)
    return makers
