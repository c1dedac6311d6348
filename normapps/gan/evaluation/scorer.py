"""Scoring a generator again and again against the same real pictures, as a trainer does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ...data.pool import Pool
from ...errors import InputError
from ..sampling import latents, sample, standing_
from .extractors import Extractor
from .options import MeasureOptions
from .scores import Scores, Seen, compare, see

IN_TRAINING = MeasureOptions(fakes=2000, metrics=("frechet", "kernel"), subsets=20)
"""What a trainer measures unless told otherwise: seconds, not minutes."""

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
        halves: two disjoint halves of the real pictures, as seen.
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
        kept = -(-options.most // 2)
        first, second = (
            see(extractor, self._told(of_pool(pool, half, options.batch_size)), kept)
            for half in (chosen[0::2], chosen[1::2])
        )
        self.halves, self.real = (first, second), first + second

    def __call__(
        self, generator: nn.Module, *, bn: str = "standing", standing: int | None = None
    ) -> dict[str, float]:
        """Draw from a generator and return its scores by short names (see `Scores.named`).

        Args:
            generator: `generator(z, y)`, with `latent` and `num_classes`; left as it is.
            bn: `batch` draws with the statistics of each batch, else with those that it has.
            standing: before that, measure standing statistics over so many latents, for these
                pictures only.
        """
        seed = self.options.seed
        with nullcontext() if standing is None else standing_(generator, standing, seed=seed):
            fake = self.see(drawn(generator, self.options, self._labels, bn))
        return self.score(fake).named(self.extractor.is_fid)

    def see(self, pictures: Iterator[Tensor]) -> Seen:
        """Look at drawn pictures; see `scores.see`."""
        return see(self.extractor, self._told(pictures), self.options.most)

    def score(self, fake: Seen) -> Scores:
        """Score what was drawn."""
        return compare(self.real, fake, self.options)

    def floor(self) -> Scores:
        """Score one half of the real pictures against the other: what nothing can do better than.

        The Fréchet distance of halves is larger than of twice as many pictures, so that a
        generator's may be lower.
        """
        return compare(*self.halves, self.options)

    def _told(self, pictures: Iterator[Tensor]) -> Iterator[Tensor]:
        for batch in pictures:
            yield batch
            self._advance(len(batch))


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
