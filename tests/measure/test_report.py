"""Reports: one page without anything from elsewhere, JSON with every number, plots that are PNG."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from normapps.measure import plots
from normapps.measure import report as module
from normapps.measure.plots import AFTER, Bars, Dots, Histograms, Lines, Plot, can_plot, render
from normapps.measure.report import (
    NO_VERDICT,
    UNDECIDED,
    Figure,
    Report,
    Section,
    Table,
    Verdict,
    page,
    short,
    write_report,
)

BARS = Bars(["stem", "head"], {"before": [1.0, 2.0], "after": [0.5, 0.1]}, "nats")


def _report() -> Report:
    table = Table(["layer", "nats"], [["a<b>", 1.23456789], ["c", 2]], "How far.")
    parts = ["A & B.", table, Figure(BARS, "One bar a layer.")]
    sections = [Section("Distance", parts), Section("All of it", [table], folded=True)]
    numbers = {"loss": float("nan"), "rows": [1.0, float("inf")], "deep": {"x": (1, 2.5)}}
    return Report("Adapted", Verdict(UNDECIDED, "Too few <pictures>."), sections, numbers, ["ab"])


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_escapes_text() -> None:
    text = page(_report())
    links = _Links()
    links.feed(text)
    assert not links.open
    assert links.found
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    assert "http" not in text
    assert "Too few &lt;pictures&gt;." in text
    assert "a&lt;b&gt;" in text
    assert "1.235" in text
    assert "One bar a layer." in text
    assert "verdict undecided" in text
    assert "<details><summary>All of it</summary>" in text


def test_json_has_every_number_and_null_for_what_is_none(tmp_path: Path) -> None:
    write_report(tmp_path, _report())
    values = json.loads((tmp_path / "report.json").read_text())
    assert values == {
        "title": "Adapted",
        "verdict": "undecided",
        "reason": "Too few <pictures>.",
        "loss": None,
        "rows": [1.0, None],
        "deep": {"x": [1, 2.5]},
    }
    assert (tmp_path / "report.html").read_text() == page(_report())


def test_without_matplotlib_there_are_tables_and_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "can_plot", lambda: False)
    text = page(_report())
    assert "<img" not in text
    assert "<code>report</code>" in text
    assert "1.235" in text


def test_a_missing_matplotlib_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_plot()
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert not can_plot()


@pytest.mark.parametrize(
    "plot",
    [
        BARS,
        Bars([f"layer{i}" for i in range(300)], {"x": list(range(1, 301))}, "nats"),
        Dots([f"layer{i}" for i in range(300)], {"x": list(range(1, 301))}, "nats", 1e-4),
        Dots(["nothing"], {"x": [0.0], "y": [0.0], "z": [float("nan")]}, "nats", 1e-4),
        Histograms({"before": [0.1, 0.9], "after": []}, "confidence"),
        Histograms({"all": [0.1, 7.0]}, "scale", each="channels", counts=True, mark=(0.4, "cut")),
        Lines([1, 2, 3], {"loss": [3.0, float("nan"), 1.0]}, ("step", "loss")),
        Lines([1, 2], {"loss": [0.0, 0.0]}, ("step", "loss"), log="xy", marks=True),
    ],
    ids=["bars", "many", "many-dots", "zero", "histograms", "counts", "lines", "log-lines"],
)
def test_plots_are_png_of_one_width_and_always_the_same(plot: Plot) -> None:
    png = render(plot)
    assert png == render(plot)
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert image.width == 8 * 144
    assert 200 < image.height < 2000


def test_longer_bars_are_longer() -> None:
    image = Image.open(io.BytesIO(render(Bars(["a", "b"], {"x": [1.0, 4.0]}, "nats"))))
    colour = [int(AFTER[i : i + 2], 16) for i in (1, 3, 5)]
    blue = (np.asarray(image.convert("RGB")) == colour).all(2)
    widths = blue.sum(1)[blue.any(1)]
    assert widths.max() == pytest.approx(4 * widths.min(), rel=0.05)
    rows = np.flatnonzero(blue.any(1))
    assert blue[rows[0]].sum() < blue[rows[-1]].sum()  # in their order from the top


def _dots(*values: float) -> tuple[bytes, np.ndarray]:
    """A plot of such values, and the columns of its blue dots from the top row down."""
    names = [f"layer{i}" for i in range(len(values))]
    png = render(Dots(names, {"before": [1.0] * len(values), "after": values}, "nats", 1e-4))
    colour = [int(AFTER[i : i + 2], 16) for i in (1, 3, 5)]
    blue = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) == colour).all(2)
    rows = np.flatnonzero(blue[60:].any(1)) + 60  # below the legend
    centres = [np.flatnonzero(blue[row]).mean() for row in rows]
    starts = np.flatnonzero(np.diff(rows, prepend=-9) > 1)
    return png, np.array([centres[start] for start in starts])


def test_a_logarithmic_axis_is_cut_at_its_floor() -> None:
    assert _dots(1e-13, 0.1)[0] == _dots(0.0, 0.1)[0] == _dots(1e-4, 0.1)[0]
    floor, middle, right = _dots(1e-13, 1e-3, 0.1)[1]
    assert right - floor == pytest.approx(3 * (middle - floor), abs=3)  # 3 decades and 1


def _blue(plot: Plot) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the blue pixels, below the legend."""
    colour = [int(AFTER[i : i + 2], 16) for i in (1, 3, 5)]
    image = np.asarray(Image.open(io.BytesIO(render(plot))).convert("RGB"))
    rows, columns = np.nonzero((image == colour).all(2)[60:])
    return rows, columns


def test_a_power_is_a_straight_line_on_logarithmic_axes() -> None:
    x = [1.0, 10.0, 100.0]
    series = {"none": [float("nan")] * 3, "square": [each**2 for each in x]}
    rows, columns = _blue(Lines(x, series, ("x", "y"), log="xy"))
    assert np.corrcoef(rows, columns)[0, 1] < -0.999
    assert np.corrcoef(*_blue(Lines(x, series, ("x", "y"))))[0, 1] > -0.999


def test_a_band_lies_about_its_line() -> None:
    x, band = [0.0, 1.0], {"mean": ([0.0, 1.0], [2.0, 3.0])}
    plain = Lines(x, {"none": [3.0, 0.0], "mean": [1.0, 2.0]}, ("x", "y"))
    rows, columns = _blue(plain)
    pixels = [
        np.asarray(Image.open(io.BytesIO(render(each))).convert("RGB")).astype(int)[60:]
        for each in (plain, dataclasses.replace(plain, spread=band))
    ]
    changed = np.abs(pixels[0] - pixels[1]).max(2)
    assert changed[rows.min() : rows.max(), columns.min() + 5 : columns.max() - 5].any(0).all()
    assert changed[:, : columns.min() - 5].max() == 0


def test_a_mark_stands_where_a_dot_of_its_value_does() -> None:
    orange = [int(plots._COLOURS[2][i : i + 2], 16) for i in (1, 3, 5)]
    series = {"a": [1.0, 1.0], "b": [0.01, 10.0]}
    plot = Dots(["x", "y"], series, "nats", 1e-4, mark=(0.01, "threshold"))
    image = np.asarray(Image.open(io.BytesIO(render(plot))).convert("RGB"))[60:]
    line = np.nonzero((image == orange).all(2))[1]
    rows, columns = _blue(plot)
    top = columns[rows < rows.mean()]
    assert np.median(line) == pytest.approx(np.median(top), abs=2)


def test_a_report_that_only_explains_advises_nothing(tmp_path: Path) -> None:
    report = dataclasses.replace(_report(), verdict=NO_VERDICT)
    write_report(tmp_path, report)
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts.keys() == {"title", "loss", "rows", "deep"}
    assert "<div class='verdict" not in page(report)
    assert "<div class='verdict" in page(_report())


def test_style_and_sections_need_no_script() -> None:
    assert not re.search(r"<script|url\(|@import|<link", page(_report()))


def test_a_histogram_counts_all_and_draws_its_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, object]] = []

    class Axes:
        def hist(self, values: list[float], **options: object) -> None:
            drawn.append({"values": values, **options})

        def axvline(self, place: float, **options: object) -> None:
            drawn.append({"mark": place, "label": options["label"]})

        def set_xlim(self, *_: float) -> None: ...

        def set(self, **options: object) -> None:
            drawn.append(options)

    values = [0.1, 0.2, 7.0]  # 7 is beyond the axis
    mark = (0.4, "cut")
    plot = Histograms({"all": values}, "scale", each="channels", counts=True, mark=mark)
    plots._draw_histograms(plot, cast(Any, Axes()))
    assert drawn[0]["values"] == [0.1, 0.2, 1.0]
    assert drawn[0]["weights"] == [1.0] * 3
    assert drawn[2] == {"mark": 0.4, "label": "cut"}
    assert drawn[3] == {"xlabel": "scale", "ylabel": "channels"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (4800, "4800"),
        (54_410, "54.41 k"),
        (11_689_512, "11.69 M"),
        (1.0e6, "1 M"),
        (4.1e9, "4.1 G"),
    ],
)
def test_large_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text
