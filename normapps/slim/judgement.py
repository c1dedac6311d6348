"""Whether to use a slimmed network: a function of numbers, so that every branch can be tested.

A slimmed network is worth having if it is as good and faster. As good: with labels, the 95 %
interval of the paired difference lies above −1 point. Without labels accuracy is not known, but it
cannot have fallen by more than the share of pictures that get another answer, so an agreement
surely above 99 % is enough; less than that proves nothing. Faster: 1.05 times at batch 1 or 32 on
this machine, in the median of rounds taken in turns.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ..measure.interval import Estimate
from ..measure.latency import Latency
from ..measure.report import NOT_RECOMMENDED, RECOMMENDED, UNDECIDED, Verdict
from ..measure.stages import Stage
from .latency import Footprint

LOSS = 0.01
"""Accuracy that may be lost, and the share of pictures that may get another answer."""

FASTER = 1.05
"""From here on a network counts as faster."""

FINETUNE = "`normapps slim finetune` trains what is left, then judge again"


@dataclass(frozen=True)
class Evidence:
    """What is known of a slimmed network.

    Attributes:
        before, after: what the two networks weigh.
        stages: on the same pictures; the first is the base. Empty without pictures.
        latencies: of networks named `base` and `slimmed`; empty where not measured.
        is_lossless: it was shown that no output changes (γ = 0 and constants that move exactly).
        is_finetuned: it was trained after the cut.
        is_random: the model has random weights.
        kept: name of the stage that is to be used; empty for the last.
        not_judged: why there are no stages.
    """

    before: Footprint
    after: Footprint
    stages: tuple[Stage, ...] = ()
    latencies: tuple[Latency, ...] = ()
    is_lossless: bool = False
    is_finetuned: bool = False
    is_random: bool = False
    kept: str = ""
    not_judged: str = "no pictures were given; --data names some"

    @property
    def last(self) -> Stage | None:
        """The stage that is to be used; None without one beside the base."""
        after = {each.name: each for each in self.stages[1:]}
        return after.get(self.kept) or next(reversed(after.values()), None)

    def title(self, stage: Stage) -> str:
        """Return a stage's name, with a word if it is the one to be used."""
        return f"{stage.name} (kept)" if stage is self.last else stage.name


def judge(evidence: Evidence) -> Verdict:
    """Say whether to use the slimmed network, and why."""
    if evidence.is_random:
        return Verdict(
            NOT_RECOMMENDED,
            "The model has random weights, which are worth nothing smaller either: load a"
            " checkpoint first.",
        )
    if evidence.after.parameters >= evidence.before.parameters:
        return Verdict(NOT_RECOMMENDED, "No channel went, so the network is the one it was.")
    if evidence.last is not None and not evidence.last.is_finite:
        return Verdict(NOT_RECOMMENDED, "The slimmed network's outputs are not finite.")
    good = _quality(evidence)
    if good.verdict == NOT_RECOMMENDED:
        return good
    return _with_speed(evidence, good)


def _with_speed(evidence: Evidence, good: Verdict) -> Verdict:
    """Add what it brings to a network that is good, or may be."""
    gain = _size(evidence)
    if not evidence.latencies:
        return Verdict(UNDECIDED, f"{gain}, but no time was measured here. {good.reason}")
    times = [(each.batch_size, each.speedup("slimmed").median) for each in evidence.latencies]
    speed = " and ".join(f"{value:.2f}× at batch {size}" for size, value in times)
    if max(value for _, value in times) < FASTER:
        return Verdict(NOT_RECOMMENDED, f"{gain}, but not faster here ({speed}). {good.reason}")
    return Verdict(good.verdict, f"{gain}, and the speed here is {speed}. {good.reason}")


def _size(evidence: Evidence) -> str:
    macs, parameters = (
        100 * (1 - after / max(before, 1))
        for before, after in (
            (evidence.before.macs, evidence.after.macs),
            (evidence.before.parameters, evidence.after.parameters),
        )
    )
    return f"{macs:.0f} % fewer MACs and {parameters:.0f} % fewer parameters"


def _quality(evidence: Evidence) -> Verdict:
    """Judge the answers alone."""
    last = evidence.last
    same = None if last is None else last.same
    if evidence.is_lossless and (same is None or same.mean >= 1 - LOSS):
        return Verdict(RECOMMENDED, "No output changes: only constants were cut.")
    if last is None:
        return Verdict(UNDECIDED, f"The answers were not judged: {evidence.not_judged}.")
    if last.difference is not None:
        return _by_labels(last.difference, evidence.is_finetuned)
    if last.same is not None:
        return _without_labels(last.same, evidence.is_finetuned)
    return Verdict(UNDECIDED, "The network was not compared with the base.")


def next_step(evidence: Evidence, verdict: Verdict, folder: Path) -> str:
    """Return a sentence with the command that comes after a pruning; empty where nothing helps.

    Args:
        evidence, verdict: of the pruning.
        folder: that it wrote.
    """
    if evidence.is_random or evidence.after.parameters >= evidence.before.parameters:
        return ""
    if verdict.verdict == RECOMMENDED or evidence.is_lossless:
        return f"Use it: normapps.load_model({str(folder)!r})"
    names = shlex.quote(str(folder)), shlex.quote(f"{folder}-finetuned")
    command = f"normapps slim finetune {names[0]} TRAINING_PICTURES -o {names[1]}"
    return f"Train what is left: {command}"


def _by_labels(difference: Estimate, is_finetuned: bool) -> Verdict:
    low, mean, high = (100 * each for each in (difference.low, difference.mean, difference.high))
    found = (
        f"Accuracy changes by {mean:+.1f} points (95 %: {low:+.1f} to {high:+.1f}) on"
        f" {difference.count} labelled pictures"
    )
    if difference.low >= -LOSS:
        return Verdict(RECOMMENDED, f"{found}.")
    if difference.high >= -LOSS:
        return Verdict(UNDECIDED, f"{found}, too few to tell whether more than a point is lost.")
    if is_finetuned:
        return Verdict(NOT_RECOMMENDED, f"{found}, after finetuning.")
    return Verdict(UNDECIDED, f"{found}, before any finetuning: {FINETUNE}.")


def _without_labels(same: Estimate, is_finetuned: bool) -> Verdict:
    found = (
        f"{100 * same.mean:.1f} % of {same.count} pictures get the answer that they had (95 %:"
        f" {100 * same.low:.1f} to {100 * same.high:.1f})"
    )
    if same.low >= 1 - LOSS:
        return Verdict(RECOMMENDED, f"{found}, so accuracy cannot have changed by more.")
    if same.high >= 1 - LOSS:
        return Verdict(UNDECIDED, f"{found}: too few to tell whether more than 1 % changed.")
    ahead = "" if is_finetuned else f"; {FINETUNE}"
    return Verdict(
        UNDECIDED, f"{found}, and there are no labels to tell which answers are right{ahead}."
    )
