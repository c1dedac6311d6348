"""The report of an evaluation: its table for people, its rows for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from statistics import fmean
from typing import Any

from ..measure.plots import Bars
from ..measure.report import Figure, Report, Section, Table
from ..options import to_json
from .evaluation import Evaluation
from .scores import Row

_MOST_NOTE = 24
"""Letters of a reason that stand in the table; longer ones stand below it."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """The table as text: what is the same in all rows stands in the caption.

    Attributes:
        caption: stream, batch size, pictures.
        columns: the head.
        rows: cells, grouped by domain; an empty first cell continues a group.
        notes: reasons that are too long for a cell, a line each.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def grids(evaluation: Evaluation) -> list[Grid]:
    """Return a grid for each stream and batch size."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in evaluation.rows:
        groups.setdefault((row.stream, row.batch_size), []).append(row)
    has_labels = not evaluation.without_accuracy
    return [_grid(key, rows, has_labels) for key, rows in groups.items()]


def evaluation_report(evaluation: Evaluation) -> Report:
    """Make the report of an evaluation."""
    seeds = evaluation.options.seeds
    lead = [
        f"{evaluation.model}; {evaluation.data}: {evaluation.preprocessing}.",
        f"Mean over {seeds} seeds." if seeds > 1 else "One seed.",
    ]
    sections = []
    for number, grid in enumerate(grids(evaluation)):
        table = Table(grid.columns, grid.rows, "" if number else explained(evaluation))
        sections.append(Section(grid.caption, [table, *grid.notes]))
    figures = _figures(evaluation)
    if figures:
        sections.insert(0, Section("Methods, mean over the domains", figures))
    if evaluation.failed:
        sections.append(Section("Pictures that could not be read", evaluation.failed))
    return Report("Evaluation of methods", evaluation.verdict, sections, facts(evaluation), lead)


def facts(evaluation: Evaluation) -> dict[str, Any]:
    """Return everything as JSON values."""
    return {
        "model": evaluation.model,
        "preprocessing": evaluation.preprocessing,
        "data": evaluation.data,
        "classes": evaluation.classes,
        "without_accuracy": evaluation.without_accuracy,
        "failed": list(evaluation.failed),
        "options": json.loads(to_json(evaluation.options)),
        "rows": [dataclasses.asdict(row) for row in evaluation.rows],
    }


def _grid(key: tuple[str, int], rows: list[Row], has_labels: bool) -> Grid:
    columns = ("% right", "95 %", "gain", "95 %") if has_labels else ("% as source", "entropy")
    by_domain: dict[str, list[Row]] = {}
    for row in rows:
        by_domain.setdefault(row.domain, []).append(row)
    found: list[tuple[str, ...]] = []
    notes: dict[str, None] = {}
    for domain, group in by_domain.items():
        for number, row in enumerate(group):
            found.append((domain if number == 0 else "", row.method, *_cells(row, has_labels)))
            if len(row.note) > _MOST_NOTE:
                notes[f"{row.method}: {row.note}"] = None
    if len(by_domain) > 1:
        found += _means(by_domain, has_labels)
    count = max(row.pictures for row in rows)
    caption = f"{key[0]}, batches of {key[1]}, {count} pictures a domain"
    return Grid(caption, ("domain", "method", *columns, "ms", "MB"), tuple(found), tuple(notes))


def _cells(row: Row, has_labels: bool) -> tuple[str, ...]:
    if row.note:
        blank = [""] * (5 if has_labels else 3)
        return (row.note if len(row.note) <= _MOST_NOTE else "see below", *blank)
    memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
    cost = f"{1000 * row.seconds:.3g}", memory
    if not has_labels or row.accuracy is None:
        return (f"{100 * row.agreement:.1f}", f"{row.entropy:.3f}", *cost)
    share, gain = row.accuracy, row.gain
    right = f"{100 * share.mean:.1f}", f"{100 * share.low:.1f}–{100 * share.high:.1f}"
    if gain is None:
        return (*right, "", "", *cost)
    return (
        *right,
        f"{100 * gain.mean:+.1f}",
        f"{100 * gain.low:+.1f}…{100 * gain.high:+.1f}",
        *cost,
    )


def _means(by_domain: dict[str, list[Row]], has_labels: bool) -> list[tuple[str, ...]]:
    """Rows of the mean over all domains, for the methods that could be run in all."""
    methods: dict[str, list[Row]] = {}
    for group in by_domain.values():
        for row in group:
            if not row.note:
                methods.setdefault(row.method, []).append(row)
    whole = {name: rows for name, rows in methods.items() if len(rows) == len(by_domain)}
    found: list[tuple[str, ...]] = []
    for name, rows in whole.items():
        cost = f"{1000 * fmean(row.seconds for row in rows):.3g}", ""
        first = "mean" if not found else ""
        if has_labels:
            share = fmean(row.accuracy.mean for row in rows if row.accuracy is not None)
            gains = [row.gain.mean for row in rows if row.gain is not None]
            gain = f"{100 * fmean(gains):+.1f}" if gains else ""
            found.append((first, name, f"{100 * share:.1f}", "", gain, "", *cost))
        else:
            alike = f"{100 * fmean(row.agreement for row in rows):.1f}"
            found.append((first, name, alike, f"{fmean(row.entropy for row in rows):.3f}", *cost))
    return found


def _figures(evaluation: Evaluation) -> list[Figure]:
    """Bars of the mean accuracy a method, of those that could be run everywhere."""
    shares: dict[str, list[float]] = {}
    for row in evaluation.rows:
        name = f"{row.method}, {row.stream} {row.batch_size}"
        shares.setdefault(name, [])
        if row.accuracy is not None:
            shares[name].append(row.accuracy.mean)
    domains = {row.domain for row in evaluation.rows}
    whole = {name: 100 * fmean(v) for name, v in shares.items() if len(v) == len(domains)}
    if not whole:
        return []
    bars = Bars(list(whole), {"accuracy": list(whole.values())}, "accuracy, %")
    return [Figure(bars, "Mean accuracy over the domains, by method, stream and batch size.")]


def explained(evaluation: Evaluation) -> str:
    """Say in a paragraph what the columns of the table are."""
    cost = (
        "ms: the method's own time a picture, decoding left out. MB: the most that the process "
        "held during the run, pictures included (on a GPU: its tensors)."
    )
    if evaluation.without_accuracy:
        return (
            f"No accuracy: {evaluation.without_accuracy}. % as source: pictures that get the class "
            f"that the source model gives. Entropy: mean in nats, at most "
            f"{math.log(evaluation.classes):.3g}. {cost}"
        )
    return (
        "95 %: Wilson's interval of % right; gain: points over the source on the same pictures, "
        f"with its own interval. {cost}"
    )
