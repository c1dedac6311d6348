"""Ledger: what the streaming layers of a network hear of one batch, merged for all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .streaming import StreamingNorm


class Heard(NamedTuple):
    """A batch as a layer has heard it: (C,) mean and unbiased variance of so many values."""

    layer: StreamingNorm
    mean: Tensor
    var: Tensor
    values: int
    inputs: int


class Ledger:
    """What many layers hear of one batch: merged at its end, for all at once, or not at all.

    Merging takes a dozen small steps a layer, which in a network of small layers add up.

    Attributes:
        heard: of the batch that is open.
        is_open: whether layers write here.
    """

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.is_open = False

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Have the layers that hold this write here; after an error all is forgotten."""
        self.heard.clear()
        self.is_open = True
        try:
            yield
            merge_heard_(self.heard)
        finally:
            self.is_open = False
            self.heard.clear()


@torch.no_grad()
def merge_heard_(heard: Sequence[Heard]) -> None:
    """Merge batches into their layers' streams by Chan's formula, the channels of all as one row.

    Args:
        heard: of any number of layers, on any devices; a layer's own in their order.
    """
    while heard:
        first, later = _one_a_layer(heard)
        layers = [each.layer for each in first]
        rows = [
            torch.cat([getattr(each, name) for each in layers])
            for name in ("seen_mean", "seen_var", "seen_count")
        ]
        mean, var = (torch.cat([getattr(each, name) for each in first]) for name in ("mean", "var"))
        counts = torch.tensor([each.values for each in first], device=mean.device)
        total, counts = (rows[2] + counts).to(rows[0]), counts.to(rows[0])
        share, biased = _spread(torch.stack([counts / total, 1 - 1 / counts]), first)
        shift = mean.to(rows[0]) - rows[0]
        rows[0].addcmul_(shift, share)
        rows[1].lerp_(var.to(rows[1]).mul_(biased), share)
        rows[1].addcmul_(shift.square_(), share - share.square())
        widths = [len(each.mean) for each in first]
        parts = zip(first, rows[0].split(widths), rows[1].split(widths), strict=True)
        for each, new_mean, new_var in parts:
            each.layer.seen_mean.copy_(new_mean)
            each.layer.seen_var.copy_(new_var)
            each.layer.seen_count.add_(each.values)
            each.layer.seen_samples.add_(each.inputs)
        heard = later


def _one_a_layer(heard: Sequence[Heard]) -> tuple[list[Heard], list[Heard]]:
    """Split off each layer's first batch, of the layers that are where the first one is."""
    first: dict[int, Heard] = {}
    later = []
    like = heard[0].layer.seen_mean
    for each in heard:
        own = each.layer.seen_mean
        fits = own.device == like.device and own.dtype == like.dtype
        if fits and id(each.layer) not in first:
            first[id(each.layer)] = each
        else:
            later.append(each)
    return list(first.values()), later


def _spread(values: Tensor, heard: Sequence[Heard]) -> Tensor:
    """Give (K, layers) numbers to the channels: (K, all channels)."""
    if len(heard) == 1:
        return values
    widths = [len(each.mean) for each in heard]
    repeats = torch.tensor(widths, device=values.device)
    # its size is told, so that a GPU need not be waited for
    return values.repeat_interleave(repeats, 1, output_size=sum(widths))
