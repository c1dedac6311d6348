"""From a network to a small int8 file in one go: `normapps compress`.

Sparse scales, a cut, compensation, recalibration, finetuning, folding, int8 (METHODS: the chain of
slimming and quantization), each by the function of its own command, and one judgement of the whole
on pictures that did nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..engine.device import resolve_device
from ..engine.loop import check_fixed
from ..engine.progress import BatchProgress
from ..errors import InputError
from ..files import check_folder, write_text
from ..measure.clock import Clock
from ..measure.report import HTML, JSON, Report, Verdict, write_report
from ..models.folder import load_model
from ..models.load import RANDOM, OpenedModel, open_by
from ..models.onnx import check_deploy, to_onnx
from ..models.options import preprocessing_of
from ..models.outputs import logits_of
from ..models.trying import answer_of, check_finite
from ..options import from_json, to_json
from ..slim.sparsity import prunable_scales
from ..slim.tracing import trace
from ..training.classes import count_outputs, few
from ..training.identity import weights_told
from .chain import INT8, SPARSE, STAGES, Chain
from .judgement import Evidence, judge, next_step
from .judging import judge_stages, time_result
from .options import CompressJob, CompressOptions
from .report import Circumstances, compress_report
from .sparsity import penalty_of, zeros_of
from .split import FOLDER, Split, plan_split, read_split, write_split

OPTIONS = "options.json"

_AGAIN = "give that again, or another -o, or --overwrite to begin anew"

Bars = Callable[[], BatchProgress]
"""Makes the bar that shows one stage's progress."""


@dataclass(frozen=True)
class CompressReport:
    """What `compress_model` did.

    Attributes:
        out: the folder.
        result: the folder of the network that came out.
        verdict: whether to use it in the place of the given one, and why.
        report: what the folder's report says.
        facts: the circumstances that it shows.
        evidence: the numbers behind the verdict.
    """

    out: Path
    result: Path
    verdict: Verdict
    report: Report
    facts: Circumstances
    evidence: Evidence


def compress_model(
    spec: str,
    data: str,
    out: str | os.PathLike[str],
    options: CompressOptions,
    say: Callable[[str], object] = print,
    bars: Bars = partial(BatchProgress, 0, enabled=False),  # noqa: B008
) -> CompressReport:
    """Compress a classifier stage by stage, or go on where the folder's last call ended.

    Args:
        spec: the model, as `open_model` takes it.
        data: pictures, labelled ones best: a folder a class, a tar or ZIP of that, or a list.
        out: folder to write: a folder a stage, the lists of pictures, report.html and .json.
        options: the stages, and what they are judged by.
        say: told what is done, a line each.
        bars: makes the bar of each stage.

    Raises:
        NormappsError: the extra `deploy` is not installed, and int8 was not declined.
        InputError: a model, pictures or folder that cannot be used, or a compression of other
            options in the folder; before any work where that can be known.
        KeyboardInterrupt: after Ctrl-C; what is done stays, and the same call goes on from there.
    """
    target = Path(out).absolute()
    job = CompressJob(**vars(options), model=_absolute(spec), data=os.path.abspath(data))
    _check_out(target, job)
    if options.int8:
        check_deploy()
    resolve_device(options.device)
    opened, outputs = _open(spec, options, say)
    job = dataclasses.replace(job, weights=weights_told(opened.model))
    clock = Clock()
    split = _split(job, target, opened, outputs, bars, clock)
    say(split.describe())
    said = {opened.describe(), opened.preprocessing.describe()}
    penalty = _penalty(options, opened, split)
    chain = Chain(spec, target, options, split, say, bars, clock, penalty, said)
    for line in _left_out(chain):
        say(line)
    chain.run()
    return _report(chain, opened, outputs)


def _absolute(spec: str) -> str:
    return os.path.abspath(spec) if os.path.exists(spec) else spec


def _check_out(out: Path, job: CompressJob) -> None:
    """Refuse a folder of something else, or of another compression."""
    check_folder(out)
    path = out / OPTIONS
    if not path.exists() and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty and holds no compression; choose another folder")
    if not path.exists():
        return
    before = from_json(CompressJob, path)
    if job.overwrite:
        return
    for name, word in (("model", "MODEL"), ("data", "DATA")):
        old, new = getattr(before, name), getattr(job, name)
        if old != new:
            raise InputError(f"{out}: was started with {word} {old}, not {new}; {_AGAIN}")
    check_fixed(out, job, job.fixed)


def _forget(out: Path) -> None:
    for name in (*STAGES, FOLDER):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (OPTIONS, JSON, HTML):
        (out / name).unlink(missing_ok=True)


def _open(
    spec: str, options: CompressOptions, say: Callable[[str], object]
) -> tuple[OpenedModel, int]:
    """Open the network, and find out now what a stage would stumble over in an hour."""
    opened = open_by(spec, options)
    check_finite(opened.model, str(options.checkpoint or opened.name))
    opened = dataclasses.replace(opened, preprocessing=preprocessing_of(opened, options))
    say(opened.describe())
    say(opened.preprocessing.describe())
    try:
        outputs = logits_of(answer_of(opened.model, opened.preprocessing, opened.name)).shape[1]
    except InputError as error:
        raise InputError(f"{opened.name}: is no classifier ({error})") from error
    graph, _ = trace(opened.model, opened.preprocessing, opened.name)
    prunable_scales(graph)
    return opened, outputs


def _split(
    job: CompressJob, out: Path, opened: OpenedModel, outputs: int, bars: Bars, clock: Clock
) -> Split:
    """Read who judges, or decide it once all that can be known is."""
    found = None if job.overwrite else read_split(out / FOLDER)
    if found is not None:
        if from_json(CompressJob, out / OPTIONS).weights != job.weights:
            raise InputError(f"{out}: was started with other weights of {job.model}; {_AGAIN}")
        return found
    if job.int8:
        clock("trying to export", lambda: _check_export(opened))
    with bars() as bar:
        split = clock(
            "telling pictures apart",
            lambda: plan_split(
                job.data, job, opened.preprocessing, outputs, bar.advance, opened.classes
            ),
        )
    _check_trainable(split, job, opened, outputs)
    _forget(out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / OPTIONS, to_json(job))
    write_split(split, out / FOLDER)
    return split


def _check_export(opened: OpenedModel) -> None:
    shape = (1, opened.preprocessing.channels, *opened.preprocessing.size)
    with tempfile.TemporaryDirectory(prefix="normapps-") as folder:
        to_onnx(opened.model, torch.zeros(shape), Path(folder) / "x.onnx", remedy="give --no-int8")


def _check_trainable(
    split: Split, options: CompressOptions, opened: OpenedModel, outputs: int
) -> None:
    """Refuse what a stage would: finetuning keeps the classifier, and a baseline has to answer."""
    wanted = len(split.classes) if split.is_labelled and _would_train(options) else outputs
    if options.baseline:
        shape = (opened.preprocessing.channels, *opened.preprocessing.size)
        found = count_outputs(load_model(options.baseline), shape)
        if found != wanted:
            raise InputError(f"--baseline {options.baseline}: has {found} outputs, not {wanted}")
    is_kept = bool(options.finetune_steps) and not options.sparse_steps
    known = opened.classes or split.classes
    if split.is_labelled and is_kept and known != split.classes:
        raise InputError(
            f"{opened.name}: was trained on the classes {few(known)}, the pictures are of"
            f" {few(split.classes)}; give pictures of those, or --finetune-steps 0"
        )
    if split.is_labelled and is_kept and outputs != len(split.classes):
        raise InputError(
            f"{opened.name}: has {outputs} outputs, the pictures {len(split.classes)} classes, and"
            " only sparse training makes a new classifier; give --sparse-steps, or"
            " --finetune-steps 0"
        )


def _would_train(options: CompressOptions) -> bool:
    return bool(options.sparse_steps or options.finetune_steps)


def _penalty(options: CompressOptions, opened: OpenedModel, split: Split) -> dict[str, Any]:
    if not split.is_labelled or not options.sparse_steps:
        return {}
    return penalty_of(options, opened, len(split.classes))


def _left_out(chain: Chain) -> tuple[str, ...]:
    """Stages that were asked for and cannot be."""
    chosen, split = chain.options, chain.split
    if split.is_labelled or not _would_train(chosen):
        return ()
    return (f"Nothing is trained with labels: {split.without_accuracy}.",)


def _report(chain: Chain, opened: OpenedModel, outputs: int) -> CompressReport:
    options, split, clock = chain.options, chain.split, chain.clock
    without = _without_base(chain, opened, outputs)
    judged = clock("judging", lambda: judge_stages(chain, opened, is_comparable=not without))
    latencies = clock("timing", lambda: time_result(chain, opened)) if options.latency else ()
    evidence = Evidence(
        judged.networks,
        judged.base,
        latencies,
        options.max_drop,
        is_random=_is_random(opened) and not _trains(chain),
        without_base=without,
        over_float=_over_float(chain),
        zeros=zeros_of(chain.folder(SPARSE)) if SPARSE in chain.names else None,
    )
    verdict = judge(evidence)
    facts = Circumstances(
        opened.describe(),
        opened.preprocessing.describe(),
        split.describe(),
        split.without_accuracy,
        _left_out(chain),
        _given(options),
        {name: _verdict(chain.folder(name)) for name in chain.names},
        next_step(evidence, verdict, chain.out, chain.spec),
        split.failed,
        clock.seconds,
    )
    report = compress_report(evidence, verdict, facts)
    write_report(chain.out, report)
    result = chain.model(chain.names[-1])
    return CompressReport(chain.out, result, verdict, report, facts, evidence)


def _trains(chain: Chain) -> bool:
    return chain.split.is_labelled and _would_train(chain.options)


def _is_random(opened: OpenedModel) -> bool:
    return opened.is_random and opened.weights.startswith(RANDOM)


def _without_base(chain: Chain, opened: OpenedModel, outputs: int) -> str:
    """Why the given network is none to compare with; empty where it is one."""
    if not _trains(chain):
        return ""
    classes = len(chain.split.classes)
    if outputs != classes:
        return (
            f"The given network has {outputs} outputs and not these {classes} classes, so what"
            " sparse training cost is not known."
        )
    if _is_random(opened):
        return "The given network had random weights, so what sparse training cost is not known."
    if opened.classes and opened.classes != chain.split.classes:
        return (
            f"The given network tells {few(opened.classes)} apart and not"
            f" {few(chain.split.classes)}, so what sparse training cost is not known."
        )
    return ""


def _verdict(folder: Path) -> Verdict:
    """What a stage's own report says."""
    told = json.loads((folder / JSON).read_text(encoding="utf-8"))
    return Verdict(told["verdict"], told["reason"])


def _over_float(chain: Chain) -> float | None:
    """What rounding alone brought, at the batch size where it brought more."""
    if INT8 not in chain.names:
        return None
    told = json.loads((chain.folder(INT8) / JSON).read_text(encoding="utf-8"))
    return max((each["speedup"] for each in told["latency"].values()), default=None)


def _given(options: CompressOptions) -> dict[str, object]:
    """Return the options that differ from their defaults, as JSON values."""
    left_out: Sequence[str] = ("overwrite", "device")
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    given = {k: v for k, v in vars(options).items() if k not in left_out and v != defaults[k]}
    return dict(json.loads(json.dumps(given, default=str)))
