"""From a choice of channels to a smaller network: compensated, cut, and proved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..graph.graph import ChannelGraph
from ..graph.oracle import Slimmed, slim_verified
from ..graph.surgery import slim_model
from ..norm.nesting import detached_copy
from .compensation import Compensation, compensate_

Keep = NDArray[Any]


@dataclass(frozen=True, eq=False)
class CutNetworks:
    """A network without some of its channels.

    Attributes:
        plain: cut and nothing else, a network of its own.
        compensated: cut after compensation, a network of its own; None where it was not asked for.
        result: what the command goes on with: a copy of the last of these.
        compensation: what it did; None where it was not asked for.
    """

    plain: nn.Module
    compensated: nn.Module | None
    result: Slimmed
    compensation: Compensation | None


def cut_networks(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Keep,
    inputs: Tensor,
    sample: Tensor | None,
    *,
    verify: bool = True,
) -> CutNetworks:
    """Cut channels out of copies of a network.

    What cannot be proved to be cut stays as it was: the compensation, which silences channels, is
    made anew for those that really go.

    Args:
        model: with all channels; stays as it is.
        graph: of it.
        keep: (count,) bool, True for atoms that stay.
        inputs: (1, C, H, W) for the proof.
        sample: (N, C, H, W) that the compensation listens to; None compensates nothing.
        verify: prove it.

    Raises:
        InputError: as `slim_verified`, or as `compensate_`.
    """
    cut = _verified if verify else _unverified
    if sample is None:
        result = cut(model, graph, keep, inputs)
        return CutNetworks(detached_copy(result.model), None, result, None)
    left: tuple[tuple[str, str], ...] = ()
    while True:  # ends: with each round more atoms stay
        whole = detached_copy(model)
        compensation = compensate_(whole, graph, keep, sample)
        result = cut(whole, compensation.graph, keep, inputs)
        left += result.left
        if bool((result.keep == keep).all()):
            break
        keep = result.keep
    plain, _ = slim_model(model, graph, keep)
    edits = compensation.complete(result.edits)
    proved = Slimmed(result.model, edits, result.keep, result.difference, left)
    return CutNetworks(plain, detached_copy(proved.model), proved, compensation)


def _verified(model: nn.Module, graph: ChannelGraph, keep: Keep, inputs: Tensor) -> Slimmed:
    return slim_verified(model, graph, keep, inputs)


def _unverified(model: nn.Module, graph: ChannelGraph, keep: Keep, inputs: Tensor) -> Slimmed:
    slimmed, edits = slim_model(model, graph, keep)
    return Slimmed(slimmed, edits, keep, math.nan)


@torch.no_grad()
def without(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """Return a copy of a network of the same shapes, in which what goes has weights of 0.

    What a channel weighs after others have gone is read off this copy.
    """
    copy = detached_copy(model)
    for name, value in copy.named_parameters():
        for dim, atoms in enumerate(graph.slots.get(name, ())):
            if atoms is not None and value.dim() > 1:
                gone = torch.from_numpy(np.flatnonzero(~keep[atoms]))
                value.index_fill_(dim, gone.to(value.device), 0)
    return copy
