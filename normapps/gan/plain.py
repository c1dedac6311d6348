"""A network of plain layers that computes what a trained generator or discriminator does.

Everything that is a fixed map once training is over becomes one: normalized weights become ordinary
ones, convolutions that resample become torch's own of the kernel they compute, batch norms go into
the layers beside them, whitening with a colouring a class becomes a table of matrices.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph.comparison import difference_of
from ..graph.fold import fold_batchnorm_
from ..models.onnx import TOLERANCE
from ..models.sngan_blocks import (
    PoolingConv2d,
    UpsamplingConv2d,
    pooling_kernel,
    upsampling_kernel,
)
from ..norm.condition import ConditionalLayer
from ..norm.layers.coloring import ConditionalColoringNorm
from ..norm.weight.matrix import remove_parametrization_


@dataclass(frozen=True)
class Plain:
    """A network made of plain layers.

    Attributes:
        model: in eval mode.
        folded: batch norms that went into their neighbours.
        left: name of each norm layer that stayed, and why.
    """

    model: nn.Module
    folded: int = 0
    left: tuple[tuple[str, str], ...] = ()


def plain(model: nn.Module, inputs: tuple[Tensor, ...], fold: bool = True) -> Plain:
    """Return a copy of a network in which everything that can be is a plain layer.

    Args:
        model: stays as it is.
        inputs: what `model(*inputs)` takes.
        fold: batch norms into the layers beside them, where that is exact.

    Raises:
        InputError: the copy does not compute the same, or the network does not run.
    """
    made = copy.deepcopy(model)
    bake_(made)
    replace_(made)
    result = Plain(made)
    if fold and any(name.endswith("running_mean") for name, _ in made.named_buffers()):
        folding = fold_batchnorm_(made, inputs)
        result = Plain(made, len(folding.folded), folding.left)
    difference = difference_of(model, made, inputs, TOLERANCE)
    if not difference <= TOLERANCE:  # so written that nan is refused, too
        raise InputError(
            f"{type(model).__name__}: made of plain layers, it differs by {difference:.1e} of the"
            " largest value; try --no-fold"
        )
    return result


def bake_(model: nn.Module) -> None:
    """Make every normalized weight an ordinary parameter of the value that inference uses."""
    model.eval()
    for layer in list(model.modules()):
        for name in list(getattr(layer, "parametrizations", {})):
            remove_parametrization_(layer, name)


@torch.no_grad()
def replace_(model: nn.Module) -> None:
    """Replace the layers that derive their weights at each call by layers that have them."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, UpsamplingConv2d):
                made = nn.ConvTranspose2d(*_channels(layer), 4, stride=2, padding=1)
                setattr(parent, name, _filled(made, upsampling_kernel(layer.weight), layer.bias))
            elif isinstance(layer, PoolingConv2d):
                strided = nn.Conv2d(*_channels(layer), 4, stride=2, padding=1)
                setattr(parent, name, _filled(strided, pooling_kernel(layer.weight), layer.bias))
            elif isinstance(layer, ConditionalColoringNorm):
                setattr(parent, name, ColoringTable(layer))


class ColoringTable(ConditionalLayer):
    """What a `ConditionalColoringNorm` does at inference: a matrix and a shift a class.

    Its population's covariance is not factorized at each call, which ONNX has no operator for.

    Args:
        layer: with a population.
    """

    matrix: Tensor
    shift: Tensor

    def __init__(self, layer: ConditionalColoringNorm) -> None:
        super().__init__()
        self.num_features = layer.num_features
        self.carry(layer.layout, layer.act, layer.drop)
        matrix, shift = layer.map_by(layer.population(), torch.arange(layer.num_classes))
        self.register_buffer("matrix", matrix)
        self.register_buffer("shift", shift)

    def normalize_by(self, x: Tensor, condition: Any) -> Tensor:
        """Return matrix·x + shift of each sample's class; x is (N, C, *S), condition (N,)."""
        product = self.matrix[condition] @ x.flatten(2) + self.shift[condition].unsqueeze(2)
        return product.reshape(x.shape)


def _channels(layer: nn.Conv2d) -> tuple[int, int]:
    return layer.in_channels, layer.out_channels


def _filled(made: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    made.register_parameter("weight", nn.Parameter(weight.detach().contiguous()))
    made.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
    return made.eval()
