"""`normapps compress` as the shell runs it: what it prints, and how it ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normapps.cli.main import main
from normapps.compress import chain

Run = Callable[..., tuple[str, str]]

SMALL = "normapps.models.small:small_cnn"
BRIEF = ("--size", 8, "--device", "cpu", "--no-latency", "--no-int8", "--batch-size", 8)
STEPS = ("--sparse-steps", 4, "--finetune-steps", 3)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, as the shell would; stdout and stderr."""
    monkeypatch.setattr("normapps.measure.report.can_plot", lambda: False)

    def command(*arguments: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["normapps", "compress", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        assert (end.value.code or 0) == code, shown.out + shown.err
        return shown.out, shown.err

    return command


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of noise: dark and bright ones, 10 each."""
    root, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 150)):
        (root / name).mkdir()
        for number in range(10):
            pixels = rng.integers(low, low + 100, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_stages_are_told_and_the_result_comes_last(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "some")
    broken = tmp_path / "some" / "dark" / "3.png"
    broken.write_bytes(b"no picture")
    out = tmp_path / "out"
    words = (SMALL, tmp_path / "some", "-o", out, *STEPS, *BRIEF)
    shown, errors = run(*words, code=1)
    lines = shown.splitlines()
    assert lines[-1] == str(out / "finetuned" / "model")
    rows = [line.split()[0] for line in lines[1:5]]
    assert rows == ["given", "sparse", "pruned", "finetuned"]
    assert f"report: {out / 'report.html'}" in lines
    assert any(line.startswith("undecided: ") for line in lines)
    assert "15 pictures of 2 classes make the network, 4 judge it" in errors
    assert "  its classifier starts anew with 2 outputs, one a class" in errors.splitlines()
    last = errors.splitlines()[-1]
    assert last.startswith("error: ")
    assert str(broken) in last
    shown, errors = run(*words, "--json", code=1)
    assert "sparse: is complete" in errors.splitlines()
    facts = json.loads(shown)
    assert facts == json.loads((out / "report.json").read_text())
    given = {"size": 8, "int8": False, "latency": False, "batch_size": 8}
    assert facts["options"] == {**given, "sparse_steps": 4, "finetune_steps": 3}
    assert facts["failed"] == [last.removeprefix("error: ")]


def test_ctrl_c_says_that_the_same_command_goes_on(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    words = (SMALL, pictures, "-o", out, *STEPS, *BRIEF)
    with monkeypatch.context() as patch:
        patch.setitem(chain._RUN, "pruned", interrupted)
        _, errors = run(*words, code=130)
    assert f"{out}: stopped; the same command goes on from here" in errors
    _, errors = run(*words)
    assert "sparse: is complete" in errors


def test_wrong_use_is_one_line(run: Run, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _, errors = run(SMALL, pictures, "-o", out, "--ratio", 0.5, "--target-flops", 0.5, code=2)
    assert errors == "error: --target-flops --ratio: say how much in one way, not 2\n"
    _, errors = run(SMALL, tmp_path / "none", "-o", out, *BRIEF, code=1)
    assert errors.splitlines()[-1].startswith(f"error: {tmp_path / 'none'}: no such folder")
    assert not out.exists()
