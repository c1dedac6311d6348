"""What a GAN is for, command by command on real pictures; the refusals of `gan train`."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from normapps.cli.main import app
from normapps.engine import loop
from normapps.engine.run import load_checkpoint
from normapps.gan.trainer import GanTrainer

CHECKPOINT = Path(loop.CHECKPOINT)
SMALL: tuple[object, ...] = (
    "--config", "sngan-28", "--width", 8, "--d-width", 8, "--latent", 8, "--steps", 6,
    "--batch-size", 8, "--n-dis", 2, "--standing", 64, "--save-every", 2, "--device", "cpu",
)  # fmt: skip


def do(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["gan", *map(str, arguments)])


def done(*arguments: object) -> str:
    result = do(*arguments)
    assert result.exit_code == 0, (result.exception, result.output)
    return result.stdout


def refused(*arguments: object) -> str:
    """Return the line that a user sees; what is no line of ours fails."""
    result = do(*arguments)
    assert isinstance(result.exception, Exception)
    assert type(result.exception).__module__ == "normapps.errors", result.exception
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scikit-learn's digits 0, 1 and 2 as PNG, a folder a class; one is damaged."""
    from sklearn.datasets import load_digits

    found, root = load_digits(), tmp_path_factory.mktemp("digits")
    for label in range(3):
        (root / f"digit {label}").mkdir()
        for number, pixels in enumerate(found.images[found.target == label][:40]):
            picture = Image.fromarray((pixels * 15).astype(np.uint8))
            picture.save(root / f"digit {label}" / f"{number}.png")
    (root / "digit 1" / "cut.png").write_bytes((root / "digit 1" / "0.png").read_bytes()[:60])
    return root


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted by Ctrl-C in its third step, then resumed by itself."""
    folder, step = tmp_path_factory.mktemp("gan") / "run", GanTrainer.step

    def interrupted(self: GanTrainer, number: int) -> dict[str, float]:
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GanTrainer, "step", interrupted)
        stopped = do("train", "--data", digits, "--cond", "-o", folder, *SMALL)
    assert stopped.exit_code == 130
    assert int(load_checkpoint(folder / CHECKPOINT)[1]["step"]) == 3
    assert not (folder / "generator").exists()
    assert done("train", "--resume", "-o", folder).strip() == str(folder / "generator")
    return folder


def test_train_interrupt_resume_is_one_run(digits: Path, run: Path, tmp_path: Path) -> None:
    told = do("train", "--data", digits, "--cond", "-o", tmp_path / "run", *SMALL)
    assert told.exit_code == 0
    assert "cut.png" in told.stderr
    assert "120 pictures of 28×28 grey" in told.stderr
    whole, parts = (load_checkpoint(each / CHECKPOINT) for each in (tmp_path / "run", run))
    assert whole[1] == parts[1]
    assert all(torch.equal(value, parts[0][name]) for name, value in whole[0].items())
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 6


def test_evaluate(digits: Path, run: Path, tmp_path: Path) -> None:
    said = done(
        "evaluate", run, "--data", digits, "--extractor", "fmnist-cnn", "--fakes", 60,
        "--subset-size", 20, "--splits", 2, "--device", "cpu", "-o", tmp_path / "report.json",
    )  # fmt: skip
    assert "Fréchet distance" in said
    assert "FID" not in said
    told = json.loads((tmp_path / "report.json").read_text())
    for part in ("fmnist-cnn", "120 real", "60 drawn", "standing", "EMA", "floor"):
        assert part in told["line"]
    assert told["floor"]["fd"] < told["scores"]["fd"]


def test_sample_and_interpolate(run: Path, tmp_path: Path) -> None:
    grid, way = tmp_path / "grid.png", tmp_path / "way.gif"
    said = done("sample", "-m", run, "--seeds", "0-3", "-o", grid, "--device", "cpu")
    assert "digit 0, digit 1, digit 2" in said
    assert "12 pictures" in said
    done("interpolate", "-m", run, "--seeds", "0,1", "--class", "digit 2", "--frames", 3,
         "-o", way, "--device", "cpu")  # fmt: skip
    with Image.open(grid) as page, Image.open(way) as moving:
        assert len(np.unique(np.asarray(page))) > 50
        assert getattr(moving, "n_frames", 1) == 4


def test_export_and_inspect(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "generator.pt2"
    said = done("export", "-m", run, "-o", out)
    assert "differs from torch by" in said
    z, y = torch.randn(2, 8), torch.tensor([0, 2])
    again = torch.export.load(out).module()(z, y)
    assert again.shape == (2, 1, 28, 28)
    rows = json.loads(done("inspect", run, "--json"))
    assert len(rows) > 8
    assert not any(row["is_stale"] for row in rows)


def test_one_picture_mixed_pictures_and_missing_classes(digits: Path, tmp_path: Path) -> None:
    place, out = tmp_path / "pictures", tmp_path / "run"
    place.mkdir()
    shutil.copy(digits / "digit 0" / "0.png", place / "a.png")
    train = ("train", "--data", place, "-o", out, *SMALL)
    assert f"{place}: holds 1 readable picture; there must be at least 2" in refused(*train)
    Image.new("CMYK", (60, 9), (9, 99, 0, 9)).save(place / "b.jpg")
    Image.new("RGBA", (5, 40), (200, 0, 0, 128)).save(place / "c.png")
    Image.new("I;16", (1, 1), 40_000).save(place / "d.png")
    assert "--cond" in refused(*train, "--cond")
    assert "unknown model 'nothing'" in refused(
        *train, "--score-every", 2, "--extractor", "nothing"
    )
    assert not out.exists()
    told = do(*train, "--dry-run")
    assert told.exit_code == 0
    assert "4 pictures of 28×28 RGB" in told.stderr


def test_a_file_that_is_damaged_or_of_another_kind(tmp_path: Path) -> None:
    for name, bytes_ in (("cut.zip", b"PK\x03\x04 no more"), ("empty.npz", b""), ("x.txt", b"x")):
        (tmp_path / name).write_bytes(bytes_)
        said = refused("train", "--data", tmp_path / name, "-o", tmp_path / "run", *SMALL)
        assert name in said
    assert not (tmp_path / "run").exists()


def test_a_run_of_other_options_or_pictures(digits: Path, run: Path) -> None:
    before = (run / CHECKPOINT).read_bytes()
    train = ("train", "--data", digits, "--cond", "-o", run, *SMALL)
    assert "was started with --d-norm sn, not gn" in refused(*train, "--d-norm", "gn")
    assert "--resume --latent 9: the run was started with 8" in refused(
        "train", "--resume", "-o", run, "--latent", 9
    )
    said = refused("train", "--resume", "-o", run, "--data", digits / "digit 1")
    assert "class" in said
    assert (run / CHECKPOINT).read_bytes() == before


def test_a_full_disk_loses_nothing(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third checkpoint finds no room."""
    out, save = tmp_path / "run", loop.save_checkpoint

    def full(path: Path, tensors: dict[str, torch.Tensor], values: dict[str, object]) -> None:
        if values["step"] == 6:
            raise OSError(28, "No space left on device")
        save(path, tensors, values)

    monkeypatch.setattr(loop, "save_checkpoint", full)
    said = refused("train", "--data", digits, "-o", out, *SMALL)
    assert said.startswith(f"{out}: the disk is full; make room, then `normapps gan train --resume")
    monkeypatch.undo()
    assert int(load_checkpoint(out / CHECKPOINT)[1]["step"]) == 4
    done("train", "--resume", "-o", out)
    assert int(load_checkpoint(out / CHECKPOINT)[1]["step"]) == 6
