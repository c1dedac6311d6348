"""The shared algebra of normalization: partition, moments, operations, recovery.

Knows torch and nothing else of this package but its error class.
"""

from .moments import Moments, merge, mix
from .operations import (
    barycenter,
    center,
    color,
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
from .recovery import AdaIN, adain, affine

__all__ = [
    "BATCH",
    "INSTANCE",
    "LAYER",
    "POSITION",
    "AdaIN",
    "Moments",
    "Partition",
    "adain",
    "affine",
    "barycenter",
    "center",
    "channel_groups",
    "color",
    "ghost",
    "groups",
    "merge",
    "mix",
    "restore",
    "scale",
    "standardize",
    "transport",
    "transport_matrix",
    "whiten",
]
