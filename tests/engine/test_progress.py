"""Progress where no terminal shows a bar."""

from __future__ import annotations

import pytest

from normapps.engine import progress
from normapps.engine.progress import TrainingProgress


def test_lines_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    with TrainingProgress(10, 4) as bar:
        bar.update(5, {"loss": 2.0})
    assert "5/10" in (shown := capsys.readouterr().err)
    assert "loss 2" in shown


def test_other_processes_are_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    with TrainingProgress(10, enabled=False) as bar:
        bar.update(5, {"loss": 2.0})
    assert capsys.readouterr().err == ""
