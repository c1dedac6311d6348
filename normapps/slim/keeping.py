"""The networks of a pruning, stage by stage on the same pictures, and the one that is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..engine.device import place
from ..graph.oracle import Slimmed
from ..measure.clock import Clock
from ..measure.stages import Stage, best, evaluate_stages
from ..norm.nesting import detached_copy
from ..norm.population import apply_
from .cutting import CutNetworks
from .pictures import Seen
from .prune_options import PruneOptions
from .recalibration import Recalibration, recalibrate_

BASE, PRUNED, COMPENSATED, RECALIBRATED = "base", "pruned", "compensated", "recalibrated"


@dataclass(frozen=True, eq=False)
class Kept:
    """What became of the cut networks.

    Attributes:
        cut: its `result` is the network that is kept.
        stages: on the same pictures, the base first; empty where there are none to judge by.
        name: of the stage that is kept; empty without stages.
        recalibration: what it did, whether that is kept or not; None where it was not made.
    """

    cut: CutNetworks
    stages: tuple[Stage, ...] = ()
    name: str = ""
    recalibration: Recalibration | None = None


def keep_best(
    model: nn.Module,
    cut: CutNetworks,
    seen: Seen | None,
    options: PruneOptions,
    device: torch.device,
    clock: Clock,
    cut_plainly: Callable[[], Slimmed],
) -> Kept:
    """Recalibrate the network that was cut, judge all stages, and keep the one that answers best.

    A lossless cut is kept as it is: its statistics are right, and whatever else some pictures
    say is chance.

    Args:
        model: the base.
        cut: networks cut out of it; the model of its `result` may be changed.
        seen: the pictures; None keeps what was cut.
        options: `recalibrate` and `lossless` count.
        device: where networks answer.
        clock: told what took how long.
        cut_plainly: returns the cut without compensation, proved like the other; called only if
            that is the best.
    """
    if seen is None:
        return Kept(cut)
    recalibrated = None
    if options.recalibrate and not options.lossless:
        whole = detached_copy(cut.result.model)
        recalibrated = clock("recalibrating", lambda: _recalibrate(whole, seen, device))
        cut = dataclasses.replace(cut, result=dataclasses.replace(cut.result, model=whole))
    if not seen.is_classifier:
        return Kept(cut, recalibration=recalibrated)
    networks = _networks(model, cut, recalibrated is not None)
    stages = clock("judging", lambda: evaluate_stages(_placed(networks, device), seen))
    name = stages[-1].name if options.lossless else best(stages).name
    if name == COMPENSATED or name == stages[-1].name:
        result = dataclasses.replace(cut.result, model=networks[name])
    else:
        plain = cut_plainly()
        result = dataclasses.replace(plain, left=(*cut.result.left, *plain.left))
        cut = dataclasses.replace(cut, compensation=None)
    return Kept(dataclasses.replace(cut, result=result), stages, name, recalibrated)


def _recalibrate(model: nn.Module, seen: Seen, device: torch.device) -> Recalibration:
    """Measure a network's statistics on the device, and write them into it where it is."""
    moved = recalibrate_(place(detached_copy(model), device), seen)
    apply_(model, moved.after)
    return moved


def _networks(model: nn.Module, cut: CutNetworks, is_recalibrated: bool) -> dict[str, nn.Module]:
    found = {BASE: model, PRUNED: cut.plain}
    if cut.compensated is not None:
        found[COMPENSATED] = cut.compensated
    if is_recalibrated:
        found[RECALIBRATED] = cut.result.model
    return found


def _placed(
    networks: dict[str, nn.Module], device: torch.device
) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and network of each stage, a copy on the device, made when it is asked for."""
    for name, network in networks.items():
        yield name, place(detached_copy(network), device)
