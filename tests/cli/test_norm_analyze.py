"""`normapps norm analyze` from end to end, on real photographs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from normapps.cli.main import main

Run = Callable[..., tuple[str, str]]
SMALL = ("--device", "cpu", "--size", "64", "--sizes", "2", "--draws", "2", "--batch-size", "4")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, as the shell would; stdout and stderr."""

    def command(*arguments: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["normapps", "norm", "analyze", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        assert (end.value.code or 0) == code, shown.out + shown.err
        return shown.out, shown.err

    return command


@pytest.fixture
def folder(photo_files: dict[str, Path], tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        shutil.copy(photo_files[name], folder)
    return folder


def test_tables_and_the_page(run: Run, folder: Path, tmp_path: Path) -> None:
    shown, errors = run("test_resnet", folder, *SMALL, "--rows", "3")
    for title in ("Conditioning", "Propagation", "Scale invariance", "Stochasticity", "The gap"):
        assert f"\n{title}" in f"\n{shown}"
    assert "random weights" in errors
    assert "own answers stand in for labels" in errors
    assert "and 13 layers that stand out less" in shown
    out = tmp_path / "report"
    shown, _ = run("test_resnet", folder, "-o", out, "--what", "scales", *SMALL)
    assert shown.splitlines()[-1] == str(out / "report.html")
    assert (out / "report.json").exists()


def test_as_json_with_a_broken_picture(run: Run, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    shown, errors = run("test_resnet", folder, "--json", "--what", "scales,gap", *SMALL, code=1)
    facts = json.loads(shown)
    assert facts["pictures"] == 4
    assert "broken.png" in facts["failed"][0]
    assert "broken.png" in errors
    assert facts["gap"][0]["data"] > 0
    assert "conditioning" not in facts


def test_wrong_usage_is_one_line(run: Run, folder: Path, tmp_path: Path) -> None:
    _, errors = run("test_resnet", folder, "--what", "scale", code=2)
    assert errors == "error: --what: unknown analysis 'scale'; did you mean 'scales'?\n"
    assert "no such folder" in run("test_resnet", tmp_path / "none", *SMALL, code=1)[1]
    assert "did you mean 'resnet18'" in run("resnet81", folder, *SMALL, code=1)[1]
