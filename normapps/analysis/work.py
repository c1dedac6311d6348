"""The analyses of one network that are asked for, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from torch import nn

from ..errors import InputError
from .analyze_options import AnalyzeOptions
from .analyze_results import Results
from .conditioning import Covariances
from .gap import BatchMoments, gap, output_gap, shares_a_pass
from .hooks import Batch, Observer, watch, weighted_layers
from .invariance import scale_invariance
from .predictiveness import predictiveness
from .propagation import Sizes
from .sample import Sample
from .scales import scales
from .start import Start
from .stochasticity import stochasticity

Progress = Callable[[str, int], object]
"""Called with what is being done and of how many items one more is."""


@dataclass
class Work:
    """Does the analyses that are asked for, which may share passes of the pictures.

    Attributes:
        model: in its place.
        sample: the pictures.
        options: which analyses, and how.
        progress: told of each item of each analysis.
        no_logits: why there are none; empty where there are.
        skipped: the analyses that say nothing about this network, and why.
        seconds: that each took, by name.
        results: of them.
        moments: of the batches of the shared pass; None if it did not listen to norm layers.
        start: of the first batch; None before the first analysis that needs it.
    """

    model: nn.Module
    sample: Sample
    options: AnalyzeOptions
    progress: Progress
    no_logits: str
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    results: Results = field(default_factory=Results)
    moments: BatchMoments | None = None
    start: Start | None = None

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
        """Conditioning and propagation look at one pass, as may the gap that comes after them."""
        if self.results.conditioning is not None or self.results.propagation is not None:
            return
        self._need_logits()
        covariances, sizes, moments = Covariances(), Sizes(), BatchMoments(self.model)
        wanted: dict[str, Observer] = {"conditioning": covariances, "propagation": sizes}
        observers = [wanted[each] for each in self.options.analyses if each in wanted]
        size = self.options.batch_size
        total = len(self.sample.sizes(size))
        heeds = "gap" in self.options.analyses and shares_a_pass(self.model)
        chosen = self.sample.batches(size)
        with moments.over(chosen) if heeds else nullcontext(chosen) as batches:
            watch(self.model, batches, observers, lambda: self.progress("layers at work", total))
        self.moments = moments if heeds else None
        if covariances in observers:
            self.results.conditioning = covariances.rows()
        if sizes in observers:
            self.results.propagation = sizes.rows()

    def _invariance(self, name: str) -> None:
        self._need_logits()
        total = len(weighted_layers(self.model))
        self.results.invariance = scale_invariance(
            self.model,
            self._first(),
            self.options.lr,
            progress=lambda: self.progress(name, total),
            start=self._begun(),
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
        if self.moments is not None:
            self.results.gap = self.moments.rows()
        else:
            self.results.gap = gap(
                self.model, self.sample.batches(size), lambda: self.progress(name, total)
            )
        if not self.no_logits:
            trained = None if self.start is None else self.start.logits
            self.results.outputs = output_gap(self.model, self._first(), trained)

    def _scales(self, name: str) -> None:
        self.results.scales = scales(self.model, self.options.tau)

    def _predictiveness(self, name: str) -> None:
        self._need_logits()
        self.results.steps = predictiveness(
            self.model,
            self._first(),
            self.options.lr,
            progress=lambda: self.progress(name, 9),
            start=self._begun(),
        )

    def _first(self) -> Batch:
        """The batch that steps are looked at on."""
        return next(self.sample.batches(self.options.batch_size))

    def _begun(self) -> Start:
        if self.start is None:
            self.start = Start.of(self.model, self._first())
        return self.start

    def _need_logits(self) -> None:
        if self.no_logits:
            raise InputError(self.no_logits)
