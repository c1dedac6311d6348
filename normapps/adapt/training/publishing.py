"""What a finished run leaves: a model folder for each target, and a report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...measure.interval import Estimate
from ...measure.report import Report, Section, Table, Verdict
from ...models.folder import save_model
from ...models.load import OpenedModel
from ...training.evaluation import Score
from .base import Published, Step
from .options import RecipeOptions

WHOLE, HELD = "the training pictures", "held-out pictures"
"""What accuracies are measured on."""


def folder_names(names: Sequence[str], models: int) -> list[str]:
    """Return the model folder of each target: `model` for a single one, else `model-<name>`."""
    if models <= 1:
        return ["model"] * max(1, len(names))
    plain = [re.sub(r"[^\w.-]+", "-", name).strip("-.") or "target" for name in names]
    return [
        f"model-{name}" + (f"-{plain[:place].count(name) + 1}" if name in plain[:place] else "")
        for place, name in enumerate(plain)
    ]


def publish(
    folder: Path, opened: OpenedModel, published: Published, entry: Mapping[str, Any]
) -> Path:
    """Write a trained network as a model folder.

    Args:
        folder: replaced where it holds a model already.
        opened: the network before training.
        published: the network after it.
        entry: what the history tells of the training.
    """
    source = with_steps(opened.source, published.steps)
    return save_model(
        folder,
        published.model,
        **source,
        preprocessing=opened.preprocessing.to_json(),
        history=[*opened.history, dict(entry)],
        overwrite=True,
    )


def with_steps(source: Mapping[str, Any], steps: Sequence[Step]) -> dict[str, Any]:
    """Return builder and arguments of a network whose norm layers were replaced.

    Steps on a network that was converted before follow its own.
    """
    if not steps:
        return {"builder": source["builder"], "arguments": dict(source["arguments"])}
    arguments = source["arguments"]
    if source["builder"] == "converted":
        earlier = {"base": arguments["base"], "steps": [*arguments["steps"], *steps]}
        return {"builder": "converted", "arguments": earlier}
    return {"builder": "converted", "arguments": {"base": dict(source), "steps": [*steps]}}


def report_of(
    options: RecipeOptions,
    scores: Sequence[Score],
    verdict: Verdict,
    facts: Mapping[str, Any],
    measured_on: str,
) -> Report:
    """Return the report of a run.

    Args:
        options: the recipe.
        scores: of the targets that have labels.
        verdict: what is advised.
        facts: JSON values that the report tells beside.
        measured_on: `WHOLE` or `HELD`.
    """
    rows = [
        [each.name, points(each.accuracy), points(each.baseline), points(each.difference)]
        for each in scores
    ]
    note = (
        f"Percent with 95 % intervals (Wilson; the difference paired), on {measured_on}. "
        "Labels of the targets served for this only."
    )
    columns = ["target", options.method, "baseline", "difference"]
    numbers = {
        "method": options.method,
        "measured_on": measured_on,
        "targets": [_numbers(each) for each in scores],
        **facts,
    }
    sections = [Section("Accuracy", [Table(columns, rows, note)])] if rows else []
    lead = [f"{options.method}, {options.steps} steps, batches of {options.batch_size} a domain."]
    return Report(f"adapt train: {options.method}", verdict, sections, numbers, lead)


def _numbers(score: Score) -> dict[str, Any]:
    values = {"accuracy": score.accuracy, "baseline": score.baseline}
    values["difference"] = score.difference
    return {"name": score.name} | {
        key: None if each is None else asdict(each) for key, each in values.items()
    }


def points(share: Estimate | None) -> str:
    """Return a share in percent with its interval; a dash for none."""
    if share is None:
        return "–"
    return f"{100 * share.mean:.1f} ({100 * share.low:.1f} … {100 * share.high:.1f})"
