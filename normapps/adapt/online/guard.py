"""A guard beside a test-time method: it compares with the source model, stops harm, gives advice.

Without labels an adaptation that goes wrong still shows: the classes that are predicted become
few (collapse), the network contradicts the source where that is sure, it becomes less sure than
the source, or its layers drift away; and where the statistics of the stream are the source's,
nothing is to gain.

The defaults were measured on scikit-learn's digits (8×8, a network of three batch norms, TENT
with Adam at batch 50 and rates 0.001, 0.1 and 1, two seeds; clean, contrast, brightness, noise,
inverted; shuffled and sorted by class):

- `least_classes` 0.7. The ratio of the effective numbers of predicted classes was 0.99 and more
  in every run that helped, and fell below 0.6 in nearly all at rate 1, which all collapsed.
- `least_agreement` 0.75 where the source is sure of a third of the samples: it was 0.97 and more
  where adapting helped, at most 0.5 where such a stream was sorted or the rate 1.
- `most_doubt` 0.15. Sorted by class, adapting at small rates let the mean confidence fall by 0.14
  to 0.43; where it helped it rose, or fell by up to 0.04. One kind of run (noise 0.6, 25 % right)
  fell by 0.2 although it gained 8 points: the guard stops that, too.
- `most_drift` 5 nats. The median layer was within 0.3 of the source at rates up to 0.1, and 6 to
  30 away at rate 1. Contrast and brightness move the first layers only, which undo them.
- `shift` 0.03 nats: the mean over the layers was 0.002 to 0.007 on clean digits and the faintest
  noise, where nothing was to gain, and 0.05 and more where adapting helped.

Of the 96 runs 59 lost more than 5 points, 38 on average; 56 were stopped, and 6 points lost. The
three others, inverted digits, got no advice. Of 24 runs that gained 8 were stopped: noise 0.6, and
contrast sorted by class or at rate 1, where the source was right for a fifth or less. Adapting was
recommended in 14, which all gained, by 3 to 85 points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...errors import InputError, NormappsError, unknown
from ...measure.report import NOT_RECOMMENDED, RECOMMENDED, UNDECIDED
from ...models.outputs import logits_of
from ...norm.nesting import detached_copy
from .base import Online
from .drift import distances, moments_of
from .watch import Limits, Watch

THEN = ("source", "reset", "raise")

_ALL = 0.98  # of the source's classes, but for chance


class HarmError(NormappsError):
    """A guard has seen that adapting does harm; the message says by what."""


@dataclass(frozen=True)
class Advice:
    """What a guard makes of the stream so far.

    Attributes:
        verdict: `recommended`, `not recommended` or `undecided`.
        reason: a sentence with the numbers that decided.
        facts: all numbers: `samples`, `classes` and `source_classes` (effective numbers),
            `agreement`, `sure` (share of samples), `agreement_where_sure`, `confidence`,
            `source_confidence`, `resets`; where batch norms follow the stream `distance` and
            `drift`, mean and median over the layers, in nats.
    """

    verdict: str
    reason: str
    facts: dict[str, float]


class Guard(nn.Module):
    """Run a test-time method and the source model side by side; stop where adapting does harm.

    It has the method's `adapt`, `reset`, `export` and state dict, and answers as it does until it
    stops. Every batch costs one more forward pass, of the source.

    Args:
        online: the method; it may be used no more but through the guard.
        source: the network before adapting, in inference mode. None takes it from the method,
            which then must not have adapted.
        then: what follows harm. `source`: the source model answers from then on, and nothing
            adapts. `reset`: the method starts again; the source answers this batch. `raise`: an
            error.
        least_classes: smallest ratio of the effective numbers of predicted classes (the exponential
            of the entropy of their shares), the method's by the source's.
        least_agreement: smallest share of the same predictions among samples of which the source
            is sure (confidence 0.9 and more), where these are a third of all or more.
        most_doubt: how far the mean confidence may fall below the source's.
        most_drift: how far the statistics of the median layer may be from the source's, in nats.
        shift: mean distance over the layers, in nats, below which the stream is the source's.
        window: samples that the numbers are averaged over, exponentially.
        patience: samples before anything is concluded.

    Attributes:
        stopped: why the source answers; empty as long as the method does.
        resets: how often the method has started again because of harm.

    Raises:
        InputError: an unknown `then`, a number out of range, or a method that has adapted already
            and no source.

    Example:
        >>> guard = Guard(tent(model))
        >>> logits = guard(batch)
        >>> print(guard.advice().reason)
    """

    def __init__(
        self,
        online: Online,
        source: nn.Module | None = None,
        *,
        then: str = "source",
        least_classes: float = 0.7,
        least_agreement: float = 0.75,
        most_doubt: float = 0.15,
        most_drift: float = 5.0,
        shift: float = 0.03,
        window: int = 200,
        patience: int = 100,
    ) -> None:
        super().__init__()
        if then not in THEN:
            raise unknown("then", then, THEN)
        if source is None and online._first is not None:
            raise InputError(
                f"{type(online).__name__} has adapted already: give the guard the source"
            )
        self.online, self.then, self.shift = online, then, shift
        with torch.inference_mode(False):
            self.source = online.export() if source is None else detached_copy(source)
            self.source.eval().requires_grad_(False)
        self.known = moments_of(self.source)
        self.limits = Limits(
            least_classes, least_agreement, most_doubt, most_drift, window, patience
        )
        self.watch = Watch(self.limits)
        self.stopped, self.resets = "", 0

    def forward(self, x: Tensor) -> Tensor:
        """Adapt to a batch (N, ...) unless stopped, and return logits (N, C).

        Raises:
            HarmError: harm, with `then="raise"`.
            InputError: a batch that the method refuses, or one of which the source itself makes
                logits that are not finite.
        """
        return self.adapt(x)

    def adapt(self, x: Tensor) -> Tensor:
        """Do what `forward` does."""
        self.online.check_batch(x)
        reference = self._by_source(x)
        if self.stopped:
            return reference
        try:
            logits = self.online.adapt(x)
        except InputError as error:
            if self._is_sound(x):
                raise
            return self._end(str(error), reference)
        self.watch.see(logits, reference)
        harm = self.watch.harm(self.facts)
        return self._end(harm, reference) if harm else logits

    def reset(self) -> None:
        """Bring back the whole state before the first batch, of the method and of the guard."""
        self.online.reset()
        self.watch = Watch(self.limits)
        self.stopped, self.resets = "", 0

    def export(self) -> nn.Module:
        """Return what answers as a plain network: the method's export, or a copy of the source."""
        if self.stopped:
            return detached_copy(self.source).requires_grad_(True)
        return self.online.export()

    def advice(self) -> Advice:
        """Say whether to go on adapting to such a stream; without labels, so be careful.

        Recommended: the stream is away from the source, and the adapted network surer than it.
        Not recommended: harm was seen, or the stream is the source's. Else undecided.
        """
        facts = self.facts
        verdict, reason = self._judgement(facts)
        return Advice(verdict, reason, facts)

    @property
    def facts(self) -> dict[str, float]:
        """The numbers of an `Advice`, as they are now."""
        facts = {**self.watch.facts(), "resets": float(self.resets)}
        means = sorted(distances(self.online.model, self.known).values())
        if means:
            middle = means[len(means) // 2]
            facts |= {"distance": sum(means) / len(means), "drift": middle}
        return facts

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the guard knows beside the states of method and source."""
        return {"watch": self.watch.state(), "stopped": self.stopped, "resets": self.resets}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` returned; a reset still goes to the start."""
        self.online._remember()  # torch comes here before it loads the submodules
        self.watch.load(state["watch"])
        self.stopped, self.resets = state["stopped"], state["resets"]

    def train(self, mode: bool = True) -> Self:
        """Set the guard's flag alone: the source stays in inference mode."""
        self.training = mode
        return self

    def _judgement(self, facts: dict[str, float]) -> tuple[str, str]:
        if self.stopped:
            return NOT_RECOMMENDED, f"Adapting was stopped: {self.stopped}."
        if self.resets:
            return NOT_RECOMMENDED, f"Adapting did harm and began again {self.resets} times."
        if facts["samples"] < self.limits.patience:
            needed = f"{facts['samples']:.0f} samples seen, {self.limits.patience} needed"
            return UNDECIDED, f"Too early to say: {needed}."
        if "distance" not in facts:
            return UNDECIDED, "No batch norm follows the stream, whose statistics would tell."
        return self._by_numbers(facts)

    def _by_numbers(self, facts: dict[str, float]) -> tuple[str, str]:
        away = f"the stream's statistics are {facts['distance']:.3f} nats from the source's"
        if facts["distance"] < self.shift:
            return NOT_RECOMMENDED, f"Do not adapt: {away}, so there is nothing to gain."
        sure = f"confidence {facts['source_confidence']:.2f} → {facts['confidence']:.2f}"
        many = f"{facts['source_classes']:.1f} → {facts['classes']:.1f} classes predicted"
        is_surer = facts["confidence"] > facts["source_confidence"]
        if is_surer and facts["classes"] > _ALL * facts["source_classes"]:
            return RECOMMENDED, f"Adapt: {away}, and the network became surer, {sure}, {many}."
        return UNDECIDED, f"No sign of a gain, though {away}: {sure}, {many}."

    def _end(self, harm: str, reference: Tensor) -> Tensor:
        if self.then == "raise":
            raise HarmError(f"adapting does harm: {harm}; go back by reset()")
        if self.then == "source":
            self.stopped = harm
        else:
            self.online.reset()
            self.watch = Watch(self.limits)
            self.resets += 1
        return reference

    def _by_source(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits = logits_of(self.source(x))
        if not bool((logits < math.inf).all()):
            raise InputError(
                f"{type(self.source).__name__} makes NaN or infinite logits of a finite batch:"
                " check the checkpoint, or take float32"
            )
        return logits

    def _is_sound(self, x: Tensor) -> bool:
        """Whether the adapted network still makes finite logits."""
        with torch.no_grad(), self.online.uncounted():
            return bool((logits_of(self.online.model(x)) < math.inf).all())
