"""What is said of norm layers: stochasticity, the gap to inference, scales."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from ..measure.plots import Dots, Histograms, Lines
from ..measure.report import Figure, Table
from .analyze_options import AnalyzeOptions
from .gap import Gap, OutputGap
from .parts import Part
from .scales import Scales
from .stochasticity import OUTPUT, Stochasticity


def stochasticity_part(rows: Sequence[Stochasticity], options: AnalyzeOptions) -> Part:
    """Say how much of an output is chance."""
    sizes = sorted({row.batch_size for row in rows})
    share = {(row.layer, row.batch_size): row.share for row in rows}
    layers = [row.layer for row in rows if row.batch_size == sizes[0] and row.layer != OUTPUT]
    cells: list[list[str | float]] = [
        [name, *(share[name, size] for size in sizes)] for name in (OUTPUT, *layers)
    ]
    absolute = ", ".join(
        f"{row.disturbance:.3g} at B = {row.batch_size}" for row in rows if row.layer == OUTPUT
    )
    return Part(
        "Stochasticity by batch size",
        (
            f"The SND of the logits is {absolute} ({options.draws} random batches around each of"
            " two pictures).",
        ),
        Table(
            ["layer", *(f"B = {size}" for size in sizes)],
            cells,
            "SND divided by the norm of the mean output.",
        ),
        tuple(range(1 + len(sizes))),
        tuple(share[name, sizes[0]] for name in (OUTPUT, *layers)),
        _disturbances(share, layers, sizes),
    )


def _disturbances(
    share: dict[tuple[str, int], float], layers: Sequence[str], sizes: Sequence[int]
) -> tuple[Figure, ...]:
    spread = {size: [share[name, size] for name in layers] for size in sizes}
    series = {
        "logits": [share[OUTPUT, size] for size in sizes],
        "median norm layer": [statistics.median(spread[size]) for size in sizes],
        "noisiest norm layer": [max(spread[size]) for size in sizes],
    }
    axes = ("batch size B", "SND ÷ ‖mean output‖")
    ends = {f"B = {size}": spread[size] for size in dict.fromkeys((sizes[0], sizes[-1]))}
    return (
        Figure(
            Lines(sizes, series, axes, log="xy", marks=True),
            "How much the others in a random batch change what the network makes of one and the"
            " same picture: a noise of training that falls with the batch size.",
        ),
        Figure(
            Dots(layers, ends, "SND ÷ ‖mean output of the layer‖", 1e-3),
            "How much each norm layer is disturbed, at the smallest and the largest batch size.",
        ),
    )


def gap_part(rows: Sequence[Gap], outputs: OutputGap | None, options: AnalyzeOptions) -> Part:
    """Say how far training and inference are apart."""
    columns = ["layer", "channels", "one batch", "all pictures", "worst", "channel"]
    batch = statistics.fmean(row.batch for row in rows)
    data = statistics.fmean(row.data for row in rows)
    said = [
        f"Moments of batches of {options.batch_size} are {batch:.3g} nats a channel from the"
        f" running ones, those of all pictures {data:.3g}: that much is the data, not the batch."
    ]
    if outputs is not None:
        said.append(
            f"With the moments of a batch instead of the running ones the logits change by"
            f" {outputs.change:.1%}, and {outputs.agreement:.0%} of its pictures keep their class."
        )
    marks = {"one batch": [row.batch for row in rows], "all pictures": [row.data for row in rows]}
    return Part(
        "The gap between training and inference",
        tuple(said),
        Table(
            columns,
            [dataclasses.astuple(row) for row in rows],
            "Symmetric KL divergence from the running moments, nats a channel; worst: of all"
            " pictures, in that channel.",
        ),
        (0, 1, 2, 3, 4, 5),
        tuple(row.data for row in rows),
        (
            Figure(
                Dots([row.layer for row in rows], marks, "nats a channel", 1e-4),
                "How far the moments of a batch and of all pictures are from those that inference"
                " uses: what lies between the marks comes of small batches, the rest of the data.",
            ),
        ),
    )


def scales_part(found: Scales, tau: float) -> Part:
    """Say how many channels hardly count."""
    columns = ["layer", "channels", f"below {tau:g}", "smallest", "median", "largest"]
    cells: list[list[str | float]] = [
        [row.layer, row.channels, f"{row.small:.1%}", row.smallest, row.median, row.largest]
        for row in found.rows
    ]
    said = [f"{found.small:.1%} of {len(found.values)} scales are below τ = {tau:g}."]
    if names := found.untouched:
        more = " …" if len(names) > 4 else ""
        said.append(
            f"{len(names)} layers do not count, all their scales are 0 as some initializations"
            f" leave them: {', '.join(names[:4])}{more}."
        )
    return Part(
        "Scales of the channels",
        tuple(said),
        Table(columns, cells, "|γ| of the norm layers."),
        (0, 1, 2, 3, 4, 5),
        tuple(row.small for row in found.rows),
        _scale_figures(found, tau) if found.rows else (),
    )


def _scale_figures(found: Scales, tau: float) -> tuple[Figure, ...]:
    floor = min(1e-3, tau / 10) if tau else 1e-3
    ends = {
        key: [float(getattr(row, key)) for row in found.rows]
        for key in ("smallest", "largest", "median")
    }
    mark = (tau, f"τ = {tau:g}")
    counted = Histograms(
        {"channels": found.values},
        "|γ|",
        (0.0, max(found.values)),
        50,
        "channels",
        counts=True,
        mark=mark,
    )
    return (
        Figure(
            counted,
            "How many channels have which scale: those left of τ hardly reach the next layer.",
        ),
        Figure(
            Dots([row.layer for row in found.rows], ends, "|γ|", floor, mark if tau else None),
            f"The range of the scales in each layer; what is less is drawn at {floor:g}.",
        ),
    )
