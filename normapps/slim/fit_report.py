"""Reports of `slim train`, `slim finetune` and `slim scratch`: what was trained, and for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..measure.interval import Estimate
from ..measure.plots import Histograms
from ..measure.report import (
    NOT_RECOMMENDED,
    RECOMMENDED,
    UNDECIDED,
    Figure,
    Report,
    Section,
    Table,
    Verdict,
)
from ..training.evaluation import Score
from .fitting import Fitted
from .material import Material
from .sparsity import SMALL, Sparsity
from .train_options import SupervisedOptions

TOLERANCE = 0.01
"""How much accuracy a network may lose and still be called as good."""

_FEW = 0.05
"""A network with fewer small scales than this has not become sparse."""

_NEAR = 0.05
"""How far below `--target-sparsity` the share of zeros may stay."""


def judge_gain(score: Score, reference: str, tolerance: float = 0.0) -> Verdict:
    """Say whether a network is to be taken in the place of the one that it is compared with.

    Args:
        score: right answers of both on the same pictures.
        reference: the other one in words.
        tolerance: how much less it may get right.
    """
    gain = score.difference
    if gain is None:
        return Verdict(
            UNDECIDED,
            f"{percent(score.accuracy)} right, and no network to compare with; give --baseline.",
        )
    words = (
        f"{100 * gain.mean:+.1f} points on {gain.count} pictures "
        f"(95 %: {100 * gain.low:+.1f} … {100 * gain.high:+.1f}) over {reference}"
    )
    allowed = f", and {100 * tolerance:g} points may be lost" if tolerance else ""
    if gain.low > -tolerance:
        return Verdict(RECOMMENDED, f"{words}{allowed}.")
    if gain.high < -tolerance:
        return Verdict(NOT_RECOMMENDED, f"{words}{allowed}; keep what you had.")
    return Verdict(UNDECIDED, f"{words}{allowed}: too few pictures to tell.")


def judge_sparse(fitted: Fitted, sparsity: Sparsity, target: float | None) -> Verdict:
    """Say whether a network is ready to be pruned: sparse, and no worse than before.

    Args:
        fitted: the run.
        sparsity: of the trained network.
        target: share of exact zeros that was asked for.
    """
    share = f"{100 * sparsity.zeros:.1f} % of the scales are 0, {100 * sparsity.small:.1f} % small"
    if target is not None and sparsity.zeros < target - _NEAR:
        return Verdict(
            NOT_RECOMMENDED,
            f"{share}; --target-sparsity {target:g} was not reached: give more --steps, or"
            " a greater --lr.",
        )
    if sparsity.zeros == 1:
        return Verdict(
            NOT_RECOMMENDED,
            "all scales are 0, so the network says the same of every picture; give a smaller"
            " --strength.",
        )
    if max(sparsity.zeros, sparsity.small) < _FEW:
        return Verdict(
            NOT_RECOMMENDED,
            f"{share}: pruning would cut what the network uses; give a greater --strength, or "
            "more --steps.",
        )
    if fitted.score is None:
        return Verdict(UNDECIDED, f"{share}.")
    found = judge_gain(fitted.score, fitted.reference, TOLERANCE)
    return Verdict(found.verdict, f"{share}; {found.reason}")


def fit_report(
    title: str,
    fitted: Fitted,
    verdict: Verdict,
    material: Material,
    options: SupervisedOptions,
    more: Sequence[Section] = (),
    numbers: dict[str, Any] | None = None,
) -> Report:
    """Make the report of a supervised run.

    Args:
        title: the page's.
        fitted: the run, finished.
        verdict: what is advised.
        material: the pictures.
        options: of the training.
        more: sections below the accuracies.
        numbers: further JSON values.
    """
    lead = [
        f"{fitted.steps} steps of {options.optimizer}, batches of {options.batch_size} pictures, "
        f"{len(material.train)} pictures of {len(material.classes)} classes."
    ]
    values: dict[str, Any] = {
        "steps": fitted.steps,
        "classes": list(material.classes),
        "pictures": {"train": len(material.train), "test": len(material.test)},
        "measured_on": material.measured_on,
        **(numbers or {}),
    }
    sections = list(more)
    if fitted.score is not None:
        sections.insert(0, _accuracy(fitted.score, fitted.reference, material.measured_on))
        values["accuracy"] = _accuracies(fitted.score, fitted.reference)
    return Report(title, verdict, sections, values, lead)


def sparsity_sections(before: Sparsity, after: Sparsity) -> list[Section]:
    """Return the histogram of the scales before and after, and a row a layer."""
    top = max(float(before.values.max()), float(after.values.max()))
    series = {"before": before.values.tolist(), "after": after.values.tolist()}
    figure = Figure(
        Histograms(series, "|γ| of a channel", (0.0, top or 1.0), 40, "channels"),
        "The scales that pruning could take. Sparse training moves those that the network can do"
        " without to 0, and leaves the others.",
    )
    rows: list[list[str | float]] = [
        [each.name, len(each.values), each.zeros, each.small, float(each.values.max())]
        for each in after.layers
    ]
    note = f"Small: at most {SMALL:g} of the largest scale of the layer."
    table = Table(["layer", "channels", "0", "small", "largest"], rows, note)
    whole = [
        f"{100 * after.zeros:.1f} % of {len(after.values)} scales are exactly 0, "
        f"{100 * after.small:.1f} % small; before {100 * before.zeros:.1f} and "
        f"{100 * before.small:.1f} %."
    ]
    return [Section("Scales", [*whole, figure]), Section("Every layer", [table], folded=True)]


def sparsity_numbers(before: Sparsity, after: Sparsity) -> dict[str, Any]:
    """Return the same as JSON values."""
    return {
        "sparsity": {
            name: {"zeros": each.zeros, "small": each.small, "channels": len(each.values)}
            for name, each in (("before", before), ("after", after))
        },
        "layers": {
            each.name: {"channels": len(each.values), "zeros": each.zeros, "small": each.small}
            for each in after.layers
        },
    }


def percent(share: Estimate) -> str:
    """Return a share in percent with its interval."""
    return f"{100 * share.mean:.1f} % ({100 * share.low:.1f} … {100 * share.high:.1f})"


def _accuracy(score: Score, reference: str, measured_on: str) -> Section:
    rows: list[list[str | float]] = []
    if score.baseline is not None and score.difference is not None:
        rows.append(_row(reference, score.baseline))
        rows.append(_row("trained", score.accuracy))
        rows.append(_row("difference", score.difference))
    else:
        rows.append(_row("trained", score.accuracy))
    note = (
        "Share of the pictures that get their label's class, with intervals of 95 %: Wilson's, and"
        f" for the difference on the same pictures Bonett and Price's. On {measured_on}."
    )
    return Section("Accuracy", [Table(["", "%", "from", "to"], rows, note)])


def _row(name: str, value: Estimate) -> list[str | float]:
    return [name, *(f"{100 * each:.1f}" for each in (value.mean, value.low, value.high))]


def _accuracies(score: Score, reference: str) -> dict[str, Any]:
    values = {"before": score.baseline, "after": score.accuracy, "difference": score.difference}
    found = {key: None if each is None else asdict(each) for key, each in values.items()}
    return {"compared_with": reference or None, **found}
