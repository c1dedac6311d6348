"""A float network and its rounded twin on the same pictures: how far each layer's output moved.

What rounding does is best seen on equal inputs: of two means over the same pictures the difference
has little noise, however few the pictures are. And a layer that is corrected changes what later
ones read, so each layer of the rounded network goes on with what it should have given: correction
in the order of execution, as Nagel et al. 2019 (appendix D) do it with one pass a layer, in a
single pass. Restored is by the statistics of the batches so far, so that small batches do as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..norm.moments import Moments
from ..norm.population.batch_moments import batch_moments
from ..norm.population.listening import Source, inference
from .input_means import channel_axis

_EPS = 1e-8
"""Of the mean variance of a layer's channels: what counts as none in one of them."""

Then = Callable[[str, Tensor, int], Tensor | None]
"""Takes a layer's name, its output and the axis of the channels; may return another output."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Moments (1, O) of what a layer gives, float64 on the CPU.

    Attributes:
        wanted: what it is to give.
        rounded: what it gives where weights are rounded and all earlier layers restored.
    """

    wanted: Moments
    rounded: Moments

    @property
    def shift(self) -> Tensor:
        """What rounding adds to the mean, (O,)."""
        return (self.rounded.mean - self.wanted.mean)[0]

    @property
    def factor(self) -> Tensor:
        """What the rounded deviation is to be multiplied by, (O,); 1 where there is none."""
        eps = (_EPS * self.wanted.var.mean()).clamp_min(torch.finfo(torch.float64).tiny)
        factor = ((self.wanted.var + eps) / (self.rounded.var + eps)).sqrt()
        return torch.where(self.rounded.var > eps, factor, 1.0)[0]


def compare(
    model: nn.Module,
    twin: nn.Module,
    layers: Collection[str],
    batches: Iterable[Any],
    *,
    scales: bool,
    wanted: Mapping[str, Moments] | None = None,
) -> dict[str, Pair]:
    """Return what rounding does to the outputs of layers, those that are called.

    Args:
        model: the float network; comes back as it was.
        twin: the rounded one.
        layers: names of convolutions and linear layers.
        batches: as `normapps.norm.population.measure` takes them, read once.
        scales: restore the variance of what layers give, not its mean alone.
        wanted: what the layers are to give, (1, O) float64 on the CPU, if not what they give in
            the float network, which then is not run.

    Raises:
        InputError: no batches; or activations that are not finite, the first layer is named.
    """
    pairs = _Pairs(scales, wanted)
    source = Source(model, batches, None, None)
    with torch.no_grad(), inference(model), inference(twin):
        for x in source:
            if wanted is None:
                with _hooked(model, layers, pairs.remember):
                    model(x)
            with _hooked(twin, layers, pairs.restore):
                twin(x)
    if source.samples == 0:
        raise InputError("no batches to compare the rounded network on: give pictures")
    return pairs.found


class _Pairs:
    """Collects moments of layers and restores outputs by them."""

    def __init__(self, scales: bool, wanted: Mapping[str, Moments] | None) -> None:
        self.scales, self.wanted = scales, wanted
        self.found: dict[str, Pair] = {}
        self._waiting: dict[str, list[Moments]] = {}

    def remember(self, name: str, out: Tensor, axis: int) -> None:
        """Note a call in the float network."""
        self._waiting.setdefault(name, []).append(_moments(name, out, axis))

    def restore(self, name: str, out: Tensor, axis: int) -> Tensor:
        """Note the same call in the rounded network, and return what it should have given."""
        rounded = _moments(name, out, axis)
        wanted = self._waiting[name].pop(0) if self.wanted is None else self.wanted[name]
        if (earlier := self.found.get(name)) is not None:
            rounded = earlier.rounded.merge(rounded)
            wanted = earlier.wanted.merge(wanted) if self.wanted is None else wanted
        pair = self.found[name] = Pair(wanted, rounded)
        shape = [-1 if each == axis % out.dim() else 1 for each in range(out.dim())]
        factor = pair.factor if self.scales else torch.ones_like(pair.shift)
        offset = wanted.mean[0] - factor * rounded.mean[0]
        return out * factor.to(out).view(shape) + offset.to(out).view(shape)


def _moments(name: str, out: Tensor, axis: int) -> Moments:
    found = batch_moments(out.movedim(axis, 1)).to("cpu").to(torch.float64)
    if not bool((found.mean.isfinite() & found.var.isfinite()).all()):
        raise InputError(
            f"layer '{name}': activations are not finite; look for NaN or infinity in the pictures"
            " and the weights"
        )
    return found


@contextmanager
def _hooked(model: nn.Module, layers: Collection[str], then: Then) -> Iterator[None]:
    def hook(name: str) -> Any:
        return lambda layer, args, out: then(name, out, channel_axis(layer))

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
