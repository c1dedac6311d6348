"""The weight normalizations by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ...errors import unknown
from ..undo import Undo
from .methods import centered_weight_norm_, orthogonal_, weight_norm_, weight_standardization_
from .oni import oni_
from .own import own_
from .spectral import spectral_norm_

WEIGHT_METHODS: dict[str, Callable[..., Undo]] = {
    "spectral": spectral_norm_,
    "standardized": weight_standardization_,
    "centered": centered_weight_norm_,
    "weight": weight_norm_,
    "orthogonal": orthogonal_,
    "own": own_,
    "oni": oni_,
}
"""Name → what does it to a layer or network. A new method needs a line here."""


def normalize_weights_(module: nn.Module, method: str, **options: Any) -> Undo:
    """Normalize the weights of a layer or network by a method's name.

    Args:
        module: changed in place.
        method: a key of `WEIGHT_METHODS`.
        options: that method's own, and `name`, `include`, `exclude`.

    Raises:
        InputError: an unknown method, and what the method raises.
    """
    if method not in WEIGHT_METHODS:
        raise unknown("weight normalization", method, WEIGHT_METHODS)
    return WEIGHT_METHODS[method](module, **options)
