"""The shared algebra of normalization, its layers, and what edits them in a model.

Knows torch and, to store a population, safetensors. The algebra itself is imported at once, the
rest when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .moments import Moments, merge, mix
from .operations import (
    barycenter,
    center,
    color,
    mix_factors,
    restore,
    scale,
    standardize,
    transport,
    transport_matrix,
    whiten,
)
from .partition import (
    BATCH,
    INSTANCE,
    LAYER,
    POSITION,
    Partition,
    channel_groups,
    ghost,
    groups,
)
from .recovery import TRANSFERS, adain, affine, part_way, transfer
from .undo import Undo

if TYPE_CHECKING:
    from . import population as population
    from .condition import ConditionedModel as ConditionedModel
    from .convert import Conversion as Conversion
    from .convert import convert_norm as convert_norm
    from .convert import convert_norm_ as convert_norm_
    from .convert import freeze_norm_ as freeze_norm_
    from .convert import sync_norm_ as sync_norm_
    from .convert import unfreeze_norm_ as unfreeze_norm_
    from .domain import DomainModel as DomainModel
    from .gradient import normalize_gradients_ as normalize_gradients_
    from .inputs import InputNorm as InputNorm
    from .layers.adaptive import AdaIN as AdaIN
    from .layers.moment_exchange import MomentExchange as MomentExchange
    from .layers.moment_exchange import moment_exchange as moment_exchange
    from .layers.moment_shortcut import shortcut_moments_ as shortcut_moments_
    from .population import Population as Population
    from .population import apply_ as apply_
    from .population import measure as measure
    from .registry import create_norm as create_norm
    from .registry import list_norms as list_norms
    from .weight import average_parameters as average_parameters
    from .weight import constrain_ as constrain_
    from .weight import inspect as inspect
    from .weight import normalize_weights_ as normalize_weights_
    from .weight import orthogonal_penalty as orthogonal_penalty
    from .weight import refresh_ as refresh_
    from .weight import remove_spectral_norm_ as remove_spectral_norm_
    from .weight import spectral_norm_ as spectral_norm_

_LAZY = {
    "AdaIN": "layers.adaptive",
    "ConditionedModel": "condition",
    "Conversion": "convert",
    "DomainModel": "domain",
    "InputNorm": "inputs",
    "MomentExchange": "layers.moment_exchange",
    "Population": "population",
    "apply_": "population",
    "average_parameters": "weight",
    "constrain_": "weight",
    "convert_norm": "convert",
    "convert_norm_": "convert",
    "create_norm": "registry",
    "freeze_norm_": "convert",
    "inspect": "weight",
    "list_norms": "registry",
    "measure": "population",
    "moment_exchange": "layers.moment_exchange",
    "normalize_gradients_": "gradient",
    "normalize_weights_": "weight",
    "orthogonal_penalty": "weight",
    "refresh_": "weight",
    "remove_spectral_norm_": "weight",
    "shortcut_moments_": "layers.moment_shortcut",
    "spectral_norm_": "weight",
    "sync_norm_": "convert",
    "unfreeze_norm_": "convert",
}
"""Name → the module or package here that has it."""

__all__ = [
    "BATCH",
    "INSTANCE",
    "LAYER",
    "POSITION",
    "TRANSFERS",
    "AdaIN",
    "ConditionedModel",
    "Conversion",
    "DomainModel",
    "InputNorm",
    "MomentExchange",
    "Moments",
    "Partition",
    "Population",
    "Undo",
    "adain",
    "affine",
    "apply_",
    "average_parameters",
    "barycenter",
    "center",
    "channel_groups",
    "color",
    "constrain_",
    "convert_norm",
    "convert_norm_",
    "create_norm",
    "freeze_norm_",
    "ghost",
    "groups",
    "inspect",
    "list_norms",
    "measure",
    "merge",
    "mix",
    "mix_factors",
    "moment_exchange",
    "normalize_gradients_",
    "normalize_weights_",
    "orthogonal_penalty",
    "part_way",
    "population",
    "refresh_",
    "remove_spectral_norm_",
    "restore",
    "scale",
    "shortcut_moments_",
    "spectral_norm_",
    "standardize",
    "sync_norm_",
    "transfer",
    "transport",
    "transport_matrix",
    "unfreeze_norm_",
    "whiten",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "population":
        return import_module(".population", __name__)
    if name not in _LAZY:
        raise AttributeError(f"module 'normapps.norm' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return value
