"""The report of a quantization: sections for people, numbers for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..measure.interval import Estimate
from ..measure.latency import Latency
from ..measure.plots import Bars
from ..measure.report import Figure, Report, Section, Table, Verdict
from ..measure.stages import Stage
from .judgement import Evidence
from .latency import FLOAT, INT8, TORCH
from .layers import Node
from .mixing import Mixture
from .steps import Step

_MOST_BARS = 40
"""Layers in the plot: the most sensitive; the table has them all."""


@dataclass(frozen=True)
class Circumstances:
    """What a report says beside the evidence.

    Attributes:
        model, preprocessing: in words, a line each.
        data: the pictures and what they did; None where there were none.
        without_accuracy: why accuracy was not measured; empty where it was.
        options: as given.
        range_source: where the ranges of activations are from.
        steps: what was done to the float network.
        left: norm layers that were not folded, and why.
        layers: of the network that could be int8.
        mixture: which of them stay float, and what each loses alone in int8.
        float_operators: layers that are computed in float32, as "operator name".
        kernels: what onnxruntime runs, and how often; empty where something else runs it.
        ranges: of every tensor that is rounded.
        difference: of the float ONNX file from torch, relative.
        warnings: about this machine.
        failed: a line for each picture that could not be read.
        following: what to do now; empty where nothing helps.
        seconds: what took them, by name.
        peak_bytes: the most memory of the process.
    """

    model: str
    preprocessing: str
    data: str | None
    without_accuracy: str
    options: Mapping[str, Any]
    range_source: str
    steps: tuple[Step, ...]
    left: tuple[tuple[str, str], ...]
    layers: tuple[Node, ...]
    mixture: Mixture
    float_operators: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]]
    difference: float
    kernels: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    following: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0


def quantize_report(evidence: Evidence, verdict: Verdict, facts: Circumstances) -> Report:
    """Make the report of a quantization."""
    done, could = evidence.layers
    lead = [
        f"{facts.model}; {done} of {could} layers in int8, ranges from {facts.range_source}.",
        f"{facts.preprocessing}.",
        *([f"{facts.data}."] if facts.data else []),
        *(f"Warning: {line}." for line in facts.warnings),
    ]
    sections = [
        *([Section("What comes next", [facts.following])] if facts.following else []),
        _size_section(evidence),
        _latency_section(evidence),
        *_answer_sections(evidence, facts),
        _steps_section(facts),
        *_sensitivity_sections(facts),
        _layers_section(facts),
        _cost_section(facts),
    ]
    if facts.failed:
        sections.append(Section("Pictures that could not be read", facts.failed))
    return Report("Quantization to int8", verdict, sections, numbers(evidence, facts), lead)


def numbers(evidence: Evidence, facts: Circumstances) -> dict[str, Any]:
    """Return what `report.json` has beside the verdict."""
    done, could = evidence.layers
    return {
        "model": facts.model,
        "data": facts.data,
        "preprocessing": facts.preprocessing,
        "options": dict(facts.options),
        "max_drop": evidence.max_drop,
        "next": facts.following or None,
        "bytes": dict(evidence.sizes),
        "latency": {str(each.batch_size): _timed(each) for each in evidence.latencies},
        "stages": {each.name: _stage(each) for each in evidence.stages},
        "without_accuracy": facts.without_accuracy or None,
        "ranges_from": facts.range_source,
        "steps": {each.name: {"said": each.said, **each.numbers} for each in facts.steps},
        "not_folded": [{"norm": name, "why": why} for name, why in facts.left],
        "int8_layers": [done, could],
        "layers": {each.name: _layer(each, facts) for each in facts.layers},
        "float_operators": list(facts.float_operators),
        "kernels": dict(facts.kernels),
        "mixed": _mixed(facts.mixture),
        "ranges": {name: list(span) for name, span in facts.ranges.items()},
        "onnx_difference": facts.difference,
        "warnings": list(facts.warnings),
        "seconds": dict(facts.seconds),
        "memory": {"peak_bytes": facts.peak_bytes},
        "failed": list(facts.failed),
    }


def _timed(latency: Latency) -> dict[str, Any]:
    """Medians, and how many times as fast int8 is as either float network."""
    values = latency.to_json(INT8, FLOAT)
    over_torch = latency.speedup(INT8, TORCH)
    return values | {"over_torch": over_torch.median, "over_torch_quartiles": over_torch.spread}


def _stage(stage: Stage) -> dict[str, Any]:
    facts = dataclasses.asdict(stage)
    return {key: value for key, value in facts.items() if value is not None and key != "name"}


def _layer(node: Node, facts: Circumstances) -> dict[str, Any]:
    found = {each.node.name: each for each in facts.mixture.order}.get(node.name)
    alone = {} if found is None else {"error": found.error, "agreement": found.agreement}
    is_int8 = node.name not in facts.mixture.kept_float
    return {"op": node.op, "module": node.module, "int8": is_int8, **alone}


def _mixed(mixture: Mixture) -> dict[str, Any] | None:
    choice = mixture.choice
    if choice is None:
        return None
    tried = [list(each) for each in choice.tried]
    return {"float": list(choice.exclude), "loss": choice.loss, "tried": tried}


def _size_section(evidence: Evidence) -> Section:
    before, after = evidence.sizes[FLOAT], evidence.sizes[INT8]
    row = [f"{before / 1e6:.4g}", f"{after / 1e6:.4g}", f"{100 * (1 - after / before):.1f}"]
    note = "Megabytes of the files, in float32 and in int8."
    return Section("Size", [Table(["float32, MB", "int8, MB", "gone, %"], [row], note)])


def _latency_section(evidence: Evidence) -> Section:
    if not evidence.latencies:
        return Section("Time", [f"Not measured: {evidence.not_timed}."])
    rows: list[list[str | float]] = []
    for each in evidence.latencies:
        times = [1e3 * each.times[name].median for name in (TORCH, FLOAT, INT8)]
        speeds = [_spread(each, base) for base in (FLOAT, TORCH)]
        rows.append([str(each.batch_size), *times, *speeds])
    columns = [
        "pictures a batch",
        *("torch float32, ms", "ONNX Runtime float32, ms", "int8, ms"),
        *("times as fast as ONNX Runtime", "times as fast as torch"),
    ]
    note = (
        "Milliseconds a batch, in the median of rounds in which the three took turns, on this"
        " machine. The speed-up is taken round by round; in brackets its quartiles."
    )
    return Section("Time", [Table(columns, rows, note)])


def _spread(latency: Latency, base: str) -> str:
    speed = latency.speedup(INT8, base)
    low, high = speed.spread
    return f"{speed.median:.2f} ({low:.2f} to {high:.2f})"


def _answer_sections(evidence: Evidence, facts: Circumstances) -> list[Section]:
    stages = evidence.stages
    if not stages:
        return [Section("Answers", [f"Not judged: {facts.without_accuracy}."])]
    columns = ["network", "same answer, %", "from", "to", "logits' error", "KL, nats"]
    rows = [[each.name, *_percents(each.same), *_errors(each)] for each in stages[1:]]
    note = (
        f"On {stages[0].pictures} pictures, none of which calibrated: how many get the class that"
        " the float network gives them, with the 95 % interval; the root mean square change of the"
        " logits in deviations of the float network's; the divergence of the probabilities."
    )
    sections = [Section("Answers", [Table(columns, rows, note)])]
    if stages[0].accuracy is None:
        return [*sections, Section("Accuracy", [f"Not measured: {facts.without_accuracy}."])]
    return [*sections, _accuracy_section(stages)]


def _accuracy_section(stages: Sequence[Stage]) -> Section:
    columns = ["network", "accuracy, %", "from", "to", "change, points"]
    rows = [[each.name, *_percents(each.accuracy), _points(each.difference)] for each in stages]
    note = (
        "With 95 % intervals. The change is taken picture by picture, and is therefore better known"
        " than either accuracy."
    )
    return Section("Accuracy", [Table(columns, rows, note)])


def _errors(stage: Stage) -> list[str | float]:
    kl = "" if stage.agreement is None else f"{stage.agreement.kl:.2g}"
    return ["" if stage.logit_error is None else f"{stage.logit_error:.3g}", kl]


def _percents(value: Estimate | None) -> list[str | float]:
    if value is None:
        return ["", "", ""]
    return [f"{100 * each:.1f}" for each in (value.mean, value.low, value.high)]


def _points(value: Estimate | None) -> str:
    if value is None:
        return ""
    low, mean, high = (100 * each for each in (value.low, value.mean, value.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _steps_section(facts: Circumstances) -> Section:
    rows = [[each.name, each.said] for each in facts.steps]
    parts: list[str | Table] = [
        Table(["step", "what it did"], rows, "What was done to the float network, in order."),
        f"The float ONNX file was run beside torch: relative difference {facts.difference:.1e}.",
    ]
    if facts.left:
        left = [list(each) for each in facts.left]
        parts.append(Table(["norm layer that stays", "why"], left))
    return Section("Steps", parts)


def _sensitivity_sections(facts: Circumstances) -> list[Section]:
    order, choice = facts.mixture.order, facts.mixture.choice
    if not order:
        return []
    most = order[:_MOST_BARS]
    names = [each.node.module or each.node.name for each in most]
    plot = Bars(
        names, {"alone in int8": [100 * each.error for each in most]}, "error of the logits, %"
    )
    note = (
        "Each layer alone in int8, the most sensitive first: the error of the logits in per cent of"
        " their size, on pictures that do not judge."
    )
    if len(most) < len(order):
        note += f" Shown are {len(most)} of {len(order)}."
    parts: list[str | Figure] = [Figure(plot, note)]
    if choice is not None:
        kept = ", ".join(names[: len(choice.exclude)]) or "none"
        parts.insert(
            0,
            f"Layers that stay in float32: {kept}. On the pictures that calibrated"
            f" {100 * choice.loss:.2g} % are lost then, {100 * choice.tried[0][1]:.2g} % with all"
            " in int8.",
        )
    return [Section("Sensitivity", parts)]


def _layers_section(facts: Circumstances) -> Section:
    errors = {each.node.name: f"{100 * each.error:.3g}" for each in facts.mixture.order}
    rows = [
        [
            each.module or each.name,
            each.op,
            "float32" if each.name in facts.mixture.kept_float else "int8",
            errors.get(each.name, ""),
            *_span(facts.ranges.get(each.output)),
        ]
        for each in facts.layers
    ]
    note = (
        "Layers that could be int8; the error of the logits if that layer alone is. The range is"
        " that of its output where it is rounded there, and not behind its activation."
    )
    columns = ["layer", "operator", "computes in", "error, %", "from", "to"]
    parts: list[str | Table] = [Table(columns, rows, note)]
    if facts.float_operators:
        named = ", ".join(facts.float_operators)
        parts.append(f"Computed in float32 here: {named}.")
    if facts.kernels:
        counts = sorted(facts.kernels.items(), key=lambda each: -each[1])
        named = ", ".join(f"{count} {name}" for name, count in counts)
        parts.append(f"What ONNX Runtime runs here (int8 where it begins with Q): {named}.")
    return Section("Every layer", parts, folded=True)


def _span(span: tuple[float, float] | None) -> list[str | float]:
    return ["", ""] if span is None else list(span)


def _cost_section(facts: Circumstances) -> Section:
    rows: list[list[str | float]] = [
        [name, f"{value:.2g}" if value < 10 else f"{value:.0f}"]
        for name, value in facts.seconds.items()
    ]
    memory = f"The process took {facts.peak_bytes / 1e6:.0f} MB of memory at most."
    return Section("Cost", [Table(["", "seconds"], rows), memory])
