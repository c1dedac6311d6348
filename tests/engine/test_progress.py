"""Progress with and without a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from normapps.engine import progress
from normapps.engine.progress import BatchProgress, TrainingProgress


def test_lines_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    with TrainingProgress(10, 4) as bar:
        bar.update(5, {"loss": 2.0})
    assert "5/10" in (shown := capsys.readouterr().err)
    assert "loss 2" in shown


def test_80_columns_show_steps_time_left_and_the_first_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        progress,
        "Console",
        lambda stderr: Console(file=screen, force_terminal=True, width=80, color_system=None),
    )
    values = dict.fromkeys(("d_loss", "g_loss", "images_per_s", "real", "fake", "d_grad"), 1.23)
    with TrainingProgress(50_000, 11_999) as bar:
        bar.update(12_000, values)
    last = [line for line in screen.getvalue().splitlines() if "d_loss" in line][-1]
    assert "12000/50000" in last
    assert last.count(":") >= 3
    assert "d_loss 1.23  g_loss 1.23  images_per_s" in last


def test_other_processes_are_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    with TrainingProgress(10, enabled=False) as bar:
        bar.update(5, {"loss": 2.0})
    assert capsys.readouterr().err == ""


class _Clock:
    """A clock that stands still until it is set."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_without_a_terminal_a_batch_prints_a_line_a_minute(
    clock: _Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchProgress(10) as bar:
        for name in "abcd":
            bar.advance(name)
            clock.now += 40
    # After c: 80 seconds for 3 of 10.
    assert capsys.readouterr().err == "3/10  3 min left  c\n"


def test_a_new_stage_counts_anew(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with BatchProgress(0) as bar:
        for _ in range(8):
            bar.stage("decoding", 8)
            clock.now += 5
        for _ in range(3):
            bar.stage("trying layers", 4)
            clock.now += 40
    # 40 seconds were the first's; the line comes with the second layer, 40 seconds for 2 of 4.
    assert capsys.readouterr().err == "2/4  1 min left  trying layers\n"


def test_a_batch_that_is_not_to_be_shown_prints_what_it_is_told_only(
    clock: _Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchProgress(10, enabled=False) as bar:
        for name in "abc":
            clock.now += 100
            bar.advance(name)
        bar.print("error: photos/[bold]a.jpg: " + 200 * "x")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: photos/[bold]a.jpg: " + 200 * "x" + "\n")


def test_a_terminal_shows_the_bar_and_lines_above_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
    with BatchProgress(2) as bar:
        bar.advance("[red]a.jpg")
        bar.print("error: one")
        bar.advance("b" * 300)
    err = capsys.readouterr().err
    assert "2/2" in err
    assert "error: one\n" in err.replace("\r", "")
    assert "bbb…" in err
    assert "b" * 100 not in err
