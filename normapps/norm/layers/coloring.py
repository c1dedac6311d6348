"""Whitening and colouring (Siarohin et al. 2019): a full matrix where others have a scale.

Two layers: `ColoringNorm` needs no label, `ConditionalColoringNorm` does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ..condition import ConditionalLayer
from ..matrix import multiply
from ..moments import Moments
from ..operations import whitening_matrix
from ..partition import BATCH, INSTANCE
from ..precision import without_autocast
from .base import Taxonomy, place_of
from .tracking import Tracked
from .whitening import Grouped, Whitening


class ColoringNorm(Whitening):
    """Whiten all channels over the batch, then multiply by a full matrix (C, C) and shift.

    W = L⁻¹ with LLᵀ = (1−ε)Σ+εI, as in the paper: the covariance is shrunk towards I, and not
    only raised.

    Args:
        num_features: channels C.
        eps: share of I in the covariance, 0…1.
        momentum, track_running_stats: see `Whitening`.
        affine, bias: have `weight`, and `bias`.
        group_size: channels whitened together, all of them if None; see `Whitening`.
        sync, process_group: see `Tracking`.
        layout, act, drop: see `NormLayer`.

    Attributes:
        weight: (C, C), from the identity. An old (C,) is loaded as its diagonal.
        bias: (C,), from 0.

    Raises:
        InputError: no channels, a group size below 1, or eps outside 0…1.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch",
        "whiten (Cholesky)",
        "linear",
        "Siarohin et al. 2019",
        "2 passes of d products an element, Cholesky O(d³) a group; inference a 1×1 convolution",
    )
    method: ClassVar[str] = "cholesky"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-3,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        group_size: int | None = None,
        **carried: Unpack[Tracked],
    ) -> None:
        options: Grouped = {"group_size": group_size, **carried}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **options)
        if not 0 <= eps <= 1:
            raise InputError(f"eps {eps}: is a share of the covariance, must be in 0…1")
        if affine:
            self.weight = nn.Parameter(torch.eye(num_features, **place_of(carried)))

    def whitening(self, moments: Moments) -> Tensor:
        """Return the whitening matrices (G, d, d)."""
        if moments.cov is not None:
            moments = replace(moments, cov=moments.cov * (1 - self.eps))
        return whitening_matrix(moments, self.method, self.eps)

    def recovered(self, matrix: Tensor) -> Tensor:
        """Return colouring times whitening, (1, C, C)."""
        if self.weight is None:
            return matrix
        return _colored(self.weight.unsqueeze(0), matrix)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        """Take the (C,) scale of another layer as the diagonal of the colouring."""
        scale = state_dict.get(prefix + "weight")
        if scale is not None and scale.shape == (self.num_features,):
            state_dict[prefix + "weight"] = scale.diag()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class ConditionalColoringNorm(ConditionalLayer, ColoringNorm):
    """`ColoringNorm` with a colouring and a shift of the sample's class added to the shared ones.

    The condition is one class for all samples (a number), one a sample (labels (N,), integers), or
    weights of the classes (N, num_classes), which mix their colourings and shifts.

    Args:
        num_features: channels C.
        num_classes: classes K.
        eps, momentum, track_running_stats, group_size, bias, sync, process_group, layout, act,
            drop: see `ColoringNorm`.

    Attributes:
        weight, bias: what all classes share, (C, C) and (C,).
        class_weight: (K, C, C), from 0.
        class_bias: (K, C), from 0.

    Raises:
        InputError: fewer than one class, or as `ColoringNorm`.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch",
        "whiten (Cholesky)",
        "linear of the class",
        "Siarohin et al. 2019",
        "2 passes of d products an element, Cholesky O(d³) a group, and a product of the class",
    )

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        eps: float = 1e-3,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        **carried: Unpack[Grouped],
    ) -> None:
        super().__init__(num_features, eps, momentum, True, track_running_stats, **carried)
        if num_classes < 1:
            raise InputError(f"num_classes {num_classes}: must be at least 1")
        self.num_classes = num_classes
        c, place = num_features, place_of(carried)
        self.class_weight = nn.Parameter(torch.zeros(num_classes, c, c, **place))
        shift = None if self.bias is None else nn.Parameter(torch.zeros(num_classes, c, **place))
        self.register_parameter("class_bias", shift)

    def normalize_by(self, x: Tensor, condition: Any) -> Tensor:
        """Normalize and recover (N, C, *S) by the class of each sample."""
        chosen = self._chosen(condition, x.shape[0]).to(x.device)
        matrix, shift = self.map_by(self.moments(x), chosen)
        return multiply(x, BATCH if matrix.shape[0] == 1 else INSTANCE, matrix, shift)

    def map_by(self, moments: Moments, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return y = matrix·x + shift of each of L classes or mixtures, (L, C, C) and (L, C).

        Args:
            moments: full moments by `partition()`.
            chosen: classes (L,), integers, or weights (L, K), floating.
        """
        with without_autocast(moments.mean):
            color = _picked(self.class_weight, chosen)
            color = color if self.weight is None else color + self.weight
            matrix = _colored(color, self.whitening(moments))
            shift = -(matrix @ moments.mean.reshape(-1, 1)).squeeze(2)
            if self.bias is not None and self.class_bias is not None:
                shift = shift + self.bias + _picked(self.class_bias, chosen)
        return matrix, shift

    @torch.no_grad()
    def fold(self, label: int | None = None) -> nn.Module:
        """Return what the layer does to one class at inference; see `Whitening.fold`.

        Raises:
            InputError: no label, or one out of range; the layer tracks no population.
        """
        chosen = self._chosen(label, 1).to(self.class_weight.device)
        return self._module(*self.map_by(self.population(), chosen))

    def _chosen(self, condition: Any, samples: int) -> Tensor:
        """Classes (N,) or (1,), or weights (N, K).

        On a GPU a class out of range is left to the embedding to find.
        """
        if isinstance(condition, int):
            self._check_label(condition, samples)
            return torch.full((1,), condition, device=self.class_weight.device)
        if not isinstance(condition, Tensor):
            raise self._refusal(repr(condition), samples)
        soft = condition.is_floating_point()
        fitting = [(samples, self.num_classes)] if soft else [(), (1,), (samples,)]
        if condition.shape not in fitting:
            raise self._refusal(f"{condition.dtype} {tuple(condition.shape)}", samples)
        if soft:
            return condition
        labels = condition.reshape(-1).long()
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            for label in (int(labels.min()), int(labels.max())):
                self._check_label(label, samples)
        return labels

    def _check_label(self, label: int, samples: int) -> None:
        if not 0 <= label < self.num_classes:
            raise self._refusal(f"label {label}", samples)

    def _refusal(self, got: str, samples: int) -> InputError:
        return InputError(
            f"{type(self).__name__} got {got}, needs labels below {self.num_classes}: a number "
            f"or ({samples},) integers, or ({samples}, {self.num_classes}) weights"
        )


def _picked(table: Tensor, chosen: Tensor) -> Tensor:
    """Rows (L, …) of a table (K, …), or mixtures of them."""
    flat = table.flatten(1)
    rows = chosen.to(flat) @ flat if chosen.is_floating_point() else F.embedding(chosen, flat)
    return rows.reshape(-1, *table.shape[1:])


def _colored(color: Tensor, matrix: Tensor) -> Tensor:
    """color (L, C, C) times the block-diagonal whitening matrix (G, d, d)."""
    groups, width, _ = matrix.shape
    apart = color.to(matrix).unflatten(2, (groups, width)).transpose(1, 2)
    product: Tensor = apart @ matrix
    return product.transpose(1, 2).reshape(color.shape)
