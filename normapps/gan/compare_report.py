"""What a comparison of GANs says: one table, the curves, and which normalization is ahead."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..measure.plots import Lines
from ..measure.report import (
    RECOMMENDED,
    UNDECIDED,
    Figure,
    Report,
    Section,
    Table,
    Verdict,
    shown,
)
from ..options import to_json
from .compare import Outcome, Scoring
from .compare_options import CompareOptions, Variant

POINTS = 100
"""Points of a curve; each is the mean over as many steps as that takes."""

_CURVES = {
    "d_loss": "The discriminator's loss.",
    "d_grad": "The norm of the discriminator's gradient.",
    "spread": "How much the drawn pictures of a batch differ, pixel by pixel.",
}


def compare_report(
    options: CompareOptions, outcomes: Sequence[Outcome], scoring: Scoring
) -> Report:
    """Return the report of a comparison.

    Args:
        options: what was compared.
        outcomes: at least one, of every variant the same seeds.
        scoring: of which the lines are told.
    """
    recipe = options.recipe(outcomes[0].variant, options.seed).resolved()
    lead = (
        f"{options.data}, {recipe.config}, {recipe.steps} steps, widths {recipe.width} and "
        f"{recipe.d_width}, {recipe.n_dis} discriminator steps of {recipe.batch_size} pictures a "
        "step.",
        *scoring.lines,
    )
    curves = {name: _curves(outcomes, name) for name in _CURVES}
    note = "Mean over the seeds; runs that were stopped are left out."
    figures = [Figure(each, f"{_CURVES[name]} {note}") for name, each in curves.items() if each]
    by_step = _score_curve(outcomes)
    if by_step is not None:
        figures.insert(0, Figure(by_step, f"Score over the steps, less is better. {note}"))
    sections = [Section("Runs", [run_table(outcomes)])]
    if options.seeds > 1:
        sections.insert(0, Section("By normalization", [variant_table(outcomes)]))
    if figures:
        sections.append(Section("Curves", figures))
    numbers = {
        "options": json.loads(to_json(options)),
        "scored": list(scoring.lines),
        "runs": [_facts(each) for each in outcomes],
    }
    return Report("GANs compared", judge(outcomes), sections, numbers, lead)


def run_table(outcomes: Sequence[Outcome]) -> Table:
    """Return a row a run: its scores at the end, or why it was stopped."""
    names = score_names(outcomes)
    rows = [
        [
            each.variant.name,
            each.seed,
            *(each.final.get(name, "—") for name in names),
            throughput(each) or "—",
            f"stopped at {each.stopped}" if each.stopped else "",
        ]
        for each in outcomes
    ]
    return Table(["norm", "seed", *names, "images/s", "note"], rows, _SAYS)


_SAYS = (
    "A row a run: its discriminator's norm, and its generator's where one was chosen; scores of the"
    " averaged generator at the end of the run; real pictures a second while training."
)


def variant_table(outcomes: Sequence[Outcome]) -> Table:
    """Return a row a variant: the deciding score's mean and range over the seeds."""
    rows: list[list[str | float]] = []
    for variant, values in _deciding(outcomes).items():
        count = sum(each.variant == variant for each in outcomes)
        ends = [fmean(values), min(values), max(values)] if values else ["—"] * 3
        rows.append([variant.name, *ends, f"{len(values)} of {count}"])
    name = next(iter(score_names(outcomes)), "score")
    return Table(["norm", name, "lowest", "highest", "runs that ended"], rows)


def judge(outcomes: Sequence[Outcome]) -> Verdict:
    """Say which variant is ahead, if its worst run is better than every other one's best."""
    found = {variant: values for variant, values in _deciding(outcomes).items() if values}
    if not found:
        return Verdict(UNDECIDED, "Every run was stopped; try lower rates, or --d-norms sn")
    best = min(found, key=lambda each: fmean(found[each]))
    others = [value for each, values in found.items() if each != best for value in values]
    name = score_names(outcomes)[0]
    spans = "; ".join(f"{each.name} {_span(values)}" for each, values in found.items())
    if len(found[best]) < 2 or not others:
        return Verdict(UNDECIDED, f"{name}: {spans}. Give two seeds or more of two or more norms")
    if max(found[best]) < min(others):
        return Verdict(RECOMMENDED, f"{best.name}: each of its runs is ahead in {name}: {spans}")
    return Verdict(
        UNDECIDED, f"{best.name} has the lowest mean {name}, but the runs overlap: {spans}"
    )


def score_names(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the names of the scores, the deciding one first."""
    return list(next((each.final for each in outcomes if each.final), {}))


def throughput(outcome: Outcome) -> float | None:
    """Return the median of real pictures a second while training; None without steps."""
    found = sorted(each["images_per_s"] for each in _metrics(outcome) if "images_per_s" in each)
    return found[len(found) // 2] if found else None


def text_table(table: Table) -> str:
    """Return a table as aligned lines; columns that are empty throughout are left out."""
    cells = [[str(each) for each in table.columns]]
    cells += [[shown(each) for each in row] for row in table.rows]
    kept = [i for i in range(len(cells[0])) if any(row[i] for row in cells[1:])]
    widths = {i: max(len(row[i]) for row in cells) for i in kept}

    def cell(text: str, column: int) -> str:
        is_text = column in (0, len(cells[0]) - 1)
        return text.ljust(widths[column]) if is_text else text.rjust(widths[column])

    lines = ["  ".join(cell(row[i], i) for i in kept) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def _deciding(outcomes: Sequence[Outcome]) -> dict[Variant, list[float]]:
    """The first score of each run that came to its end, by variant."""
    found: dict[Variant, list[float]] = {each.variant: [] for each in outcomes}
    for each in outcomes:
        if each.final:
            found[each.variant].append(next(iter(each.final.values())))
    return found


def _span(values: Sequence[float]) -> str:
    mean = f"{fmean(values):.4g}"
    return mean if len(values) < 2 else f"{mean} ({min(values):.4g} … {max(values):.4g})"


def _score_curve(outcomes: Sequence[Outcome]) -> Lines | None:
    names = score_names(outcomes)
    ended = [each for each in outcomes if each.final]
    steps = sorted(set.intersection(*(set(each.scores) for each in ended))) if ended else []
    if len(steps) < 2:
        return None
    series: dict[str, list[float]] = {}
    for variant in dict.fromkeys(each.variant for each in ended):
        runs = [each.scores for each in ended if each.variant == variant]
        series[variant.name] = [fmean(run[step][names[0]] for run in runs) for step in steps]
    return Lines(steps, series, ("step", names[0]))


def _curves(outcomes: Sequence[Outcome], name: str) -> Lines | None:
    """A metric over the steps, averaged over the seeds of each variant."""
    ended = [(each, _thinned(_metrics(each), name)) for each in outcomes if not each.stopped]
    length = min((len(values) for _, values in ended), default=0)
    if length < 2:
        return None
    series = {}
    for variant in dict.fromkeys(each.variant for each, _ in ended):
        runs = [values[:length] for each, values in ended if each.variant == variant]
        series[variant.name] = [fmean(y for _, y in point) for point in zip(*runs, strict=True)]
    return Lines([x for x, _ in ended[0][1][:length]], series, ("step", name))


def _thinned(metrics: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Step and mean value of at most `POINTS` stretches of a run."""
    values = [(each["step"], each[name]) for each in metrics if name in each]
    each_of = max(1, math.ceil(len(values) / POINTS))
    parts = [values[i : i + each_of] for i in range(0, len(values), each_of)]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


def _metrics(outcome: Outcome) -> list[dict[str, Any]]:
    path = Path(outcome.folder) / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def _facts(outcome: Outcome) -> dict[str, Any]:
    return {
        "norm": outcome.variant.name,
        "d_norm": outcome.variant.d_norm,
        "g_norm": outcome.variant.g_norm,
        "seed": outcome.seed,
        "folder": str(outcome.folder),
        "scores": {str(step): dict(values) for step, values in outcome.scores.items()},
        "stopped": outcome.stopped or None,
        "images_per_s": throughput(outcome),
    }
