"""Scores of one set of pictures against another, as an extractor sees them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ...errors import InputError
from ...norm.moments import Moments
from .extractors import Extractor
from .frechet import feature_moments, frechet_distance
from .inception_score import classifier_score
from .kernel import kernel_distance
from .manifold import manifold_scores
from .options import MeasureOptions

_ROWS = 1024
"""Pictures whose features are measured together: a covariance costs as much for a few."""


@dataclass(frozen=True)
class Seen:
    """A set of pictures as an extractor sees it; its size does not grow with theirs.

    Attributes:
        count: how many pictures.
        size: their height and width in pixels.
        moments: of all features, float64.
        features: (n, D) float32 of the first pictures, as many as were to be kept.
        logits: (n, classes) of the same, None without a classifier.
    """

    count: int
    size: tuple[int, int]
    moments: Moments
    features: Tensor
    logits: Tensor | None

    def keeping(self, most: int) -> Seen:
        """Return the same with the features and logits of no more than `most` pictures."""
        logits = None if self.logits is None else self.logits[:most]
        return replace(self, features=self.features[:most], logits=logits)

    def __add__(self, other: Seen) -> Seen:
        """Return both sets as one."""
        both = self.logits is not None and other.logits is not None
        return Seen(
            self.count + other.count,
            self.size,
            self.moments.merge(other.moments),
            torch.cat([self.features, other.features]),
            torch.cat([self.logits, other.logits]) if both else None,  # type: ignore[list-item]
        )


@dataclass(frozen=True)
class Scores:
    """What a set of pictures scored; None what was not measured.

    Attributes:
        frechet: Fréchet distance (`frechet.py`); FID under the Inception network of 2015 alone.
        kernel, kernel_std: kernel distance and its deviation over subsets (`kernel.py`).
        precision, recall, density, coverage: see `manifold.ManifoldScores`.
        classifier, classifier_std: classifier score of the pictures and its deviation over
            splits (`inception_score.py`).
    """

    frechet: float | None = None
    kernel: float | None = None
    kernel_std: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    classifier: float | None = None
    classifier_std: float | None = None

    def named(self, is_fid: bool = False) -> dict[str, float]:
        """Return what was measured under short names.

        Args:
            is_fid: the extractor is that of the FID: then it is `fid`, `kid` and `is`, of any
                other `fd`, `kd` and `cs`.
        """
        names = {
            "frechet": "fid" if is_fid else "fd",
            "kernel": "kid" if is_fid else "kd",
            "classifier": "is" if is_fid else "cs",
        }
        found = {}
        for each in fields(self):
            value = getattr(self, each.name)
            start, _, rest = each.name.partition("_")
            if value is not None:
                found["_".join(filter(None, [names.get(start, start), rest]))] = value
        return found


def see(extractor: Extractor, pictures: Iterable[Tensor], most: int = 10_000) -> Seen:
    """Look at pictures batch by batch; memory is flat but for the features to be kept.

    Args:
        extractor: what sees them.
        pictures: (n, C, H, W) uint8, in random order: the first are kept.
        most: whose features and logits are kept.

    Raises:
        InputError: no pictures, or features that are not finite.
    """
    keeper = _Keeper(extractor, most)
    moments = feature_moments(_gathered(keeper.look(pictures)))
    return keeper.seen(moments)


def compare(real: Seen, fake: Seen, options: MeasureOptions) -> Scores:
    """Score pictures against real ones by the measures that the options name.

    Raises:
        InputError: too few pictures for a measure, or extractors of unlike widths.
    """
    chosen: dict[str, float] = {}
    if "frechet" in options.metrics:
        chosen["frechet"] = frechet_distance(real.moments, fake.moments)
    if "kernel" in options.metrics:
        chosen["kernel"], chosen["kernel_std"] = kernel_distance(
            real.features,
            fake.features,
            subsets=options.subsets,
            subset_size=options.subset_size,
            seed=options.seed,
        )
    if "manifold" in options.metrics:
        each = min(len(real.features), len(fake.features))  # recall and coverage depend on both
        pair = real.features[:each], fake.features[:each]
        chosen |= vars(manifold_scores(*pair, options.neighbours))
    if "classifier" in options.metrics and fake.logits is not None:
        splits = min(options.splits, len(fake.logits))
        chosen["classifier"], chosen["classifier_std"] = classifier_score(
            fake.logits, splits=splits, seed=options.seed
        )
    return Scores(**chosen)


def too_few(real: Seen, fake: Seen, options: MeasureOptions) -> list[str]:
    """Say which of the scores mean little because of few pictures, a line each."""
    lines = []
    words = singular_words(min(real.count, fake.count), real.features.shape[1])
    if "frechet" in options.metrics and words:
        lines.append(words)
    if "classifier" in options.metrics and fake.logits is not None:
        each, classes = len(fake.logits) // options.splits, fake.logits.shape[1]
        if each < classes:
            lines.append(
                f"{each} pictures a split for {classes} classes: the classifier score is too low; "
                "take more pictures or fewer --splits"
            )
    return lines


def singular_words(count: int, width: int) -> str:
    """Say what becomes of the Fréchet distance of no more pictures than features; else ""."""
    if count > width:
        return ""
    return (
        f"{count} pictures for {width} features: the covariance is singular and the Fréchet "
        f"distance far too large; take more than {width}, compare only equal numbers"
    )


class _Keeper:
    """What `see` remembers beside the moments."""

    def __init__(self, extractor: Extractor, most: int) -> None:
        self._extractor, self._most = extractor, most
        self._count, self._size = 0, (0, 0)
        self._features: list[Tensor] = []
        self._logits: list[Tensor] = []

    def look(self, pictures: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the features of every batch."""
        for batch in pictures:
            features, logits = self._extractor.features(batch)
            left = max(0, self._most - self._count)
            self._count, self._size = self._count + len(batch), (batch.shape[2], batch.shape[3])
            if left:
                self._features.append(features[:left])
                self._logits += [logits[:left]] if logits is not None else []
            yield features

    def seen(self, moments: Moments) -> Seen:
        """Return all of it, once every picture was looked at."""
        logits = torch.cat(self._logits) if self._logits else None
        return Seen(self._count, self._size, moments, torch.cat(self._features), logits)


def _gathered(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Join parts to some of `_ROWS` rows at least."""
    waiting: list[Tensor] = []
    rows = 0
    for part in parts:
        waiting.append(part)
        rows += len(part)
        if rows >= _ROWS:
            yield torch.cat(waiting)
            waiting, rows = [], 0
    if waiting:
        yield torch.cat(waiting)


def shown(name: str, value: float) -> str:
    """Return a score as people read it: distances with four digits, shares with three places."""
    if not math.isfinite(value):
        raise InputError(f"{name} is {value}; are the pictures damaged?")
    return (
        f"{value:.3f}" if name in ("precision", "recall", "density", "coverage") else f"{value:.4g}"
    )
