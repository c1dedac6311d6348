"""What `report.json` of a pruning has for programs, beside the verdict."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ..measure.stages import Stage
from .compensation import Compensation
from .judgement import Evidence
from .layers import counted
from .recalibration import Recalibration

if TYPE_CHECKING:
    from .report import Circumstances


def report_numbers(evidence: Evidence, facts: Circumstances) -> dict[str, Any]:
    """Return what `report.json` has beside the verdict."""
    before, after, choice = evidence.before, evidence.after, facts.choice
    names = ("parameters", "macs", "bytes")
    size = {name: [getattr(before, name), getattr(after, name)] for name in names}
    return {
        "model": facts.model,
        "data": facts.data,
        "preprocessing": facts.preprocessing,
        "options": dict(facts.options),
        "size": {"channels": list(facts.channels), **size},
        "next": facts.following or None,
        "kept": evidence.kept or None,
        "stages": {each.name: _stage(each) for each in evidence.stages},
        "without_accuracy": facts.without_accuracy or None,
        "latency": {str(each.batch_size): each.to_json("slimmed") for each in evidence.latencies},
        "difference": facts.difference,
        "onnx_difference": facts.onnx,
        "choice": {
            "asked": choice.amount,
            "reached": dict(choice.reached),
            "importance": choice.importance or None,
            "threshold": choice.threshold,
            "notes": list(choice.notes),
        },
        "left": [{"channels_of": name, "why": why} for name, why in facts.left],
        "compensation": _compensation(facts.compensation),
        "recalibration": _recalibration(facts.recalibration),
        "layers": counted(facts.rows),
        "seconds": dict(facts.seconds),
        "memory": {"peak_bytes": facts.peak_bytes},
        "failed": list(facts.failed),
    }


def _stage(stage: Stage) -> dict[str, Any]:
    facts = dataclasses.asdict(stage)
    return {key: value for key, value in facts.items() if value is not None and key != "name"}


def _compensation(done: Compensation | None) -> dict[str, Any] | None:
    if done is None:
        return None
    corrections = [dataclasses.asdict(each) for each in done.corrections]
    return {"off": done.off, "corrections": corrections, "missed": list(done.missed)}


def _recalibration(done: Recalibration | None) -> dict[str, Any] | None:
    return None if done is None else {"pictures": done.pictures, "moved": dict(done.moved)}
