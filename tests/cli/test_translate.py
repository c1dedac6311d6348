"""`normapps translate`: train, stop, resume, translate a folder with a damaged file in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from normapps.cli import translate
from normapps.errors import UsageError

TINY = ["--size", "16", "--batch-size", "2", "--width", "4", "--blocks", "1", "--d-width", "4"]
TINY += ["--steps", "4", "--sample-every", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Scikit-learn's digits as PNG files: white on black, and black on white."""
    from sklearn.datasets import load_digits

    root = tmp_path_factory.mktemp("domains")
    for name, sign in (("light", 1), ("dark", -1)):
        (root / name).mkdir()
        for number, image in enumerate(load_digits().images[:12]):
            grey = (image * 15).astype(np.uint8)
            pixels = grey if sign > 0 else 255 - grey
            Image.fromarray(pixels).resize((20, 20)).save(root / name / f"{number}.png")
    return root / "light", root / "dark"


def go(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(translate.app, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_train_stop_resume_run(domains: tuple[Path, Path], tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    given = ("train", "--source", domains[0], "--target", domains[1], "-o", run, *TINY)
    code, said, told = go(*given, "--stop-after", "2")
    assert (code, said.strip()) == (0, str(run / "generator"))
    lines = told.splitlines()
    assert "source: 12 pictures of 18×18 RGB; resampled to 18×18" in lines
    assert "target: 12 pictures of 18×18 RGB; resampled to 18×18" in lines
    code, _, _ = go("train", "--resume", "-o", run)
    assert code == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3]
    assert (run / "samples" / "000004.png").exists()

    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGBA", (21, 18), (200, 40, 90, 100)).save(photos / "a.png")
    (photos / "b.jpg").write_bytes(b"\xff\xd8\xff nothing")
    code, said, told = go("run", "-m", run, photos, "-o", out)
    assert code == 1
    assert f"{out / 'a.png'}  21×18" in said
    assert f"error: {photos / 'b.jpg'}: " in told
    with Image.open(out / "a.png") as made:
        assert made.mode == "RGBA"
        assert made.size == (21, 18)
        assert made.getchannel("A").getextrema() == (100, 100)

    code, said, _ = go("run", "-m", run, photos / "a.png", "-o", out, "--json")
    assert code == 0
    assert json.loads(said)["status"] == "kept"
    code, said, _ = go("run", "-m", run, "--back", photos / "a.png", "-o", tmp_path / "b.png")
    assert code == 0
    assert (tmp_path / "b.png").exists()
    code, said, told = go("run", "-m", run, photos / "a.png", "-o", tmp_path / "b.png", "--quiet")
    assert code == 1
    assert said == ""
    assert "exists already; --overwrite replaces it" in told


def test_a_resumed_run_is_the_same_run(domains: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    go("train", "--source", domains[0], "--target", domains[1], "-o", run, *TINY, "--stop-after", 1)
    with pytest.raises(UsageError, match="--cycle-weight 3"):
        go("train", "--resume", "-o", run, "--cycle-weight", "3")


@pytest.mark.parametrize("has_begun", [False, True])
def test_an_interrupt_says_how_to_go_on(
    domains: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_begun: bool,
) -> None:
    given = ("train", "--source", domains[0], "--target", domains[1], "-o", tmp_path / "run", *TINY)
    if has_begun:
        go(*given, "--stop-after", 1)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("normapps.gan.translation.unpaired.read_domains", interrupted)
    code, _, told = go(*given)
    assert code == 130
    wanted = "train --resume -o" if has_begun else "the same command begins again"
    assert wanted in told.splitlines()[-1]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--source or --maps is missing"):
        go("train", "-o", tmp_path / "run")
    with pytest.raises(UsageError, match="-m is missing"):
        go("run", "a.png", "-o", tmp_path / "out")
    with pytest.raises(UsageError, match="standard output cannot hold both"):
        go("run", "a.png", "-m", "m", "-o", "-", "--json")


def test_evaluate_prints_distances_and_what_they_are_of(
    domains: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    go("train", "--source", domains[0], "--target", domains[1], "-o", run, *TINY, "--stop-after", 1)
    judge = ("--extractor", "normapps.models.small:small_cnn", "--device", "cpu")
    code, said, told = go("evaluate", "-m", run, *judge)
    assert code == 0
    lines = said.splitlines()
    assert lines[0].split() == ["distance", "before", "after", "floor"]
    assert [line.split()[0] for line in lines[1:3]] == ["fd", "kd"]
    assert "step 1 of 4" in lines[3]
    assert "12 pictures for 128 features" in told
