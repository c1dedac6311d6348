"""`normapps gan train`: from pictures to a run, its plan, and going on with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from normapps.cli import gan_train
from normapps.cli.gan import app as gan
from normapps.errors import InputError, UsageError

app = typer.Typer()
app.command("train")(gan_train.train)
app.command("other")(lambda: None)

FEW = [
    "--config", "sngan-28", "--width", "4", "--d-width", "4", "--latent", "8", "--steps", "4",
    "--batch-size", "4", "--n-dis", "1", "--standing", "16", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of small pictures: grey, colour, palette, of several sizes, one damaged."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(12):
        folder = root / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        side = 20 + 3 * number
        pixels = rng.integers(0, 256, (side, 24, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).convert(("RGB", "L", "P")[number % 3])
        picture.save(folder / f"{number}.png")
    (root / "class0" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return root


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_train_stop_and_resume_alone(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, said, told = run("--data", pictures, "--cond", "-o", out, *FEW, "--stop-after", "1")
    assert code == 0
    assert said.strip() == str(out / "generator")
    assert "stopped at step 1 of 4; --resume goes on" in told
    assert "damaged.png" in told
    with pytest.raises(UsageError, match=r"--resume --lr-g 0\.5: the run was started with 0\.0002"):
        run("--resume", "-o", out, "--lr-g", "0.5")
    code, said, told = run("--resume", "-o", out, "--json")
    assert code == 0
    assert json.loads(said) == {
        "folder": str(out), "finished": True, "steps": 4, "generator": str(out / "generator"),
    }  # fmt: skip
    assert "stopped" not in told
    assert json.loads((out / "options.json").read_text())["stop_after"] == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_dry_run_tells_all_and_writes_nothing(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, said, _ = run("--data", pictures, "-o", out, *FEW, "--dry-run")
    assert code == 0
    assert "12 pictures, 28×28×3" in said
    for word in ("generator", "discriminator", "GFLOP", "memory", "4 steps"):
        assert word in said
    assert not list(tmp_path.iterdir())
    found = json.loads(run("--data", pictures, "-o", out, *FEW, "--dry-run", "--json")[1])
    assert found["pictures"] == 12
    assert found["seconds"] > 0
    # D on 5 batches of 8 and 8 more, thrice each: the generator alone is several megaflop
    assert found["flops"] > 1e7
    assert found["generator"] < found["flops"]


def test_refusals_are_one_line_each(pictures: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    Image.new("L", (30, 30)).save(alone / "one.png")
    for given, kind, said in (
        (["--data", alone], InputError, "there must be at least"),
        (["--data", pictures / "class1", "--cond"], InputError, "class"),
        (["--data", tmp_path / "nothing"], InputError, "nothing"),
        ([], UsageError, "--data: is missing"),
        (["--data", pictures, "--config", "sngan-33"], UsageError, "did you mean 'sngan-32'"),
        (["--resume"], InputError, "is no run of gan train"),
    ):
        with pytest.raises(kind, match=said) as caught:
            run("-o", tmp_path / "run", *given, "--device", "cpu")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


def test_it_is_a_command_of_gan() -> None:
    result = CliRunner().invoke(gan, ["train", "--help"])
    assert result.exit_code == 0
    for name in ("--data", "--resume", "--dry-run", "--n-dis", "--stop-after", "--compile"):
        assert name in result.output
