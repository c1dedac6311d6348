"""Scoring a generator again and again against the same real pictures, as a trainer does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...data.pool import Pool
from ...errors import InputError
from ..sampling import latents, sample, standing_
from .extractors import Extractor
from .options import MeasureOptions
from .scores import Scores, Seen, compare, see

IN_TRAINING = MeasureOptions(fakes=2500, metrics=("frechet", "kernel"), subsets=20)
"""What a trainer measures unless told otherwise: seconds, not minutes, and more pictures than the
2048 features that the widest of the usual extractors has."""

SEEDS = 1_000_000
"""Seeds of the latents begin at this times the option `seed`: those of 0 are 0, 1, 2, …, as
`gan sample --seeds` draws them."""

Advance = Callable[[int], object]
"""Told how many pictures more were seen."""


class Scorer:
    """Scores generators against real pictures, which the extractor sees once.

    Draws from no random state but its own, so that a run that scores and one that does not take
    the same steps.

    Args:
        extractor: what sees the pictures.
        pool: real pictures; where they have labels, a conditional generator draws classes as often
            as they are there.
        options: what is measured, of how many pictures.
        advance: told of every batch.

    Attributes:
        held: as many of the real pictures as are drawn, but half of them at most, as seen.
        others: the rest.
        real: both together.

    Raises:
        InputError: fewer than four real pictures.
    """

    def __init__(
        self,
        extractor: Extractor,
        pool: Pool,
        options: MeasureOptions = IN_TRAINING,
        advance: Advance | None = None,
    ) -> None:
        self.extractor, self.options = extractor, options
        self._labels, self._advance = pool.labels, advance or (lambda count: None)
        chosen = shuffled(len(pool), options.reals, options.seed)
        if len(chosen) < 4:
            raise InputError(f"{len(chosen)} real pictures: too few to score against; give more")
        count = held_count(len(chosen), options)
        self.held, self.others = (
            see(extractor, self._told(of_pool(pool, part, options.batch_size)), options.most)
            for part in (chosen[:count], chosen[count:])
        )
        self.real = (self.held + self.others).keeping(options.most)

    def __call__(
        self,
        generator: nn.Module,
        *,
        bn: str = "standing",
        standing: int | None = None,
        metrics: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """Draw from a generator and return its scores by short names (see `Scores.named`).

        Args:
            generator: `generator(z, y)`, with `latent` and `num_classes`; left as it is.
            bn: `batch` draws with the statistics of each batch, else with those that it has.
            standing: before that, measure standing statistics over so many latents, for these
                pictures only.
            metrics: these alone, of those that the options name.
        """
        seed = self.options.seed
        with nullcontext() if standing is None else standing_(generator, standing, seed=seed):
            fake = self.see(drawn(generator, self.options, self._labels, bn))
        options = self.options
        if metrics is not None:
            options = replace(options, metrics=tuple(metrics))
        return compare(self.real, fake, options).named(self.extractor.is_fid)

    def see(self, pictures: Iterator[Tensor]) -> Seen:
        """Look at drawn pictures; see `scores.see`."""
        return see(self.extractor, self._told(pictures), self.options.most)

    def score(self, fake: Seen) -> Scores:
        """Score what was drawn."""
        return compare(self.real, fake, self.options)

    def floor(self) -> Scores:
        """Score real pictures against real ones: what no generator does better than, but by chance.

        As many stand for drawn ones as are drawn, because the Fréchet distance grows as they become
        fewer. Where that would be more than half of the real ones it is half of them, against the
        other half, and a generator's distance may be lower.
        """
        return compare(self.others, self.held, self.options)

    def _told(self, pictures: Iterator[Tensor]) -> Iterator[Tensor]:
        for batch in pictures:
            yield batch
            self._advance(len(batch))


def held_count(reals: int, options: MeasureOptions) -> int:
    """Return how many of some real pictures stand for drawn ones in the floor."""
    return min(options.fakes, reals // 2)


def drawn(
    generator: nn.Module, options: MeasureOptions, labels: Tensor | None, bn: str
) -> Iterator[Tensor]:
    """Draw batches of uint8 pictures, as many as the options say.

    Args:
        generator: with `latent` and `num_classes`; left as it is.
        options: number, batch size, seed.
        labels: of real pictures, by whose frequency classes are drawn; None draws all equally.
        bn: see `Scorer.__call__`.
    """
    y = classes_like(labels, int(getattr(generator, "num_classes", 0)), options)
    start = options.seed * SEEDS
    width = int(getattr(generator, "latent"))  # noqa: B009  not typed
    for rows in torch.arange(options.fakes).split(options.batch_size):
        z = latents([start + row for row in rows.tolist()], width)
        chosen = None if y is None else y[rows]
        yield sample(generator, z, chosen, bn=bn, batch_size=options.batch_size)


def classes_like(labels: Tensor | None, count: int, options: MeasureOptions) -> Tensor | None:
    """Choose the classes of the pictures to draw: (fakes,) int64, None without classes.

    Raises:
        InputError: a label that the generator does not know.
    """
    if not count:
        return None
    if labels is None:
        return torch.arange(options.fakes) % count
    if int(labels.max()) >= count:
        raise InputError(
            f"the real pictures have {int(labels.max()) + 1} classes, the generator {count}; score "
            "it against those that it was trained on"
        )
    draws = torch.Generator().manual_seed(options.seed)
    return labels.cpu()[torch.randint(len(labels), (options.fakes,), generator=draws)]


def of_pool(pool: Pool, indices: Tensor | Sequence[int], batch_size: int) -> Iterator[Tensor]:
    """Yield batches of a pool's pictures."""
    for rows in torch.as_tensor(indices).split(batch_size):
        yield pool.batch(rows)[0]


def shuffled(count: int, most: int, seed: int) -> Tensor:
    """Return the numbers below `count` in random order, at most `most` of them (0: all)."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:most] if most else order
