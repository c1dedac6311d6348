"""What an activation makes of Gaussians, in the mean: E[f(x)] for x ~ N(β, s²) of each channel.

Behind a batch norm a channel has mean β and variance γ², and taken as Gaussian it says, without a
picture, what the next layer reads in the mean (Nagel et al. 2019, section 4.2.1 and appendix C).
Written with φ and Φ, the density and distribution of N(0, 1), z = β/s, and

    R(β) = E[ReLU(x)] = β·Φ(z) + s·φ(z)

a clip to [a, b] is a + R(β−a) − R(β−b), the paper's formula for ReLU6 with a = 0, b = 6; a leaky
ReLU is slope·β + (1−slope)·R(β). Beyond the paper: x·g(x) by Stein's lemma,
E[x·g(x)] = β·E[g] + s²·E[g′], which gives hardswish (g a clip) and GELU (g = Φ) in closed form.
What has no closed form is integrated by the trapezoidal rule: for smooth functions under a Gaussian
it converges exponentially, as Gauss–Hermite does, but neither a kink nor SiLU's poles near the real
axis slow it down much, as they do Gauss–Hermite.

All in float64, on the CPU; s = 0 is the function of the mean itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .clip import ChannelClip

Function = Callable[[Tensor], Tensor]

_REACH = 9.0
"""Standard deviations to each side that are integrated over: 2e-19 of the mass lies beyond."""

_NODES = 1441
"""Of the trapezoidal rule: steps of s/80, at a kink of slope 1 an error of at most 5e-6·s."""


def relu_mean(mean: Tensor, std: Tensor) -> Tensor:
    """Return R(β) = E[max(x, 0)].

    Args:
        mean, std: β and s ≥ 0, of any one shape (as in all functions here).
    """
    beta, s, z = _standardized(mean, std)
    found = beta * _distribution(z) + s * _density(z)
    return torch.where(s > 0, found, beta).clamp_min(0)


def clip_mean(mean: Tensor, std: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return E[min(max(x, low), high)] = low + R(β−low) − R(β−high).

    Args:
        low, high: finite, a number or one a channel; ReLU6 is 0 and 6, equalized c a channel.
    """
    low, high = (torch.as_tensor(each).to("cpu", torch.float64) for each in (low, high))
    beta = _wide(mean)
    return low + relu_mean(beta - low, std) - relu_mean(beta - high, std)


def leaky_relu_mean(mean: Tensor, std: Tensor, slope: Tensor | float) -> Tensor:
    """Return E[max(x, 0) + slope·min(x, 0)] = slope·β + (1−slope)·R(β)."""
    return slope * _wide(mean) + (1 - slope) * relu_mean(mean, std)


def hardswish_mean(mean: Tensor, std: Tensor) -> Tensor:
    """Return E[x·clip(x/6 + ½, 0, 1)], by Stein's lemma."""
    beta, s = _wide(mean), _wide(std)
    below_3, below_minus_3 = (
        _distribution(_standardized(edge - beta, s)[2]) for edge in (3.0, -3.0)
    )
    gate = clip_mean(beta / 6 + 0.5, s / 6, 0.0, 1.0)
    return beta * gate + torch.where(s > 0, s.square() * (below_3 - below_minus_3) / 6, 0.0)


def gelu_mean(mean: Tensor, std: Tensor) -> Tensor:
    """Return E[x·Φ(x)] = β·Φ(t) + s²/√(1+s²)·φ(t), t = β/√(1+s²): GELU, not its tanh form."""
    beta, s = _wide(mean), _wide(std)
    root = (1 + s.square()).sqrt()
    t = beta / root
    return beta * _distribution(t) + s.square() / root * _density(t)


def integrated_mean(function: Function, mean: Tensor, std: Tensor) -> Tensor:
    """Return E[f(x)] of any elementwise function by the trapezoidal rule over ±9 s.

    Args:
        function: of float64 tensors (K, C, 1, 1): nodes first, then channels, as a layer with
            one parameter a channel wants them.
        mean, std: (C,).
    """
    beta, s = _wide(mean), _wide(std)
    z = torch.linspace(-_REACH, _REACH, _NODES, dtype=torch.float64)
    weights = _density(z) / _density(z).sum()
    values = function((beta + s * z[:, None])[:, :, None, None])
    return weights @ values.reshape(_NODES, -1)


@torch.no_grad()
def activation_mean(activation: nn.Module, mean: Tensor, std: Tensor) -> Tensor:
    """Return E[f(x)] of an activation layer in inference mode: closed form where known.

    Known are Identity, ReLU, ReLU6, Hardtanh, LeakyReLU, Hardsigmoid, Hardswish and GELU of torch,
    and clips of equalized networks (`ChannelClip`); any other is integrated.

    Args:
        activation: works elementwise, at most with parameters of its own for each channel.
        mean, std: (C,).

    Raises:
        InputError: it gives another number of values than it gets, so is not elementwise.
    """
    known = _KNOWN.get(type(activation))
    if known is not None and (found := known(activation, mean, std)) is not None:
        return found
    twin = copy.deepcopy(activation).to("cpu", torch.float64).eval()
    found = integrated_mean(twin, mean, std)
    if found.shape != mean.shape:
        raise InputError(
            f"{type(activation).__name__} gives {found.numel()} values for {mean.numel()} channels:"
            " the mean is known of elementwise activations only"
        )
    return found


def _gelu(layer: Any, mean: Tensor, std: Tensor) -> Tensor | None:
    return gelu_mean(mean, std) if layer.approximate == "none" else None


_KNOWN: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Tensor | None]] = {
    nn.Identity: lambda layer, mean, std: _wide(mean),
    nn.ReLU: lambda layer, mean, std: relu_mean(mean, std),
    nn.ReLU6: lambda layer, mean, std: clip_mean(mean, std, 0.0, 6.0),
    nn.Hardtanh: lambda layer, mean, std: clip_mean(mean, std, layer.min_val, layer.max_val),
    ChannelClip: lambda layer, mean, std: clip_mean(mean, std, layer.low, layer.high),
    nn.LeakyReLU: lambda layer, mean, std: leaky_relu_mean(mean, std, layer.negative_slope),
    nn.Hardsigmoid: lambda layer, mean, std: clip_mean(_wide(mean) / 6 + 0.5, std / 6, 0.0, 1.0),
    nn.Hardswish: lambda layer, mean, std: hardswish_mean(mean, std),
    nn.GELU: _gelu,
}


def _standardized(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """β, s and z = β/s in float64; z of s = 0 is β, and not to be used."""
    beta, s = _wide(mean), _wide(std)
    return beta, s, beta / torch.where(s > 0, s, 1.0)


def _distribution(z: Tensor) -> Tensor:
    found: Tensor = torch.special.ndtr(z)
    return found


def _density(z: Tensor) -> Tensor:
    return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)


def _wide(x: Tensor) -> Tensor:
    return x.detach().to("cpu").to(torch.float64)  # in this order: Metal has no float64
