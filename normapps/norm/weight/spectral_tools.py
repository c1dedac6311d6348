"""What a spectrally normalized network needs besides training: init, refresh, average, export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...errors import InputError
from .matrix import Axes, original, parametrization, remove_parametrization_, spectrum
from .singular import top_pair
from .spectral import STALE, SpectralNorm
from .spectral_operator import Sigma, make_operator


@dataclass(frozen=True)
class SpectralReport:
    """The norms of one layer's weight as it is before normalization.

    Attributes:
        layer: its name in the network.
        sigma: which norm it is divided by.
        estimate: that norm by the stored u and v.
        exact: that norm.
        reshaped: largest singular value of the matrix (out, in·k), by SVD.
        convolution: norm of the convolution with zero padding on an input of the given size.
        bound: upper bound of the convolution's norm at any size.
        error: 1 − estimate/exact; 0 where the weight is zero, NaN where it is not finite.
        is_stale: the error is more than 2 %.
    """

    layer: str
    sigma: Sigma
    estimate: float
    exact: float
    reshaped: float
    convolution: float
    bound: float
    error: float
    is_stale: bool


def inspect(
    module: nn.Module, name: str = "weight", size: int | None = None
) -> list[SpectralReport]:
    """Measure every spectrally normalized layer, changing nothing.

    Args:
        module: a layer or network after `spectral_norm_`.
        name: the parameter.
        size: spatial size for the convolution's norm; 16 if not given.

    Raises:
        InputError: no spectrally normalized layer.
    """
    return [
        _report(path, layer, norm, original(layer, name), size)
        for path, layer, norm in _normalized(module, name)
    ]


def _report(
    path: str, layer: nn.Module, norm: SpectralNorm, weight: Tensor, size: int | None
) -> SpectralReport:
    estimate, exact = float(norm.estimate(weight)), float(norm.measure(weight))
    error = 0.0 if exact == 0 else 1 - estimate / exact
    return SpectralReport(
        layer=path,
        sigma=norm.sigma,
        estimate=estimate,
        exact=exact,
        reshaped=float(spectrum(Axes.of(layer).matrix(weight))[0]),
        convolution=_norm(layer, weight, "conv", size),
        bound=_norm(layer, weight, "bound", size),
        error=error,
        is_stale=not abs(error) <= STALE,
    )


def _norm(layer: nn.Module, weight: Tensor, sigma: Sigma, size: int | None) -> float:
    try:
        operator = make_operator(layer, weight.detach().double(), sigma, size)
    except InputError:  # a padding mode for which this norm does not hold
        return float("nan")
    return float(top_pair(operator, weight)[2])


def refresh_(module: nn.Module, name: str = "weight") -> None:
    """Measure u and v of every spectrally normalized layer from its present weight.

    Call it after writing to `.data` of a weight that an optimizer or an in-place operation changes
    too, and before a compiled inference of changed weights; every other change is noticed.

    Raises:
        InputError: no spectrally normalized layer.
    """
    for _, layer, norm in _normalized(module, name):
        norm.refresh(original(layer, name))


@torch.no_grad()
def init_(module: nn.Module, fill_: Callable[[Tensor], object], name: str = "weight") -> None:
    """Initialise the weights underneath spectral normalization, and measure them.

    Example:
        >>> init_(discriminator, nn.init.orthogonal_)

    Args:
        module: a layer or network after `spectral_norm_`.
        fill_: writes into a tensor in place, as the functions of `torch.nn.init` do.
        name: the parameter.

    Raises:
        InputError: no spectrally normalized layer.
    """
    for _, layer, norm in _normalized(module, name):
        weight = original(layer, name)
        fill_(weight)
        norm.refresh(weight)


def remove_spectral_norm_(module: nn.Module, name: str = "weight") -> None:
    """Make the normalized weights ordinary parameters, to the bit those of inference.

    Also in training mode: no iteration is taken. The Parameter objects stay the same; what they
    held before is lost (the handle of `spectral_norm_` brings it back instead).

    Raises:
        InputError: no spectrally normalized layer.
    """
    for _, layer, norm in _normalized(module, name):
        norm.eval()
        remove_parametrization_(layer, name)


@torch.no_grad()
def average_parameters(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the parameters of `average` to decay·average + (1 − decay)·model, then refresh it.

    Parameters only: an average of u and v is no singular pair (its norm shrinks, and the averaged
    network's grows). Running statistics stay as they are: measure them anew. Keep the average in
    float32: at a decay of .999 half precision cannot move.

    Args:
        average: changed in place; a deep copy of `model` at first.
        model: the network in training.
        decay: in [0, 1].

    Raises:
        InputError: a decay out of range, or parameters that differ in name or shape.
    """
    if not 0 <= decay <= 1:
        raise InputError(f"decay {decay}: must be in [0, 1]")
    ours, theirs = dict(average.named_parameters()), dict(model.named_parameters())
    for path in sorted(ours.keys() | theirs.keys()):
        if path not in ours or path not in theirs or ours[path].shape != theirs[path].shape:
            raise InputError(f"{path}: the average and the model do not have it in common")
    for path, parameter in ours.items():
        parameter.lerp_(theirs[path].to(parameter), 1 - decay)
    for weight, norm in _find(average):
        norm.refresh(weight)


def _normalized(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module, SpectralNorm]]:
    found = [
        (path or parametrize.type_before_parametrizations(layer).__name__, layer, norm)
        for path, layer in module.named_modules()
        if isinstance(norm := parametrization(layer, name), SpectralNorm)
    ]
    if not found:
        raise InputError(
            f"{type(module).__name__}: no '{name}' is spectrally normalized; use spectral_norm_"
        )
    yield from found


def _find(module: nn.Module) -> Iterator[tuple[Tensor, SpectralNorm]]:
    for part in module.modules():
        if isinstance(part, parametrize.ParametrizationList) and isinstance(part[0], SpectralNorm):
            yield part.original, part[0]
