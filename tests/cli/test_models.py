"""`normapps models`: the shipped networks as a table, as cards and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from normapps.cli.main import app
from normapps.errors import InputError
from normapps.files import sha256
from normapps.models import shipped
from normapps.models.adain_tiny import AdainTiny
from normapps.models.folder import load_model, save_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one shipped network, a stand-in."""
    arguments = {"width": 8, "deep": 8, "hidden": 4}
    folder = tmp_path / "adain-mini"
    save_model(folder, AdainTiny(**arguments), builder="adain-tiny", arguments=arguments)
    (folder / "README.md").write_text("# Mini\nPaints *little*.\n")
    monkeypatch.setattr(shipped, "_root", lambda: tmp_path)
    return folder


def test_list_shows_a_table(folder: Path) -> None:
    shown = CliRunner().invoke(app, ["models", "list"])
    assert shown.exit_code == 0
    parameters = sum(value.numel() for value in load_model(folder).state_dict().values())
    digest = sha256(folder / "model.safetensors")[:12]
    for text in ("adain-mini", "adain-tiny", f"{parameters:,}", digest):
        assert text in shown.output


def test_list_prints_json(folder: Path) -> None:
    (model,) = json.loads(CliRunner().invoke(app, ["models", "list", "--json"]).stdout)
    assert (model["name"], model["builder"]) == ("adain-mini", "adain-tiny")
    assert model["arguments"] == {"width": 8, "deep": 8, "hidden": 4}
    assert model["folder"] == str(folder)
    assert model["bytes"] == sum(file.stat().st_size for file in folder.iterdir())


def test_show_renders_the_card(folder: Path) -> None:
    shown = CliRunner().invoke(app, ["models", "show", "adain-mini"])
    assert shown.exit_code == 0
    assert "Paints little." in shown.output
    assert f"sha256 {sha256(folder / 'model.safetensors')}\n" in shown.output
    assert f"{folder}\n" in shown.output


def test_show_prints_json(folder: Path) -> None:
    printed = CliRunner().invoke(app, ["models", "show", "adain-mini", "--json"])
    assert json.loads(printed.stdout)["card"] == "# Mini\nPaints *little*.\n"


def test_an_unknown_name_gets_the_nearest(folder: Path) -> None:
    error = CliRunner().invoke(app, ["models", "show", "adain-min"]).exception
    assert isinstance(error, InputError)
    assert str(error) == "unknown model 'adain-min'; did you mean 'adain-mini'?"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weight files of a classic stylizer of two levels, and an empty store."""
    torch.manual_seed(0)
    monkeypatch.setenv("NORMAPPS_MODELS", str(tmp_path / "models"))
    pair = {
        "conv0": (3, 3, 1), "conv11": (4, 3, 3), "conv12": (4, 4, 3), "conv21": (5, 4, 3),
    }, {"conv21": (4, 5, 3), "conv12": (4, 4, 3), "conv11": (3, 4, 3)}  # fmt: skip
    (tmp_path / "files").mkdir()
    for name, shapes in zip(("2SE", "2SD"), pair, strict=True):
        state = {}
        for key, (out, inputs, side) in shapes.items():
            state[f"{key}.weight"] = torch.randn(out, inputs, side, side) / (3 * inputs**0.5)
            state[f"{key}.bias"] = torch.full((out,), 0.1)
        torch.save(state, tmp_path / "files" / f"{name}.pth")
    return tmp_path / "files"


def test_a_model_of_ones_own_is_added_listed_used_and_removed(
    own: Path, tmp_path: Path, coffee: np.ndarray, astronaut: np.ndarray
) -> None:
    run = CliRunner()
    added = run.invoke(app, ["models", "add", "mine", str(own)])
    assert added.stdout.strip() == str(tmp_path / "models" / "mine")
    listed = json.loads(run.invoke(app, ["models", "list", "--json"]).stdout)
    (model,) = [each for each in listed if not each["shipped"]]
    assert (model["name"], model["builder"]) == ("mine", "vgg-cascade")
    assert model["arguments"]["method"] == "adain"
    assert "2SE.pth" in run.invoke(app, ["models", "show", "mine"]).stdout
    Image.fromarray(astronaut[:60, :70]).save(tmp_path / "photo.png")
    Image.fromarray(coffee[:80, :80]).save(tmp_path / "wave.png")
    outs = []
    for method in ("auto", "adain", "ot"):
        out = tmp_path / f"{method}.png"
        command = ["stylize", str(tmp_path / "photo.png"), "--style", str(tmp_path / "wave.png")]
        chosen = ["--model", "mine", "--method", method, "--device", "cpu", "-o", str(out)]
        assert run.invoke(app, [*command, *chosen]).exit_code == 0
        outs.append(np.asarray(Image.open(out)))
    assert outs[0].shape == (60, 70, 3)
    assert np.array_equal(outs[0], outs[1])
    assert not np.array_equal(outs[0], outs[2])
    assert run.invoke(app, ["models", "remove", "mine"]).exit_code == 0
    assert not (tmp_path / "models" / "mine").exists()


def test_a_damaged_model_does_not_hide_the_others(own: Path, tmp_path: Path) -> None:
    run = CliRunner()
    for name in ("mine", "other"):
        assert run.invoke(app, ["models", "add", name, str(own)]).exit_code == 0
    (tmp_path / "models" / "mine" / "model.safetensors").write_bytes(b"no weights")
    with pytest.warns(UserWarning, match=r"mine.model\.safetensors: is no safetensors file"):
        listed = run.invoke(app, ["models", "list", "--json"])
    names = [model["name"] for model in json.loads(listed.stdout) if not model["shipped"]]
    assert names == ["other"]


def test_a_style_file_of_a_classic_model_is_its_own(own: Path, tmp_path: Path) -> None:
    run = CliRunner()
    run.invoke(app, ["models", "add", "mine", str(own), "--method", "wct"])
    picture, style = str(tmp_path / "photo.png"), str(tmp_path / "wave.style")
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture)
    assert (
        run.invoke(app, ["style", "encode", picture, "--model", "mine", "-o", style]).exit_code == 0
    )
    command = ["stylize", picture, "--style", style, "--device", "cpu", "-o"]
    out = str(tmp_path / "a.png")
    assert run.invoke(app, [*command, out, "--model", "mine"]).exit_code == 0
    error = run.invoke(app, [*command, str(tmp_path / "b.png")])
    assert "was encoded by other weights" in str(error.exception) + error.output


def test_a_model_is_pulled_by_its_address(own: Path, tmp_path: Path) -> None:
    command = ["models", "pull", "mine"]
    for file in sorted(own.iterdir()):
        command += ["--from", file.as_uri(), "--sha256", sha256(file)]
    pulled = CliRunner().invoke(app, command)
    assert pulled.exit_code == 0
    assert (tmp_path / "models" / "mine" / "model.json").is_file()
    command[-1] = "0" * 64
    refused = CliRunner().invoke(app, [*command, "--overwrite"])
    error = refused.exception
    assert isinstance(error, InputError)
    assert refused.output == ""  # no empty line before the error's
    assert "2SE.pth: damaged or changed" in str(error)
