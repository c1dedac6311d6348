"""Judging a stylizer over many pairs of photographs and paintings, always the same ones."""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.images import fit
from ..data.sources import PictureSource
from ..errors import InputError
from ..measure.interval import Estimate, estimate
from ..models.vgg import Vgg19
from .quality import JUDGED, METRICS, Scores, check_judgeable, score

_LEAST = 2

Stylize = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(content, style) → output, all (H, W, 3) uint8 sRGB; the output has the content's size."""


@dataclass(frozen=True)
class Row:
    """One pair: the pictures' names, what it scored, the seconds the stylizer took."""

    content: str
    style: str
    scores: Scores
    seconds: float


@dataclass(frozen=True)
class Report:
    """An evaluation.

    Attributes:
        rows: one a pair, in the order they were judged.
        size: long side in pixels at which pictures were stylized.
        seed: of the pairing.
    """

    rows: tuple[Row, ...]
    size: int
    seed: int

    def summary(self) -> dict[str, Estimate]:
        """Return the mean of each of `METRICS` over the pairs with its 95 % interval."""
        return {name: estimate(self.values(name)) for name in METRICS}

    def values(self, metric: str) -> list[float]:
        """Return one metric of every pair."""
        return [getattr(row.scores, metric) for row in self.rows]

    def to_json(self) -> str:
        """Return everything as indented JSON: settings, summary, then a row a pair."""
        whole: dict[str, Any] = {
            "pairs": len(self.rows),
            "size": self.size,
            "judged": JUDGED,
            "seed": self.seed,
            "summary": {name: dataclasses.asdict(e) for name, e in self.summary().items()},
            "rows": [_flat(row) for row in self.rows],
        }
        return json.dumps(whole, indent=2) + "\n"


def evaluate(
    stylize: Stylize,
    contents: PictureSource,
    styles: PictureSource,
    *,
    pairs: int,
    vgg: Vgg19,
    size: int = 512,
    seed: int = 0,
    progress: Callable[[int, Row], None] | None = None,
) -> Report:
    """Stylize pairs at one size and judge each by `quality.score`.

    Content and style are brought to long side `size` (smaller ones are enlarged) before the
    stylizer gets them, so that methods see the same pixels.

    Args:
        stylize: the method to judge.
        contents, styles: what pairs are drawn from (see `pairing`).
        pairs: how many, at least 2.
        vgg: the judge, up to relu4_1.
        size: long side at which pictures are stylized.
        seed: of the pairing.
        progress: called after each pair with the number done and its row.

    Raises:
        InputError: fewer than 2 pairs, or an output of another size.

    Warns:
        UserWarning: naming a damaged or too thin picture, whose pair is left out.
    """
    if pairs < _LEAST:
        raise InputError(f"{pairs} pairs: an interval needs at least 2")
    rows: list[Row] = []
    for content, style in pairing(len(contents), len(styles), pairs, seed):
        try:
            photo, painting = fit(contents.load(content), size), fit(styles.load(style), size)
            check_judgeable(photo, painting)
        except InputError as error:
            warnings.warn(f"pair left out: {error}", stacklevel=2)
            continue
        start = time.perf_counter()
        output = stylize(photo, painting)
        seconds = time.perf_counter() - start
        scores = score(output, photo, painting, vgg)
        rows.append(Row(contents.name(content), styles.name(style), scores, seconds))
        if progress is not None:
            progress(len(rows), rows[-1])
    if len(rows) < _LEAST:
        raise InputError(f"{len(rows)} of {pairs} pairs could be judged; an interval needs 2")
    return Report(tuple(rows), size, seed)


def pairing(contents: int, styles: int, pairs: int, seed: int = 0) -> list[tuple[int, int]]:
    """Draw pairs of indices; those of fewer pairs are the first of more.

    Each picture comes up once before any comes up again, so that every one counts about equally.

    Args:
        contents, styles: how many there are of each.
        pairs: how many pairs.
        seed: of the order.
    """
    orders = [_rounds(count, pairs, [seed, kind]) for kind, count in enumerate((contents, styles))]
    return list(zip(*orders, strict=True))


def _rounds(count: int, length: int, seed: Sequence[int]) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    for start in range(0, length, count):
        order = rng.permutation(count)[: length - start]
        yield from (int(index) for index in order)


def _flat(row: Row) -> dict[str, Any]:
    scores = {name: round(value, 5) for name, value in dataclasses.asdict(row.scores).items()}
    return {
        "content": row.content,
        "style": row.style,
        **scores,
        "seconds": round(row.seconds, 4),
    }
