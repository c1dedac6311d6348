"""`normapps gan inspect`: how large the maps of a discriminator's weights are, layer by layer.

Spectral normalization divides a weight by an estimate, by two vectors u and v that follow it, of
the norm of its reshaped kernel. Neither need be the norm of the convolution that the layer
computes: the vectors lag behind, and the reshaped kernel's norm is smaller by up to the root of the
kernel's size (Tsuzuku et al. 2018). Here all of them stand side by side.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.device import evaluating
from ..norm.weight import SpectralNorm, SpectralReport, spectral_norm_
from ..norm.weight import inspect as inspect_spectral
from ..norm.weight.matrix import LAYERS, parametrization
from .opening import is_generator
from .plain import bake_
from .run import open_run
from .sample_options import InspectOptions

STALE = 0.1
"""Share by which u and v that are stale are off. Training alone, one step of the power iteration a
change of the weights, leaves a few per cent."""


@dataclass(frozen=True)
class Row:
    """The norms of one layer's weight; NaN is one that there is none of.

    Attributes:
        layer: its name in the network.
        shape: of the weight.
        sigma: which norm the weight is divided by: "reshape", "conv", "bound"; "" for none.
        estimate: that norm by the stored u and v: what the weight is divided by in training.
        exact: that norm.
        reshaped: largest singular value of the matrix (out, in·k), by SVD.
        convolution: norm of the convolution with zero padding on an input of `size`; of one that
            pools, before the pooling.
        bound: upper bound of that at any size.
        size: side of the input that the layer gets; 0 for a layer of no picture.
        effective: `convolution` of the weight as the network uses it, divided by the norm.
        is_stale: u and v are more than `STALE` off.
    """

    layer: str
    shape: tuple[int, ...]
    sigma: str
    estimate: float
    exact: float
    reshaped: float
    convolution: float
    bound: float
    size: int
    effective: float
    is_stale: bool


def inspect_run(
    run: str | Path,
    options: InspectOptions | None = None,
    progress: Callable[[str, int], object] = lambda name, total: None,
) -> list[Row]:
    """Measure the weights of a run's discriminator, as its checkpoint has it.

    Args:
        run: folder of `gan train`.
        options: whether the generator's weights, too.
        progress: told of every layer, and how many there are.

    Returns:
        A row a layer of the discriminator; those of the generator behind, called `generator.…`.

    Raises:
        InputError: no such run, or one without a checkpoint.
    """
    options = options or InspectOptions()
    opened = open_run(run)
    networks = {"": opened.discriminator()}
    if options.generator:
        networks["generator."] = opened.generator()
    total = sum(len(_layers(network)) for network in networks.values())
    return [
        row
        for prefix, network in networks.items()
        for row in inspect_network(network, prefix, lambda layer: progress(layer, total))
    ]


def inspect_network(
    network: nn.Module, prefix: str = "", progress: Callable[[str], object] = lambda name: None
) -> list[Row]:
    """Measure every linear, embedding and convolution layer of a generator or discriminator.

    Args:
        network: with `size`, `channels` and `num_classes`, or a wrapper of one; stays as it is.
        prefix: of the layers' names.
        progress: told of every layer.
    """
    sizes = _sizes(network)
    rows = []
    for name, layer in _layers(network).items():
        rows.append(_row(prefix + name, layer, sizes.get(name, 0)))
        progress(prefix + name)
    return rows


def _layers(network: nn.Module) -> dict[str, Any]:
    return {name: each for name, each in network.named_modules() if isinstance(each, LAYERS)}


def _row(name: str, layer: Any, size: int) -> Row:
    is_normalized = isinstance(parametrization(layer, "weight"), SpectralNorm)
    report = _report(layer if is_normalized else _plain(layer), size)
    used = report.exact if report.is_stale else report.estimate
    convolution = report.convolution
    return Row(
        layer=name,
        shape=tuple(layer.weight.shape),
        sigma=report.sigma if is_normalized else "",
        estimate=report.estimate if is_normalized else math.nan,
        exact=report.exact if is_normalized else math.nan,
        reshaped=report.reshaped,
        convolution=convolution,
        bound=report.bound,
        size=size,
        effective=convolution / used if is_normalized and used else convolution,
        is_stale=is_normalized and not abs(report.error) <= STALE,
    )


def _report(layer: nn.Module, size: int) -> SpectralReport:
    (report,) = inspect_spectral(layer, size=size or None)
    return report


def _plain(layer: nn.Module) -> nn.Module:
    """A copy of a layer with the weight that inference uses, made ready to be measured."""
    plain = copy.deepcopy(layer)
    bake_(plain)
    spectral_norm_(plain)
    return plain


def _sizes(network: nn.Module) -> dict[str, int]:
    """The side of what each layer gets, by its name: the layers that are run on pictures."""
    network = copy.deepcopy(network)  # being read mends vectors that a state dict brought
    sizes: dict[str, int] = {}
    for name, layer in _layers(network).items():
        layer.register_forward_pre_hook(partial(_note, sizes, name))
    with evaluating(network):
        network(*_inputs(network))
    return sizes


def _note(sizes: dict[str, int], name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if inputs[0].dim() == 4:
        sizes[name] = int(inputs[0].shape[-1])


def _inputs(network: nn.Module) -> Sequence[Tensor]:
    """What the network takes, of one picture."""
    inner: Any = next(each for each in network.modules() if hasattr(each, "num_classes"))
    weight = next(inner.parameters())
    shape = (inner.latent,) if is_generator(inner) else (inner.channels, inner.size, inner.size)
    labels = [torch.zeros(1, dtype=torch.int64, device=weight.device)]
    return [weight.new_zeros(1, *shape), *(labels if inner.num_classes else [])]
