"""What a guard keeps of a stream: shares and means of two networks' predictions, side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError

SURE = 0.9
"""Confidence from which a prediction of the source counts as sure."""

ENOUGH = 1 / 3
"""Share of sure samples from which their agreement tells something."""


@dataclass(frozen=True)
class Limits:
    """What a guard allows; see `Guard`.

    Raises:
        InputError: a number out of range.
    """

    least_classes: float
    least_agreement: float
    most_doubt: float
    most_drift: float
    window: int
    patience: int

    def __post_init__(self) -> None:
        for name in ("least_classes", "least_agreement", "most_doubt"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)}: must be between 0 and 1")
        for name in ("most_drift", "window", "patience"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} {getattr(self, name)}: must be above 0")


class Watch:
    """Running means over the last `window` samples or so, exponentially forgotten.

    Args:
        limits: what counts as harm.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.samples = 0
        self.means: Tensor | None = None
        self.classes: Tensor | None = None

    def see(self, logits: Tensor, reference: Tensor) -> None:
        """Take in a batch's logits of both networks, (N, C) each."""
        p, q = (each.detach().float().softmax(1) for each in (logits, reference))
        (confidence, found), (trust, expected) = p.max(1), q.max(1)
        same, sure = (found == expected).float(), (trust >= SURE).float()
        means = torch.stack([same, sure, sure * same, confidence, trust]).mean(1)
        hits = [torch.bincount(each, minlength=p.shape[1]) / len(p) for each in (found, expected)]
        self.samples += len(p)
        share = min(1.0, len(p) / min(self.samples, self.limits.window))
        self.means = _moved(self.means, means, share)
        self.classes = _moved(self.classes, torch.stack(hits), share)

    def facts(self) -> dict[str, float]:
        """Return the numbers by name; without samples their number alone."""
        if self.means is None or self.classes is None:
            return {"samples": 0.0}
        agreement, sure, both, confidence, trust = self.means.tolist()
        classes = torch.special.entr(self.classes).sum(1).exp().tolist()
        return {
            "samples": float(self.samples),
            "classes": classes[0],
            "source_classes": classes[1],
            "agreement": agreement,
            "sure": sure,
            "agreement_where_sure": both / sure if sure else math.nan,
            "confidence": confidence,
            "source_confidence": trust,
        }

    def harm(self, facts: dict[str, float]) -> str:
        """Say what in the numbers shows that adapting does harm; empty where nothing does.

        Args:
            facts: as `facts` returns them, with `drift` where it is known.
        """
        limits = self.limits
        if facts["samples"] < limits.patience:
            return ""
        few, all_of_them = facts["classes"], facts["source_classes"]
        sure, same = facts["sure"], facts["agreement_where_sure"]
        confidence, trust = facts["confidence"], facts["source_confidence"]
        found = {
            f"its predictions collapse, to {few:.1f} classes of the source's {all_of_them:.1f}": (
                few < limits.least_classes * all_of_them
            ),
            f"it agrees with {same:.0%} of the predictions that the source is sure of": (
                sure >= ENOUGH and same < limits.least_agreement
            ),
            f"its mean confidence is {confidence:.2f}, the source's {trust:.2f}": (
                confidence < trust - limits.most_doubt
            ),
            f"its layers have drifted {facts.get('drift', 0):.1f} nats from the source": (
                facts.get("drift", 0) > limits.most_drift
            ),
        }
        return next((words for words, is_harm in found.items() if is_harm), "")

    def state(self) -> dict[str, Any]:
        """Return all that is kept, in copies."""
        kept = {"means": self.means, "classes": self.classes}
        copies = {name: None if each is None else each.clone() for name, each in kept.items()}
        return {"samples": self.samples, **copies}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.samples = state["samples"]
        self.means, self.classes = state["means"], state["classes"]


def _moved(before: Tensor | None, new: Tensor, share: float) -> Tensor:
    return new if before is None else before.lerp(new.to(before), share)
