"""The orders in which an evaluation shows its samples: what comes when, and where it starts again.

Indices only: a domain is a number, a sample the number within its domain's set. Whoever holds the
sets makes batches of the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError, unknown


@dataclass(frozen=True, eq=False)
class Step:
    """One batch of a stream.

    Attributes:
        domains: (n,) int64, the domain of each sample; one number throughout but in `mixed`.
        indices: (n,) int64, the number of each sample within its domain.
        reset: the method starts again from the source before this batch.
    """

    domains: Tensor
    indices: Tensor
    reset: bool

    def __len__(self) -> int:
        return len(self.indices)

    def parts(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield each domain in the batch, its samples' places in the batch, and their numbers.

        Example:
            >>> for domain, places, indices in step.parts():
            ...     batch[places] = pools[domain].images[indices]
        """
        for domain in self.domains.unique().tolist():
            places = (self.domains == domain).nonzero().flatten()
            yield domain, places, self.indices[places]


def one_shift(
    sizes: Sequence[int], batch_size: int, *, seed: int = 0, least: int = 1
) -> list[Step]:
    """Return each domain for itself, shuffled; the method is reset before each.

    Args:
        sizes: number of samples of each domain.
        batch_size: samples a batch. The last of a domain may have fewer.
        seed: of the order. Domains keep theirs when others are added behind.
        least: a last batch of fewer samples joins the one before it: 2 for methods that refuse a
            batch of one. No sample is left out in any stream.

    Raises:
        InputError: no domain, an empty one, or a batch size below 1.
    """
    orders = _shuffled(sizes, batch_size, seed)
    return _one_by_one(orders, batch_size, least, resets=True)


def continual(
    sizes: Sequence[int], batch_size: int, *, seed: int = 0, least: int = 1
) -> list[Step]:
    """Return one domain after another, each shuffled, without a reset but at the start.

    Args and Raises as `one_shift`, whose batches these are.
    """
    orders = _shuffled(sizes, batch_size, seed)
    return _one_by_one(orders, batch_size, least, resets=False)


def mixed(sizes: Sequence[int], batch_size: int, *, seed: int = 0, least: int = 1) -> list[Step]:
    """Return the samples of all domains shuffled together: batches hold several domains.

    Args and Raises as `one_shift`; a reset stands at the start only.
    """
    orders = _shuffled(sizes, batch_size, seed)
    domains = torch.repeat_interleave(torch.tensor(list(sizes)))
    order = torch.randperm(len(domains), generator=torch.Generator().manual_seed(seed))
    chunks = _chunks(torch.cat(orders), batch_size, least, order)
    places = _chunks(domains, batch_size, least, order)
    return [
        Step(domain, indices, number == 0)
        for number, (domain, indices) in enumerate(zip(places, chunks, strict=True))
    ]


def label_sorted(
    labels: Sequence[Tensor],
    batch_size: int,
    *,
    seed: int = 0,
    least: int = 1,
    resets: bool = True,
) -> list[Step]:
    """Return one domain after another, each class by class: what breaks most methods.

    Args:
        labels: of each domain, (size,) integers. Classes come in ascending order, the samples of
            a class shuffled.
        batch_size, seed, least: as `one_shift`.
        resets: before each domain; else at the start only.

    Raises:
        InputError: as `one_shift`.
    """
    orders = _shuffled([len(each) for each in labels], batch_size, seed)
    by_class = [
        order[each.cpu()[order].sort(stable=True).indices]
        for order, each in zip(orders, labels, strict=True)
    ]
    return _one_by_one(by_class, batch_size, least, resets=resets)


STREAMS: dict[str, Callable[..., list[Step]]] = {
    "one-shift": one_shift,
    "continual": continual,
    "mixed": mixed,
    "sorted": label_sorted,
}
"""Name → function. All take sizes, `sorted` the labels."""


def create_stream(
    name: str,
    sizes: Sequence[int],
    batch_size: int,
    *,
    labels: Sequence[Tensor | None] | None = None,
    seed: int = 0,
    least: int = 1,
) -> list[Step]:
    """Return a stream by name: `one-shift`, `continual`, `mixed` or `sorted`.

    Args:
        sizes, batch_size, seed, least: see `one_shift`.
        labels: of each domain, needed by `sorted` alone.

    Raises:
        InputError: an unknown name, `sorted` without labels of all domains, labels of another
            length; see `one_shift`.
    """
    if name not in STREAMS:
        raise unknown("stream", name, STREAMS)
    if name != "sorted":
        return STREAMS[name](sizes, batch_size, seed=seed, least=least)
    known = [] if labels is None else [each for each in labels if each is not None]
    if [len(each) for each in known] != list(sizes):
        raise InputError("stream 'sorted' needs a label of every sample: give folders of classes")
    return label_sorted(known, batch_size, seed=seed, least=least)


def _shuffled(sizes: Sequence[int], batch_size: int, seed: int) -> list[Tensor]:
    """Each domain's order, from a generator of its own."""
    if not len(sizes):
        raise InputError("a stream needs a domain")
    for domain, size in enumerate(sizes):
        if size < 1:
            raise InputError(f"domain {domain} has no samples")
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: must be at least 1")
    generators = [torch.Generator().manual_seed(seed + 7919 * k) for k in range(len(sizes))]
    return [
        torch.randperm(size, generator=each) for size, each in zip(sizes, generators, strict=True)
    ]


def _one_by_one(orders: Sequence[Tensor], batch_size: int, least: int, resets: bool) -> list[Step]:
    steps = []
    for domain, order in enumerate(orders):
        for number, indices in enumerate(_chunks(order, batch_size, least)):
            starts = number == 0 and (resets or domain == 0)
            steps.append(Step(torch.full_like(indices, domain), indices, starts))
    return steps


def _chunks(
    values: Tensor, batch_size: int, least: int, order: Tensor | None = None
) -> list[Tensor]:
    chunks = list((values if order is None else values[order]).split(batch_size))
    if len(chunks) > 1 and len(chunks[-1]) < least:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    return chunks
