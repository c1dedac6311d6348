"""What normalization does in somebody's network: the analyses of one model on its pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.pictures import Pictures
from ..engine.device import place, resolve_device
from ..errors import InputError
from ..files import check_folder
from ..measure.report import JSON, write_report
from ..models.load import OpenedModel, open_by
from ..models.options import preprocessing_of
from ..models.outputs import logits_of
from ..models.preprocessing import Preprocessing
from ..models.trying import check_finite, try_out
from .analyze_options import AnalyzeOptions
from .analyze_results import Results
from .sample import Sample
from .work import Progress, Work


@dataclass(frozen=True)
class AnalysisReport:
    """What `analyze` found.

    Attributes:
        model, preprocessing: in words.
        pictures: number looked at.
        labels: whose they are, in words.
        failed: a line for each picture that could not be read.
        results: of the analyses.
        skipped: those that say nothing about this network, and why.
        seconds: that each took, by name.
        options: as given.
    """

    model: str
    preprocessing: str
    pictures: int
    labels: str
    failed: tuple[str, ...]
    results: Results
    skipped: Mapping[str, str]
    seconds: Mapping[str, float]
    options: AnalyzeOptions


def analyze(
    spec: str,
    data: str,
    options: AnalyzeOptions,
    out: str | os.PathLike[str] | None = None,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> AnalysisReport:
    """Look at a network on pictures in several ways; it is not changed.

    What an analysis cannot say of a network, such as the scales of one without norm layers, is left
    out with its reason.

    Args:
        spec: the model, as `open_model` takes it.
        data: folder, tar, ZIP, text list or picture.
        options: which analyses, on how many pictures.
        out: folder for `report.json` and `report.html`; None writes nothing.
        say: told what was opened and what the pictures go through, a line each.
        progress: told of each item of each analysis.

    Raises:
        InputError: a model, pictures or folder that cannot be used, weights that are not finite, or
            not one analysis that says anything.
    """
    _check_out(out, options.overwrite)
    device = resolve_device(options.device)
    opened = open_by(spec, options)
    check_finite(opened.model, opened.name)
    preprocessing = preprocessing_of(opened, options)
    say(opened.describe())
    say(preprocessing.describe())
    model, output = _placed(opened, device, preprocessing)
    outputs, reason = _outputs(output)
    sample = Sample.read(
        Pictures(data, preprocessing, limit=options.limit),
        device,
        outputs=outputs,
        known=opened.classes,
        seed=options.seed,
        progress=None if progress is None else lambda _, total: progress("pictures", total),
    )
    if outputs is not None:
        sample = sample.labelled(model, options.batch_size)
    if sample.origin:
        say(sample.origin)
    work = Work(model, sample, options, progress or (lambda _, __: None), reason)
    results = work.run()
    report = AnalysisReport(
        opened.describe(),
        preprocessing.describe(),
        len(sample),
        sample.origin,
        sample.failed,
        results,
        work.skipped,
        work.seconds,
        options,
    )
    if out is not None:
        from .analyze_report import page_of

        write_report(out, page_of(report))
    return report


def _check_out(out: str | os.PathLike[str] | None, overwrite: bool) -> None:
    if out is None:
        return
    check_folder(out)
    if not overwrite and (Path(out) / JSON).exists():
        raise InputError(f"{out}: has a report already; --overwrite replaces it")


def _placed(
    opened: OpenedModel, device: torch.device, preprocessing: Preprocessing
) -> tuple[nn.Module, Any]:
    """The model on its device, and what it makes of two pictures."""
    model = place(opened.model, device)
    try:
        return model, try_out(model, preprocessing, opened.name)
    except InputError:
        # it may be one that calls `view` on what it expects to lie channel by channel
        plain: Any = model.to
        model = plain(memory_format=torch.contiguous_format)
        return model, try_out(model, preprocessing, opened.name)


def _outputs(output: Any) -> tuple[int | None, str]:
    """The number of logits, or why there are none."""
    try:
        return int(logits_of(output).shape[1]), ""
    except InputError as error:
        return None, str(error)
