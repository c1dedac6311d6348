"""Plots of reports, as PNG, by matplotlib (the optional extra `report`)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE, AFTER = "#9aa5b1", "#1f6feb"
"""Grey for what was there, blue for what was made; apart for colour-blind readers, too."""

_COLOURS = (BEFORE, AFTER, "#d97706", "#059669", "#9333ea", "#111827")
_MOST_COLUMNS = 7
"""Names beside each other in a legend."""

_MOST_TICKS = 60
"""Names beside rows; of more layers only every second, third, … is named."""

_MARKS = ("o", "o", "|", "|")
"""Dots for the first two series of `Dots`, dashes for what they are compared with."""


@dataclass(frozen=True)
class Bars:
    """A horizontal bar a name and series, in the order given, the first at the top.

    Attributes:
        names: what the bars stand for, such as layers.
        series: values by the name of the series; one that is not finite has no bar.
        axis: what the values are, with their unit.
    """

    names: Sequence[str]
    series: Mapping[str, Sequence[float]]
    axis: str


@dataclass(frozen=True)
class Dots:
    """A row a name and a mark a series on a logarithmic axis, where bars would start anywhere.

    Attributes:
        names: what the rows stand for, such as layers, the first at the top.
        series: values by the name of the series; one that is not finite has no mark.
        axis: what the values are, with their unit.
        floor: where the axis begins; what is less, and 0, is drawn there.
        mark: where a line across stands, and what it is.
    """

    names: Sequence[str]
    series: Mapping[str, Sequence[float]]
    axis: str
    floor: float
    mark: tuple[float, str] | None = None


@dataclass(frozen=True)
class Histograms:
    """Values in bins, a line a series: the share of them, or their number.

    Attributes:
        series: values by the name of the series.
        axis: what the values are.
        span: lowest and highest value of the axis; what is beyond is in the last bin.
        bins: how many.
        each: what a value belongs to, in the plural.
        counts: the bars are numbers, not per cent of the series.
        mark: where a line across stands, and what it is.
    """

    series: Mapping[str, Sequence[float]]
    axis: str
    span: tuple[float, float] = (0.0, 1.0)
    bins: int = 20
    each: str = "pictures"
    counts: bool = False
    mark: tuple[float, str] | None = None


@dataclass(frozen=True)
class Lines:
    """Curves over a common axis.

    Attributes:
        x: positions.
        series: values by the name of the series, as many as positions.
        axes: what positions and values are.
        log: which axes are logarithmic: "x", "y", "xy".
        marks: whether each position has a dot.
        spread: lowest and highest values of the intervals, by the name of a series that has them.
    """

    x: Sequence[float]
    series: Mapping[str, Sequence[float]]
    axes: tuple[str, str] = field(default=("", ""))
    log: str = ""
    marks: bool = False
    spread: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)


Plot = Bars | Dots | Histograms | Lines


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def render(plot: Plot) -> bytes:
    """Draw a plot: PNG at 144 dots an inch, 8 inches wide, the same bytes every time.

    Raises:
        ImportError: matplotlib is missing; ask `can_plot` first.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {"font.size": 9, "font.family": "DejaVu Sans", "axes.axisbelow": True}
    with rc_context(style):
        figure = Figure(figsize=(8, _height(plot)), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x" if isinstance(plot, Bars | Dots) else "y", color="#e5e7eb")
        _draw(plot, axes)
        if len(plot.series) > 1 or getattr(plot, "mark", None):
            columns = min(len(plot.series) + 1, _MOST_COLUMNS)
            figure.legend(loc="outside upper right", ncols=columns, frameon=False)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=144, metadata={"Software": None})
    return png.getvalue()


def _height(plot: Plot) -> float:
    """Inches: room for every bar or row, at most as many as a page can show."""
    if isinstance(plot, Dots):
        return 1.5 + min(11.0, 0.14 * len(plot.names))
    if not isinstance(plot, Bars):
        return 3.0
    return 1.5 + min(11.0, 0.19 * len(plot.names) * max(1, len(plot.series) / 2))


def _draw(plot: Plot, axes: Axes) -> None:
    if isinstance(plot, Bars):
        _draw_bars(plot, axes)
    elif isinstance(plot, Dots):
        _draw_dots(plot, axes)
    elif isinstance(plot, Histograms):
        _draw_histograms(plot, axes)
    else:
        _draw_lines(plot, axes)


def _draw_lines(plot: Lines, axes: Axes) -> None:
    from matplotlib.ticker import LogLocator

    for colour, (name, values) in zip(_colours(plot), plot.series.items(), strict=True):
        mark = "o" if plot.marks else None
        axes.plot(plot.x, values, label=name, color=colour, marker=mark, markersize=4)
        if name in plot.spread:
            axes.fill_between(plot.x, *plot.spread[name], color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel=plot.axes[0], ylabel=plot.axes[1])
    if "y" in plot.log and any(each > 0 for values in plot.series.values() for each in values):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if high < 100 * low else "")
        if 10 * low <= high < 100 * low:  # few enough of 2 and 5 to be named
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    if "x" in plot.log:  # positions on it are few and chosen: they are its ticks
        axes.set_xscale("log")
        axes.set_xticks(plot.x, [f"{each:g}" for each in plot.x])
        axes.set_xticks([], minor=True)


def _draw_bars(plot: Bars, axes: Axes) -> None:
    thick = 0.8 / max(1, len(plot.series))
    for number, (name, values) in enumerate(plot.series.items()):
        places = [i + thick * (number - (len(plot.series) - 1) / 2) for i in range(len(values))]
        colour = _colours(plot)[number] if len(plot.series) > 1 else AFTER
        axes.barh(places, values, height=thick, label=name, color=colour)
    _name_rows(plot, axes)


def _draw_dots(plot: Dots, axes: Axes) -> None:
    rows = range(len(plot.names))
    finite = [each for values in plot.series.values() for each in values if math.isfinite(each)]
    axes.set_xscale("log")
    axes.set_xlim(plot.floor, max([10 * plot.floor, *(2 * each for each in finite)]))
    if len(plot.series) > 1:
        first, second = (_raised(values, plot.floor) for values in list(plot.series.values())[:2])
        axes.hlines(rows, first, second, color=BEFORE, linewidth=1)
    marks = (*_MARKS, *_MARKS[-1:] * len(plot.series))
    for (name, values), colour, mark in zip(
        plot.series.items(), _colours(plot), marks, strict=False
    ):
        style: dict[str, Any] = {"marker": mark, "s": 18, "zorder": 3, "clip_on": False}
        axes.scatter(_raised(values, plot.floor), rows, label=name, color=colour, **style)
    _draw_mark(plot, axes)
    axes.grid(axis="y", color="#f3f4f6")
    _name_rows(plot, axes)


def _raised(values: Sequence[float], floor: float) -> list[float]:
    return [max(each, floor) if math.isfinite(each) else math.nan for each in values]


def _name_rows(plot: Bars | Dots, axes: Axes) -> None:
    every = -(-len(plot.names) // _MOST_TICKS) or 1
    axes.set_yticks(range(0, len(plot.names), every), list(plot.names)[::every], fontsize=7)
    axes.set_ylim(len(plot.names) - 0.5, -0.5)
    axes.set_xlabel(plot.axis)


def _draw_histograms(plot: Histograms, axes: Axes) -> None:
    low, high = plot.span
    for colour, (name, values) in zip(_colours(plot), plot.series.items(), strict=True):
        weight = 1.0 if plot.counts else 100 / max(1, len(values))
        inside = [min(max(each, low), high) for each in values]
        weights = [weight] * len(inside)
        shape: dict[str, Any] = {"bins": plot.bins, "range": plot.span, "weights": weights}
        axes.hist(inside, **shape, color=colour, alpha=0.25)
        axes.hist(inside, **shape, color=colour, histtype="step", linewidth=1.6, label=name)
    _draw_mark(plot, axes)
    axes.set_xlim(low, high)
    axes.set(xlabel=plot.axis, ylabel=plot.each if plot.counts else f"% of the {plot.each}")


def _draw_mark(plot: Dots | Histograms, axes: Axes) -> None:
    if plot.mark is not None:
        place, text = plot.mark
        axes.axvline(place, color=_COLOURS[2], linewidth=1.4, linestyle="--", label=text)


def _colours(plot: Plot) -> list[str]:
    repeats = -(-len(plot.series) // len(_COLOURS))
    return list(_COLOURS * repeats)[: len(plot.series)]
