"""Fusing: blocks that fold their batch norms into convolutions must not fold anything else.

RepVGG, MobileOne, LeViT and their like read γ, β and the running statistics in `fuse` or
`reparameterize`. On another layer that would fail half-way, skip the layer, or give wrong numbers
without a word. So while a block has a layer that cannot be folded, these methods raise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import InputError
from ..layers.base import NormLayer
from ..undo import Undo
from .origin import origin_of

FUSERS = (
    *("fuse", "fuse_model", "fuse_repvgg_block", "fuse_convs", "fuse_conv_bn", "fuse_bn"),
    *("reparameterize", "reparam", "switch_to_deploy", "convert_to_deploy", "merge_bn"),
    *("structural_reparam", "get_equivalent_kernel_bias"),
)
"""The methods by which public models fold norm layers into convolutions."""


class Refusal:
    """Stands in a block for a method that cannot do its work now; calling it says why.

    Args:
        method: the method's name.
        layer: the name of the layer that stands in the way, seen from the block.
        kind: the layer's class.
    """

    def __init__(self, method: str, layer: str, kind: str) -> None:
        self.method, self.layer, self.kind = method, layer, kind

    def __call__(self, *args: object, **options: object) -> NoReturn:
        """Raise InputError, whatever the arguments."""
        raise InputError(
            f"{self.method}() folds batch norms into convolutions, and '{self.layer}' is a "
            f"{self.kind}, which cannot be folded; convert it back first: "
            "convert_norm_(model, 'batch') or the conversion's undo()"
        )


def is_foldable(layer: nn.Module) -> bool:
    """Whether a layer has what a fold into a convolution reads: a batch norm's statistics."""
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def refuse_fusing_(model: nn.Module) -> Undo:
    """Let the fusing methods of every block raise that has a layer which cannot be folded any more.

    That is one that was a batch norm and is not. Blocks that have none get their methods back.
    """
    undo = Undo()
    for block in list(model.modules()):
        methods = [name for name in FUSERS if callable(getattr(type(block), name, None))]
        obstacle = next(_obstacles(block), None) if methods else None
        for method in methods:
            before = vars(block).get(method)
            if before is not None and not isinstance(before, Refusal):
                continue
            vars(block).pop(method, None)
            if obstacle is not None:
                name, layer = obstacle
                vars(block)[method] = Refusal(method, name, type(layer).__name__)
            undo.add(_Put(block, method, before))
    return undo


class _Put:
    """Gives a block's attribute back the value it had, or takes it away."""

    def __init__(self, block: nn.Module, name: str, value: Refusal | None) -> None:
        self.block, self.name, self.value = block, name, value

    def __call__(self) -> None:
        vars(self.block).pop(self.name, None)
        if self.value is not None:
            vars(self.block)[self.name] = self.value


def _obstacles(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in block.named_modules():
        origin = origin_of(layer) if isinstance(layer, NormLayer) else None
        if origin is not None and origin.norm == "batch" and not is_foldable(layer):
            yield name, layer
