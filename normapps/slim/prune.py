"""Cut channels out of a model, judge the result, and write a folder: `normapps slim prune`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.device import evaluating, resolve_device
from ..errors import InputError
from ..graph.graph import ChannelGraph
from ..graph.oracle import Slimmed
from ..measure.clock import Clock
from ..measure.latency import Latency
from ..measure.memory import peak_bytes
from ..measure.report import HTML, JSON, Report, Verdict, write_report
from ..models.folder import check_target, load_model, save_model
from ..models.load import RANDOM, OpenedModel, open_by
from ..models.onnx import check_deploy, to_onnx
from ..models.options import preprocessing_of
from ..models.trying import answer_of, check_finite
from ..norm.nesting import tensors_in
from .choosing import Chosen, choose
from .compensation import noise
from .cutting import CutNetworks, cut_networks
from .inspection import left_whole
from .judgement import Evidence, judge, next_step
from .keeping import Kept, keep_best
from .latency import footprint, latency_of, measure_latency
from .layers import layer_rows
from .pictures import Seen, see
from .prune_options import RATIO, PruneOptions
from .recalibration import Recalibration
from .report import Circumstances, prune_report
from .tracing import trace

ONNX = "model.onnx"
_OLDER = (JSON, HTML, ONNX, "undo.safetensors", "population.safetensors")
"""Files of a folder that is replaced which tell of its older model."""

Progress = Callable[[str, int], object]
"""Called with what was done, and how many pictures there are in all."""


@dataclass(frozen=True)
class PruneReport:
    """What `prune_model` did.

    Attributes:
        folder: the model folder that was written.
        verdict: whether to use it, and why.
        report: what the folder's report says.
        facts: the numbers that it shows.
        evidence: the numbers behind the verdict.
    """

    folder: Path
    verdict: Verdict
    report: Report
    facts: Circumstances
    evidence: Evidence


def prune_model(
    spec: str,
    out: str | os.PathLike[str],
    options: PruneOptions,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> PruneReport:
    """Cut channels out of a model and write it as a folder, with a report that judges it.

    The folder opens by `normapps.load_model`, and is opened once before it gets its name: what is
    read back is what was measured, to the bit.

    Args:
        spec: the model, as `open_model` takes it; a pruned one may be pruned again.
        out: model folder to write.
        options: how much goes, what is done for it, and what it is judged with.
        say: told what was opened and what is done by default, a line each.
        progress: told of every picture that is read.

    Raises:
        InputError: a model, pictures or folder that cannot be used, or a target that cannot be
            met; nothing is written then.
    """
    check_target(out, options.overwrite)
    if options.onnx:
        check_deploy()
    device = resolve_device(options.device)
    opened = _open(spec, options, say)
    answer = answer_of(opened.model, opened.preprocessing, opened.name)
    clock = Clock()
    seen = see(options, opened.preprocessing, answer, device, progress, opened.classes)
    work = _cut(opened, options, seen, device, clock)
    kept = _keep(work)
    work = dataclasses.replace(work, cut=kept.cut)
    return _write(work, _gather(work, kept), kept.recalibration, Path(out))


@dataclass(frozen=True, eq=False)
class _Work:
    """What a pruning has to do with."""

    opened: OpenedModel
    options: PruneOptions
    seen: Seen | None
    device: torch.device
    clock: Clock
    graph: ChannelGraph
    inputs: Tensor
    chosen: Chosen
    cut: CutNetworks


def _open(spec: str, options: PruneOptions, say: Callable[[str], object]) -> OpenedModel:
    opened = open_by(spec, options)
    check_finite(opened.model, str(options.checkpoint or opened.name))
    opened = dataclasses.replace(opened, preprocessing=preprocessing_of(opened, options))
    say(opened.describe())
    say(opened.preprocessing.describe())
    if options.is_default:
        say(f"--ratio {RATIO}: the default, as nothing else says how much goes")
    return opened


def _cut(
    opened: OpenedModel,
    options: PruneOptions,
    seen: Seen | None,
    device: torch.device,
    clock: Clock,
) -> _Work:
    model = opened.model
    graph, inputs = clock(
        "following channels", lambda: trace(model, opened.preprocessing, opened.name)
    )
    measure = None
    if options.target_latency is not None:
        measure = latency_of(model, graph, inputs, device=device)
    chosen = clock("choosing", lambda: choose(opened, graph, inputs, options, measure))
    sample = None
    if options.compensate:
        sample = noise(inputs) if seen is None else seen.sample
    keep, verify = chosen.plan.keep, options.verify
    cut = clock(
        "compensating, cutting, proving",
        lambda: cut_networks(model, graph, keep, inputs, sample, verify=verify),
    )
    return _Work(opened, options, seen, device, clock, graph, inputs, chosen, cut)


def _keep(work: _Work) -> Kept:
    """Choose among the networks of the stages."""
    model, cut = work.opened.model, work.cut

    def plainly() -> Slimmed:
        keep, verify = cut.result.keep, work.options.verify
        return cut_networks(model, work.graph, keep, work.inputs, None, verify=verify).result

    return keep_best(model, cut, work.seen, work.options, work.device, work.clock, plainly)


def _gather(work: _Work, kept: Kept) -> Evidence:
    opened, slimmed, graph = work.opened, kept.cut.result, work.graph
    latencies: tuple[Latency, ...] = ()
    if work.options.latency:
        pair = {"base": opened.model, "slimmed": slimmed.model}
        latencies = work.clock(
            "timing", lambda: measure_latency(pair, work.inputs, device=work.device)
        )
    return Evidence(
        footprint(opened.model, graph.macs()),
        footprint(slimmed.model, graph.macs(slimmed.keep)),
        kept.stages,
        latencies,
        is_lossless=work.options.lossless,
        is_random=opened.is_random and opened.weights.startswith(RANDOM),
        kept=kept.name,
        not_judged=_without_accuracy(work.seen),
    )


def _write(work: _Work, evidence: Evidence, moved: Recalibration | None, out: Path) -> PruneReport:
    opened, slimmed, options = work.opened, work.cut.result, work.options
    verdict = judge(evidence)
    following = next_step(evidence, verdict, out)
    told: list[tuple[Report, Circumstances]] = []

    def complete(folder: Path) -> None:
        for name in _OLDER:
            (folder / name).unlink(missing_ok=True)
        work.clock("reading back", lambda: _check_same(folder, slimmed.model, work.inputs))
        onnx = None
        if options.onnx:
            onnx = work.clock("ONNX", lambda: _to_onnx(slimmed.model, work.inputs, folder / ONNX))
        facts = dataclasses.replace(_facts(work, moved, onnx), following=following)
        told.append((prune_report(evidence, verdict, facts), facts))
        write_report(folder, told[0][0])

    folder = save_model(
        out,
        slimmed.model,
        builder="slimmed",
        arguments={"base": dict(opened.source), **slimmed.edits.arguments()},
        preprocessing=opened.preprocessing.to_json(),
        history=[*opened.history, _entry(work, evidence, verdict)],
        overwrite=options.overwrite,
        complete=complete,
    )
    return PruneReport(folder, verdict, *told[0], evidence)


def _to_onnx(model: nn.Module, inputs: Tensor, path: Path) -> float:
    return to_onnx(model, inputs, path, remedy="leave out --onnx")


def _check_same(folder: Path, model: nn.Module, inputs: Tensor) -> None:
    """Open what was written, and compare it with what was measured, to the bit."""
    found = load_model(folder)
    mine, theirs = model.state_dict(), found.state_dict()
    for name, value in mine.items():
        if not torch.equal(value, theirs[name]):
            raise InputError(f"{folder}: {name} is not read back as it was written")
    with evaluating(model):
        pairs = zip(tensors_in(model(inputs)), tensors_in(found(inputs)), strict=True)
        if not all(torch.equal(*pair) for pair in pairs):
            raise InputError(f"{folder}: the network that is read back gives other outputs")


def _entry(work: _Work, evidence: Evidence, verdict: Verdict) -> dict[str, Any]:
    """What the history says of a pruning."""
    name, value = work.options.amount
    before, after = evidence.before, evidence.after
    return {
        "pruned": {name: value},
        "options": _given(work.options),
        "data": None if work.seen is None else work.seen.feed.pictures.place,
        "macs": [before.macs, after.macs],
        "parameters": [before.parameters, after.parameters],
        "stage": evidence.kept or None,
        "verdict": verdict.verdict,
    }


def _given(options: PruneOptions) -> dict[str, Any]:
    """Return the options that differ from their defaults, as JSON values."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    given = {k: v for k, v in vars(options).items() if v != defaults[k] and k != "overwrite"}
    return dict(json.loads(json.dumps(given, default=str)))


def _facts(work: _Work, moved: Recalibration | None, onnx: float | None) -> Circumstances:
    opened, options, cut, graph = work.opened, work.options, work.cut, work.graph
    result, seen = cut.result, work.seen
    choice = work.chosen.described(graph, result.keep, options)
    channels = (graph.layer_channels(), graph.layer_channels(result.keep))
    return Circumstances(
        model=opened.describe(),
        preprocessing=opened.preprocessing.describe(),
        data=None if seen is None else seen.feed.pictures.place,
        without_accuracy=_without_accuracy(seen),
        options=_given(options),
        channels=(sum(channels[0].values()), sum(channels[1].values())),
        choice=choice,
        rows=layer_rows(opened.model, result.model, graph, result.keep),
        left=(*left_whole(graph), *result.left),
        difference=None if math.isnan(result.difference) else result.difference,
        compensation=cut.compensation,
        recalibration=moved,
        onnx=onnx,
        failed=() if seen is None else seen.feed.failed,
        seconds=({} if seen is None else {"decoding": seen.feed.decoding}) | work.clock.seconds,
        peak_bytes=peak_bytes(),
    )


def _without_accuracy(seen: Seen | None) -> str:
    return "no pictures were given; --data names some" if seen is None else seen.without_accuracy
