"""What is done to the float network before it is rounded, in order, and what each step did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..graph.fold import Folding, fold_batchnorm
from ..measure.clock import Clock
from ..norm.moments import Moments
from .absorb import Absorption, absorb_
from .clip import ClipMode
from .correction import BiasCorrection, correct_bias_
from .equalize import Equalization, equalize_
from .finetune import finetune_
from .finetune_options import QatOptions
from .options import QuantizeOptions
from .pictures import Repeated, Seen
from .reestimate import Reestimation, reestimate_

FOLD, EQUALIZE, ABSORB = "fold", "equalization", "absorption"
FINETUNE, REESTIMATE, CORRECT = "finetuning", "re-estimation", "bias correction"


@dataclass(frozen=True)
class Step:
    """One transformation of the float network.

    Attributes:
        name: of it.
        said: what it did, in words.
        numbers: more of that, JSON values.
    """

    name: str
    said: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


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
        return len(self.steps) > 1


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
    if options.equalizes:
        clock(EQUALIZE, lambda: _equalize(prepared, options))
    if options.finetune and seen is not None:
        clock(FINETUNE, lambda: _finetune(prepared, options, _batches(seen, device), device))
    if options.bn_reestimate and seen is not None:
        clock(REESTIMATE, lambda: _reestimate(prepared, options, seen))
    if options.bias_correction:
        clock(CORRECT, lambda: _correct(prepared, options, seen))


def _folded(done: Folding) -> Step:
    kinds = {"after": "the layer before", "before": "the layer behind", "alone": "one of its own"}
    counts = Counter(each.where for each in done.folded)
    ways = ", ".join(f"{count} into {kinds[where]}" for where, count in counts.items())
    total = len(done.folded) + len(done.left)
    said = f"{len(done.folded)} of {_count(total, 'norm layer')}"
    if done.folded:
        said += f": {ways}; the outputs differ by {done.difference:.1e}"
    return Step(FOLD, said, {"folded": dict(counts), "difference": done.difference})


def _equalize(prepared: Prepared, options: QuantizeOptions) -> None:
    """Even the ranges of channels out, and move what is left of high biases on."""
    mode = cast("ClipMode", options.relu6)
    done = equalize_(prepared.model, prepared.inputs, prepared.statistics, relu6=mode)
    prepared.steps.append(_equalized(done))
    moved = absorb_(prepared.model, prepared.inputs, prepared.statistics)
    prepared.steps.append(_absorbed(moved))


def _equalized(done: Equalization) -> Step:
    factors = {name: float(each.log().abs().max().exp()) for name, each in done.factors.items()}
    said = f"{_count(len(factors), 'layer')} rescaled in {_count(done.sweeps, 'sweep')}"
    if factors:
        most = max(factors, key=factors.__getitem__)
        said += f", by up to {factors[most]:.3g} in '{most}'"
    said += f"; the outputs differ by {done.difference:.1e}"
    if done.clipped:
        share = max(done.clipped.values())
        said += (
            f"; {_count(len(done.clipped), 'ReLU6')} replaced by ReLU, which clipped"
            f" {100 * share:.2g} % of the values at most"
        )
    if done.left:
        said += f"; channels of {_count(len(done.left), 'layer')} were left as they are"
    numbers = {"factors": factors, "clipped": dict(done.clipped), "left": dict(done.left)}
    return Step(EQUALIZE, said, numbers | {"difference": done.difference})


def _absorbed(done: Absorption) -> Step:
    most = {name: float(each.max()) for name, each in done.absorbed.items()}
    said = f"high biases of {_count(len(most), 'layer')} moved on"
    if most:
        said += f"; on noise the outputs differ by {done.difference:.1e}"
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
        said += f"; the largest correction of a scale is {factors[most]:.3g}, in '{most}'"
    return Step(REESTIMATE, said, {"factors": factors, "skipped": dict(done.skipped)})


def _finetune(
    prepared: Prepared, options: QuantizeOptions, batches: Repeated, device: torch.device
) -> None:
    chosen = QatOptions(steps=options.finetune, per_channel=options.per_channel)
    prepared.model.to(device)
    try:
        done = finetune_(prepared.model, batches, chosen)
    finally:
        prepared.model.to("cpu")
    first, last = done.losses[0], done.losses[-1]
    said = (
        f"{len(done.losses)} steps with rounded weights; divergence from the float network's"
        f" answers {first:.3g} → {last:.3g} nats"
    )
    prepared.steps.append(Step(FINETUNE, said, {"losses": list(done.losses)}))


def _correct(prepared: Prepared, options: QuantizeOptions, seen: Seen | None) -> None:
    """Take off what rounding shifts: with pictures as measured, without by the statistics."""
    batches = None if seen is None or not seen.calibrating else Repeated(seen.calibration)
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
    sources = ", ".join(f"{count} by {how}" for how, count in ways.items())
    said = f"{_count(len(done.layers), 'layer')}{f' ({sources})' if sources else ''}"
    shifts = {each.layer: float(each.shift.abs().max()) for each in done.layers}
    if shifts:
        most = max(shifts, key=shifts.__getitem__)
        said += f"; the largest shift is {shifts[most]:.2g}, in '{most}'"
    if done.skipped:
        said += f"; {_count(len(done.skipped), 'layer')} left as they are"
    return Step(CORRECT, said, {"shifts": shifts, "skipped": dict(done.skipped)})


def _count(number: int, word: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number} {word}{'' if number == 1 or word.endswith('6') else 's'}"


def _batches(seen: Seen, device: torch.device) -> Repeated:
    def make() -> Iterator[Tensor]:
        for images in seen.calibration():
            yield images.to(device)

    return Repeated(make)
