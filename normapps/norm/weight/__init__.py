"""Weights normalized, constrained to a manifold, or pulled towards orthogonality."""

from .manifold import MANIFOLDS, constrain_
from .methods import (
    centered_weight_norm_,
    orthogonal_,
    remove_weight_norm_,
    weight_norm_,
    weight_standardization_,
)
from .oni import oni_
from .own import own_
from .penalties import PENALTIES, orthogonal_penalty
from .registry import WEIGHT_METHODS, normalize_weights_
from .spectral import SpectralNorm, spectral_norm_
from .spectral_tools import (
    SpectralReport,
    average_parameters,
    init_,
    inspect,
    refresh_,
    remove_spectral_norm_,
)

__all__ = [
    "MANIFOLDS",
    "PENALTIES",
    "WEIGHT_METHODS",
    "SpectralNorm",
    "SpectralReport",
    "average_parameters",
    "centered_weight_norm_",
    "constrain_",
    "init_",
    "inspect",
    "normalize_weights_",
    "oni_",
    "orthogonal_",
    "orthogonal_penalty",
    "own_",
    "refresh_",
    "remove_spectral_norm_",
    "remove_weight_norm_",
    "spectral_norm_",
    "weight_norm_",
    "weight_standardization_",
]
