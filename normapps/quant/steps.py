"""What is done to the float network before it is rounded, in order, and what each step did."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..graph.fold import Folding, fold_batchnorm
from ..measure.clock import Clock
from ..norm.moments import Moments
from ..norm.nesting import detached_copy
from .absorb import Absorption, absorb_
from .clip import ChannelClip, ClipMode
from .correction import BiasCorrection, correct_bias_
from .equalize import Equalization, equalize_
from .finetune import finetune_
from .finetune_options import QatOptions
from .options import QuantizeOptions
from .pictures import Repeated, Seen
from .reestimate import Reestimation, reestimate_

FOLD, EQUALIZE, ABSORB, BOUNDS = "fold", "equalization", "absorption", "bounds"
FINETUNE, REESTIMATE, CORRECT = "finetuning", "re-estimation", "bias correction"

_HOW = {"closed form": "in closed form", "sampled": "by noise", "pictures": "by pictures"}
_TAKES = re.compile(r"^.+ takes (\S+) of them$")
"""A reason that names the place, which tells each layer's from the next one's."""
_REASONS = 3
"""Reasons that are told; the report's numbers have each layer's."""


@dataclass(frozen=True)
class Step:
    """One transformation of the float network.

    Attributes:
        name: of it.
        said: what it did, in words.
        numbers: more of that, JSON values.
        is_done: it changed the network, or folded it; not where it was left out.
    """

    name: str
    said: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    is_done: bool = True


@dataclass(eq=False)
class Prepared:
    """A network on its way to int8; each step changes it and adds itself.

    Attributes:
        model: folded, float32, on the CPU.
        inputs: (1, C, H, W) noise that it runs on.
        statistics: by layer, the moments of what it gives, as folding found them; kept true.
        left: norm layers that were not folded, and why.
        steps: what was done so far.
    """

    model: nn.Module
    inputs: Tensor
    statistics: dict[str, Moments]
    left: tuple[tuple[str, str], ...]
    steps: list[Step]

    @property
    def is_changed(self) -> bool:
        """Whether more was done than folding, so that it answers otherwise than it did."""
        return sum(step.is_done for step in self.steps) > 1


def fold(model: nn.Module, inputs: Tensor) -> Prepared:
    """Fold the batch norms of a copy of a network.

    Raises:
        InputError: as `fold_batchnorm`.
    """
    folded, done = fold_batchnorm(model, inputs)
    return Prepared(folded, inputs, done.statistics, done.left, [_folded(done)])


def transform(
    prepared: Prepared,
    options: QuantizeOptions,
    seen: Seen | None,
    device: torch.device,
    clock: Clock,
) -> None:
    """Do what the options ask for, in place.

    Args:
        prepared: as `fold` returns it.
        options: which steps.
        seen: pictures to learn from.
        device: where the long ones run.
        clock: told what each took.

    Raises:
        InputError: a step that the network cannot go through.
    """
    teacher = detached_copy(prepared.model) if options.finetune else None
    if options.equalizes:
        clock(EQUALIZE, lambda: _equalize(prepared, options))
    if options.bn_reestimate and seen is not None:
        clock(REESTIMATE, lambda: _reestimate(prepared, options, seen))
    if options.bias_correction:
        clock(CORRECT, lambda: _correct(prepared, options, seen))
    if teacher is not None and seen is not None:
        # last: what it learns holds for the rounded network alone, to which others would compare
        batches = _batches(seen, device)
        clock(FINETUNE, lambda: _finetune(prepared, options, batches, teacher.to(device), device))


def _folded(done: Folding) -> Step:
    kinds = {"after": "the layer before", "before": "the layer behind", "alone": "one of its own"}
    counts = Counter(each.where for each in done.folded)
    ways = ", ".join(f"{count} into {kinds[where]}" for where, count in counts.items())
    total = len(done.folded) + len(done.left)
    said = f"{len(done.folded)} of {_count(total, 'norm layer')}"
    if done.folded:
        said += f": {ways}; {_differ(done.difference)}"
    return Step(FOLD, said, {"folded": dict(counts), "difference": done.difference})


def _equalize(prepared: Prepared, options: QuantizeOptions) -> None:
    """Even the ranges of channels out, and move what is left of high biases on."""
    mode = cast("ClipMode", options.relu6)
    done = equalize_(prepared.model, prepared.inputs, prepared.statistics, relu6=mode)
    prepared.steps.append(_equalized(done))
    if prepared.statistics:  # else nothing tells which biases are high
        moved = absorb_(prepared.model, prepared.inputs, prepared.statistics)
        prepared.steps.append(_absorbed(moved))
    clips = sum(isinstance(each, ChannelClip) for each in prepared.model.modules())
    if clips:  # scaled by the one, or shifted by the other
        prepared.steps.append(_bounded(clips, options))


def _bounded(clips: int, options: QuantizeOptions) -> Step:
    remedy = "--no-equalize" if options.per_channel else "--per-channel"
    said = (
        f"{_count(clips, 'ReLU6')} with a bound for each channel now, which is computed in float"
        f" and makes int8 slower; {remedy} needs none"
    )
    return Step(BOUNDS, said, {"clips": clips, "remedy": remedy})


def _equalized(done: Equalization) -> Step:
    factors = {name: float(each.log().abs().max().exp()) for name, each in done.factors.items()}
    said = f"{_count(len(factors), 'layer')} rescaled in {_count(done.sweeps, 'sweep')}"
    if factors:
        most = max(factors, key=factors.__getitem__)
        said += f", by up to {factors[most]:.3g} in '{most}'"
    said += f"; {_differ(done.difference)}"
    if done.clipped:
        share = max(done.clipped.values())
        said += (
            f"; {_count(len(done.clipped), 'ReLU6')} replaced by ReLU, which clipped"
            f" {100 * share:.2g} % of the values at most"
        )
    if done.left:
        said += f"; left as they are: channels of {_reasons(done.left)}"
    numbers = {"factors": factors, "clipped": dict(done.clipped), "left": dict(done.left)}
    return Step(EQUALIZE, said, numbers | {"difference": done.difference})


def _absorbed(done: Absorption) -> Step:
    most = {name: float(each.max()) for name, each in done.absorbed.items()}
    said = f"high biases of {_count(len(most), 'layer')} moved on"
    if most:
        said += f"; on noise {_differ(done.difference)}"
    numbers = {"absorbed": most, "padded": list(done.padded), "left": dict(done.left)}
    return Step(ABSORB, said, numbers | {"difference": done.difference})


def _reestimate(prepared: Prepared, options: QuantizeOptions, seen: Seen) -> None:
    done = reestimate_(
        prepared.model,
        prepared.statistics,
        Repeated(seen.calibration),
        per_channel=options.per_channel,
    )
    prepared.steps.append(_reestimated(done))


def _reestimated(done: Reestimation) -> Step:
    factors = {each.layer: float(each.factor.log().abs().max().exp()) for each in done.layers}
    said = f"{_count(len(factors), 'layer')} measured anew behind rounded weights"
    if factors:
        most = max(factors, key=factors.__getitem__)
        said += f"; scales change by up to {100 * (factors[most] - 1):.2g} %, in '{most}'"
    return Step(REESTIMATE, said, {"factors": factors, "skipped": dict(done.skipped)})


def _finetune(
    prepared: Prepared,
    options: QuantizeOptions,
    batches: Repeated,
    teacher: nn.Module,
    device: torch.device,
) -> None:
    """Train with rounded weights, taught by the network as it was folded."""
    chosen = QatOptions(steps=options.finetune, per_channel=options.per_channel)
    prepared.model.to(device)
    try:
        done = finetune_(prepared.model, batches, chosen, teacher=teacher)
    finally:
        prepared.model.to("cpu")
    first, last = done.losses[0], done.losses[-1]
    said = (
        f"{_count(len(done.losses), 'step')} with rounded weights; divergence from the float"
        f" network's answers {first:.2g} → {last:.2g} nats"
    )
    prepared.steps.append(Step(FINETUNE, said, {"losses": list(done.losses)}))


def _correct(prepared: Prepared, options: QuantizeOptions, seen: Seen | None) -> None:
    """Take off what rounding shifts: with pictures as measured, without by the statistics."""
    batches = None if seen is None or not seen.calibrating else Repeated(seen.calibration)
    if batches is None and not prepared.statistics:
        said = "left out: no norm was folded into a layer before it, and there are no pictures"
        prepared.steps.append(Step(CORRECT, said, is_done=False))
        return
    done = correct_bias_(
        prepared.model,
        prepared.inputs,
        prepared.statistics,
        per_channel=options.per_channel,
        batches=batches,
        seed=options.seed,
    )
    prepared.steps.append(_corrected(done))


def _corrected(done: BiasCorrection) -> Step:
    ways = Counter(each.how for each in done.layers)
    sources = ", ".join(f"{count} {_HOW[how]}" for how, count in ways.items())
    said = f"{_count(len(done.layers), 'layer')}{f' ({sources})' if sources else ''}"
    shifts = {each.layer: float(each.shift.abs().max()) for each in done.layers}
    if shifts:
        most = max(shifts, key=shifts.__getitem__)
        said += f"; the largest shift is {shifts[most]:.2g}, in '{most}'"
    if done.skipped:
        said += f"; left as they are: {_reasons(done.skipped)}"
    return Step(CORRECT, said, {"shifts": shifts, "skipped": dict(done.skipped)})


def _count(number: int, word: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number} {word}{'' if number == 1 or word.endswith('6') else 's'}"


def _differ(difference: float) -> str:
    return f"the outputs differ by {difference:.1e}" if difference else "the outputs are the same"


def _reasons(left: Iterable[tuple[str, str]]) -> str:
    """`3 layers (2: an output of the network; 1: …)`, the most frequent reason first."""
    counts = Counter(_TAKES.sub(r"\1 takes them", why) for _, why in left)
    few = counts.most_common(_REASONS)
    others = counts.total() - sum(count for _, count in few)
    if len(counts) == 1:
        return f"{_count(counts.total(), 'layer')} ({few[0][0]})"
    said = [f"{count}: {why}" for why, count in few] + ([f"{others}: others"] if others else [])
    return f"{_count(counts.total(), 'layer')} ({'; '.join(said)})"


def _batches(seen: Seen, device: torch.device) -> Repeated:
    def make() -> Iterator[Tensor]:
        for images in seen.calibration():
            yield images.to(device)

    return Repeated(make)
