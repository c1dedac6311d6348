"""What the analyses of one network found, together."""

from __future__ import annotations

from dataclasses import dataclass

from .conditioning import Conditioning
from .gap import Gap, OutputGap
from .invariance import Invariance
from .predictiveness import Step
from .propagation import Propagation
from .scales import Scales
from .stochasticity import Stochasticity


@dataclass
class Results:
    """What each analysis returned; None where it was not asked for, or says nothing.

    Attributes:
        conditioning, propagation, invariance, stochasticity, gap, scales: of those analyses.
        outputs: of the gap, that of the logits.
        steps: of the predictiveness.
    """

    conditioning: tuple[Conditioning, ...] | None = None
    propagation: tuple[Propagation, ...] | None = None
    invariance: tuple[Invariance, ...] | None = None
    stochasticity: tuple[Stochasticity, ...] | None = None
    gap: tuple[Gap, ...] | None = None
    outputs: OutputGap | None = None
    scales: Scales | None = None
    steps: tuple[Step, ...] | None = None
