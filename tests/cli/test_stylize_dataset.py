from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.cli.main import main
from normapps.models.adain_tiny import AdainTiny
from normapps.models.folder import save_model

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`normapps stylize-dataset data art out …`, with a small network: the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    arguments = {"width": 8, "deep": 8, "hidden": 4}
    save_model("tiny", AdainTiny(**arguments), builder="adain-tiny", arguments=arguments)
    for number, name in enumerate(("data/a/x.png", "data/b/y.jpg", "art/ink.png", "art/sun.png")):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 24, 3), np.uint8)
        Image.fromarray(pixels).save(name)
    Path("data/a/x.txt").write_text("x")

    def _run(*flags: str) -> int:
        words = ["normapps", "stylize-dataset", "data", "art", "out", "--model", "tiny", *flags]
        monkeypatch.setattr(sys, "argv", [*words, "--device", "cpu"])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0)

    return _run


def test_a_job_says_what_it_made_and_kept(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("2 made (")
    assert first.endswith(" a second), 1 other files copied")
    assert second == "what was made of what: out/stylize-dataset.manifest.jsonl"
    assert Image.open("out/b/y.jpg").size == (24, 16)
    assert len(list(Path("cache/normapps/styles").iterdir())) in (1, 2)
    assert run() == 0
    assert capsys.readouterr().out.splitlines()[0] == "0 made, 2 kept"


def test_a_bad_file_is_an_error_and_exit_1(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/a/bad.png").write_text("no picture")
    assert run() == 1
    ran = capsys.readouterr()
    assert ran.err.startswith("error: data/a/bad.png: is not a picture")
    assert "2 made" in ran.out
    assert "1 failed, listed in out/stylize-dataset.failed.txt" in ran.out


def test_json_and_quiet(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "--alpha", "0.5", "--num-styles", "2") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(line["output"] for line in lines) == [
        *("1/a/x.png", "1/b/y.jpg", "2/a/x.png", "2/b/y.jpg")
    ]
    assert {line["alpha"] for line in lines} == {0.5}
    assert run("--overwrite", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--alpha", "0.9,0.2"), "--alpha 0.9,0.2: must be within 0 and 1, the lower first"),
        (("--alpha", "much"), "--alpha 'much': give a number, or two such as 0.3,1"),
        (("--alpha", "nan"), "--alpha nan: must be within 0 and 1, the lower first"),
        (("--shard", "3/2"), "--shard 3/2: give i/n with i from 1 to n, such as 1/8"),
        (("--shard", "1/0"), "--shard 1/0: give i/n with i from 1 to n, such as 1/8"),
        (("--num-styles", "3"), "--num-styles 3: art has 2; give fewer"),
        (("--engine", "spark"), "--engine 'spark': choose one of local, ray"),
        (("--method", "otter"), "--method 'otter': choose one of"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    run: Run, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], line: str
) -> None:
    assert run(*flags) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not Path("out").exists()


def test_an_interrupt_keeps_what_is_done(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from normapps.style.stylizer import Stylizer

    original = Stylizer.__call__

    def interrupted(self: Stylizer, content: object, *args: object, **values: object) -> object:
        if os.path.exists("out/a/x.png"):
            raise KeyboardInterrupt
        return original(self, content, *args, **values)  # type: ignore[type-var,arg-type]

    monkeypatch.setattr(Stylizer, "__call__", interrupted)
    assert run("--workers", "1") == 130
    assert capsys.readouterr().err == "interrupted: 1 made and kept; the same goes on\n"
    monkeypatch.undo()
    assert sorted(Path("out").glob(".*")) == []
