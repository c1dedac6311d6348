"""Normalized weights: spectral, standardized, centred, weight-normalized, orthogonal."""

from .methods import (
    WEIGHT_METHODS,
    centered_weight_norm_,
    normalize_weights_,
    orthogonal_,
    remove_weight_norm_,
    weight_norm_,
    weight_standardization_,
)
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
    "WEIGHT_METHODS",
    "SpectralNorm",
    "SpectralReport",
    "average_parameters",
    "centered_weight_norm_",
    "init_",
    "inspect",
    "normalize_weights_",
    "orthogonal_",
    "refresh_",
    "remove_spectral_norm_",
    "remove_weight_norm_",
    "spectral_norm_",
    "weight_norm_",
    "weight_standardization_",
]
