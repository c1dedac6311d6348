"""`normapps adapt train`, from folders of pictures to model folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from normapps.adapt.training.options import TrainOptions
from normapps.cli.adapt import app
from normapps.errors import InputError, UsageError
from normapps.models.load import open_model

MODEL = "normapps.models.small:small_cnn"
FEW = ["--size", "8", "--batch-size", "4", "--steps", "4", "--warmup", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Class folders of squares and stripes, bright and dark."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for domain, light in (("bright", 255), ("dark", 90)):
        for number, name in enumerate(("blank", "stripes", "noise")):
            (root / domain / name).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, light, (12, 12, 3)) * (number == 2)
                pixels[:: 2 + i % 2] += light // 2 * (number == 1)
                Image.fromarray(pixels.astype(np.uint8)).save(root / domain / name / f"{i}.png")
    return root / "bright", root / "dark"


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_folders_in_model_and_report_out(places: tuple[Path, Path], tmp_path: Path) -> None:
    bright, dark = places
    out = tmp_path / "run"
    given = (MODEL, "--source", bright, "--target", dark, "-o", out, "--method", "dsbn", *FEW)
    code, said = run(*given, "--stop-after", "1")
    assert code == 0
    assert "stopped before the end" in said
    assert "its classifier starts anew with 3 outputs" in said
    code, said = run(*given)
    assert code == 0
    assert str(out / "model") in said
    assert "dark: " in said
    opened = open_model(out / "model")
    assert opened.model(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    assert opened.preprocessing.size == (8, 8)
    entry = opened.history[-1]
    assert (entry["method"], entry["classes"]) == ("dsbn", ["blank", "noise", "stripes"])
    told = json.loads((out / "report.json").read_text())
    assert told["measured_on"] == "held-out pictures"
    assert told["targets"][0]["accuracy"]["count"] == 3  # every fifth of 18
    assert (out / "report.html").exists()


def test_json_and_two_targets(places: tuple[Path, Path], tmp_path: Path) -> None:
    bright, dark = places
    targets = ("--target", dark, "--target", bright, "--test", dark, "--test", bright)
    code, said = run(MODEL, "--source", bright, *targets, "-o", tmp_path, "--json", *FEW)
    assert code == 0
    told = json.loads(said[said.index("{") :])
    assert [Path(each).name for each in told["models"]] == ["model-dark", "model-bright"]
    assert set(told["accuracy"]) == {"dark", "bright"}


def test_a_baseline_decides_the_verdict(places: tuple[Path, Path], tmp_path: Path) -> None:
    bright, dark = places
    given = (MODEL, "--source", bright, "--target", dark, "--hold-out", "0", *FEW)
    run(*given, "-o", tmp_path / "plain", "--method", "source")
    more = ("--method", "adabn", "--baseline", tmp_path / "plain" / "model")
    code, said = run(*given, "-o", tmp_path / "adabn", *more)
    assert code == 0
    assert "over the baseline" in said


def test_classes_are_matched_by_name(places: tuple[Path, Path], tmp_path: Path) -> None:
    bright, dark = places
    strange = tmp_path / "strange"
    (strange / "ufo").mkdir(parents=True)
    for name in ("noise", "stripes"):
        shutil.copytree(dark / name, strange / name)
    (strange / "ufo" / "0.png").write_bytes((dark / "noise" / "0.png").read_bytes())
    given = (MODEL, "--source", bright, "--target", strange, "-o", tmp_path / "run", *FEW)
    code, said = run(*given)
    assert code == 0
    assert "left out 1 of 13 pictures, of classes that no source has (ufo)" in said


def test_what_is_wrong_is_said_in_one_line(places: tuple[Path, Path], tmp_path: Path) -> None:
    bright, dark = places
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty and no training run"):
        run(MODEL, "--source", bright, "--target", dark, "-o", tmp_path, *FEW)
    with pytest.raises(InputError, match="--limit 1 or a smaller --size"):
        run(MODEL, "--source", bright, "--target", dark, "-o", tmp_path / "r", "--max-bytes", "99")
    with pytest.raises(UsageError, match="--source is missing"):
        TrainOptions(target=("a",))
    with pytest.raises(UsageError, match="--method dsbn: needs the target's pictures"):
        TrainOptions(source=("a",))
    with pytest.raises(UsageError, match="--test: give one for each of 1 --target"):
        TrainOptions(source=("a",), target=("b",), test=("c", "d"))
    with pytest.raises(InputError, match="--stage-steps 9: must be below --steps 9"):
        TrainOptions(source=("a",), target=("b",), steps=9, stage_steps=9)


def test_overwrite_starts_anew(places: tuple[Path, Path], tmp_path: Path) -> None:
    bright, dark = places
    given = (MODEL, "--source", bright, "--target", dark, "-o", tmp_path, *FEW)
    run(*given, "--method", "source")
    with pytest.raises(InputError, match="was started with --method source, not adabn"):
        run(*given, "--method", "adabn")
    code, _ = run(*given, "--method", "adabn", "--overwrite")
    assert code == 0
    assert json.loads((tmp_path / "report.json").read_text())["method"] == "adabn"
