"""`normapps translate train`: which kind is trained, what belongs to the other, resuming."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from normapps.cli import translate_run, translate_train
from normapps.errors import InputError, UsageError
from normapps.gan.translation.options import TranslateOptions
from normapps.gan.translation.paired_options import PairedOptions
from normapps.gan.translation.train_flags import TrainFlags, chosen

SMALL = ["--size", "16", "--ups", "2", "--width", "4", "--hidden", "4", "--d-width", "4",
         "--scales", "1", "--batch-size", "2", "--steps", "3", "--device", "cpu"]  # fmt: skip

app = typer.Typer()
app.command("train")(translate_train.train)
app.command("run")(translate_run.run)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Five maps of halves, and pictures of two colours."""
    found = tmp_path / "maps", tmp_path / "pictures"
    for place in found:
        place.mkdir()
    for index in range(5):
        ids = np.zeros((16, 16), np.uint8)
        ids[:, 2 * index + 3 :] = 1
        Image.fromarray(ids).save(found[0] / f"{index}.png")
        Image.fromarray(np.dstack([ids * 200, 255 - ids * 90, ids])).save(found[1] / f"{index}.png")
    return found


def _run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_maps_train_stop_resume_and_are_drawn(places: tuple[Path, Path], tmp_path: Path) -> None:
    maps, pictures = places
    out = tmp_path / "run"
    told = _run("train", "--maps", maps, "--target", pictures, "-o", out, *SMALL,
                "--stop-after", 1)  # fmt: skip
    assert "5 pairs of 16×16, 2 classes, ids" in told
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1
    assert _run("train", "--resume", "-o", out).splitlines()[-1] == str(out / "generator")
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3
    assert json.loads((out / "options.json").read_text())["stop_after"] == 0
    _run("run", "-m", out, maps, "-o", tmp_path / "drawn", "--device", "cpu")
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 5
    with pytest.raises(UsageError, match=r"--hidden 8: .* was started with 4"):
        _run("train", "--resume", "-o", out, "--hidden", 8)
    with pytest.raises(UsageError, match="--cycle-weight: goes with --source, not with --maps"):
        _run("train", "--resume", "-o", out, "--cycle-weight", 8)


def test_what_is_typed_decides_the_class_and_the_rest_has_its_defaults(tmp_path: Path) -> None:
    values = TrainFlags(maps="m", target="t", source="s", size=32)
    paired = chosen(values, ["maps", "target", "size"], tmp_path, False)
    assert paired == PairedOptions(maps="m", target="t", size=32)
    unpaired = chosen(values, ["source", "target", "size"], tmp_path, False)
    assert unpaired == TranslateOptions(source="s", target="t", size=32)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["maps", "source"], "--maps and --source: pairs .* or two domains"),
        (["target"], "--source or --maps is missing"),
        (["maps", "blocks"], "--blocks: goes with --source, not with --maps"),
        (["source", "latent"], "--latent: goes with --maps, not with --source"),
        (["maps", "size"], "--size 20: must be a multiple of 16"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(
    typed: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        chosen(TrainFlags(size=20), typed, tmp_path, False)


def test_nothing_to_resume_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run to resume"):
        chosen(TrainFlags(), [], tmp_path, True)


def test_the_help_says_which_flag_is_whose() -> None:
    told = {each.name: each.metadata["help"] for each in dataclasses.fields(TrainFlags)}
    assert told["ups"].endswith(" [with --maps]")
    assert told["cycle_weight"].endswith(" [with --source]")
    assert told["lr"].endswith(" [with --maps: 0.0001]")
    assert "[with" not in told["maps"] + told["source"] + told["target"] + told["steps"]
    assert "--maps" in _run("train", "--help")
