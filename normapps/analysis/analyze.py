"""What normalization does in somebody's network: the analyses of one model on its pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from .conditioning import Covariances
from .gap import gap, output_gap
from .hooks import Observer, watch, weighted_layers
from .invariance import scale_invariance
from .predictiveness import predictiveness
from .propagation import Sizes
from .sample import Sample
from .scales import scales
from .stochasticity import stochasticity

Progress = Callable[[str, int], object]
"""Called with what is being done and of how many items one more is."""


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
    work = _Work(model, sample, options, progress or (lambda _, __: None), reason)
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


@dataclass
class _Work:
    """The analyses that are asked for, one after the other."""

    model: nn.Module
    sample: Sample
    options: AnalyzeOptions
    progress: Progress
    no_logits: str
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    results: Results = field(default_factory=Results)

    def run(self) -> Results:
        """Do them.

        Raises:
            InputError: not one of them says anything about this network.
        """
        steps = {
            "conditioning": self._watched,
            "propagation": self._watched,
            "scale-invariance": self._invariance,
            "stochasticity": self._stochasticity,
            "gap": self._gap,
            "scales": self._scales,
            "predictiveness": self._predictiveness,
        }
        for name in self.options.analyses:
            with self._timed(name):
                steps[name](name)
        if len(self.skipped) == len(self.options.analyses):
            raise InputError(next(iter(self.skipped.values())))
        return self.results

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
            self.seconds[name] = time.perf_counter() - start
        except InputError as error:
            self.skipped[name] = str(error)

    def _watched(self, name: str) -> None:
        """Conditioning and propagation look at the same pass, which the first of them makes."""
        if self.results.conditioning is not None or self.results.propagation is not None:
            return
        self._need_logits()
        covariances, sizes = Covariances(), Sizes()
        wanted: dict[str, Observer] = {"conditioning": covariances, "propagation": sizes}
        observers = [wanted[each] for each in self.options.analyses if each in wanted]
        size = self.options.batch_size
        total = len(self.sample.sizes(size))
        watch(
            self.model,
            self.sample.batches(size),
            observers,
            lambda: self.progress("layers at work", total),
        )
        if covariances in observers:
            self.results.conditioning = covariances.rows()
        if sizes in observers:
            self.results.propagation = sizes.rows()

    def _invariance(self, name: str) -> None:
        self._need_logits()
        total = len(weighted_layers(self.model))
        self.results.invariance = scale_invariance(
            self.model,
            next(self.sample.batches(self.options.batch_size)),
            self.options.lr,
            progress=lambda: self.progress(name, total),
        )

    def _stochasticity(self, name: str) -> None:
        self._need_logits()
        # of more than half of the pictures, random batches hold nearly the same
        sizes = [size for size in self.options.batch_sizes if 2 * size <= len(self.sample)]
        if not sizes:
            smallest = min(self.options.batch_sizes)
            raise InputError(
                f"random batches of {smallest} need {2 * smallest} pictures or more, and there are"
                f" {len(self.sample)}"
            )
        total = 2 * len(sizes)
        self.results.stochasticity = stochasticity(
            self.model,
            self.sample,
            sizes,
            draws=self.options.draws,
            seed=self.options.seed,
            progress=lambda: self.progress(name, total),
        )

    def _gap(self, name: str) -> None:
        size = self.options.batch_size
        total = len(self.sample.sizes(size))
        self.results.gap = gap(
            self.model, self.sample.batches(size), lambda: self.progress(name, total)
        )
        if not self.no_logits:
            self.results.outputs = output_gap(self.model, next(self.sample.batches(size)))

    def _scales(self, name: str) -> None:
        self.results.scales = scales(self.model, self.options.tau)

    def _predictiveness(self, name: str) -> None:
        self._need_logits()
        self.results.steps = predictiveness(
            self.model,
            next(self.sample.batches(self.options.batch_size)),
            self.options.lr,
            progress=lambda: self.progress(name, 9),
        )

    def _need_logits(self) -> None:
        if self.no_logits:
            raise InputError(self.no_logits)
