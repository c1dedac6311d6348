"""An evaluation for people and for programs."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from ... import __version__
from ...files import check_folder, check_writable, write_text
from ...measure.report import (
    JSON,
    UNDECIDED,
    Report,
    Section,
    Table,
    Verdict,
    finite,
    write_report,
)
from .evaluate import Evaluation
from .scores import shown

LABELS = {
    "fid": "FID",
    "fd": "Fréchet distance",
    "kid": "KID",
    "kd": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "is": "Inception score",
    "cs": "classifier score",
}
"""A score's name for people, by its short one."""


def rows(found: Evaluation) -> list[tuple[str, str, str]]:
    """Return a row a score: what it is, of the pictures, and of real against real."""
    scores, floor = found.scores.named(found.is_fid), {}
    if found.floor is not None:
        floor = found.floor.named(found.is_fid)
    told = found.provenance
    return [
        (
            label,
            _value(scores, name, told.is_singular),
            _value(floor, name, told.has_singular_floor),
        )
        for name, label in LABELS.items()
        if name in scores
    ]


def headline(found: Evaluation) -> str:
    """Return the first score and its provenance in one line."""
    label, value, _ = rows(found)[0]
    return f"{label} {value}; {found.provenance.line(floor_words(found))}"


def floor_words(found: Evaluation) -> str:
    """Say what real pictures score against real ones; empty if not measured."""
    if found.floor is None:
        return ""
    label, _, value = rows(found)[0]
    return f"{label} {value}"


def numbers(found: Evaluation) -> dict[str, Any]:
    """Return every number as JSON values."""
    return {
        "normapps": __version__,
        "scores": found.scores.named(found.is_fid),
        "floor": None if found.floor is None else found.floor.named(found.is_fid),
        "is_fid": found.is_fid,
        "is_singular": found.provenance.is_singular,
        "provenance": dataclasses.asdict(found.provenance),
        "line": headline(found),
        "notes": list(found.notes),
        "options": dataclasses.asdict(found.options),
    }


def check_out(out: str | os.PathLike[str], overwrite: bool) -> None:
    """Find out, before long work, whether `write` would take a place.

    Raises:
        InputError: it exists and may not be replaced, or cannot be written.
    """
    if _is_file(out):
        check_writable(out, overwrite)
        return
    check_folder(out)
    check_writable(Path(out) / JSON, overwrite)


def write(out: str | os.PathLike[str], found: Evaluation) -> None:
    """Write a `.json` file with every number, or a folder with report.json and report.html.

    Raises:
        InputError: it cannot be written.
    """
    if not _is_file(out):
        write_report(out, _report(found))
        return
    text = json.dumps(finite(numbers(found)), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(out, text + "\n")


def _report(found: Evaluation) -> Report:
    table = Table(("score", "drawn", "real against real"), rows(found), "All in float64.")
    reason = "a score advises nothing by itself; compare it with others of the same protocol"
    return Report(
        title=f"Scores of {found.provenance.generator}",
        verdict=Verdict(UNDECIDED, reason),
        sections=[Section("Scores", [table, *found.notes])],
        numbers=numbers(found),
        lead=[headline(found)],
    )


def _value(scores: dict[str, float], name: str, is_singular: bool) -> str:
    if name not in scores:
        return ""
    spread = scores.get(f"{name}_std")
    text = shown(name, scores[name]) + ("" if spread is None else f" ± {spread:.2g}")
    return f"{text} (too few pictures)" if is_singular and name in ("fid", "fd") else text


def _is_file(out: str | os.PathLike[str]) -> bool:
    return Path(out).suffix.lower() == ".json"
