"""Adapt a model to a set of pictures, judge it, and write a folder: `normapps adapt run`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ..data.feed import Feed
from ..data.labels import fitting_labels
from ..data.pictures import Pictures
from ..engine.device import place, resolve_device, resolve_dtype
from ..measure.accuracy import accuracy, paired_difference
from ..measure.agreement import compare_logits
from ..measure.interval import Estimate
from ..measure.memory import peak_bytes, peak_device_bytes
from ..measure.report import NOT_RECOMMENDED, Report, Verdict, write_report
from ..models.folder import check_target
from ..models.load import RANDOM, OpenedModel, open_by
from ..models.options import preprocessing_of
from ..models.outputs import logits_of
from ..models.preprocessing import Preprocessing
from ..models.trying import check_finite, try_out
from ..norm.nesting import detached_copy
from ..norm.population.fingerprint import Fingerprint
from ..norm.population.statistics import Population, population_layers
from .keeping import POPULATION, as_entry, changes, save_adapted
from .presentation import Circumstances, adaptation_report
from .run_options import AdaptOptions
from .trial import Trial, check_adaptable, look_size, try_method
from .verdict import Evidence, judge

Progress = Callable[[str, int], object]
"""Called with what was done, once a picture decoded and once a batch, and how many in all."""


@dataclass(frozen=True)
class AdaptReport:
    """What `adapt_model` did.

    Attributes:
        folder: the model folder that was written.
        verdict: whether to use it, and why.
        report: what the folder's report says.
        evidence: the numbers behind the verdict.
        failed: a line for each picture that could not be read.
        notes: what was not done, and why, a line each.
    """

    folder: Path
    verdict: Verdict
    report: Report
    evidence: Evidence
    failed: tuple[str, ...]
    notes: tuple[str, ...]


def adapt_model(
    spec: str,
    pictures: str,
    out: str | os.PathLike[str],
    options: AdaptOptions,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> AdaptReport:
    """Adapt a model to pictures and write it as a folder, with a report that judges it.

    The folder has the adapted network (`model.safetensors`, which loads strictly where the
    original's did), what was measured (`population.safetensors`), `report.html`, `report.json`,
    and `undo.safetensors` for `normapps.adapt.keeping.undo`.

    Args:
        spec: the model, as `open_model` takes it.
        pictures: folder, tar, ZIP, text list or picture; labels are for judging only.
        out: model folder to write.
        options: method, pictures, device.
        say: told what was opened and what the pictures go through, a line each.
        progress: told of every picture and batch.

    Raises:
        InputError: a model, pictures or folder that cannot be used; nothing is written then.
    """
    check_target(out, options.overwrite)
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    opened = open_by(spec, options)
    check_finite(opened.model, str(options.checkpoint or opened.name))
    preprocessing = preprocessing_of(opened, options)
    check_adaptable(opened.model, options)
    say(opened.describe())
    say(preprocessing.describe())
    model = place(detached_copy(opened.model), device, dtype)
    logits_of(try_out(model, preprocessing, opened.name))
    chosen = Pictures(pictures, preprocessing, limit=options.limit)
    feed = Feed(
        chosen,
        options.batch_size,
        device,
        dtype,
        seed=options.seed,
        progress=progress and (lambda _, total: progress("decoding", total)),
    )
    trial = try_method(model, feed, options, _ticks(model, feed, options, progress))
    return _finish(opened, model, trial, feed, out, options, preprocessing)


def gather(trial: Trial, opened: OpenedModel, pictures: Pictures) -> tuple[Evidence, str]:
    """Return the numbers that judge a trial, and why accuracy is not among them."""
    before, after = trial.before, trial.after
    outputs = before.logits.shape[1]
    labels, reason = fitting_labels(pictures, before.labels, outputs, opened.classes)
    pair = difference = online = None
    if labels is not None:
        first, second = (each.logits.argmax(1) == labels for each in (before, after))
        pair = _share(first), _share(second)
        difference = paired_difference(first, second)
        if trial.online is not None:
            met, _ = fitting_labels(pictures, trial.online[1], outputs, opened.classes)
            online = None if met is None else _share(trial.online[0].argmax(1) == met)
    evidence = Evidence(
        agreement=compare_logits(before.logits, after.logits),
        shift=tuple(before.shift.values()),
        chance=tuple(before.chance.values()),
        is_random=opened.is_random and opened.weights.startswith(RANDOM),
        accuracy=pair,
        difference=difference,
        online=online,
    )
    return evidence, reason


def _share(correct: Tensor) -> Estimate:
    return accuracy(int(correct.sum()), len(correct))


def _finish(
    opened: OpenedModel,
    model: nn.Module,
    trial: Trial,
    feed: Feed,
    out: str | os.PathLike[str],
    options: AdaptOptions,
    preprocessing: Preprocessing,
) -> AdaptReport:
    evidence, reason = gather(trial, opened, feed.pictures)
    stopped = trial.stopped and Verdict(NOT_RECOMMENDED, trial.advice)
    verdict = stopped or judge(evidence)
    changed = changes(model, trial.adapted, opened.model)
    entry = as_entry(
        options.method,
        options,
        data=feed.pictures.place,
        pictures=evidence.agreement.count,
        verdict=verdict.verdict,
    )
    facts = Circumstances(
        method=options.method,
        model=opened.describe(),
        preprocessing=preprocessing.describe(),
        data=feed.pictures.place,
        failed=feed.failed,
        without_accuracy=reason,
        seconds=feed.decoding,
        peak_bytes=peak_bytes(),
        peak_device_bytes=peak_device_bytes(feed.device),
        options=entry["options"],
        changed=tuple(changed),
    )
    report = adaptation_report(trial, evidence, verdict, facts)

    def complete(folder: Path) -> None:
        if trial.population is not None:
            own = Fingerprint.of(opened.model)  # in the precision in which the model is kept
            trial_population(trial.population, own).save(folder / POPULATION)
        write_report(folder, report)

    folder = save_adapted(
        out,
        opened,
        changed,
        entry,
        preprocessing=preprocessing,
        overwrite=options.overwrite,
        complete=complete,
    )
    return AdaptReport(folder, verdict, report, evidence, feed.failed, _notes(trial, reason))


def trial_population(population: Population, fingerprint: Fingerprint) -> Population:
    """Return a population as one of the model with that fingerprint."""
    return Population(
        population.layers,
        fingerprint,
        population.samples,
        population.unreached,
        population.mode,
        population.based_on,
    )


def _notes(trial: Trial, reason: str) -> tuple[str, ...]:
    notes: Sequence[str] = [f"accuracy is not measured: {reason}"] if reason else []
    if trial.population is None:
        notes = [*notes, f"no {POPULATION}: the model keeps no running statistics"]
    if trial.left_out:
        notes = [*notes, f"{trial.left_out} pictures of the last batch are too few to adapt to"]
    if trial.advice:
        notes = [*notes, f"the guard: {trial.advice}"]
    return tuple(notes)


def _ticks(
    model: nn.Module, feed: Feed, options: AdaptOptions, progress: Progress | None
) -> Callable[[str], object]:
    """Make what is told of each batch, with the number of all batches and decoded pictures."""
    if progress is None:
        return lambda stage: None
    count = len(feed)
    total = 2 * -(-count // look_size(feed)) + feed.remembered
    passes = 1
    if options.mode == "layerwise":
        passes = len(population_layers(model))
    total += passes * -(-count // options.batch_size)
    return lambda stage: progress(stage, total)
