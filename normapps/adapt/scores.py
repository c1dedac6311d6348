"""From predictions to a table: accuracy, agreement, differences from the source, a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from ..measure.accuracy import accuracy, paired_difference
from ..measure.interval import Estimate, estimate
from ..measure.report import NOT_RECOMMENDED, RECOMMENDED, UNDECIDED, Verdict
from .runs import Cell

SOURCE = "source"


@dataclass(frozen=True)
class Row:
    """One method on one domain, over all seeds.

    Attributes:
        stream, batch_size, domain, method: what was run.
        pictures: their number.
        accuracy: share of right answers, mean over the seeds; Wilson's interval for as many
            pictures (seeds show the same pictures again and narrow nothing). None without labels.
        gain: accuracy less that of the source model on the same pictures, with the interval of
            the paired difference; None without labels and for the source itself.
        agreement: share of pictures to which the source model gives the same class.
        entropy: mean, in nats.
        seconds: of the method a picture, decoding and corrupting left out.
        peak_bytes: the largest of the runs; None where it could not be measured.
        note: why there are no numbers, in words; they are then None or 0.
    """

    stream: str
    batch_size: int
    domain: str
    method: str
    pictures: int
    accuracy: Estimate | None = None
    gain: Estimate | None = None
    agreement: float = 0.0
    entropy: float = 0.0
    seconds: float = 0.0
    peak_bytes: int | None = None
    note: str = ""


def rows_of(cells: Iterable[Cell], labels: Tensor | None) -> list[Row]:
    """Sum cells up over their seeds.

    Args:
        cells: those of `source` among them, of the same runs otherwise.
        labels: (pictures,) int64, None where accuracy cannot be told.
    """
    groups: dict[tuple[str, int, str, str], list[Cell]] = {}
    for cell in cells:
        run = cell.run
        key = (run.stream, run.batch_size, cell.domain, run.method)
        groups.setdefault(key, []).append(cell)
    return [
        _row(key, group, groups.get((*key[:3], SOURCE), []), labels)
        for key, group in groups.items()
    ]


def verdict_of(cells: Iterable[Cell], labels: Tensor | None) -> Verdict:
    """Say whether a method helps on the pictures that were shown, all domains together.

    The best method, with its batch size and stream, is compared with the source model on the same
    pictures. As the best of several is chosen, the interval is Bonferroni's for so many.
    """
    if labels is None:
        return Verdict(UNDECIDED, "there are no labels, so nothing tells what is right")
    gains = _gains(list(cells), labels)
    if not gains:
        return Verdict(UNDECIDED, "no method but the source could be run")
    if len(labels) < 2:
        return Verdict(UNDECIDED, "one picture tells nothing")
    confidence = 1 - 0.05 / len(gains)
    found = {name: _interval(values, confidence) for name, values in gains.items()}
    best = max(found, key=lambda name: found[name].mean)
    value = found[best]
    numbers = (
        f"{100 * value.mean:+.1f} points ({100 * value.low:+.1f} to {100 * value.high:+.1f}, 95 % "
        f"for the best of {len(found)})"
    )
    if value.low > 0:
        return Verdict(RECOMMENDED, f"{best} answers better than the source: {numbers}")
    if value.high < 0:
        return Verdict(NOT_RECOMMENDED, f"the best, {best}, answers worse: {numbers}")
    return Verdict(UNDECIDED, f"the best, {best}, may be chance: {numbers}")


def _row(
    key: tuple[str, int, str, str],
    group: Sequence[Cell],
    source: Sequence[Cell],
    labels: Tensor | None,
) -> Row:
    notes = [cell.note for cell in group if cell.note]
    if notes:
        return Row(*key, 0, note=notes[0])
    answers, theirs = _answers(group), _answers(source)
    count = answers.shape[1]
    is_comparable = answers.shape == theirs.shape
    share = gain = None
    if labels is not None:
        is_right = answers == labels
        share = accuracy(round(int(is_right.sum()) / len(group)), count)
        share = Estimate(float(is_right.double().mean()), share.low, share.high, count)
        if is_comparable and key[3] != SOURCE:
            gain = _gain(theirs == labels, is_right)
    peaks = [cell.peak_bytes for cell in group if cell.peak_bytes is not None]
    return Row(
        *key,
        count,
        share,
        gain,
        float((answers == theirs).double().mean()) if is_comparable else 0.0,
        fmean(cell.entropy for cell in group),
        fmean(cell.seconds for cell in group),
        max(peaks, default=None),
    )


def _answers(cells: Sequence[Cell]) -> Tensor:
    """(seeds, pictures) int64, the seeds in order."""
    ordered = sorted(cells, key=lambda cell: cell.run.seed)
    return torch.tensor([cell.predictions for cell in ordered])


def _gain(before: Tensor, after: Tensor) -> Estimate:
    """Difference of (seeds, pictures) right answers; the pictures are what is independent."""
    if len(before) == 1 or before.shape[1] < 2:
        return paired_difference(before[0], after[0])
    return estimate((after.double() - before.double()).mean(0).tolist())


def _gains(cells: Sequence[Cell], labels: Tensor) -> dict[str, Tensor]:
    """By method and setting, each picture's mean gain over domains and seeds, (pictures,)."""
    right: dict[tuple[tuple[str, int, str, int], str], Tensor] = {}
    for cell in cells:
        if not cell.note:
            run = cell.run
            where = (run.stream, run.batch_size, cell.domain, run.seed)
            right[where, run.method] = (torch.tensor(cell.predictions) == labels).double()
    several = len({where[:2] for where, _ in right}) > 1
    parts: dict[str, list[Tensor]] = {}
    for (where, method), found in right.items():
        if method != SOURCE and (where, SOURCE) in right:
            name = f"{method} ({where[0]}, batches of {where[1]})" if several else method
            parts.setdefault(name, []).append(found - right[where, SOURCE])
    return {name: torch.stack(values).mean(0) for name, values in parts.items()}


def _interval(values: Tensor, confidence: float) -> Estimate:
    """Student's interval; of several domains the values are means, hardly ever all equal."""
    return estimate(values.tolist(), confidence)
