"""Conditional normalization (Dumoulin et al. 2017; de Vries et al. 2017): γ and β a class."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ..precision import without_autocast
from .base import Taxonomy, place_of
from .modulated import Modulated, ModulatedNorm


class ConditionalNorm(ModulatedNorm):
    """Batch (or instance) standardization, then scale and shift of the sample's class.

    The condition is one class for all samples (a number), one a sample (labels (N,), integers), or
    weights of the classes (N, num_classes), which mix their scales and shifts; weights that do not
    sum to 1 are taken as they are.

    The scales start at 1. GAN code often stores them as 1 + an embedding that starts at 0, where
    leaving the 1 out is a known mistake; stored as they are, they can be loaded from the (C,) scale
    and shift of a pretrained layer, which every class then starts from. Weight decay pulls them to
    0, not to 1: exempt them, as for any norm layer.

    Args:
        num_features: channels C.
        num_classes: classes K.
        eps, momentum, base, sync, process_group: see `ModulatedNorm`.
        bias: have `bias`.
        layout, act, drop: see `NormLayer`.

    Attributes:
        weight: (K, C), from 1.
        bias: (K, C), from 0.

    Raises:
        InputError: fewer than one class, or an unknown base.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch or instance",
        "standardize",
        "affine of the class",
        "Dumoulin et al. 2017",
        "2 passes; inference 1 over the batch, 2 over the instance",
    )

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        **carried: Unpack[Modulated],
    ) -> None:
        super().__init__(num_features, eps, momentum, True, **carried)
        if num_classes < 1:
            raise InputError(f"num_classes {num_classes}: must be at least 1")
        self.num_classes = num_classes
        place = place_of(carried)
        self.weight = nn.Parameter(torch.ones(num_classes, num_features, **place))
        if self.bias is not None:
            self.bias = nn.Parameter(torch.zeros(num_classes, num_features, **place))

    def modulation(self, x: Tensor, condition: Any) -> tuple[Tensor | None, Tensor | None]:
        """Return scale and shift of each sample's class, (N, C) or (1, C)."""
        if isinstance(condition, Tensor) and condition.is_floating_point():
            self._check(condition.shape == (x.shape[0], self.num_classes), condition, x)
            return self._mixed(self.weight, condition), self._mixed(self.bias, condition)
        labels = self._labels(condition, x)
        scale, shift = (None if t is None else F.embedding(labels, t) for t in self._tables())
        return scale, shift

    def _tables(self) -> tuple[Tensor | None, Tensor | None]:
        return self.weight, self.bias

    def _mixed(self, table: Tensor | None, weights: Tensor) -> Tensor | None:
        if table is None:
            return None
        with without_autocast(table):
            return weights.to(table.dtype) @ table

    def _labels(self, condition: Any, x: Tensor) -> Tensor:
        """Labels (N,) or (1,). On a GPU a label out of range is left to the embedding to find."""
        if isinstance(condition, int):
            self._check(0 <= condition < self.num_classes, condition, x)
            return torch.full((1,), condition, device=x.device)
        fits = isinstance(condition, Tensor) and condition.shape in ((), (1,), (x.shape[0],))
        self._check(fits, condition, x)
        labels: Tensor = condition.reshape(-1).long()
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(labels.min()), int(labels.max())
            self._check(low >= 0, low, x)
            self._check(high < self.num_classes, high, x)
        return labels

    def _check(self, fits: bool, condition: Any, x: Tensor) -> None:
        if not fits:
            shape = getattr(condition, "shape", None)
            got = f"label {condition}" if shape is None else f"{condition.dtype} {tuple(shape)}"
            raise InputError(
                f"{type(self).__name__} got {got}, needs labels below {self.num_classes}: a number "
                f"or ({x.shape[0]},) integers, or ({x.shape[0]}, {self.num_classes}) weights"
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Let every class start from the (C,) scale and shift of a layer without classes."""
        for name in ("weight", "bias"):
            value = state_dict.get(prefix + name)
            if value is not None and value.shape == (self.num_features,):
                state_dict[prefix + name] = value.expand(self.num_classes, -1)
        super()._load_from_state_dict(state_dict, prefix, *args)
