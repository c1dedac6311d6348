"""The training methods by name."""

from __future__ import annotations

from torch import nn

from .autodial import AutoDial
from .base import Method
from .dsbn import Dsbn
from .dwt import Dwt
from .options import RecipeOptions
from .plain import AdaBN, Bin, Ibn, MixStyle, SourceOnly
from .transnorm import TransNorm

METHODS: dict[str, type[Method]] = {
    "source": SourceOnly,
    "adabn": AdaBN,
    "dsbn": Dsbn,
    "autodial": AutoDial,
    "dwt": Dwt,
    "transnorm": TransNorm,
    "ibn": Ibn,
    "bin": Bin,
    "mixstyle": MixStyle,
}
"""Every value of `--method`."""


def make_method(
    model: nn.Module, num_sources: int, num_targets: int, options: RecipeOptions
) -> Method:
    """Make the method that the options name; the model is changed in place."""
    return METHODS[options.method](model, num_sources, num_targets, options)
