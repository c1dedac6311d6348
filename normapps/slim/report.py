"""The report of a pruning: sections for people, numbers for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..measure.interval import Estimate
from ..measure.latency import Latency
from ..measure.plots import Bars, Histograms
from ..measure.report import Figure, Report, Section, Table, Verdict, short
from .compensation import Compensation
from .judgement import Evidence
from .layers import Row, reduction
from .recalibration import Recalibration
from .report_numbers import report_numbers

_MOST_BARS = 60
"""Layers in the plot: those that lost the most channels; the table has them all."""

_BINS = 40

_EXACT = 1e-4
"""Standard deviations below which a compensation is off by rounding only."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """How channels were chosen.

    Attributes:
        amount: the option that said how much, and its value, such as `--ratio 0.4`.
        reached: what came of it, shares by name, as `Plan.reached`.
        importance: what a channel counts by; empty where that did not choose.
        threshold: the highest importance that went; None where there is not one for all.
        gone, stays: importance of each channel that could go, of those that did and the others.
        notes: what the reader should know, a line each.
    """

    amount: str
    reached: Mapping[str, float]
    importance: str
    threshold: float | None
    gone: Sequence[float]
    stays: Sequence[float]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Circumstances:
    """What a report says beside the evidence.

    Attributes:
        model, preprocessing: in words, a line each.
        data: the pictures; None where there were none.
        without_accuracy: why accuracy was not measured; empty where it was.
        options: as given.
        channels: of all batch norms, before and after.
        choice: of the channels.
        rows: the layers.
        left: groups of channels that were left whole, by name, and why.
        difference: of the oracle; None where it was not asked.
        compensation, recalibration: None where they were not made.
        onnx: the file's largest relative difference from torch; None where there is no file.
        failed: a line for each picture that could not be read.
        seconds: what took them, by name.
        peak_bytes: the most memory of the process.
        following: what to do now, with the command; empty where nothing helps.
    """

    model: str
    preprocessing: str
    data: str | None
    without_accuracy: str
    options: Mapping[str, Any]
    channels: tuple[int, int]
    choice: Choice
    rows: tuple[Row, ...]
    left: tuple[tuple[str, str], ...]
    difference: float | None
    compensation: Compensation | None
    recalibration: Recalibration | None
    onnx: float | None
    failed: tuple[str, ...]
    seconds: Mapping[str, float]
    peak_bytes: int
    following: str = ""


def prune_report(evidence: Evidence, verdict: Verdict, facts: Circumstances) -> Report:
    """Make the report of a pruning."""
    lead = [f"{facts.model}; pruned by {facts.choice.amount}.", f"{facts.preprocessing}."]
    sections = [
        *([Section("What comes next", [facts.following])] if facts.following else []),
        _size_section(evidence, facts),
        *_answer_sections(evidence, facts),
        _latency_section(evidence.latencies),
        _proof_section(facts),
        _choice_section(facts.choice),
        _left_section(facts.left),
        *_layer_sections(facts.rows),
        _cost_section(facts),
    ]
    if facts.failed:
        sections.append(Section("Pictures that could not be read", facts.failed))
    numbers = report_numbers(evidence, facts)
    return Report("Pruning by batch-norm scales", verdict, sections, numbers, lead)


def _size_section(evidence: Evidence, facts: Circumstances) -> Section:
    before, after = evidence.before, evidence.after
    rows = [
        _size_row("channels of batch norms", facts.channels),
        _size_row("parameters", (before.parameters, after.parameters)),
        _size_row("multiplications a picture", (before.macs, after.macs)),
        _size_row("bytes of the weights as a file", (before.bytes, after.bytes)),
    ]
    note = (
        "Multiplications are multiply-accumulates of convolutions and linear layers on one picture"
        " of the model's size; others call twice their number FLOPs."
    )
    return Section("Size", [Table(["", "before", "after", "gone, %"], rows, note)])


def _size_row(name: str, pair: tuple[int, int]) -> list[str | float]:
    return [name, *map(short, pair), f"{100 * reduction(*pair):.1f}"]


def _answer_sections(evidence: Evidence, facts: Circumstances) -> list[Section]:
    """Accuracy and agreement, stage by stage."""
    stages = evidence.stages
    if not stages:
        return [Section("Accuracy", [f"Not measured: {facts.without_accuracy}."])]
    sections = []
    if stages[0].accuracy is not None:
        rows = [
            [evidence.title(each), *_percents(each.accuracy), _points(each.difference)]
            for each in stages
        ]
        sections.append(Section("Accuracy", [Table(_ACCURACY, rows, _ACCURACY_NOTE)]))
    else:
        sections.append(Section("Accuracy", [f"Not measured: {facts.without_accuracy}."]))
    rows = [
        [evidence.title(each), *_percents(each.same), each.logit_error or 0.0]
        for each in stages
        if each.same is not None
    ]
    parts: list[str | Table | Figure] = [Table(_SAME, rows, _SAME_NOTE)] if rows else []
    if facts.recalibration is not None:
        parts.append(facts.recalibration.describe())
    return [*sections, Section("Same answers", parts)] if parts else sections


_ACCURACY = ["stage", "%", "from", "to", "change, points"]
_ACCURACY_NOTE = (
    "Share of the pictures that get their label's class, with Wilson's interval of 95 %; the change"
    " is from the base, on the same pictures, with Bonett and Price's. Pruned is the cut alone;"
    " compensated moved what the removed channels gave into what follows; recalibrated measured"
    " the running statistics anew on these pictures, without their labels. A stage stands on the"
    " one before it. Kept, which is in this folder, is the one of the highest accuracy."
)
_SAME = ["stage", "%", "from", "to", "error of the logits"]
_SAME_NOTE = (
    "Share of the pictures that get the class which the base gives them, with an interval of 95 %."
    " The error is the root mean square of the logits' change, in deviations of the base's logits:"
    " 0 changes nothing, and from 1 on the change is as large as what the base says. Without labels"
    " the stage that answers most as the base is kept."
)


def _percents(value: Estimate | None) -> list[str | float]:
    if value is None:
        return ["", "", ""]
    return [f"{100 * each:.1f}" for each in (value.mean, value.low, value.high)]


def _points(value: Estimate | None) -> str:
    if value is None:
        return ""
    low, mean, high = (100 * each for each in (value.low, value.mean, value.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _latency_section(latencies: Sequence[Latency]) -> Section:
    if not latencies:
        return Section("Time", ["Not measured: --no-latency was given."])
    rows: list[list[str | float]] = []
    for each in latencies:
        speed = each.speedup("slimmed")
        low, high = speed.spread
        times = (1e3 * each.times[name].median for name in ("base", "slimmed"))
        rows.append([str(each.batch_size), *times, f"{speed.median:.2f} ({low:.2f} to {high:.2f})"])
    note = (
        "Milliseconds a batch, in the median of rounds in which the two networks took turns, on"
        " this machine. The speed-up is taken round by round; in brackets its quartiles."
    )
    columns = ["pictures a batch", "before, ms", "after, ms", "times as fast"]
    return Section("Time", [Table(columns, rows, note)])


def _proof_section(facts: Circumstances) -> Section:
    parts = ["Not made: --no-verify was given."]
    if facts.difference is not None:
        parts = [
            "The network without its channels was compared with the whole network in which the"
            " scale and shift of the same channels are 0: both must answer alike. Relative"
            f" difference of the outputs: {facts.difference:.1e}, where up to 1e-5 is rounding."
        ]
    if facts.onnx is not None:
        parts.append(
            f"model.onnx was run beside torch: relative difference of the outputs {facts.onnx:.1e}."
        )
    return Section("Proof of the cut", parts + _compensation_parts(facts.compensation))


def _compensation_parts(done: Compensation | None) -> list[str]:
    if done is None:
        return ["Nothing was compensated: what a removed channel gave is missing behind it."]
    if not done.corrections:
        return ["Compensation: there was nothing to move, as no removed channel gave a constant."]
    largest = max(done.corrections, key=lambda each: each.shift)
    text = (
        "Compensation: a channel of scale 0 gives a constant, its shift through the activation."
        f" What the removed channels gave was moved into {len(done.corrections)} tensors behind"
        f" them. The largest change is {largest.shift:.2g} standard deviations, in"
        f" '{largest.into}'. {_off(done)}"
    )
    missed = [f"Not compensated, as it has no place for a bias: {name}." for name in done.missed]
    return [text, *missed]


def _off(done: Compensation) -> str:
    if done.off < _EXACT:
        return "It is exact: nothing is off by more than rounding."
    farthest = max(done.corrections, key=lambda each: each.off)
    worst = max(each.off_mean for each in done.corrections)
    return (
        "It is right in the mean, and exact but for zero-padded borders and gates that depend on"
        f" the picture: there it is off by up to {farthest.off:.2g} (in the outputs of"
        f" '{farthest.weight}'), and in no layer by more than {worst:.2g} in the root mean square."
    )


def _choice_section(choice: Choice) -> Section:
    parts: list[str | Table | Figure] = [
        f"Asked for: {choice.amount}. Reached: {_reached(choice.reached)}.",
        *choice.notes,
    ]
    if choice.importance and [*choice.gone, *choice.stays]:
        parts.append(_histogram(choice))
    return Section("Choice of the channels", parts)


def _reached(reached: Mapping[str, float]) -> str:
    said = {
        "ratio": "of the channels that could go went",
        "flops": "of the multiplications stay",
        "params": "of the parameters stay",
        "latency": "of the time stays",
    }
    return ", ".join(f"{100 * value:.1f} % {said[name]}" for name, value in reached.items())


def _histogram(choice: Choice) -> Figure:
    values = sorted([*choice.gone, *choice.stays])
    # a few channels of huge scale would squeeze all others into one bar
    low, high = values[0], values[int(0.995 * (len(values) - 1))]
    span = (low, high if high > low else low + 1e-6)
    mark = None if choice.threshold is None else (choice.threshold, "threshold")
    plot = Histograms(
        {"goes": choice.gone, "stays": choice.stays},
        _AXES[choice.importance],
        span,
        _BINS,
        "channels",
        counts=True,
        mark=mark,
    )
    return Figure(plot, _HISTOGRAM)


_AXES = {
    "scale": "|γ| of a channel, root mean square over its batch norms",
    "l2": "norm of a channel's weights, relative to the mean of its layer",
    "random": "a random number",
}
_HISTOGRAM = (
    "The importance of every channel that could go. Where many stand near 0, far from the rest, the"
    " network was trained sparse and loses little; a single heap says that it was not. What stays"
    " left of the threshold is the last of its layer, or held by an option. The last bar holds all"
    " that is larger, too."
)


def _left_section(left: Sequence[tuple[str, str]]) -> Section:
    if not left:
        return Section("Left whole", ["Nothing: every channel with a scale could go."])
    note = "Channels that live and die together, by their first layer, and why they all stay."
    rows = [list(each) for each in left]
    return Section("Left whole", [Table(["channels of", "why"], rows, note)])


def _layer_sections(rows: Sequence[Row]) -> list[Section]:
    wide = [row for row in rows if row.macs[0] and row.channels[0]]
    lost = sorted(wide, key=lambda row: row.channels[1] - row.channels[0])[:_MOST_BARS]
    shown = [row for row in wide if row in lost]
    series = {
        name: [float(row.channels[i]) for row in shown]
        for i, name in enumerate(("before", "after"))
    }
    note = "Channels that each convolution and linear layer puts out, from the first layer down."
    if len(shown) < len(wide):
        note += f" Shown are the {len(shown)} of {len(wide)} that lost the most."
    plot = Bars([row.name for row in shown], series, "channels")
    table = Table(_COLUMNS, [_layer_row(row) for row in rows], _LAYERS)
    return [
        Section("Widths", [Figure(plot, note)]),
        Section("Every layer", [table], folded=True),
    ]


_COLUMNS = [
    "layer",
    *("channels", "left", "parameters", "left", "multiplications, thousands", "left"),
]
_LAYERS = (
    "Each layer before, and what is left of it: the channels that it puts out, its own parameters,"
    " its multiplications for one picture. A layer gets smaller, too, where those before it lost"
    " channels."
)


def _layer_row(row: Row) -> list[str | float]:
    macs = (f"{each / 1e3:.0f}" if each else "" for each in row.macs)
    channels = (each or "" for each in row.channels)
    return [row.name, *channels, *row.parameters, *macs]


def _cost_section(facts: Circumstances) -> Section:
    rows: list[list[str | float]] = [[name, value] for name, value in facts.seconds.items()]
    memory = f"The process took {facts.peak_bytes / 1e6:.0f} MB of memory at most."
    return Section("Cost", [Table(["", "seconds"], rows), memory])
