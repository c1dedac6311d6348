"""Make an int8 network of any model, judge it, and write a folder: `normapps quantize`."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.device import resolve_device
from ..errors import InputError
from ..measure.clock import Clock
from ..measure.latency import Latency
from ..measure.memory import peak_bytes
from ..measure.report import Report, Verdict, write_report
from ..measure.stages import Stage
from ..models.load import RANDOM, OpenedModel, open_by
from ..models.onnx import check_deploy, to_onnx
from ..models.onnx_folder import OnnxManifest, OnnxModel, check_onnx_target, save_onnx
from ..models.options import preprocessing_of
from ..models.outputs import logits_of
from ..models.program import Program, check_torchao, open_compiled
from ..models.program_folder import ProgramModel
from ..models.trying import answer_of, check_finite
from ..norm.nesting import tensors_in
from .bundle import given, manifest_of
from .int8 import write_int8
from .judgement import NO_PICTURES, NO_TIME, Evidence, judge, next_step
from .judging import judge_files
from .kernels import float_operators, has_vnni, kernels
from .latency import FLOAT, INT8, measure_latency
from .layers import Node, quantizable
from .mixing import Mixture, Shown, mix
from .options import TORCHAO, QuantizeOptions
from .pictures import Progress, Seen, see
from .ranging import Ranges, distilled_images, find_ranges
from .report import Circumstances, quantize_report
from .steps import BOUNDS, Prepared, fold, transform
from .torchao_backend import batches_of, make_program

SATURATES = (
    "this processor has no VNNI: 8-bit products may saturate, which makes int8 answer worse;"
    " --reduce-range takes weights of 7 bits"
)


@dataclass(frozen=True)
class QuantizeReport:
    """What `quantize_model` did.

    Attributes:
        folder: that was written.
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


def quantize_model(
    spec: str,
    out: str | os.PathLike[str],
    options: QuantizeOptions,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Quantize a model to int8 and write it as a folder, with a report that judges it.

    For onnxruntime the folder opens by `normapps.OnnxModel`, without torch; for torch by
    `normapps.ProgramModel`. No picture that calibrated judges.

    Args:
        spec: the model, as `open_model` takes it.
        out: folder to write.
        options: how it is quantized, and what it is judged with.
        say: told what was opened and which pictures do what, a line each.
        progress: told of every picture that is read, and of every step of distilling.

    Raises:
        NormappsError: the extra `deploy`, or `torchao` for that, is not installed.
        InputError: a model, pictures or folder that cannot be used, or a network that is not
            exported or has no layer that could be int8; nothing is written then.
    """
    check_onnx_target(out, options.overwrite)
    check_deploy()
    if options.backend == TORCHAO:
        check_torchao()
    device = resolve_device(options.device)
    opened = _open(spec, options, say)
    answer = answer_of(opened.model, opened.preprocessing, opened.name)
    seen = see(options, opened.preprocessing, answer, progress, opened.classes)
    if seen is not None:
        say(seen.describe())
    for line in _warnings(options):
        say(f"warning: {line}")
    with tempfile.TemporaryDirectory(prefix="normapps-") as place:
        work = _Work(spec, opened, options, seen, device, Clock(), Path(place), answer, progress)
        return _write(work, _quantize(work), Path(out))


@dataclass(frozen=True, eq=False)
class _Work:
    """What a quantization has to do with."""

    spec: str
    opened: OpenedModel
    options: QuantizeOptions
    seen: Seen | None
    device: torch.device
    clock: Clock
    place: Path
    answer: Any
    progress: Progress | None

    @property
    def inputs(self) -> Tensor:
        """Noise (1, C, H, W) of the size that the network reads."""
        shape = (1, self.opened.preprocessing.channels, *self.opened.preprocessing.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    @property
    def output(self) -> int:
        """Number of the output that is judged: the logits, or the first."""
        try:
            logits = logits_of(self.answer)
        except InputError:
            return 0
        return next(i for i, each in enumerate(tensors_in(self.answer)) if each is logits)


@dataclass(frozen=True, eq=False)
class _Made:
    """The files, and how they came about."""

    prepared: Prepared
    difference: float
    files: dict[str, Path]
    ranges: Ranges
    layers: tuple[Node, ...]
    mixture: Mixture
    float_operators: tuple[str, ...]
    kernels: Mapping[str, int] = field(default_factory=dict)
    program: Program | None = None
    not_compiled: str = ""

    @property
    def networks(self) -> dict[str, Path | Program]:
        """The files; of a program that is open already, that."""
        return {**self.files, **({} if self.program is None else {INT8: self.program})}


def _open(spec: str, options: QuantizeOptions, say: Callable[[str], object]) -> OpenedModel:
    opened = open_by(spec, options)
    check_finite(opened.model, str(options.checkpoint or opened.name))
    opened = dataclasses.replace(opened, preprocessing=preprocessing_of(opened, options))
    say(opened.describe())
    say(opened.preprocessing.describe())
    return opened


def _quantize(work: _Work) -> _Made:
    options, clock = work.options, work.clock
    with _named(work):
        prepared = clock("folding", lambda: fold(work.opened.model, work.inputs))
        reference = work.place / "float.onnx"
        difference = clock("ONNX", lambda: to_onnx(prepared.model, work.inputs, reference))
        if not quantizable(reference):
            raise InputError("has no convolution or linear layer, so nothing of it could be int8")
        images = clock("distilling", lambda: _distilled(work)) if options.distill else None
        transform(prepared, options, work.seen, work.device, clock)
        if options.backend == TORCHAO:
            return _program(work, prepared, difference, reference, images)
        source = reference
        if prepared.is_changed:
            source = work.place / "prepared.onnx"
            clock("ONNX", lambda: to_onnx(prepared.model, work.inputs, source))
        ranges = clock("ranges", lambda: _ranges(work, source, prepared, images))
        mixture = clock("trying layers", lambda: _mix(work, source, ranges, images))
        int8 = work.place / "int8.onnx"
        clock("int8", lambda: _round(source, int8, ranges, mixture, options))
        files = {FLOAT: reference, INT8: int8}
        layers, stayed = quantizable(source), float_operators(int8)
        ran = kernels(int8)
        return _Made(prepared, difference, files, ranges, layers, mixture, stayed, ran)


def _program(
    work: _Work, prepared: Prepared, difference: float, reference: Path, images: np.ndarray | None
) -> _Made:
    """Make a program of torch, which is compiled where it will be timed."""
    path, shape = work.place / "int8.pt2", work.inputs.shape[1:]
    batches = batches_of(work.options, work.seen, images)
    model, inputs = prepared.model, work.inputs
    done = work.clock("torchao", lambda: make_program(model, inputs, batches, path, work.options))
    program, why = Program(path, is_compiled=False), ""
    if work.options.latency:
        program, why = work.clock("compiling", lambda: open_compiled(path, shape))
    files, mixture = {FLOAT: reference, INT8: path}, Mixture(without_kernel=done.kept_float)
    parts = (files, done.ranges, done.layers, mixture, done.float_operators)
    return _Made(prepared, difference, *parts, program=program, not_compiled=why)


@contextmanager
def _named(work: _Work) -> Iterator[None]:
    """Let errors name the model, not the file that it is for a while."""
    try:
        yield
    except InputError as error:
        said = str(error).replace(f"{work.place}{os.sep}", "")
        raise InputError(f"{work.opened.name}: {said}") from error


def _distilled(work: _Work) -> np.ndarray:
    return distilled_images(
        work.opened.model, work.inputs, work.options, work.device, work.progress
    )


def _ranges(work: _Work, path: Path, prepared: Prepared, images: np.ndarray | None) -> Ranges:
    return find_ranges(path, prepared, work.opened.preprocessing, work.options, work.seen, images)


def _mix(work: _Work, path: Path, ranges: Ranges, images: np.ndarray | None) -> Mixture:
    return mix(path, ranges, Shown.of(work.seen, images), work.options, work.progress)


def _round(
    source: Path, target: Path, ranges: Ranges, mixture: Mixture, options: QuantizeOptions
) -> None:
    write_int8(
        source,
        target,
        ranges,
        per_channel=options.per_channel,
        exclude=mixture.kept_float,
        reduce_range=options.reduce_range,
    )


def _gather(work: _Work, made: _Made) -> Evidence:
    opened, seen = work.opened, work.seen
    stages: tuple[Stage, ...] = ()
    if seen is not None and seen.is_classifier:
        stages = work.clock("judging", lambda: _judged(work, made, seen))
    latencies: tuple[Latency, ...] = ()
    if work.options.latency and not made.not_compiled:
        shape = work.inputs.shape[1:]
        latencies = work.clock(
            "timing", lambda: measure_latency(opened.model, made.networks, shape)
        )
    return Evidence(
        {name: path.stat().st_size for name, path in made.files.items()},
        stages,
        latencies,
        max_drop=work.options.max_drop,
        is_random=opened.is_random and opened.weights.startswith(RANDOM),
        not_judged=_without_accuracy(seen),
        not_timed=made.not_compiled or NO_TIME,
        opened_by=(OnnxModel if made.program is None else ProgramModel).__name__,
        layers=(len(made.layers) - len(made.mixture.kept_float), len(made.layers)),
        unused=_unused(work.options),
        slows=_slows(made),
    )


def _judged(work: _Work, made: _Made, seen: Seen) -> tuple[Stage, ...]:
    files = {INT8: made.networks[INT8]}
    return judge_files(work.opened.model, files, seen, output=work.output, device=work.device)


def _slows(made: _Made) -> str:
    bounds = next((step for step in made.prepared.steps if step.name == BOUNDS), None)
    if bounds is None:
        return ""
    return f"{bounds.numbers['remedy']}, as a bound of ReLU6 for each channel is computed in float"


def _unused(options: QuantizeOptions) -> tuple[str, ...]:
    """Options that may keep more of the answers, the cheapest first."""
    found = [] if options.per_channel else ["--per-channel"]
    if not options.bias_correction:
        found.append("--bias-correction")
    if not options.equalizes:
        found.append("--equalize")
    if not options.mixed and options.backend != TORCHAO:
        found.append("--mixed")
    if not options.calibrates:
        return (*found, "--data PICTURES without --data-free")
    return (*found, *(["--finetune 200"] if not options.finetune else []))


def _write(work: _Work, made: _Made, out: Path) -> QuantizeReport:
    evidence = _gather(work, made)
    verdict = judge(evidence)
    facts = _facts(work, made, next_step(evidence, verdict, out, work.spec))
    told: list[tuple[Report, Circumstances]] = []

    def complete(folder: Path) -> None:
        work.clock("reading back", lambda: _read_back(work, made, folder))
        final = dataclasses.replace(facts, seconds=_seconds(work), peak_bytes=peak_bytes())
        told.append((quantize_report(evidence, verdict, final), final))
        write_report(folder, told[0][0])

    folder = save_onnx(
        out,
        made.files[INT8],
        _manifest(work, made, evidence, verdict),
        overwrite=work.options.overwrite,
        complete=complete,
    )
    return QuantizeReport(folder, verdict, *told[0], evidence)


def _read_back(work: _Work, made: _Made, folder: Path) -> None:
    """Open the folder as its user will."""
    if made.program is None:
        OnnxModel(folder).run(work.inputs.numpy())
    else:  # compiling it once more would take long
        ProgramModel(folder, is_compiled=False).run(work.inputs.numpy())


def _manifest(work: _Work, made: _Made, evidence: Evidence, verdict: Verdict) -> OnnxManifest:
    done = {
        "data": None if work.seen is None else work.seen.feed.pictures.place,
        "steps": [step.name for step in made.prepared.steps],
        "kept_float": list(made.mixture.kept_float),
        "bytes": list(evidence.sizes.values()),
        "verdict": verdict.verdict,
    }
    shape = tuple(work.inputs.shape[1:])
    return manifest_of(work.opened, work.options, shape, work.output, _classes(work), done)


def _classes(work: _Work) -> int | None:
    try:
        return int(logits_of(work.answer).shape[1])
    except InputError:
        return None


def _seconds(work: _Work) -> dict[str, float]:
    seen = work.seen
    decoding = {} if seen is None else {"decoding": seen.decoding}
    return decoding | work.clock.seconds


def _facts(work: _Work, made: _Made, following: str) -> Circumstances:
    opened, options, seen = work.opened, work.options, work.seen
    return Circumstances(
        model=opened.describe(),
        preprocessing=opened.preprocessing.describe(),
        data=None if seen is None else seen.describe(),
        without_accuracy=_without_accuracy(seen),
        options=given(options),
        range_source=_range_source(options, seen),
        steps=tuple(made.prepared.steps),
        left=made.prepared.left,
        layers=made.layers,
        mixture=made.mixture,
        float_operators=made.float_operators,
        kernels=made.kernels,
        ranges=made.ranges,
        difference=made.difference,
        warnings=_warnings(options),
        failed=() if seen is None else seen.failed,
        following=following,
    )


def _warnings(options: QuantizeOptions) -> tuple[str, ...]:
    return (SATURATES,) if has_vnni() is False and not options.reduce_range else ()


def _range_source(options: QuantizeOptions, seen: Seen | None) -> str:
    if options.distill:
        return f"{options.distill} images distilled from the batch norms ({options.ranges})"
    if seen is None or not seen.calibrating:
        return "the batch norms' statistics"
    return f"{seen.calibrating} picture{'' if seen.calibrating == 1 else 's'} ({options.ranges})"


def _without_accuracy(seen: Seen | None) -> str:
    return NO_PICTURES if seen is None else seen.without_accuracy
