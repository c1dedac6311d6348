"""The report of an adaptation: sections for people, numbers for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..measure.agreement import Agreement, Answers, confidences
from ..measure.interval import Estimate
from ..measure.plots import Dots, Histograms
from ..measure.report import Figure, Report, Section, Table, Verdict
from .trial import Trial
from .verdict import Evidence

_BEFORE, _AFTER = "before", "after"

_FLOOR = 1e-4
"""Nats where the plot of distances begins: what is less is rounding, or as good as none."""


@dataclasses.dataclass(frozen=True)
class Circumstances:
    """What a report says beside the evidence.

    Attributes:
        method: in words.
        model, preprocessing, data: in words, a line each.
        failed: a line for each picture that could not be read.
        without_accuracy: why accuracy was not measured; empty where it was.
        seconds: of decoding.
        peak_bytes: the most memory of the process.
        peak_device_bytes: the most memory on a GPU.
        options: as given.
        changed: names of the tensors that changed.
    """

    method: str
    model: str
    preprocessing: str
    data: str
    failed: tuple[str, ...]
    without_accuracy: str
    seconds: float
    peak_bytes: int
    peak_device_bytes: int | None
    options: Mapping[str, Any]
    changed: tuple[str, ...]


def adaptation_report(
    trial: Trial, evidence: Evidence, verdict: Verdict, facts: Circumstances
) -> Report:
    """Make the report of an adaptation."""
    lead = [
        f"{facts.model}, adapted by {facts.method}.",
        f"{evidence.agreement.count} pictures of {facts.data}: {facts.preprocessing}.",
    ]
    sections = [
        _accuracy_section(evidence, facts),
        _answers_section(trial, evidence.agreement),
        *_distance_sections(trial),
        _cost_section(trial, facts),
    ]
    if facts.failed:
        sections.append(Section("Pictures that could not be read", facts.failed))
    return Report(
        f"Adaptation by {facts.method}",
        verdict,
        sections,
        _numbers(trial, evidence, facts),
        lead,
    )


def _accuracy_section(evidence: Evidence, facts: Circumstances) -> Section:
    if evidence.difference is None or evidence.accuracy is None:
        return Section("Accuracy", [f"Not measured: {facts.without_accuracy}."])
    before, after = evidence.accuracy
    rows = [_percent_row(_BEFORE, before), _percent_row(_AFTER, after)]
    if evidence.online is not None:
        rows.append(_percent_row("while adapting", evidence.online))
    rows.append(_percent_row("after − before", evidence.difference))
    note = (
        "Share of the pictures that get their label's class, with intervals of 95 %: Wilson's, and"
        " for the difference on the same pictures Bonett and Price's. The pictures are those that"
        " the model was adapted to, without their labels."
    )
    return Section("Accuracy", [Table(["", "%", "from", "to"], rows, note)])


def _percent_row(name: str, value: Estimate) -> list[str | float]:
    return [name, *(f"{100 * each:.1f}" for each in (value.mean, value.low, value.high))]


def _answers_section(trial: Trial, agreement: Agreement) -> Section:
    described = agreement.before, agreement.after
    rows: list[list[str | float]] = [
        ["confidence, mean", *(each.confidence for each in described)],
        ["entropy of an answer, nats", *(each.entropy for each in described)],
        ["diversity of the answers, nats", *(each.diversity for each in described)],
        ["share of the most frequent class, %", *(100 * each.largest_share for each in described)],
    ]
    note = (
        f"{agreement.top1:.1%} of the pictures get the class that they got before; the"
        f" probabilities moved by {agreement.kl:.3g} nats. Diversity is the entropy of all answers"
        " together: near 0 nearly every picture gets one class."
    )
    series = {
        name: confidences(each.logits).tolist()
        for name, each in ((_BEFORE, trial.before), (_AFTER, trial.after))
    }
    figure = Figure(
        Histograms(series, "confidence of a picture: its largest probability"),
        "How sure the model is. A network on strange pictures is mostly unsure, and a collapsed"
        " one too sure.",
    )
    table = Table(["", _BEFORE, _AFTER], rows, note)
    return Section("Answers", [table, figure])


def _distance_sections(trial: Trial) -> list[Section]:
    before, after, chance = trial.before.shift, trial.after.shift, trial.before.chance
    if not before:
        return [
            Section("Distance of statistics", ["The model keeps no running statistics to compare."])
        ]
    names = list(before)
    series = {_BEFORE: list(before.values()), _AFTER: [after.get(name, 0.0) for name in names]}
    if chance:
        series["between halves"] = [chance.get(name, 0.0) for name in names]
    note = (
        "Symmetric KL divergence between the statistics that a layer normalizes with and those of"
        " the pictures, in nats, mean over its channels, from the first layer down. The plot draws"
        f" what is below {_FLOOR:g} at its left edge."
    )
    floor = (
        " Between halves: the same between two halves of the pictures, which is what chance does."
    )
    figure = Figure(Dots(names, series, "nats", _FLOOR), note + floor * bool(chance))
    rows: list[list[str | float]] = [
        [name, *(values[i] for values in series.values())] for i, name in enumerate(names)
    ]
    worst = sorted(rows, key=lambda row: -float(row[1]))[:10]
    columns = ["layer", *series]
    top = Table(columns, worst, "The ten layers that differed most.")
    sections = [Section("Distance of statistics", [figure, top])]
    if len(rows) > len(worst):
        sections.append(Section("Every layer", [Table(columns, rows)], folded=True))
    return sections


def _cost_section(trial: Trial, facts: Circumstances) -> Section:
    rows: list[list[str | float]] = [
        ["decoding", facts.seconds],
        ["network, before", trial.before.seconds],
        ["adapting", trial.seconds],
        ["network, after", trial.after.seconds],
    ]
    memory: list[list[str | float]] = [["process", facts.peak_bytes / 1e6]]
    if facts.peak_device_bytes is not None:
        memory.append(["GPU", facts.peak_device_bytes / 1e6])
    note = "Before and after include measuring the statistics; decoding is counted apart."
    return Section(
        "Cost", [Table(["", "seconds"], rows, note), Table(["most memory", "MB"], memory)]
    )


def _numbers(trial: Trial, evidence: Evidence, facts: Circumstances) -> dict[str, Any]:
    agreement = evidence.agreement
    numbers: dict[str, Any] = {
        "method": facts.method,
        "model": facts.model,
        "data": facts.data,
        "preprocessing": facts.preprocessing,
        "options": dict(facts.options),
        "pictures": agreement.count,
        "classes": agreement.classes,
        "failed": list(facts.failed),
        "agreement": {"top1": agreement.top1, "kl": agreement.kl},
        "answers": {
            _BEFORE: _answers(agreement.before),
            _AFTER: _answers(agreement.after),
        },
        "distance": {
            name: {
                _BEFORE: value,
                _AFTER: trial.after.shift.get(name),
                "halves": trial.before.chance.get(name),
            }
            for name, value in trial.before.shift.items()
        },
        "seconds": {
            "decoding": facts.seconds,
            _BEFORE: trial.before.seconds,
            "adapt": trial.seconds,
            _AFTER: trial.after.seconds,
        },
        "memory": {"peak_bytes": facts.peak_bytes, "peak_device_bytes": facts.peak_device_bytes},
        "changed": list(facts.changed),
    }
    return numbers | {"accuracy": _accuracies(evidence, facts)}


def _answers(answers: Answers) -> dict[str, float]:
    return dataclasses.asdict(answers)


def _accuracies(evidence: Evidence, facts: Circumstances) -> dict[str, Any]:
    if evidence.accuracy is None or evidence.difference is None:
        return {"not_measured": facts.without_accuracy}
    before, after = (dataclasses.asdict(each) for each in evidence.accuracy)
    found = {_BEFORE: before, _AFTER: after, "difference": dataclasses.asdict(evidence.difference)}
    online = None if evidence.online is None else dataclasses.asdict(evidence.online)
    return found | ({"online": online} if online else {})
