"""Rules of fused attention, and of the scale that attention takes from its number of channels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .atoms import Axes, Axis
from .call import Call, Rule
from .labels import Labels

SCALED = "{where} scales attention by their number"
"""Why channels of a query stay."""


def scaled_by_size(query: Any, scale: float | None, labels: Labels) -> Axis | None:
    """Return the channels of a query whose number is the scale of its attention.

    `scaled_dot_product_attention` divides by √channels of the query that it is given, so with
    fewer of them it is another function, however silent the missing ones are.
    """
    if scale is not None or not isinstance(query, Tensor):
        return None
    return labels.of(query).axes[-1]


def _attention(call: Call) -> list[Axes]:
    """(…, N, E), (…, M, E), (…, M, V) → (…, N, V), of as many heads."""
    query, key, value = (call.axes(name) for name in ("query", "key", "value"))
    for name in ("attn_mask", "attn_bias"):
        mask = call.get(name)
        for axis in () if mask is None else call.axes(mask):
            call.pin(axis, "{where} masks attention along them")
    for axis in (*query[:-1], *key[:-1], *value[:-1]):  # heads and positions
        call.pin(axis, "{where} runs fused attention along them")
    call.contract(query[-1], key[-1])
    if call.get("scale") is None:
        call.pin(query[-1], SCALED)
    return [(*query[:-1], value[-1])]


_KERNELS = "flash_attention_for_cpu flash_attention efficient_attention cudnn_attention"

ATTENTION: dict[str, Rule] = {
    f"_scaled_dot_product_{name}": _attention for name in _KERNELS.split()
}
"""Operation → rule."""
