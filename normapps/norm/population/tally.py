"""Tally: the moments of many layers, pooled over calls, batches and processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...errors import InputError
from ..distributed import gather
from ..moments import Moments
from ..partition import BATCH, POSITION


class Tally:
    """Pools moments by layer: those of one batch as they come, whole batches in float64.

    All diagonal layers of a batch are pooled as one, so that many small layers cost no more than
    a large one, and a GPU is waited for once a batch.
    """

    def __init__(self) -> None:
        self._batch: dict[str, Moments] = {}
        self._packs: dict[tuple[tuple[str, int], ...], Moments] = {}
        self._full: dict[str, Moments] = {}

    def add(self, name: str, moments: Moments) -> None:
        """Count one call of a layer in the present batch."""
        earlier = self._batch.get(name)
        self._batch[name] = moments if earlier is None else earlier.merge(moments)

    def forget(self) -> None:
        """Drop what the present batch has given so far."""
        self._batch = {}

    def close(self) -> None:
        """End the present batch.

        Raises:
            InputError: the moments of a layer are not finite; the first one called is named.
        """
        batch, self._batch = self._batch, {}
        diagonal = {name: moments for name, moments in batch.items() if not moments.is_full}
        widths = tuple((name, moments.mean.numel()) for name, moments in diagonal.items())
        if diagonal:
            pack = _checked(_pack(list(diagonal.values())), batch)
            self._packs[widths] = _merged(self._packs.get(widths), pack)
        for name in batch.keys() - diagonal.keys():
            self._full[name] = _merged(self._full.get(name), _checked(batch[name], batch))

    def result(self) -> dict[str, Moments]:
        """Return the moments of all closed batches, in float64 on the CPU."""
        found = dict(self._full)
        for widths, pack in self._packs.items():
            parts = _unpack(pack, [width for _, width in widths])
            for (name, _), moments in zip(widths, parts, strict=True):
                found[name] = _merged(found.get(name), moments)
        return found


def join(
    found: Mapping[str, Moments], like: Mapping[str, Moments], device: torch.device, group: Any
) -> dict[str, Moments]:
    """Merge moments by layer over the processes of a group; float64 on the CPU.

    Args:
        found: of this process; layers may be missing.
        like: for every layer that any process may have, moments of its shape, which say what a
            process without it sends: they must have a count of 0.
        device: of the tensors that the group's backend sends.
        group: a `torch.distributed` process group, None for all processes.
    """
    whole = {name: found.get(name, nothing) for name, nothing in like.items()}
    diagonal = {name: moments for name, moments in whole.items() if not moments.is_full}
    joined = {}
    if diagonal:
        pack = gather(_pack(list(diagonal.values())).to(device), group)
        widths = [moments.mean.numel() for moments in diagonal.values()]
        joined = dict(zip(diagonal, _unpack(pack.to("cpu"), widths), strict=True))
    for name in whole.keys() - diagonal.keys():
        joined[name] = gather(whole[name].to(device), group).to("cpu")
    return {name: moments for name, moments in joined.items() if float(moments.count[0]) > 0}


def _pack(parts: Sequence[Moments]) -> Moments:
    """Put the channels of all parts, (1, C) each, into one, a channel a group."""
    counts = torch.cat([part.count.expand(part.mean.numel()) for part in parts])
    mean = torch.cat([part.mean for part in parts], 1)
    var = torch.cat([part.var for part in parts], 1)
    return Moments(counts, mean.T, var.T, None, POSITION)


def _unpack(pack: Moments, widths: Sequence[int]) -> list[Moments]:
    parts = zip(*(x.split(list(widths)) for x in (pack.count, pack.mean, pack.var)), strict=True)
    return [Moments(count[:1], mean.T, var.T, None, BATCH) for count, mean, var in parts]


def _merged(earlier: Moments | None, moments: Moments) -> Moments:
    return moments if earlier is None else earlier.merge(moments)


def _checked(moments: Moments, batch: Mapping[str, Moments]) -> Moments:
    """The moments in float64 on the CPU, if they are finite."""
    moments = moments.to("cpu").to(torch.float64)  # in this order: Metal has no float64
    if not _is_finite(moments):
        first = next(name for name, each in batch.items() if not _is_finite(each))
        raise InputError(
            f"layer '{first}': activations are not finite; look for NaN or infinity in the inputs"
            " and the weights, or for overflow in half precision"
        )
    return moments


def _is_finite(moments: Moments) -> bool:
    return bool(torch.isfinite(moments.mean + moments.var).all())
