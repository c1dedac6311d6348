"""Reports: `report.json` with every number and a verdict, `report.html` for people.

The page is one file without anything from elsewhere: tables, sentences, and plots as PNG inside it.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_text
from .plots import Plot, can_plot, render

JSON, HTML = "report.json", "report.html"
RECOMMENDED, NOT_RECOMMENDED, UNDECIDED = "recommended", "not recommended", "undecided"


@dataclass(frozen=True)
class Verdict:
    """What a command advises.

    Attributes:
        verdict: `RECOMMENDED`, `NOT_RECOMMENDED` or `UNDECIDED`.
        reason: a sentence with the numbers that decided.
    """

    verdict: str
    reason: str


NO_VERDICT = Verdict("", "")
"""Of a report that explains and advises nothing."""


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers.

    Attributes:
        columns: the head.
        rows: as many cells each; numbers are shown with four digits.
        note: a sentence that says what the figures are.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A plot and the sentence that explains it."""

    plot: Plot
    note: str


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        parts: paragraphs, tables and figures in their order.
        folded: shown on a click only, for long tables.
    """

    title: str
    parts: Sequence[str | Table | Figure]
    folded: bool = False


@dataclass(frozen=True)
class Report:
    """What a command has to say about its result.

    Attributes:
        title: the page's.
        verdict: what is advised; `NO_VERDICT` of a report that only explains.
        sections: for people.
        numbers: JSON values for programs, everything that the page shows and more.
        lead: lines below the title: what was done to what.
    """

    title: str
    verdict: Verdict
    sections: Sequence[Section]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    lead: Sequence[str] = ()


def write_report(folder: str | os.PathLike[str], report: Report) -> None:
    """Write `report.json` and `report.html` into a folder, replacing older ones.

    The JSON has `title` and, where there is a verdict, `verdict` and `reason` beside the numbers;
    numbers that are not finite are null. Without matplotlib the page has tables only, and says so.

    Raises:
        InputError: the folder cannot be written.
    """
    facts = {"title": report.title}
    if report.verdict != NO_VERDICT:
        facts |= {"verdict": report.verdict.verdict, "reason": report.verdict.reason}
    values = facts | dict(report.numbers)
    text = json.dumps(finite(values), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(Path(folder) / JSON, text + "\n")
    write_text(Path(folder) / HTML, page(report))


def finite(values: Any) -> Any:
    """Return JSON values with None for every number that is not finite."""
    if isinstance(values, Mapping):
        return {str(key): finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def page(report: Report) -> str:
    """Return the report as one HTML page."""
    lead = "".join(f"<p>{_text(line)}</p>" for line in report.lead)
    plots = "" if can_plot() or not _has_figures(report) else f"<p class=note>{_NO_PLOTS}</p>"
    sections = "".join(map(_section, report.sections))
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{_text(report.title)}</title><style>{_CSS}</style></head>\n<body>"
        f"<h1>{_text(report.title)}</h1>{lead}"
        f"{_verdict(report.verdict)}{plots}{sections}</body></html>\n"
    )


def _verdict(verdict: Verdict) -> str:
    if verdict == NO_VERDICT:
        return ""
    kind = verdict.verdict.replace(" ", "-")
    return (
        f"<div class='verdict {kind}'><strong>{_text(verdict.verdict)}</strong>"
        f"<p>{_text(verdict.reason)}</p></div>"
    )


_NO_PLOTS = (
    "There are no plots, because matplotlib is missing: install the extra <code>report</code>"
    " and run the command again."
)

_CSS = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:56rem;margin:2rem auto;
padding:0 1rem;background:#fff}h1{font-size:1.5rem;margin:0 0 .5rem}
h2{font-size:1.1rem;margin:2rem 0 .5rem;border-bottom:1px solid #e5e7eb}p{margin:.3rem 0}
.note{color:#52606d;font-size:.9rem}.verdict{border-left:6px solid;padding:.6rem 1rem;
margin:1rem 0;background:#f5f7fa}.verdict strong{font-size:1.15rem}
.recommended{border-color:#059669}.not-recommended{border-color:#c2410c}
.undecided{border-color:#d97706}table{border-collapse:collapse;margin:.5rem 0;
font-variant-numeric:tabular-nums}td,th{padding:.2rem .8rem .2rem 0;text-align:right;
border-bottom:1px solid #e5e7eb}td:first-child,th:first-child{text-align:left}
figure{margin:.8rem 0}img{max-width:100%;height:auto}summary{cursor:pointer;margin-top:1.5rem}
"""


def _has_figures(report: Report) -> bool:
    return any(isinstance(part, Figure) for each in report.sections for part in each.parts)


def _section(section: Section) -> str:
    parts = "".join(map(_part, section.parts))
    if section.folded:
        return f"<details><summary>{_text(section.title)}</summary>{parts}</details>"
    return f"<h2>{_text(section.title)}</h2>{parts}"


def _part(part: str | Table | Figure) -> str:
    if isinstance(part, str):
        return f"<p>{_text(part)}</p>"
    if isinstance(part, Table):
        return _table(part)
    if not can_plot():
        return ""
    data = base64.b64encode(render(part.plot)).decode("ascii")
    return (
        f"<figure><img alt='{_text(part.note)}' src='data:image/png;base64,{data}'>"
        f"<figcaption class=note>{_text(part.note)}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_text(shown(cell))}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    note = f"<p class=note>{_text(table.note)}</p>" if table.note else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}"


def shown(cell: str | float) -> str:
    """Return a cell as people read it: four digits of a float, text and whole numbers as is."""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def short(value: float) -> str:
    """Return a large number with four digits and its thousands as a letter: 11.69 M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * unit or (unit > 1e3 and value >= unit):
            return f"{value / unit:.4g} {letter}"
    return f"{value:g}"


def _text(value: str) -> str:
    return html.escape(value, quote=True)
