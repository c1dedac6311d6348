"""Judging a stylizer over many pairs of photographs and paintings, always the same ones."""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.images import fit
from ..data.sources import PictureSource
from ..errors import InputError
from ..measure.interval import Estimate, estimate
from ..models.vgg import Vgg19
from .quality import JUDGED, METRICS, Features, Pair, Scores

_LEAST = 2

Stylize = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(content, style) → output, all (H, W, 3) uint8 sRGB; the output has the content's size."""


@dataclass(frozen=True)
class Row:
    """One pair: the pictures' names, what it scored, the seconds the stylizer took.

    Attributes:
        others: relative style distance by further judges, a name each.
    """

    content: str
    style: str
    scores: Scores
    seconds: float
    others: Mapping[str, float] = field(default_factory=dict)

    def value(self, metric: str) -> float:
        """Return one score by its name."""
        return self.flat()[metric]

    def flat(self) -> dict[str, float]:
        """Return all scores by name, those of further judges last."""
        return {**dataclasses.asdict(self.scores), **self.others}


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
        """Return the mean of each metric over the pairs with its 95 % interval.

        Metrics are `METRICS`, then the further judges'.
        """
        return {name: estimate(self.values(name)) for name in (*METRICS, *self.rows[0].others)}

    def values(self, metric: str) -> list[float]:
        """Return one metric of every pair."""
        return [row.value(metric) for row in self.rows]

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
    reports = compare(
        {"": stylize},
        contents,
        styles,
        pairs=pairs,
        vgg=vgg,
        size=size,
        seed=seed,
        progress=None if progress is None else lambda done, rows: progress(done, rows[""]),
    )
    return reports[""]


def compare(
    methods: Mapping[str, Stylize],
    contents: PictureSource,
    styles: PictureSource,
    *,
    pairs: int,
    vgg: Vgg19,
    size: int = 512,
    seed: int = 0,
    others: Mapping[str, Features] | None = None,
    progress: Callable[[int, Mapping[str, Row]], None] | None = None,
) -> dict[str, Report]:
    """Judge several methods as `evaluate` does one, pair by pair: the same pairs for all.

    A pair's photo and painting are looked at by the judges once, not once a method.

    Args:
        methods: what to judge, by name.
        contents, styles, pairs, vgg, size, seed: see `evaluate`.
        others: further judges of the style, by the name of their metric.
        progress: called after each pair with the number done and its row by method.

    Returns:
        A report a method; all have the same pairs.

    Raises:
        InputError: no methods, fewer than 2 pairs, or an output of another size.

    Warns:
        UserWarning: naming a damaged or too thin picture, whose pair is left out.
    """
    if pairs < _LEAST:
        raise InputError(f"{pairs} pairs: an interval needs at least 2")
    if not methods:
        raise InputError("no methods to compare; give at least one")
    done: list[dict[str, Row]] = []
    for content, style in pairing(len(contents), len(styles), pairs, seed):
        try:
            photo, painting = fit(contents.load(content), size), fit(styles.load(style), size)
            pair = Pair(photo, painting, vgg, others)
        except InputError as error:
            warnings.warn(f"pair left out: {error}", stacklevel=2)
            continue
        names = (contents.name(content), styles.name(style))
        done.append({key: _row(names, it, photo, painting, pair) for key, it in methods.items()})
        if progress is not None:
            progress(len(done), done[-1])
    if len(done) < _LEAST:
        raise InputError(f"{len(done)} of {pairs} pairs could be judged; an interval needs 2")
    return {key: Report(tuple(rows[key] for rows in done), size, seed) for key in methods}


def _row(
    names: tuple[str, str], stylize: Stylize, photo: np.ndarray, painting: np.ndarray, pair: Pair
) -> Row:
    start = time.perf_counter()
    output = stylize(photo, painting)
    seconds = time.perf_counter() - start
    return Row(*names, pair.score(output), seconds, pair.other_scores(output))


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
    scores = {name: round(value, 5) for name, value in row.flat().items()}
    return {
        "content": row.content,
        "style": row.style,
        **scores,
        "seconds": round(row.seconds, 4),
    }
