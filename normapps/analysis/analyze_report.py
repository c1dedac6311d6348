"""The report of `norm analyze`: one page with figures for people, JSON for programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..measure.report import NO_VERDICT, Report, Section
from .analyze import AnalysisReport
from .parts import parts_of
from .scales import Scales


def page_of(report: AnalysisReport) -> Report:
    """Return an analysis as a page; tables are folded, figures are not."""
    sections: list[Section] = []
    for part in parts_of(report.results, report.options):
        sections.append(Section(part.title, [*part.sentences, *part.figures]))
        sections.append(Section(f"{part.title}: the table", [part.table], folded=True))
    if report.skipped:
        lines = [f"{name}: {reason}." for name, reason in report.skipped.items()]
        sections.append(Section("What says nothing about this network", lines))
    lead = [report.model, report.preprocessing, f"{report.pictures} pictures; {report.labels}"]
    title = "What normalization does in this network"
    return Report(title, NO_VERDICT, sections, facts_of(report), lead)


def facts_of(report: AnalysisReport) -> dict[str, Any]:
    """Return everything that was found as JSON values; what is not finite is for `finite`."""
    facts: dict[str, Any] = {
        "model": report.model,
        "preprocessing": report.preprocessing,
        "pictures": report.pictures,
        "labels": report.labels,
        "failed": list(report.failed),
        "skipped": dict(report.skipped),
        "seconds": {name: round(value, 2) for name, value in report.seconds.items()},
        "options": dataclasses.asdict(report.options),
    }
    for field in dataclasses.fields(report.results):
        found = getattr(report.results, field.name)
        if found is not None:
            facts[field.name] = _values(found)
    return facts


def _values(found: Any) -> Any:
    if isinstance(found, tuple):
        return [dataclasses.asdict(row) for row in found]
    values = dataclasses.asdict(found)
    if isinstance(found, Scales):
        del values["values"]  # a number a channel; the histogram has them
    return values
