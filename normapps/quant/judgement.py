"""Whether to use a quantized network: a function of numbers, so that every branch can be tested.

An int8 network is worth having if it is as good as the float one and faster than the best that
float offers here, which is mostly onnxruntime and not torch: 1.05 times at batch 1 or 8, in the
median of rounds taken in turns. As good: with labels, the 95 % interval of the paired difference
lies above −`max_drop`. Without, accuracy is not known, but it cannot have fallen by more than the
share of pictures that get another answer. If that share is surely small enough, so is the loss; if
surely above a tenth, the rounding did damage, whichever answers were right.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..measure.interval import Estimate
from ..measure.latency import Latency
from ..measure.report import NOT_RECOMMENDED, RECOMMENDED, UNDECIDED, Verdict
from ..measure.stages import Stage
from .latency import FLOAT, INT8

FASTER = 1.05
"""From here on a network counts as faster."""

BROKEN = 0.9
"""Share of unchanged answers below which rounding did damage, labels or not."""

NO_TIME = "--no-latency was given"
NO_PICTURES = "no pictures were given; --data names some"


@dataclass(frozen=True)
class Evidence:
    """What is known of a quantized network.

    Attributes:
        sizes: bytes of the files, by `FLOAT` and `INT8`.
        stages: on the same pictures; the first is the float network, the last the int8 one. Empty
            without pictures.
        latencies: of `TORCH`, `FLOAT` and `INT8`; empty where not measured.
        max_drop: accuracy, or share of the answers, that may be lost.
        is_random: the model has random weights.
        not_judged: why there are no stages.
        not_timed: why there are no latencies.
        opened_by: the class that runs the folder.
        layers: that compute in int8, and that could.
        unused: options that were not given and may keep more accuracy.
        slows: what the network has been given that costs time, and how to do without; or nothing.
    """

    sizes: Mapping[str, int]
    stages: tuple[Stage, ...] = ()
    latencies: tuple[Latency, ...] = ()
    max_drop: float = 0.01
    is_random: bool = False
    not_judged: str = NO_PICTURES
    not_timed: str = NO_TIME
    opened_by: str = "OnnxModel"
    layers: tuple[int, int] = (1, 1)
    unused: tuple[str, ...] = field(default=())
    slows: str = ""

    @property
    def last(self) -> Stage | None:
        """The int8 network beside the float one; None without pictures."""
        return self.stages[-1] if len(self.stages) > 1 else None

    @property
    def is_faster(self) -> bool | None:
        """Whether int8 beats the float network of onnxruntime; None where not measured."""
        speeds = [each.speedup(INT8, FLOAT).median for each in self.latencies]
        return max(speeds) >= FASTER if speeds else None


def judge(evidence: Evidence) -> Verdict:
    """Say whether to use the int8 network, and why."""
    if evidence.is_random:
        return Verdict(
            NOT_RECOMMENDED,
            "The model has random weights, which are worth nothing in int8 either: load a"
            " checkpoint first.",
        )
    if evidence.last is not None and not evidence.last.is_finite:
        return Verdict(NOT_RECOMMENDED, "The int8 network's outputs are not finite.")
    good = _quality(evidence)
    if good.verdict == NOT_RECOMMENDED:
        return good
    return _with_speed(evidence, good)


def next_step(evidence: Evidence, verdict: Verdict, folder: Path, spec: str) -> str:
    """Return a sentence with what comes after; empty where nothing helps.

    Args:
        evidence, verdict: of the quantization.
        folder: that it wrote.
        spec: the model that was quantized.
    """
    if evidence.is_random:
        return ""
    if verdict.verdict == RECOMMENDED:
        return f"Use it: normapps.{evidence.opened_by}({str(folder)!r}).run(images)"
    if evidence.is_faster is False:
        return _faster(evidence, spec)
    if evidence.last is None:
        return _judge_it(evidence)
    if _may_be_good(evidence):
        return _finish(evidence)
    options = ", ".join(evidence.unused)
    return f"What may keep more of the answers: {options}" if options else ""


def _faster(evidence: Evidence, spec: str) -> str:
    if evidence.slows:
        return f"What may make it faster: {evidence.slows}"
    command = f"normapps export {shlex.quote(spec)} -o model.onnx"
    return f"In float32 ONNX Runtime is as fast here: {command}"


def _judge_it(evidence: Evidence) -> str:
    if evidence.not_judged == NO_PICTURES:
        return "Judge it: add --data PICTURES, best in class folders"
    return (
        "Judge it by what the network is for: compare the outputs of"
        f" normapps.{evidence.opened_by} with the float network's"
    )


def _may_be_good(evidence: Evidence) -> bool:
    """Whether nothing speaks against the answers but that there are few of them."""
    last, most = evidence.last, evidence.max_drop
    if last is None or not last.is_finite:
        return False
    if last.difference is not None:
        return last.difference.mean >= -most
    return last.same is not None and last.same.mean >= 1 - most


def _finish(evidence: Evidence) -> str:
    """What is missing for a verdict on a network that seems to answer well enough."""
    missing = []
    if _quality(evidence).verdict == UNDECIDED:
        missing.append("more pictures by --data or --test")
    if not evidence.latencies and evidence.not_timed == NO_TIME:
        missing.append("leave out --no-latency")
    return f"For a verdict: {' and '.join(missing)}" if missing else ""


def _with_speed(evidence: Evidence, good: Verdict) -> Verdict:
    """Add what it brings to a network that is good, or may be."""
    gain = _size(evidence)
    if not evidence.latencies:
        why = "" if evidence.not_timed == NO_TIME else f" ({evidence.not_timed})"
        return Verdict(UNDECIDED, f"{gain}, but no time was measured here{why}. {good.reason}")
    times = [(each.batch_size, each.speedup(INT8, FLOAT).median) for each in evidence.latencies]
    speed = ", ".join(f"{value:.2f} at batch {size}" for size, value in times)
    against = f"times as fast as float32 in ONNX Runtime: {speed}"
    if not evidence.is_faster:
        return Verdict(NOT_RECOMMENDED, f"{gain}, but not faster here ({against}). {good.reason}")
    return Verdict(good.verdict, f"{gain}, and faster here ({against}). {good.reason}")


def _size(evidence: Evidence) -> str:
    before, after = evidence.sizes[FLOAT], evidence.sizes[INT8]
    return f"{100 * after / max(before, 1):.0f} % of the size ({_mega(before)} → {_mega(after)} MB)"


def _mega(value: int) -> str:
    return f"{value / 1e6:.3g}"


def _quality(evidence: Evidence) -> Verdict:
    """Judge the answers alone."""
    last, most = evidence.last, evidence.max_drop
    if last is None:
        return Verdict(UNDECIDED, f"The answers were not judged: {evidence.not_judged}.")
    if last.difference is not None:
        return _by_labels(last.difference, most)
    if last.same is not None:
        return _without_labels(last.same, most)
    return Verdict(UNDECIDED, "The network was not compared with the float one.")


def _by_labels(difference: Estimate, most: float) -> Verdict:
    low, mean, high = (100 * each for each in (difference.low, difference.mean, difference.high))
    found = (
        f"Accuracy changes by {mean:+.1f} points (95 %: {low:+.1f} to {high:+.1f}) on"
        f" {difference.count} labelled pictures"
    )
    allowed = f"{100 * most:g} {'point' if most == 0.01 else 'points'}"
    if difference.low >= -most:
        return Verdict(RECOMMENDED, f"{found}.")
    if difference.high >= -most:
        return Verdict(
            UNDECIDED, f"{found}, too few to tell whether the loss is below {allowed} (--max-drop)."
        )
    return Verdict(NOT_RECOMMENDED, f"{found}, more than the {allowed} of --max-drop.")


def _without_labels(same: Estimate, most: float) -> Verdict:
    shown = f"{same.count} pictures get" if same.count > 1 else "1 picture gets"
    found = (
        f"{100 * same.mean:.1f} % of {shown} the answer of the float network (95 %:"
        f" {100 * same.low:.1f} to {100 * same.high:.1f})"
    )
    if same.low >= 1 - most:
        return Verdict(RECOMMENDED, f"{found}, so accuracy cannot have changed by more.")
    if same.high < BROKEN:
        return Verdict(NOT_RECOMMENDED, f"{found}: rounding did damage.")
    if same.high >= 1 - most:
        return Verdict(
            UNDECIDED, f"{found}: too few to tell whether more than {100 * most:g} % changed."
        )
    return Verdict(UNDECIDED, f"{found}, and there are no labels to tell which are right.")
