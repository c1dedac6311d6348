"""How a discriminator is normalized: spectrally, by its gradient, by standardized weights."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..engine.device import evaluating
from ..errors import InputError, unknown
from ..norm.weight import refresh_, spectral_norm_, weight_standardization_
from ..norm.weight.matrix import find_layers
from ..norm.weight.spectral_operator import Sigma
from .gradient_norm import GradientNormalized

D_NORMS = ("sn", "gn", "ws", "none")


def normalize_discriminator_(
    d: nn.Module, kind: str, *, sigma: Sigma = "reshape", size: int | None = None
) -> nn.Module:
    """Normalize a discriminator, whose weights have been initialised before.

    - `sn`: every weight, embeddings too, divided by its norm (Miyato et al. 2018), once an
      optimizer step however often it is read; see `normapps.norm.weight.spectral_norm_`.
    - `gn`: the logits divided by the norm of their gradient plus their size (Wu et al. 2021).
    - `ws`: the rows of every convolution standardized and scaled by gain/√fan-in (Qiao et al.
      2019, scaled as by Brock et al. 2021), so that signals keep their size through the layers,
      which no norm layer does here. Gain √2 for 3×3 kernels, 1 for others, as their initial values
      have it; rows of one element stay as they are. Not bounded: it wants a penalty, or a short
      run.
    - `none`: nothing.

    Args:
        d: changed in place.
        kind: one of `D_NORMS`.
        sigma: with `sn`, the norm: of the reshaped kernel, of the convolution on the input that
            it gets (one that pools: before the pooling), or a bound of it.
        size: side of the pictures, for "conv"; `d.size` if not given.

    Returns:
        d itself, or what wraps it: what is trained and called from now on.

    Raises:
        InputError: an unknown kind or sigma; "conv" without a size; no layer to normalize, or one
            that is normalized already.
    """
    if kind not in D_NORMS:
        raise unknown("discriminator norm", kind, D_NORMS)
    if kind == "gn":
        return GradientNormalized(d)
    if kind == "ws":
        _standardize_(d)
    if kind == "sn":
        sides = _input_sides(d, size) if sigma == "conv" else {}
        for path, layer in find_layers(d, "weight", (), ()):
            spectral_norm_(layer, sigma=sigma, size=sides.get(path))
        refresh_(d)  # else measured at the first change: a resume after one step would not know
    return d


def _input_sides(d: nn.Module, size: int | None) -> dict[str, tuple[int, ...]]:
    """Height and width of what every convolution of d gets, by its name."""
    side = size or getattr(d, "size", None)
    layers = {path: each for path, each in d.named_modules() if isinstance(each, nn.Conv2d)}
    if not isinstance(side, int) or not layers:
        raise InputError("sigma 'conv': give the size of the pictures, for a network of them")
    sides: dict[str, tuple[int, ...]] = {}
    hooks = [
        layer.register_forward_pre_hook(partial(_note_side, sides, path))
        for path, layer in layers.items()
    ]
    weight = next(iter(layers.values())).weight
    labels = [torch.zeros(1, dtype=torch.long)] if getattr(d, "num_classes", 0) else []
    try:
        with evaluating(d):
            picture = weight.new_zeros(1, weight.shape[1], side, side)
            d(picture, *(each.to(weight.device) for each in labels))
    finally:
        for hook in hooks:
            hook.remove()
    return sides


def _note_side(
    sides: dict[str, tuple[int, ...]], path: str, _: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    sides[path] = tuple(inputs[0].shape[2:])


def _standardize_(d: nn.Module) -> None:
    found = [layer for layer in d.modules() if isinstance(layer, nn.Conv2d)]
    layers = [layer for layer in found if layer.weight[0].numel() > 1]  # 1×1 of a grey picture
    if not layers:
        raise InputError(f"{type(d).__name__}: has no convolution to standardize")
    for layer in layers:
        weight_standardization_(layer)
        gain = math.sqrt(2) if max(layer.kernel_size) > 1 else 1.0
        scale = _Scaled(gain / math.sqrt(layer.weight[0].numel()))
        parametrize.register_parametrization(layer, "weight", scale)


class _Scaled(nn.Module):
    """A weight times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.factor
