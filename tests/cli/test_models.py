"""`normapps models`: the shipped networks as a table, as cards and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
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
