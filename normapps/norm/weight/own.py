"""Orthogonal weight normalization, OWN (Huang et al. 2018): a ZCA whitening of the weight's rows.

Σ^-½(V − mean(V)) with Σ the covariance of the rows, that is `whiten` of a weight instead of an
activation: a row is a channel, its inputs are the samples. Differs from the authors' code: the
scale is fixed, and rows that are too many are split into equal groups without being asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..layers.base import largest_divisor
from ..moments import Moments
from ..operations import whiten
from ..partition import channel_groups
from ..undo import Undo
from .matrix import Axes, find_layers, in_float64
from .proxy import Proxy, add_proxies_


def own_(
    module: nn.Module,
    *,
    scale: float = sqrt(2),
    group_size: int | None = None,
    name: str = "weight",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Undo:
    """Make the rows of the weight zero-mean and orthogonal; see `whitened_rows`.

    The Parameter objects stay, as the proxy that is trained. An eigendecomposition a forward pass:
    O(out³); `remove_weight_norm_` leaves a plain weight for inference and export.

    Args:
        module: layer or network, changed in place.
        scale: length of the rows; √2 keeps the variance through a ReLU.
        group_size: rows that are orthogonal to each other, a divisor of their number. Zero-mean
            rows of n inputs can be n − 1 at most, so if None as many as are no more than that.
        name: the parameter.
        include, exclude: shell patterns of layer names.

    Returns:
        A handle that takes it back: the parameters as they are then, not orthogonal.

    Raises:
        InputError: no such layer, a weight that is parametrized already, rows of one element, or
            a group size that does not divide the rows or is above n − 1.
    """
    layers = find_layers(module, name, include, exclude)
    for path, layer in layers:
        _group(Axes.of(layer).matrix(layer.get_parameter(name)), group_size, path)
    return add_proxies_(
        [layer for _, layer in layers],
        name,
        lambda axes, shape: OrthogonalWeightNorm(axes, shape, scale, group_size),
    )


def whitened_rows(weight: Tensor, group_size: int, scale: float = sqrt(2)) -> Tensor:
    """Return scale·(VVᵀ)^-½V, V = w − mean(w), for each group of rows, in the weight's dtype.

    Args:
        weight: (out, fan_in); computed on in float64, as neighbouring rows are often near parallel.
        group_size: a divisor of the rows.
        scale: length of the rows that come out.
    """
    rows = in_float64(weight).unsqueeze(0)
    moments = Moments.of(rows, channel_groups(group_size), full=True)
    white = whiten(rows, moments, "zca", eps=0.0)[0]  # rows of variance 1
    return (white * (scale / sqrt(weight.shape[1]))).to(weight.dtype)


class OrthogonalWeightNorm(Proxy):
    """The parametrization behind `own_`."""

    def __init__(
        self, axes: Axes, shape: torch.Size, scale: float = sqrt(2), group_size: int | None = None
    ) -> None:
        super().__init__(axes, shape)
        self.scale, self.group_size = scale, group_size

    def rows(self, matrix: Tensor) -> Tensor:
        """Return the orthogonal rows."""
        return whitened_rows(matrix, _group(matrix, self.group_size), self.scale)

    def extra_repr(self) -> str:
        """Return what `print(network)` shows in the brackets."""
        return f"scale={self.scale:.4g}, group_size={self.group_size}"


def _group(matrix: Tensor, size: int | None, path: str = "OWN") -> int:
    count, most = matrix.shape[0], matrix.shape[1] - 1
    if most < 1:
        raise InputError(f"{path}: rows of one element are nothing but their mean; exclude it")
    if size is None:
        return largest_divisor(count, most)
    if size < 1 or size > most or count % size:
        raise InputError(
            f"{path}: group_size {size} of {count} rows of {most + 1} elements; must divide "
            f"{count} and be {most} at most"
        )
    return size
