"""Whether to use an adapted model: a function of numbers, so that every branch can be tested.

With labels the paired difference decides. Without, the thresholds below come from what
`benchmarks/verdict.py` shows of EfficientNet-Lite0 (real weights) on 200 labelled photographs,
batches of 50. Distance is the median layer's, confidence and accuracy before → after AdaBN:

    pictures           distance   confidence     accuracy %      without labels
    clean                0.03     0.70 → 0.64    87.5 → 80.5     not recommended
    saturate:3           0.05     0.66 → 0.60    81.5 → 77.5     not recommended
    jpeg:5               0.12     0.43 → 0.27    54.5 → 57.0     undecided
    fog:4                0.24     0.49 → 0.46    57.5 → 71.5     undecided
    contrast:3           0.27     0.57 → 0.57    71.5 → 76.0     undecided
    gaussian_noise:3     0.41     0.43 → 0.28    50.5 → 54.0     undecided
    pixelate:5           0.54     0.28 → 0.23    27.5 → 48.0     undecided
    defocus_blur:5       1.0      0.23 → 0.14    14.5 → 30.5     undecided
    gaussian_noise:5     1.2      0.18 → 0.05    11.5 → 15.0     undecided
    contrast:5           1.6      0.22 → 0.43    11.0 → 63.5     recommended

Near pictures lose by adapting, far ones mostly gain. But distance alone does not tell: on
defocus_blur:5 a mixture with a prior of 64 lost 7.5 points at the same distance, and there, as
wherever adapting did harm, confidence fell. So a recommendation without labels needs both; it
misses gains, and was never wrong here. Halves of these pictures are 0.01 nats apart. Pictures of a
single class are 0.02 to 0.25 nats off in a small network for digits; adapting to them mostly hurt.
There a network on faint digits gave all of them one class, most surely: a collapse that adaptation
mends is the other way to a recommendation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from ..measure.agreement import Agreement
from ..measure.interval import Estimate
from ..measure.report import NOT_RECOMMENDED, RECOMMENDED, UNDECIDED, Verdict

CLOSE, FAR = 0.1, 0.5
"""Nats of the median layer: what is closer needs no adaptation, what is farther does."""

CHANCE = 3.0
"""A distance counts from so many times that between two halves of the pictures."""

FEWEST = 16
"""Pictures below which nothing is said without labels."""

KEPT = 0.9
"""Share of the diversity of the answers that a good adaptation keeps at least."""

COLLAPSE = 0.5
"""What is left of the diversity of the answers when they have collapsed."""


@dataclass(frozen=True)
class Evidence:
    """What is known of an adaptation.

    Attributes:
        agreement: the answers before and after on the same pictures.
        shift: of each layer, the distance of the pictures' statistics from the model's own before,
            in nats; empty where it keeps none.
        chance: the same between two halves of the pictures; empty where there were too few.
        is_random: the model has random weights.
        accuracy: before and after, where there are labels.
        difference: of the two on the same pictures.
        online: accuracy of the answers that were given while adapting.
    """

    agreement: Agreement
    shift: tuple[float, ...] = ()
    chance: tuple[float, ...] = ()
    is_random: bool = False
    accuracy: tuple[Estimate, Estimate] | None = None
    difference: Estimate | None = None
    online: Estimate | None = None


def judge(evidence: Evidence) -> Verdict:
    """Say whether to use the adapted model, and why.

    With labels the paired difference decides alone: recommended if its interval is above 0, not
    recommended if below, else undecided. Without them: see this module's text.
    """
    after = evidence.agreement.after
    if evidence.is_random:
        return Verdict(
            NOT_RECOMMENDED,
            "The model has random weights, which no statistics can mend: load a checkpoint first.",
        )
    if not math.isfinite(after.confidence):
        return Verdict(NOT_RECOMMENDED, "The adapted model's outputs are not finite.")
    if evidence.difference is not None:
        return _by_labels(evidence.difference)
    return _without_labels(evidence)


def _by_labels(difference: Estimate) -> Verdict:
    low, mean, high = (100 * each for each in (difference.low, difference.mean, difference.high))
    found = f"accuracy changes by {mean:+.1f} points (95 %: {low:+.1f} to {high:+.1f})"
    pictures = f"on {difference.count} labelled picture{'s' * (difference.count > 1)}"
    if difference.low > 0:
        return Verdict(RECOMMENDED, f"The {found} {pictures}.")
    if difference.high < 0:
        return Verdict(NOT_RECOMMENDED, f"The {found} {pictures}.")
    return Verdict(UNDECIDED, f"The {found} {pictures}, which may be chance.")


def _without_labels(evidence: Evidence) -> Verdict:
    agreement = evidence.agreement
    before, after = agreement.before, agreement.after
    if agreement.count < FEWEST:
        return Verdict(
            UNDECIDED,
            f"{agreement.count} pictures without labels tell too little: give {FEWEST} or more.",
        )
    if after.diversity < COLLAPSE * before.diversity:
        return Verdict(
            NOT_RECOMMENDED,
            f"The answers collapse: {after.largest_share:.0%} of the pictures get one class, and"
            f" their diversity falls from {before.diversity:.2f} to {after.diversity:.2f} nats.",
        )
    if not evidence.shift or not evidence.chance:
        return Verdict(
            UNDECIDED,
            "There are neither labels nor running statistics to judge by; label some pictures.",
        )
    return _by_distance(evidence)


def _by_distance(evidence: Evidence) -> Verdict:
    shift, chance = median(evidence.shift), median(evidence.chance)
    before, after = evidence.agreement.before, evidence.agreement.after
    found = (
        f"without labels: the pictures' statistics are {shift:.2g} nats from the model's own in the"
        f" median layer ({chance:.2g} between halves of the pictures), and the mean confidence goes"
        f" from {before.confidence:.2f} to {after.confidence:.2f}"
    )
    if shift < max(CLOSE, CHANCE * chance):
        return Verdict(
            NOT_RECOMMENDED,
            f"The pictures are much like those that the model was trained on ({found}).",
        )
    if shift > max(FAR, CHANCE * chance):
        far = "The pictures are far from those that the model was trained on"
        if before.diversity < COLLAPSE * after.diversity:
            return Verdict(
                RECOMMENDED,
                f"{far}: it gave {before.largest_share:.0%} of them one class, and after adaptation"
                f" {after.largest_share:.0%} ({found}).",
            )
        if after.confidence > before.confidence and after.diversity > KEPT * before.diversity:
            return Verdict(
                RECOMMENDED,
                f"{far}, and the adapted model is surer of its answers, which stay diverse"
                f" ({found}).",
            )
    return Verdict(UNDECIDED, f"Label some pictures to find out ({found}).")
