"""`normapps style`, end to end on small networks and pictures."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from normapps.cli.main import app
from normapps.errors import InputError, UsageError
from normapps.models.adain_tiny import AdainTiny
from normapps.models.folder import save_model
from normapps.style.styles import load_style

ARGUMENTS = {"width": 8, "deep": 8, "hidden": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, AdainTiny(**ARGUMENTS), builder="adain-tiny", arguments=ARGUMENTS)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in a folder, and the same in pictures.tar beside it."""
    folder, rng = tmp_path_factory.mktemp("pictures") / "in", np.random.default_rng(0)
    folder.mkdir()
    for i in range(6):
        noise = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 48)).save(folder / f"{i}.png")
    with tarfile.open(folder.parent / "pictures.tar", "w") as tar:
        tar.add(folder, "in")
    return folder


def _run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["style", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_encode_writes_a_small_named_style(model: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "mine.style"
    assert _run("encode", pictures / "0.png", "-o", out, "--model", model).strip() == str(out)
    assert load_style(out).name == "mine"
    assert out.stat().st_size <= 16_000


def test_sheet_draws_all_photos_in_all_styles(model: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    styles = ("--style", pictures / "0.png", "--style", pictures / "1.png")
    _run("sheet", pictures, *styles, "-o", out, "--model", model, "--tile", 32)
    with Image.open(out) as page:
        assert page.size == (3 * 40 + 8, 6 * (24 + 28) + 8)


def test_train_and_evaluate_in_two_commands(pictures: Path, tmp_path: Path) -> None:
    tar = pictures.parent / "pictures.tar"
    run, report = tmp_path / "run", tmp_path / "report.json"
    places = ("--contents", pictures, "--styles", tar, "--hold-out", 3)
    small = ("--steps", 2, "--batch-size", 1, "--reuse", 1, "--crop", 32, "--width", 8, "--deep", 8)
    printed = _run("train", *places, *small, "--hidden", 4, "--device", "cpu", "-o", run)
    assert printed.strip() == str(run / "model")
    judged = ("--pairs", 3, "--size", 64, "--model", run / "model", "-o", report)
    table = _run("evaluate", *places, *judged)
    assert [line.split()[0] for line in table.splitlines()] == [
        "ssim", "rel_content", "rel_style", "rel_gram", "lattice", "pairs",
    ]  # fmt: skip
    rows = json.loads(report.read_text())["rows"]
    assert {row["content"] for row in rows} == {"2.png", "5.png"}
    assert {row["style"] for row in rows} == {"in/2.png", "in/5.png"}


def test_wrong_options_are_usage_errors(pictures: Path, tmp_path: Path) -> None:
    arguments = ["style", "train", "--contents", str(pictures), "-o", str(tmp_path / "run")]
    with pytest.raises(UsageError, match="--contents and --styles"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_report_is_not_overwritten(pictures: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("precious")
    arguments = ["style", "evaluate", "--contents", str(pictures), "--styles", str(pictures)]
    with pytest.raises(InputError, match="--overwrite"):
        CliRunner().invoke(app, [*arguments, "-o", str(report)], catch_exceptions=False)
    assert report.read_text() == "precious"


def test_style_files_have_their_suffix(model: str, pictures: Path, tmp_path: Path) -> None:
    arguments = ["style", "encode", str(pictures / "0.png"), "-o", str(tmp_path / "x.png")]
    with pytest.raises(UsageError, match=r"must end in \.style"):
        CliRunner().invoke(app, [*arguments, "--model", model], catch_exceptions=False)


def test_a_sheet_leaves_out_what_cannot_be_read(model: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"damaged")
    out = tmp_path / "sheet.png"
    photos = [str(pictures / "0.png"), str(tmp_path / "bad.png")]
    options = ["--style", photos[0], "-o", str(out), "--model", model, "--tile", "32"]
    result = CliRunner().invoke(app, ["style", "sheet", *photos, *options])
    assert result.exit_code == 1
    assert "bad.png" in result.stderr
    assert out.exists()
    with pytest.raises(InputError, match=r"bad\.png"):
        CliRunner().invoke(
            app, ["style", "sheet", photos[1], *options, "--overwrite"], catch_exceptions=False
        )


def test_a_sheet_of_a_model_without_presets_wants_styles(
    model: str, pictures: Path, tmp_path: Path
) -> None:
    arguments = ["style", "sheet", str(pictures), "-o", str(tmp_path / "s.png"), "--model", model]
    with pytest.raises(InputError, match="has no presets; give --style a painting"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_an_unknown_device_is_a_usage_error(pictures: Path, tmp_path: Path) -> None:
    arguments = ["style", "sheet", str(pictures), "-o", str(tmp_path / "s.png"), "--device", "tpu"]
    with pytest.raises(UsageError, match="--device 'tpu': must be auto, cpu, cuda"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
