"""`normapps norm` from end to end, on real photographs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from normapps.cli.main import main
from normapps.norm.population.statistics import Population
from normapps.norm.registry import list_norms

Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, as the shell would; stdout and stderr."""

    def command(*arguments: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["normapps", "norm", *map(str, arguments)])
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
    for name in ("astronaut", "coffee", "chelsea"):
        shutil.copy(photo_files[name], folder)
    return folder


def test_list(run: Run) -> None:
    text = run("list")[0]
    assert all(name in text for name in (*list_norms(), "oni", "stiefel", "lamb"))
    assert all(title in text for title in ("Activations", "Weights", "Gradients", "Inputs"))
    assert "recovery [paper], cost" in text
    assert "3T products O(d³) a group" in " ".join(text.split())
    found = json.loads(run("list", "z*", "--json", "--kind", "activation")[0])
    assert [(entry["name"], entry["kind"], entry["paper"]) for entry in found] == [
        ("zca", "activation", "Huang et al. 2018")
    ]
    assert "Activations" not in run("list", "--kind", "weight")[0]


def test_list_of_nothing(run: Run) -> None:
    assert run("list", "bacth", code=1)[1].startswith("error: unknown norm 'bacth'; did you")
    _, errors = run("list", "batch", "--kind", "weight", code=1)
    assert errors.startswith("error: unknown weight method 'batch'; known:")


def test_show(run: Run) -> None:
    text = run("show", "iternorm")[0]
    assert "Newton" in text
    assert "running_cov" in text
    assert json.loads(run("show", "domain", "--json")[0])["needs_condition"]
    text = run("show", "own")[0]
    assert 'normalize_weights_(model, "own")' in text
    assert "eigh O(rows³)" in text


def test_convert_and_stats(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    shown, _ = run("convert", "test_resnet", "--to", "ibn", "-o", out)
    assert "random weights" in shown
    assert shown.splitlines()[-1] == str(out)
    population = tmp_path / "population.safetensors"
    shown, errors = run("stats", out, folder, "-o", population, "--device", "cpu", "--rows", "3")
    assert shown.splitlines()[-1] == str(population)
    assert "3 pictures" in shown
    assert "160×160" in errors
    assert Population.load(population).samples == 3


def test_stats_as_json(run: Run, folder: Path, tmp_path: Path) -> None:
    population = tmp_path / "population.safetensors"
    (folder / "broken.png").write_bytes(b"no picture")
    shown, _ = run(
        "stats", "test_resnet", folder, "-o", population, "--json", "--device", "cpu", code=1
    )
    facts = json.loads(shown)
    assert facts["pictures"] == 3
    assert "broken.png" in facts["failed"][0]
    assert facts["shifts"][0]["mean"] >= facts["shifts"][-1]["mean"]
    assert population.exists()


def test_wrong_usage_is_one_line(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert (
        "did you mean 'resnet18'" in run("convert", "resnet81", "--to", "bin", "-o", out, code=1)[1]
    )
    assert run("convert", "test_resnet", "--to", "zca", "--set", "size", "-o", out, code=2)[1]
    words = ("--to", "batch", "--match", "all-of-it")
    assert "unknown" in run("convert", "test_resnet", *words, "-o", out, code=1)[1]
    _, errors = run(
        "stats", "test_resnet", tmp_path / "none", "-o", tmp_path / "p.safetensors", code=1
    )
    assert errors.splitlines()[-1].startswith("error: ")
    assert not out.exists()


def test_a_model_without_norm_layers(run: Run, folder: Path, tmp_path: Path) -> None:
    _, errors = run(
        "stats", "mixer_s32_224", folder, "-o", tmp_path / "p.safetensors", "--limit", "1", code=1
    )
    assert "error: " in errors
    assert errors.count("\n") <= 3
