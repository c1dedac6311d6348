"""The layers by name: what there is, and how to make one."""

from __future__ import annotations

import fnmatch
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InputError, unknown
from .layers.adalin import AdaLIN, LayerInstanceNorm
from .layers.adaptive import AdaIN
from .layers.attentive import AttentiveNorm
from .layers.autodial import AutoDIAL
from .layers.base import NormLayer, Piece
from .layers.batch import BatchNorm
from .layers.bin import BatchInstanceNorm
from .layers.coloring import ColoringNorm, ConditionalColoringNorm
from .layers.conditional import ConditionalNorm
from .layers.diminishing import DiminishingNorm
from .layers.domain import DomainNorm
from .layers.domain_whitening import DomainWhitening
from .layers.frn import FilterResponseNorm
from .layers.ghost import GhostBatchNorm
from .layers.group import GroupNorm
from .layers.group_whitening import GroupWhitening
from .layers.ibn import IBN
from .layers.iebn import InstanceEnhancementNorm
from .layers.instance import InstanceNorm
from .layers.l1 import L1BatchNorm, TopKBatchNorm
from .layers.layer import LayerNorm
from .layers.mean_only import MeanOnlyBatchNorm
from .layers.memorized import MemorizedNorm
from .layers.moving import MovingNorm
from .layers.online import OnlineNorm
from .layers.pca import PCANorm
from .layers.position import PositionNorm
from .layers.prong import ProngNorm
from .layers.region import RegionNorm
from .layers.renorm import BatchRenorm
from .layers.rms import RmsNorm
from .layers.self_modulated import SelfModulatedNorm
from .layers.spatial import SpatialNorm
from .layers.streaming import StreamingNorm
from .layers.switchable import SwitchableNorm
from .layers.switchable_whitening import SwitchableWhitening
from .layers.transnorm import TransNorm
from .layers.whitening import CholeskyNorm, IterNorm, ZCANorm

NORMS: dict[str, type[NormLayer]] = {
    "switchable": SwitchableNorm,
    "bin": BatchInstanceNorm,
    "ibn": IBN,
    "conditional": ConditionalNorm,
    "adaptive": AdaIN,
    "self_modulated": SelfModulatedNorm,
    "spatial": SpatialNorm,
    "adalin": AdaLIN,
    "iln": LayerInstanceNorm,
    "domain": DomainNorm,
    "autodial": AutoDIAL,
    "transnorm": TransNorm,
    "domain_whitening": DomainWhitening,
    "renorm": BatchRenorm,
    "mean_only": MeanOnlyBatchNorm,
    "l1": L1BatchNorm,
    "top_k": TopKBatchNorm,
    "frn": FilterResponseNorm,
    "pca": PCANorm,
    "group_whitening": GroupWhitening,
    "switchable_whitening": SwitchableWhitening,
    "region": RegionNorm,
    "iebn": InstanceEnhancementNorm,
    "attentive": AttentiveNorm,
    "batch": BatchNorm,
    "ghost": GhostBatchNorm,
    "streaming": StreamingNorm,
    "diminishing": DiminishingNorm,
    "memorized": MemorizedNorm,
    "moving": MovingNorm,
    "online": OnlineNorm,
    "prong": ProngNorm,
    "zca": ZCANorm,
    "cholesky": CholeskyNorm,
    "iternorm": IterNorm,
    "coloring": ColoringNorm,
    "conditional_coloring": ConditionalColoringNorm,
    "rms": RmsNorm,
    "position": PositionNorm,
    "layer": LayerNorm,
    "instance": InstanceNorm,
    "group": GroupNorm,
}
"""Name → layer. A new layer needs a line here and nothing else."""


def create_norm(
    name: str,
    num_features: int,
    *,
    layout: str = "any",
    act: Piece = None,
    drop: Piece = None,
    **options: Any,
) -> NormLayer:
    """Make a layer by name.

    Args:
        name: one of `list_norms()`.
        num_features: channels C.
        layout: `any` (N, C, *S), `1d`, `2d`, `3d`, or `tokens` (N, *S, C).
        act, drop: activation and dropout that follow the normalization, as modules or classes.
        options: the layer's own, such as `eps` or `group_size`; see its class.

    Raises:
        InputError: an unknown name, layout or option; the nearest known one is suggested.

    Example:
        >>> create_norm("iternorm", 64, layout="2d", group_size=16)
    """
    _check_options(name, options)
    made = norm_class(name).for_layout(layout)
    try:
        return made(num_features, layout=layout, act=act, drop=drop, **options)
    except TypeError as error:
        raise InputError(f"norm '{name}' refuses its options ({error})") from error


def list_norms(pattern: str = "*") -> tuple[str, ...]:
    """Return the names that match a shell pattern, sorted."""
    return tuple(sorted(fnmatch.filter(NORMS, pattern)))


def norm_class(name: str) -> type[NormLayer]:
    """Return the layer class of a name.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    if name not in NORMS:
        raise unknown("norm", name, NORMS)
    return NORMS[name]


def norm_options(name: str) -> dict[str, Any]:
    """Return a layer's options and their defaults (`inspect.Parameter.empty`: must be given).

    Raises:
        InputError: an unknown name.
    """
    return {key: each.default for key, each in _parameters(name).items()}


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    shared = ("self", "num_features", "layout", "act", "drop")
    parameters = inspect.signature(norm_class(name).__init__).parameters
    return {key: each for key, each in parameters.items() if key not in shared}


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Check names and kinds of options; a wrong value would show in a forward pass only."""
    known = _parameters(name)
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of norm '{name}'", option, known)
        wanted = str(known[option].annotation).split(" | ")
        if set(wanted) <= _KINDS.keys() and not any(_KINDS[each](value) for each in wanted):
            raise InputError(f"norm '{name}': {option}={value!r} must be {' or '.join(wanted)}")
    for option, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise InputError(f"norm '{name}' needs {option}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "float": _is_number,
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "None": lambda value: value is None,
}
"""Annotation of an option → whether a value is of its kind; other annotations are not checked."""
