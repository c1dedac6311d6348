"""Rules of normalization layers: a batch norm's scales silence its atoms."""

from __future__ import annotations

import numpy as np

from .atoms import Axes, Axis
from .call import Call, Rule


def _batch_norm(call: Call) -> list[Axes]:
    """(N, C, …): channel by channel; silent where γ = β = 0."""
    x = list(call.axes("input"))
    if call.get("training", False):
        for axis in (x[0], *x[2:]):
            call.pin(axis, "{where} takes statistics over them")
    for key in ("weight", "bias", "running_mean", "running_var"):
        call.claim(call.get(key), 0, x[1])
    x[1] = _scaled(call, x[1])
    return [tuple(x)] + [(None,)] * (len(call.outputs) - 1)


def _scaled(call: Call, x: Axis | None) -> Axis | None:
    """Note a layer with a scale of its own, and return its output's channels."""
    if x is None:
        return None
    layer = _own_parameter(call, "weight")
    if layer is None:
        centered = call.get("training", False) and call["bias"] is None  # zeros have mean zero
        return x if centered else x.heard()
    call.ledger.scales.append((layer, x.ids))
    silenced = call["bias"] is None or _own_parameter(call, "bias") == layer
    return Axis(x.ids, np.full(len(x.ids), silenced))


def _own_parameter(call: Call, key: str) -> str | None:
    """Return the layer whose parameter `key` the argument is, unchanged."""
    if call[key] is None:
        return None
    layer, _, name = (call.label(call[key]).name or "").rpartition(".")
    return layer if name == key else None


def _group_norm(call: Call) -> list[Axes]:
    x = list(call.axes("input"))
    for axis in x:
        call.pin(axis, "{where} takes statistics over them")
    for key in ("weight", "bias"):
        call.claim(call[key], 0, x[1])
    x[1] = None if x[1] is None else x[1].heard()
    return [tuple(x)]


def _layer_norm(call: Call) -> list[Axes]:
    x = list(call.axes("input"))
    first = len(x) - len(call["normalized_shape"])
    for dim in range(first, len(x)):
        axis = x[dim]
        call.pin(axis, "{where} takes statistics over them")
        for key in ("weight", "bias"):
            call.claim(call.get(key), dim - first, axis)
        x[dim] = None if axis is None else axis.heard()
    return [tuple(axis and axis.heard() for axis in x)]


NORMALIZATION: dict[str, Rule] = {
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_batch_norm_no_update": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "miopen_batch_norm": _batch_norm,
    "native_group_norm": _group_norm,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _layer_norm,
}
"""Operation → rule."""
