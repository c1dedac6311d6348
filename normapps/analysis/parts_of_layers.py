"""What is said of weighted layers: conditioning, propagation, scale invariance, steps."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from ..measure.plots import Dots, Lines
from ..measure.report import Figure, Table
from .analyze_options import AnalyzeOptions
from .conditioning import PERCENT, Conditioning, Spectrum
from .invariance import FACTOR, IDLE, THRESHOLD, UP_TO_EPS, YES, Invariance, equilibrium
from .parts import Part
from .predictiveness import Step
from .propagation import Propagation

_DEPTH = "layer, in the order of execution"


def conditioning_part(rows: Sequence[Conditioning]) -> Part:
    """Say how each layer is conditioned."""
    columns = ["layer", "kind"]
    for name in ("x", "g"):
        columns += [f"rank {name}", *(f"κ{p} {name}" for p in PERCENT)]
    cells = [[row.layer, row.kind, *_spectrum(row.input), *_spectrum(row.gradient)] for row in rows]
    note = (
        "x: what a layer reads; g: the gradient at its output. κp is the largest eigenvalue divided"
        " by the one at p % of the dimensions, “–” where the rank is less than that."
    )
    return Part(
        "Conditioning of each layer",
        _said_of_spectra(rows),
        Table(columns, cells, note),
        (0, 2, 3, 4, 6, 7, 8),
        tuple(map(_ill, rows)),
        (_kappas(rows, "input"), _kappas(rows, "gradient")),
    )


def _ill(row: Conditioning) -> float:
    """How much a layer stands out: without any gradient, not at all."""
    if row.gradient is None or row.gradient.rank == 0 or row.input is None:
        return 0.0
    return row.fisher()


def _said_of_spectra(rows: Sequence[Conditioning]) -> tuple[str, ...]:
    found = [row for row in rows if math.isfinite(row.fisher())]
    if not found:
        return ("No layer has 80 % of its eigenvalues: give more pictures with --limit.",)
    worst = max(found, key=Conditioning.fisher)
    middle = statistics.median(row.fisher() for row in found)
    return (
        f"A gradient step goes κ times as far along the first eigenvector as along the last."
        f" κ80(x)·κ80(g), near the condition number of a layer's block of the Fisher matrix, is"
        f" {middle:.2g} in the median, and {worst.fisher():.2g} in {worst.layer}.",
    )


def _spectrum(found: Spectrum | None) -> list[str | float]:
    if found is None:
        return ["–"] * (1 + len(PERCENT))
    kappa = [value if math.isfinite(value) else "–" for value in found.kappa]
    return [f"{found.rank}/{found.dimensions}", *kappa]


def _kappas(rows: Sequence[Conditioning], which: str) -> Figure:
    found: list[Spectrum | None] = [getattr(row, which) for row in rows]
    # the two ends first: the plot joins them
    series = {
        f"κ{PERCENT[i]}": [math.nan if each is None else each.kappa[i] for each in found]
        for i in (0, 2, 1)
    }
    what = "what the layer reads" if which == "input" else "the gradient at the layer's output"
    note = (
        f"How far the covariance of {what} is from round, layers from the first at the top to the"
        " last: far to the right a few directions hold nearly all of it; a mark is missing where"
        " the rank does not reach."
    )
    return Figure(Dots([row.layer for row in rows], series, f"κp of {what}", 1.0), note)


def propagation_part(rows: Sequence[Propagation]) -> Part:
    """Say how large activations and gradients are."""
    columns = ["layer", "kind", "RMS read", "RMS made", "‖output‖", "‖gradient‖"]
    cells = [dataclasses.astuple(row) for row in rows]
    gradients = [row.gradient for row in rows if row.gradient > 0]
    none = len(rows) - len(gradients)
    said = f"‖gradient‖ of the layers is within a factor of {_ratio(gradients):.3g}"
    said += f"; {none} layers get none, as behind scales that are 0." if none else "."
    made = _ratio([row.output for row in rows]), _ratio([row.input for row in rows])
    return Part(
        "Propagation of activations and gradients",
        (
            f"What the layers make is within a factor of {made[0]:.3g}, what they read, behind"
            f" normalization and activation, of {made[1]:.3g}.",
            said,
        ),
        Table(columns, cells, "Norms of one picture, root mean square over the pictures."),
        (0, 2, 3, 4, 5),
        tuple(_off(row.gradient, gradients) for row in rows),
        _sizes(rows),
    )


def _sizes(rows: Sequence[Propagation]) -> tuple[Figure, ...]:
    depth = list(range(1, len(rows) + 1))
    values = {"read": [row.input for row in rows], "made": [row.output for row in rows]}
    gradient = [row.gradient if row.gradient > 0 else math.nan for row in rows]
    axes = (_DEPTH, "root mean square of a value")
    return (
        Figure(
            Lines(depth, values, axes, log="y", marks=True),
            "How large the values are that each layer reads and makes: with normalization what is"
            " read stays on one level however large the outputs before it are.",
        ),
        Figure(
            Lines(
                depth,
                {"gradient": gradient},
                (_DEPTH, "‖∂loss/∂output‖ of a picture"),
                log="y",
                marks=True,
            ),
            "How large the gradient is that comes to each layer: it goes from right to left, so a"
            " slope over the whole width is one that vanishes (rising line) or explodes (falling).",
        ),
    )


def _ratio(values: Sequence[float]) -> float:
    found = [each for each in values if each > 0]
    return max(found) / min(found) if found else math.nan


def _off(value: float, others: Sequence[float]) -> float:
    """How far a value is from the middle of all, as a ratio's logarithm."""
    if not value > 0 or not others:
        return math.inf
    return abs(math.log(value / statistics.median(others)))


def invariance_part(rows: Sequence[Invariance], options: AnalyzeOptions) -> Part:
    """Say which weights are scale-invariant, and what their learning rates are."""
    columns = ["layer", "kind", "invariant", "change", "cosine", "ratio", "σ²", "‖w‖", "η/‖w‖²"]
    note = (
        f"change: of the logits when w becomes {FACTOR:g}w; cosine: |⟨w,g⟩|/‖w‖‖g‖, 0 where"
        " invariant; ratio: ‖g(αw)‖·α/‖g(w)‖, 1 where invariant; σ²: median variance of the"
        " layer's output, beside which eps counts; angle: of one step, in radians."
    )
    return Part(
        "Scale invariance and the effective learning rate",
        _said_of_invariance(rows, options),
        Table([*columns, "angle"], [dataclasses.astuple(row) for row in rows], note),
        (0, 2, 3, 4, 8, 9),
        tuple(row.change for row in rows),
        _invariances(rows, options),
    )


def _said_of_invariance(rows: Sequence[Invariance], options: AnalyzeOptions) -> tuple[str, ...]:
    free, nearly, idle = (
        [row for row in rows if row.invariant in kinds]
        for kinds in ((YES, UP_TO_EPS), (UP_TO_EPS,), (IDLE,))
    )
    said = f"{len(free)} of {len(rows)} weights are scale-invariant"
    said += f", {len(nearly)} of them but for the eps of a norm layer" if nearly else ""
    said += f"; the output does not depend on {len(idle)}." if idle else "."
    if not free:
        return (said,)
    rates = [row.effective for row in free]
    return (
        said,
        f"With η = {options.lr:g} their effective learning rates η/‖w‖² go from {min(rates):.2g} to"
        f" {max(rates):.2g}; with λ = {options.weight_decay:g} SGD ends up turning each by √(2ηλ) ="
        f" {equilibrium(options.lr, options.weight_decay):.2g} radians a step.",
    )


def _invariances(rows: Sequence[Invariance], options: AnalyzeOptions) -> tuple[Figure, ...]:
    axis = f"relative change of the logits when the weight is multiplied by {FACTOR:g}"
    dots = Dots(
        [row.layer for row in rows],
        {"weights": [row.change if row.invariant != IDLE else math.nan for row in rows]},
        axis,
        1e-8,
        mark=(THRESHOLD, "threshold"),
    )
    change = Figure(
        dots,
        "Weights left of the line are directions only: their length changes nothing of what the"
        " network says, but how far a step turns them; right of it the table tells whether it is"
        " only the eps of a norm layer that counts.",
    )
    free = [row for row in rows if row.invariant in (YES, UP_TO_EPS)]
    if not free:
        return (change,)
    goal = equilibrium(options.lr, options.weight_decay)
    angles = {f"one step at η = {options.lr:g}": [row.angle for row in free]}
    mark = (goal, f"equilibrium √(2ηλ) = {goal:.2g}") if goal else None
    turned = Dots([row.layer for row in free], angles, "angle, radians", 1e-6, mark)
    return (
        change,
        Figure(
            turned,
            "How far one step of SGD turns each scale-invariant weight: right of the line weights"
            " grow until steps turn them less, left of it weight decay shortens them until steps"
            " turn them more.",
        ),
    )


def predictiveness_part(rows: Sequence[Step]) -> Part:
    """Say how far the gradient can be trusted."""
    columns = ["step", "loss", "predicted", "gradient moved", "cosine", "β"]
    note = "predicted: L − s‖g‖²; gradient moved: ‖g′ − g‖/‖g‖; β: ‖g′ − g‖/‖sg‖."
    moved = rows[1:]
    best = min(rows, key=lambda row: row.loss)
    beta = max(row.smoothness for row in moved)
    return Part(
        "Predictiveness of loss and gradient along a step",
        (
            f"Along the gradient the loss goes from {rows[0].loss:.3g} to {best.loss:.3g} at a step"
            f" of {best.size:.3g}, the best of those tried; the effective smoothness β is"
            f" {beta:.3g}.",
        ),
        Table(columns, [dataclasses.astuple(row) for row in rows], note),
        (0, 1, 2, 3, 4, 5),
        tuple(row.size for row in rows),
        _walk(moved),
    )


def _walk(moved: Sequence[Step]) -> tuple[Figure, ...]:
    steps = [row.size for row in moved]
    # no loss is below 0: a promise of that says nothing and would flatten the rest
    promised = [row.predicted if row.predicted >= 0 else math.nan for row in moved]
    losses = {"loss": [row.loss for row in moved], "predicted": promised}
    distance = {"gradient": [row.distance or math.nan for row in moved]}
    return (
        Figure(
            Lines(steps, losses, ("step s along the gradient", "loss"), log="x", marks=True),
            "The loss after a step beside what the gradient promises: as far as the two go"
            " together, a step of that size does what it should.",
        ),
        Figure(
            Lines(
                steps,
                distance,
                ("step s along the gradient", "‖g′ − g‖/‖g‖"),
                log="xy",
                marks=True,
            ),
            "How far the gradient itself moves on that way: beyond 1 the gradient at the start says"
            " nothing of the one at the end.",
        ),
    )
