"""The layers by name: what there is, and how to make one."""

from __future__ import annotations

import fnmatch
import inspect
from typing import Any

from ..errors import InputError, unknown
from .layers.adalin import AdaLIN, LayerInstanceNorm
from .layers.adaptive import AdaIN
from .layers.base import NormLayer, Piece
from .layers.batch import BatchNorm
from .layers.bin import BatchInstanceNorm
from .layers.coloring import ColoringNorm, ConditionalColoringNorm
from .layers.conditional import ConditionalNorm
from .layers.domain import DomainNorm
from .layers.ghost import GhostBatchNorm
from .layers.group import GroupNorm
from .layers.ibn import IBN
from .layers.instance import InstanceNorm
from .layers.layer import LayerNorm
from .layers.position import PositionNorm
from .layers.rms import RmsNorm
from .layers.self_modulated import SelfModulatedNorm
from .layers.spatial import SpatialNorm
from .layers.switchable import SwitchableNorm
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
    "batch": BatchNorm,
    "ghost": GhostBatchNorm,
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
    kind = norm_class(name)
    known = norm_options(name)
    for option in options:
        if option not in known:
            raise unknown(f"option of norm '{name}'", option, known)
    made = kind.for_layout(layout)
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
    shared = ("self", "num_features", "layout", "act", "drop")
    parameters = inspect.signature(norm_class(name).__init__).parameters
    return {key: each.default for key, each in parameters.items() if key not in shared}
