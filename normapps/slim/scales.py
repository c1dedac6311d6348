"""The scales of a model's batch norms: which ones there are, and all of them as one vector.

What is done to them (shrinking, counting, penalizing) is a few operations on that vector, in
float32 or better whatever the model is in, instead of a loop over its layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import InputError
from ..norm.convert.selection import Patterns, select
from ..norm.convert.sites import find_sites


@dataclass(frozen=True)
class ScaleLayer:
    """A batch norm with a scale.

    Attributes:
        name: of the layer in the model.
        weight: γ (C,).
        bias: β (C,), or None where the layer has none.
    """

    name: str
    weight: nn.Parameter
    bias: nn.Parameter | None


def bare(model: nn.Module) -> nn.Module:
    """Return the model inside of DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def scale_layers(
    model: nn.Module, include: Patterns = (), exclude: Patterns = ()
) -> tuple[ScaleLayer, ...]:
    """Return the batch norms that have a scale a channel, in the model's order.

    Those of torch, timm and ours; a layer that stands in two places, or two that share one scale,
    are one.

    Args:
        model: any network, wrapped for several devices or not.
        include, exclude: shell patterns of names of layers, or of modules around them.

    Raises:
        InputError: there is none, a pattern matches none, or a class derives from batch norm and
            is not known.
    """
    found: dict[int, ScaleLayer] = {}
    sites = find_sites(bare(model))
    for site in select(sites, ["batch"], include, exclude) if sites else []:
        weight, bias = (getattr(site.module, key, None) for key in ("weight", "bias"))
        if isinstance(weight, nn.Parameter) and weight.dim() == 1:
            bias = bias if isinstance(bias, nn.Parameter) else None
            found.setdefault(id(weight), ScaleLayer(site.name, weight, bias))
    if not found:
        raise InputError(
            f"{type(bare(model)).__name__} has no batch norm with a scale: slimming goes by those;"
            " convert_norm(model, 'batch', match='all') puts some in before training"
        )
    return tuple(found.values())


def split_parameters(
    model: nn.Module,
    weight_decay: float,
    *,
    shifts: bool = True,
    include: Patterns = (),
    exclude: Patterns = (),
) -> list[dict[str, Any]]:
    """Return two parameter groups for an optimizer: everything else, and scales without decay.

    Decay on a scale is a second penalty, which moves the solution and takes nothing to 0.

    Args:
        model: any network with batch norms.
        weight_decay: of everything else.
        shifts: leave the β of the same layers without decay too, as `group=True` needs.
        include, exclude: as `scale_layers`.

    Raises:
        InputError: as `scale_layers`.

    Example:
        >>> SGD(split_parameters(model, 1e-4), lr=0.1, momentum=0.9)
    """
    layers = scale_layers(model, include, exclude)
    spared: list[nn.Parameter] = [layer.weight for layer in layers]
    if shifts:
        spared += [layer.bias for layer in layers if layer.bias is not None]
    known = {id(parameter) for parameter in spared}
    others = [each for each in model.parameters() if id(each) not in known]
    groups = [{"params": others, "weight_decay": weight_decay}]
    return [*groups, {"params": spared, "weight_decay": 0.0}]


class Scales:
    """Scales, and shifts where they are wanted, as one vector, and the groups that die together.

    Attributes:
        layers: whose γ (and β) the vector holds: first all γ, layer by layer, then all β.
        tensors: the parameters in that order.
        members: (G, M) int64, positions in the vector of the parts of group g; rows shorter than
            M end in the position behind the vector's end, which reads 0.
        sizes: (G,) how many channels a group is.
        weights: (G,) its share of the penalty.
        dtype: float32, or float64 where a scale is.
        narrow: whether a parameter's own dtype holds less than that.

    Args:
        layers: of one model.
        groups: positions of the scales of each group, counted over the layers' channels.
        shifts: let each β belong to the group of its γ.
        costs: weight of each channel in the penalty, up to a factor: the mean of those in groups
            is made 1.
    """

    def __init__(
        self,
        layers: Sequence[ScaleLayer],
        groups: Iterable[Sequence[int]] | None = None,
        *,
        shifts: bool = False,
        costs: Tensor | None = None,
    ) -> None:
        self.layers = tuple(layers)
        weights = [layer.weight for layer in self.layers]
        biases = [layer.bias for layer in self.layers if layer.bias is not None] if shifts else []
        self.tensors: list[nn.Parameter] = [*weights, *biases]
        self.lengths = [len(tensor) for tensor in self.tensors]
        self.channels = sum(self.lengths[: len(weights)])
        self.device = weights[0].device
        self.dtype = torch.float32
        for tensor in self.tensors:
            self.dtype = torch.promote_types(self.dtype, tensor.dtype)
        self.narrow = any(tensor.dtype != self.dtype for tensor in self.tensors)
        self.shifted = shifts
        self._group(groups, costs)

    def _group(self, groups: Iterable[Sequence[int]] | None, costs: Tensor | None) -> None:
        rows = [[i] for i in range(self.channels)] if groups is None else [list(g) for g in groups]
        costs = torch.ones(self.channels, dtype=torch.float64) if costs is None else costs
        costs = costs / costs[[i for row in rows for i in row]].mean()
        sizes = torch.tensor([len(row) for row in rows])
        # the factor of the group lasso (Yuan & Lin 2006): √n, n channels of weight w
        weights = torch.tensor([float(costs[row].mean()) * len(row) ** 0.5 for row in rows])
        shift = self._shifts()
        whole = [[*row, *(shift[i] for i in row if i in shift)] for row in rows]
        longest, end = max(map(len, whole)), sum(self.lengths)
        padded = [row + [end] * (longest - len(row)) for row in whole]
        self.members = torch.tensor(padded, device=self.device)
        self.sizes = sizes.to(self.device)
        self.weights = weights.to(self.device, self.dtype)
        chosen = torch.zeros(end, dtype=torch.bool)
        chosen[[i for row in whole for i in row]] = True
        self.chosen = chosen.to(self.device)
        self.costs = costs.to(self.device, self.dtype) * self.chosen[: self.channels]

    def _shifts(self) -> dict[int, int]:
        """Position of a γ → that of its β."""
        found: dict[int, int] = {}
        start, end = 0, self.channels
        for layer in self.layers if self.shifted else ():
            if layer.bias is not None:
                found |= {start + i: end + i for i in range(len(layer.bias))}
                end += len(layer.bias)
            start += len(layer.weight)
        return found

    def read(self) -> Tensor:
        """Return the vector, a copy."""
        return self.flat([tensor.detach() for tensor in self.tensors])

    @torch.no_grad()
    def write(self, values: Tensor) -> Tensor:
        """Set the parameters; return what their dtypes could not hold, 0 in float32 and better."""
        for tensor, part in zip(self.tensors, values.split(self.lengths), strict=True):
            tensor.copy_(part)
        return values - self.read()

    def flat(self, parts: Sequence[Tensor]) -> Tensor:
        """Join one tensor for each of `tensors` in the vector's order, dtype and device."""
        return torch.cat([part.to(self.device, self.dtype).flatten() for part in parts])

    def split(self, values: Tensor) -> list[Tensor]:
        """Take a vector over the scales, without the shifts, apart: (C,) a layer."""
        return list(values.split(self.lengths[: len(self.layers)]))

    def gather(self, values: Tensor) -> Tensor:
        """Arrange a vector by groups, (G, M)."""
        return torch.cat([values, values.new_zeros(1)])[self.members]

    def scatter(self, rows: Tensor, values: Tensor) -> Tensor:
        """Return the vector with the parts of the groups replaced by `rows` (G, M)."""
        whole = torch.cat([values, values.new_zeros(1)])
        whole[self.members.flatten()] = rows.flatten()
        return whole[:-1]

    def zeros(self) -> Tensor:
        """Return how many channels are in groups whose parts are all exactly 0, as a scalar."""
        return ((self.gather(self.read()) == 0).all(1) * self.sizes).sum()

    def quantile(self, share: float) -> float:
        """Return the greatest of the smallest groups that have that share of the channels.

        A group counts by its norm, divided by its weight in the penalty; 0 for no group.
        """
        norms = torch.linalg.vector_norm(self.gather(self.read()), dim=1)
        values, order = (norms / self.weights).sort()
        taken = self.sizes[order].cumsum(0) <= int(share * self.total())
        return float((values * taken).max())

    def emptying(self, values: Tensor) -> Tensor:
        """Return which groups (G,) hold the greatest channel of a layer, without which it is empty.

        Args:
            values: (G,) of the groups, at least 0. Of equal ones, all are.
        """
        whole = values.new_full((sum(self.lengths) + 1,), -1.0)
        whole[self.members] = values[:, None].expand(self.members.shape)
        layers = [torch.full((n,), i) for i, n in enumerate(self.lengths[: len(self.layers)])]
        index = torch.cat(layers).to(self.device)
        mine = whole[: self.channels]
        top = mine.new_full((len(self.layers),), -1.0).scatter_reduce(0, index, mine, "amax")
        whole[: self.channels] = (mine == top[index]).to(whole)
        whole[self.channels :] = 0
        return (whole[self.members] > 0).any(1)

    def total(self) -> int:
        """Return how many channels are in the groups."""
        return int(self.sizes.sum())

    def shares(self) -> dict[str, float]:
        """Return the share of exact zeros among a layer's regularized channels, by layer.

        With shifts a channel counts where its β is 0, too. Layers without such channels are left
        out.
        """
        values = self.read()
        dead = values[: self.channels] == 0
        for scale, shift in self._shifts().items():
            dead[scale] &= values[shift] == 0
        found = {}
        parts = (self.split(dead), self.split(self.chosen[: self.channels]))
        for layer, gone, chosen in zip(self.layers, *parts, strict=True):
            if bool(chosen.any()):
                found[layer.name] = float((gone & chosen).sum() / chosen.sum())
        return found


def check_trained(scales: Scales, optimizer: Optimizer) -> None:
    """Check that an optimizer trains all of these parameters, without decay and to real numbers.

    Raises:
        InputError: naming the first layer for which it is not so.
    """
    groups = groups_of(optimizer)
    for layer in scales.layers:
        for key, tensor in (("weight", layer.weight), ("bias", layer.bias)):
            if tensor is None or not any(tensor is each for each in scales.tensors):
                continue
            name = f"layer '{layer.name}': {key}"
            if id(tensor) not in groups:
                raise InputError(f"{name} is not among the optimizer's parameters: add it")
            if decay := float(groups[id(tensor)].get("weight_decay", 0.0)):
                raise InputError(
                    f"{name} has weight_decay {decay:g}, which works against exact zeros: give"
                    " the optimizer split_parameters(model, weight_decay)"
                )
    check_finite(scales)


def check_finite(scales: Scales) -> None:
    """Check the scales and shifts for NaN and infinity.

    Raises:
        InputError: naming the first layer and channel.
    """
    if bool(scales.read().isfinite().all()):
        return
    for layer in scales.layers:
        for key, tensor in (("weight", layer.weight), ("bias", layer.bias)):
            if tensor is not None and not bool(tensor.isfinite().all()):
                channel = int((~tensor.isfinite()).nonzero()[0])
                raise InputError(
                    f"layer '{layer.name}': {key} of channel {channel} is {tensor[channel].item()};"
                    " go back to a checkpoint, with a lower learning rate"
                )


def groups_of(optimizer: Optimizer) -> Mapping[int, dict[str, Any]]:
    """Return the parameter group of each parameter, by the parameter's id."""
    return {id(each): group for group in optimizer.param_groups for each in group["params"]}
