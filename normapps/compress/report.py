"""The one report of a compression: all stages, from the given network to the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..measure.interval import Estimate
from ..measure.latency import Latency
from ..measure.plots import Bars
from ..measure.report import Figure, Report, Section, Table, Verdict, short
from .judgement import RESULTS, Evidence
from .judging import Network

_TITLE = "Compression: from a network to a smaller one"


@dataclass(frozen=True)
class Circumstances:
    """What a report says beside the evidence.

    Attributes:
        model, preprocessing: in words, a line each.
        data: which pictures did what.
        without_accuracy: why accuracy was not measured; empty where it was.
        left_out: stages that were left out, and why, a line each.
        options: as given.
        verdicts: what each stage's own report advises, by name.
        following: what to do now; empty where nothing helps.
        failed: a line for each picture that could not be read.
        seconds: what took them in this call, by name; stages of earlier calls are not in it.
    """

    model: str
    preprocessing: str
    data: str
    without_accuracy: str = ""
    left_out: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    following: str = ""
    failed: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


def compress_report(evidence: Evidence, verdict: Verdict, facts: Circumstances) -> Report:
    """Make the report of a compression."""
    lead = [f"{facts.model}.", f"{facts.preprocessing}.", f"{facts.data}.", *facts.left_out]
    sections = [
        *([Section("What comes next", [facts.following])] if facts.following else []),
        _stages_section(evidence, facts),
        _answers_section(evidence, facts),
        _time_section(evidence),
        _reports_section(evidence, facts),
        _cost_section(facts),
    ]
    if facts.failed:
        sections.append(Section("Pictures that could not be read", facts.failed))
    return Report(_TITLE, verdict, sections, numbers(evidence, facts), lead)


def numbers(evidence: Evidence, facts: Circumstances) -> dict[str, Any]:
    """Return what `report.json` has beside the verdict."""
    return {
        "model": facts.model,
        "preprocessing": facts.preprocessing,
        "data": facts.data,
        "options": dict(facts.options),
        "left_out": list(facts.left_out),
        "base": evidence.base,
        "max_drop": evidence.max_drop,
        "next": facts.following or None,
        "without_accuracy": facts.without_accuracy or None,
        "stages": {each.name: _network(each, facts) for each in evidence.networks},
        "latency": {str(each.batch_size): _timed(evidence, each) for each in evidence.latencies},
        "int8_over_float": evidence.over_float,
        "failed": list(facts.failed),
        "seconds": dict(facts.seconds),
    }


def _network(network: Network, facts: Circumstances) -> dict[str, Any]:
    told: dict[str, Any] = dataclasses.asdict(network.footprint)
    if network.stage is not None:
        answers = dataclasses.asdict(network.stage)
        told |= {key: each for key, each in answers.items() if each is not None and key != "name"}
    own = facts.verdicts.get(network.name)
    told["how"] = network.words or None
    told["report"] = network.report or None
    return told if own is None else told | {"verdict": own.verdict, "reason": own.reason}


def _timed(evidence: Evidence, batch: Latency) -> dict[str, Any]:
    (name,) = (each for each in RESULTS if each in batch.times)
    others = [each for each in batch.times if each not in RESULTS]
    speeds = {other: batch.speedup(name, other) for other in others}
    return {
        "seconds": {each: time.median for each, time in batch.times.items()},
        "speedup": {each: speed.median for each, speed in speeds.items()},
        "quartiles": {each: list(speed.spread) for each, speed in speeds.items()},
        "rounds": len(batch.times[name].seconds),
    }


def _stages_section(evidence: Evidence, facts: Circumstances) -> Section:
    first = evidence.first.footprint
    rows: list[list[str | float]] = []
    for each in evidence.networks:
        weight = each.footprint
        accuracy = None if each.stage is None else each.stage.accuracy
        rows.append(
            [
                f"{each.name} ({each.words})" if each.words else each.name,
                _interval(accuracy),
                short(weight.parameters),
                short(weight.macs),
                f"{100 * weight.macs / max(first.macs, 1):.0f}",
                f"{weight.bytes / 1e6:.3g}",
                f"{100 * weight.bytes / max(first.bytes, 1):.0f}",
            ]
        )
    columns = ["network", "accuracy, %", "parameters", "MACs", "%", "MB", "%"]
    note = (
        "Each network is made of the one before it. Accuracy on the pictures that judge, with"
        " intervals of 95 %. MACs are the multiplications of one picture; MB those of the weights,"
        f" or of the int8 file; per cent are of the {evidence.base} network's."
    )
    if facts.without_accuracy:
        note += f" Accuracy was not measured: {facts.without_accuracy}."
    return Section("Stages", [Table(columns, rows, note), *_figure(evidence)])


def _figure(evidence: Evidence) -> list[Figure]:
    first, shown = evidence.first.footprint, evidence.networks
    with_labels = any(each.stage is not None and each.stage.accuracy for each in shown)
    series = {
        "bytes": [100 * each.footprint.bytes / max(first.bytes, 1) for each in shown],
        "accuracy" if with_labels else "same answers": [_good(each) for each in shown],
    }
    good = "Accuracy" if with_labels else f"Pictures that the {evidence.base} network answers alike"
    note = f"{good}, and the bytes beside the {evidence.base} network's, stage by stage."
    return [Figure(Bars([each.name for each in shown], series, "%"), note)]


def _good(network: Network) -> float:
    stage = network.stage
    if stage is None:
        return float("nan")
    known = stage.accuracy or stage.same
    return 100.0 if known is None else 100 * known.mean


def _answers_section(evidence: Evidence, facts: Circumstances) -> Section:
    rows: list[list[str | float]] = []
    for each in evidence.networks:
        stage = each.stage
        if stage is not None and stage.same is not None:
            rows.append([each.name, _change(stage.difference), _interval(stage.same)])
    if not rows:
        return Section("Changes", ["No network was compared with another."])
    note = (
        f"Against the {evidence.base} network, picture by picture and with 95 % intervals: change"
        " of the accuracy, and how many pictures get the same answer."
    )
    columns = ["network", "accuracy, points", "same answer, %"]
    parts: list[str | Table] = [Table(columns, rows, note)]
    if evidence.without_base:
        parts.append(evidence.without_base)
    return Section("Changes", parts)


def _time_section(evidence: Evidence) -> Section:
    if not evidence.latencies:
        return Section("Time", ["Not measured: --no-latency was given."])
    names = list(evidence.latencies[0].times)
    words = {
        "torch": "given, torch",
        "base": "given, torch",
        "onnxruntime": "given, ONNX Runtime",
        "int8": "int8, ONNX Runtime",
        "slimmed": "slimmed, torch",
    }
    others = [name for name in names if name not in RESULTS]
    rows: list[list[str | float]] = []
    for each in evidence.latencies:
        (result,) = (name for name in RESULTS if name in each.times)
        times: list[str | float] = [1e3 * each.times[name].median for name in names]
        rows.append([str(each.batch_size), *times, *(_speed(each, result, o) for o in others)])
    columns = [
        "pictures a batch",
        *(f"{words[name]}, ms" for name in names),
        *(f"times as fast as {words[name].replace(', ', ' by ')}" for name in others),
    ]
    note = (
        "The given network in float32 and the result, milliseconds a batch in the median of rounds"
        " in which they took turns on this machine. The speed-up is taken round by round; in"
        " brackets its quartiles."
    )
    return Section("Time", [Table(columns, rows, note)])


def _speed(batch: Latency, result: str, other: str) -> str:
    speed = batch.speedup(result, other)
    low, high = speed.spread
    return f"{speed.median:.2f} ({low:.2f} to {high:.2f})"


def _reports_section(evidence: Evidence, facts: Circumstances) -> Section:
    rows = [
        [each.name, each.report, found.verdict, found.reason]
        for each in evidence.networks
        if (found := facts.verdicts.get(each.name)) is not None
    ]
    note = (
        "What each stage's own report says of it alone, beside the network before it; in this"
        " folder. The pruned one is judged there on the pictures that train."
    )
    return Section("Reports of the stages", [Table(["", "file", "verdict", "why"], rows, note)])


def _cost_section(facts: Circumstances) -> Section:
    rows: list[list[str | float]] = [[name, value] for name, value in facts.seconds.items()]
    return Section("Cost", [Table(["of this call", "seconds"], rows)])


def _interval(value: Estimate | None) -> str:
    if value is None:
        return ""
    low, mean, high = (100 * each for each in (value.low, value.mean, value.high))
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def _change(value: Estimate | None) -> str:
    if value is None:
        return ""
    low, mean, high = (100 * each for each in (value.low, value.mean, value.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
