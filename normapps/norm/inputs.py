"""Normalized inputs: a data set centred, standardized or whitened once, before the network.

LeCun et al. 1998, "Efficient BackProp", sec. 4.3; ZCA: Bell & Sejnowski 1997. The moments are
measured in float64, batch by batch, so they are those of the whole set whatever the batches were.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError, unknown
from ..files import atomic_path
from .layers.base import check_features
from .moments import Moments
from .operations import whitening_matrix
from .partition import BATCH
from .population.listening import tensor_of
from .precision import without_autocast

METHODS = ("center", "standardize", "zca", "pca")
"""What `InputNorm` can do; the last two whiten."""

PER = ("channel", "feature")
"""What shares a mean: a channel over all positions, or each position of each channel by itself."""

_FORMAT = {"format": "normapps-inputs", "version": "1"}


class InputNorm(nn.Module):
    """y = M(x − μ) by the moments of a data set, to stand before a network.

    M is nothing (`center`), 1/√(σ²+ε) (`standardize`), (Σ+εI)^-½ (`zca`, the whitened input
    nearest to the input), or Λ^-½Uᵀ (`pca`, the component of the largest variance first). What
    varies less than float32 can tell beside its mean, as the black border of every digit, is
    centred only: there is nothing to divide by, and a test image may vary there.

    Args:
        num_features: channels C, or all values C·H·W of an input for per="feature".
        method: one of `METHODS`.
        per: one of `PER`. The covariance of features takes num_features² numbers.
        eps: ridge on the variance, in the square of the inputs' unit.

    Attributes:
        mean: (D,) μ.
        scale: (D,) the diagonal of M; or
        matrix: (D, D) M, of the methods that whiten.

    Raises:
        InputError: no features, an unknown method or `per`, a negative eps.

    Example:
        >>> inputs = InputNorm(3, "zca").fit(loader)
        >>> network = nn.Sequential(inputs, model)
    """

    mean: Tensor
    scale: Tensor
    matrix: Tensor

    def __init__(
        self,
        num_features: int,
        method: str = "standardize",
        *,
        per: str = "channel",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_features(num_features)
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        if per not in PER:
            raise unknown("per", per, PER)
        if not 0 <= eps < float("inf"):
            raise InputError(f"eps {eps}: must be 0 or more")
        self.num_features, self.method, self.per, self.eps = num_features, method, per, eps
        self.is_fitted = False
        self.register_buffer("mean", torch.zeros(num_features))
        start = torch.eye(num_features) if self.whitens else torch.ones(num_features)
        self.register_buffer(self._map, start)

    @property
    def whitens(self) -> bool:
        """Whether the values of an input are mixed."""
        return self.method in ("zca", "pca")

    def fit(self, batches: Iterable[Any]) -> InputNorm:
        """Measure a data set and take its moments; returns itself.

        Args:
            batches: inputs (N, C, *S) in a floating dtype, of any sizes, or tuples that begin with
                them.

        Raises:
            InputError: no batch, a value that is not finite, or another number of features.
        """
        whole: Moments | None = None
        for index, batch in enumerate(batches):
            part = self._measure(tensor_of(batch), index)
            whole = part if whole is None else whole.merge(part)
        if whole is None:
            raise InputError("no inputs to measure: give at least one batch")
        return self.set_(whole)

    @torch.no_grad()
    def set_(self, moments: Moments) -> InputNorm:
        """Take moments that were measured elsewhere, as those of several machines merged.

        Args:
            moments: (1, D) by the partition `BATCH`; full ones for `zca` and `pca`.

        Raises:
            InputError: another number of features, or diagonal moments where a covariance is
                needed.
        """
        if moments.mean.shape != (1, self.num_features):
            found = tuple(moments.mean.shape)
            raise InputError(f"moments of {found}: must be (1, {self.num_features})")
        moments = moments.to(torch.float64)
        rounding = torch.finfo(torch.float32).eps ** 2 * moments.mean.square()
        still = moments.var <= rounding
        getattr(self, self._map).copy_(self._mapping(moments, still)[0])
        self.mean.copy_(moments.mean[0])
        self.is_fitted = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, *S), in its dtype and shape.

        Raises:
            InputError: nothing was fitted, x has another number of features or is not floating.
        """
        if not self.is_fitted:
            raise InputError("InputNorm knows no data set yet: call fit(batches), or load it")
        rows = self._rows(x)
        shape = (1, -1, *[1] * (rows.dim() - 2))
        centred = rows.to(torch.promote_types(x.dtype, self.mean.dtype)) - self.mean.view(shape)
        if self.whitens:
            with without_autocast(x):
                y = torch.einsum("dc,nc...->nd...", self.matrix.to(centred), centred)
        else:
            y = centred * self.scale.view(shape)
        return y.reshape(x.shape).to(x.dtype)

    @torch.no_grad()
    def fold(self, layer: nn.Module) -> nn.Module:
        """Return a copy of the network's first layer that takes the inputs as they are.

        Args:
            layer: a linear layer (of the features, in the order of `x.flatten(1)`), or, per
                channel, a convolution that does not pad with zeros: 0 is not what the mean
                becomes.

        Raises:
            InputError: the product is no layer of that kind.
        """
        if reason := self._reason_against(layer):
            raise InputError(f"cannot fold into {type(layer).__name__}: {reason}; leave it before")
        made: Any = copy.deepcopy(layer)
        weight = made.weight.double()
        groups = getattr(made, "groups", 1)
        mean, mapping = (each.double() for each in (self.mean, getattr(self, self._map)))
        if self.whitens:
            weight = torch.einsum("oi...,ij->oj...", weight, mapping)
        else:
            weight = weight * _by_group(mapping, weight, groups)
        shift = -(weight * _by_group(mean, weight, groups)).flatten(1).sum(1)
        old = 0 if made.bias is None else made.bias.double()
        made.weight.copy_(weight)
        made.bias = nn.Parameter((old + shift).to(made.weight.dtype))
        return made  # type: ignore[no-any-return]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the normalization as safetensors.

        Raises:
            InputError: nothing was fitted, or the file exists or cannot be written.
        """
        from safetensors.torch import save_file

        if not self.is_fitted:
            raise InputError(f"{path}: InputNorm knows no data set yet; call fit(batches) first")
        config = {name: getattr(self, name) for name in ("num_features", "method", "per", "eps")}
        tensors = {key: each.cpu().contiguous() for key, each in self.state_dict().items()}
        with atomic_path(path, overwrite=overwrite) as temporary:
            save_file(tensors, temporary, {**_FORMAT, "config": json.dumps(config)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> InputNorm:
        """Read what `save` wrote.

        Raises:
            InputError: missing, damaged, or another kind of file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
            if {key: metadata.get(key) for key in _FORMAT} != _FORMAT:
                raise InputError(f"{path}: not a normalization of inputs; InputNorm.save makes one")
            made = cls(**json.loads(metadata["config"]))
            made.load_state_dict(tensors)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file") from error
        except InputError:
            raise
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged; fit and save the normalization again") from error
        return made

    def extra_repr(self) -> str:
        """Return what `print(module)` shows in the brackets."""
        return f"{self.num_features}, {self.method}, per={self.per}, eps={self.eps}"

    @property
    def _map(self) -> str:
        return "matrix" if self.whitens else "scale"

    def _rows(self, x: Tensor) -> Tensor:
        """x as (N, D, …), checked."""
        rows = x.flatten(1) if self.per == "feature" and x.dim() > 2 else x
        if x.dim() < 2 or rows.shape[1] != self.num_features or not x.is_floating_point():
            wanted = "(N, C, ...)" if self.per == "channel" else "(N, ...)"
            raise InputError(
                f"inputs of {x.dtype} {tuple(x.shape)}: must be floating {wanted} with "
                f"{self.num_features} {self.per}s"
            )
        return rows

    def _measure(self, x: Tensor, index: int) -> Moments:
        rows = self._rows(x.detach())
        part = Moments.of(rows.cpu().double(), BATCH, full=self.whitens)
        if not torch.isfinite(part.mean + part.var).all():
            raise InputError(f"batch {index} of the inputs has NaN or infinity: clean the data")
        return part

    def _mapping(self, moments: Moments, still: Tensor) -> Tensor:
        """M in float64, (1, D) or (1, D, D)."""
        if self.method == "center":
            return torch.ones_like(moments.var)
        if self.method == "standardize":
            return torch.where(still, 1.0, (moments.var + self.eps).rsqrt())
        if moments.cov is None:
            raise InputError(f"'{self.method}' needs the covariance: Moments.of(..., full=True)")
        # what does not vary has no covariance with others either, and is left to itself
        cov = moments.cov + still.to(moments.cov).diag_embed()
        matrix = whitening_matrix(replace(moments, cov=cov), self.method, self.eps)
        return matrix.flip(1) if self.method == "pca" else matrix

    def _reason_against(self, layer: nn.Module) -> str:
        """Why a layer cannot take the normalization in, or nothing."""
        if not self.is_fitted:
            return "nothing was fitted yet"
        if parametrize.is_parametrized(layer):
            return "it is parametrized"
        if type(layer) is nn.Linear:
            return self._reason_of_size(layer.in_features)
        if type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
            return self._reason_against_convolution(layer)
        return "it is neither linear nor a convolution"

    def _reason_against_convolution(self, conv: Any) -> str:
        if self.per != "channel":
            return "each position has moments of its own"
        if conv.padding_mode == "zeros" and _pads(conv):
            return "it pads with zeros (padding_mode='replicate' would do)"
        if self.whitens and conv.groups > 1:
            return f"its {conv.groups} groups would be mixed"
        return self._reason_of_size(conv.in_channels)

    def _reason_of_size(self, size: int) -> str:
        return "" if size == self.num_features else f"it takes {size}, not {self.num_features}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.is_fitted = self.is_fitted or prefix + "mean" in state_dict


def _by_group(values: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Values (D,) of inputs, shaped to broadcast against a weight (out, D/groups, …)."""
    rows = values.view(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
    return rows.reshape(*rows.shape, *[1] * (weight.dim() - 2))


def _pads(conv: Any) -> bool:
    if isinstance(conv.padding, str):
        return conv.padding == "same" and max(conv.kernel_size) > 1
    return any(conv.padding)
