"""What each analysis has to say to people: sentences, a table, figures and what explains them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..measure.report import Figure, Table
from .analyze_options import AnalyzeOptions
from .analyze_results import Results


@dataclass(frozen=True)
class Part:
    """One analysis as people read it.

    Attributes:
        title: what it is about.
        sentences: what was found.
        table: a row a layer, batch size or step.
        brief: numbers of the columns that a terminal has room for.
        salience: of each row: of a long table those with the largest are shown first.
        figures: with what they mean.
    """

    title: str
    sentences: tuple[str, ...]
    table: Table
    brief: tuple[int, ...]
    salience: tuple[float, ...]
    figures: tuple[Figure, ...]


def parts_of(results: Results, options: AnalyzeOptions) -> list[Part]:
    """Return what was found, in the order of `ANALYSES`."""
    from . import parts_of_layers as layers
    from . import parts_of_norms as norms

    makers: dict[str, Callable[[Any], Part]] = {
        "conditioning": layers.conditioning_part,
        "propagation": layers.propagation_part,
        "invariance": lambda found: layers.invariance_part(found, options),
        "stochasticity": lambda found: norms.stochasticity_part(found, options),
        "gap": lambda found: norms.gap_part(found, results.outputs, options),
        "scales": lambda found: norms.scales_part(found, options.tau),
        "steps": layers.predictiveness_part,
    }
    found = {name: getattr(results, name) for name in makers}
    return [make(found[name]) for name, make in makers.items() if found[name] is not None]
