"""Weights of convolutions and linear layers with an affine map of channels in them.

All in float64 on the CPU; what is written back has the layer's own precision and place. One form
serves all layers: (groups, outputs of a group, inputs of a group, positions of the kernel).
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..norm.undo import Undo
from .fold_affine import Affine

Transposed: TypeAlias = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Conv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | Transposed
Layer: TypeAlias = Conv | nn.Linear

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
LAYERS = (*CONVS, nn.Linear)


def is_blockwise(layer: Layer, affine: Affine) -> bool:
    """Whether a map of a layer's outputs or inputs mixes none across the layer's groups."""
    groups = _groups(layer)
    if not affine.is_full or groups == 1:
        return True
    blocks = torch.block_diag(*_diagonal_blocks(affine.factor, groups))
    return bool((affine.factor == blocks).all())


def pads_with_zeros(layer: Layer) -> bool:
    """Whether some outputs see zeros, or fewer inputs, where others see inputs.

    So that a constant added to the inputs is not a constant added to the outputs. A class with a
    forward of its own may pad as it likes, and counts as one that does.
    """
    if isinstance(layer, nn.Linear):
        return False
    if type(layer).forward not in [kind.forward for kind in CONVS]:
        return True
    ones = (1,) * len(layer.kernel_size)
    if isinstance(layer, TRANSPOSED):
        return not (layer.kernel_size == layer.stride == ones and not any(_numbers(layer)))
    if layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    if layer.padding == "same":
        return layer.kernel_size != ones
    return any(_numbers(layer))


@torch.no_grad()
def change_outputs_(layer: Layer, affine: Affine, undo: Undo) -> None:
    """Let a layer give factor·y + shift in place of y; a bias is made where there was none."""
    blocks, groups = _blocks(layer), _groups(layer)
    bias = _bias(layer)
    if affine.is_full:
        weight = torch.einsum("gpo,goik->gpik", _diagonal_blocks(affine.factor, groups), blocks)
        bias = affine.factor @ bias
    else:
        weight = affine.factor.reshape(groups, -1, 1, 1) * blocks
        bias = affine.factor * bias
    _write_(layer, weight, bias + affine.shift, undo)


@torch.no_grad()
def change_inputs_(layer: Layer, affine: Affine, undo: Undo) -> None:
    """Let a layer take x where it took factor·x + shift."""
    blocks, groups = _blocks(layer), _groups(layer)
    shift = affine.shift.reshape(groups, 1, -1, 1)
    bias = _bias(layer) + (blocks * shift).sum((2, 3)).flatten()
    if affine.is_full:
        weight = torch.einsum("goik,gij->gojk", blocks, _diagonal_blocks(affine.factor, groups))
    else:
        weight = blocks * affine.factor.reshape(groups, 1, -1, 1)
    _write_(layer, weight, bias, undo)


def _numbers(layer: Conv) -> list[int]:
    padding = () if isinstance(layer.padding, str) else tuple(layer.padding)
    return [*padding, *layer.output_padding]


def _groups(layer: Layer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def _bias(layer: Layer) -> Tensor:
    if layer.bias is not None:
        return layer.bias.detach().cpu().double()
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return torch.zeros(outputs, dtype=torch.float64)


def _blocks(layer: Layer) -> Tensor:
    weight, groups = layer.weight.detach().cpu().double(), _groups(layer)
    if isinstance(layer, TRANSPOSED):  # (inputs, outputs of a group, …)
        blocks = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        return blocks.transpose(1, 2)
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)


def _write_(layer: Layer, blocks: Tensor, bias: Tensor, undo: Undo) -> None:
    if isinstance(layer, TRANSPOSED):
        blocks = blocks.transpose(1, 2)
    undo.add(_Weights(layer))
    layer.weight.copy_(blocks.reshape(layer.weight.shape))
    if layer.bias is None:
        made = nn.Parameter(bias.to(layer.weight), requires_grad=layer.weight.requires_grad)
        layer.register_parameter("bias", made)
    else:
        layer.bias.copy_(bias)


def _diagonal_blocks(matrix: Tensor, groups: int) -> Tensor:
    """(C, C) → (groups, C/groups, C/groups)."""
    size = len(matrix) // groups
    return torch.stack([part[:, k * size :][:, :size] for k, part in enumerate(matrix.split(size))])


class _Weights:
    """Gives a layer its weight and bias back, the same objects with the same values."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        held = {name: layer._parameters[name] for name in ("weight", "bias")}
        self.held = [(name, each, _copied(each)) for name, each in held.items()]

    @torch.no_grad()
    def __call__(self) -> None:
        for name, parameter, value in self.held:
            if parameter is not None and value is not None:
                parameter.copy_(value)
            self.layer._parameters[name] = parameter


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()
