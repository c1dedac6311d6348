"""The shipped networks, and weights that somebody downloaded."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from normapps.errors import InputError
from normapps.files import sha256
from normapps.models import shipped
from normapps.models.adain_tiny import AdainTiny
from normapps.models.folder import load_model, read_manifest, save_model
from normapps.models.shipped import (
    card,
    list_shipped,
    parameter_count,
    read_weights,
    resolve_model,
    shipped_folder,
)

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


class Custom:
    """Something that only running code of the file could make."""


@pytest.fixture
def two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the shipped folder with two networks, one of them without a card."""
    arguments = {"width": 8, "deep": 8, "hidden": 4}
    for name in ("adain-mini", "adain-other"):
        folder = tmp_path / "pretrained" / name
        save_model(folder, AdainTiny(**arguments), builder="adain-tiny", arguments=arguments)
    (tmp_path / "pretrained" / "adain-mini" / "README.md").write_text("# Mini\n")
    (tmp_path / "pretrained" / "no-model").mkdir()
    monkeypatch.setattr(shipped, "_root", lambda: tmp_path / "pretrained")
    return tmp_path / "pretrained"


def test_the_package_ships_adain_tiny() -> None:
    assert "adain-tiny" in list_shipped()


@pytest.mark.parametrize("name", list_shipped())
def test_every_shipped_network_opens_and_has_a_card(name: str) -> None:
    assert isinstance(load_model(shipped_folder(name)), nn.Module)
    assert card(name).startswith("# ")
    assert read_manifest(shipped_folder(name)).builder


def test_names_are_found(two_models: Path) -> None:
    assert list_shipped() == ("adain-mini", "adain-other")
    assert shipped_folder("adain-mini") == two_models / "adain-mini"
    assert card("adain-mini") == "# Mini\n"


def test_an_unknown_name_gets_the_nearest(two_models: Path) -> None:
    with pytest.raises(InputError, match="unknown model 'adain-minni'; did you mean 'adain-mini'"):
        shipped_folder("adain-minni")
    with pytest.raises(InputError, match="known: adain-mini, adain-other"):
        card("zzz")


def test_without_a_card_the_manifest_speaks(two_models: Path) -> None:
    arguments = {"width": 8, "deep": 8, "hidden": 4}
    folder = two_models / "trained"
    history = [{"step": 7, "trained": "by hand"}]
    network = AdainTiny(**arguments)
    save_model(folder, network, builder="adain-tiny", arguments=arguments, history=history)
    lines = card(str(folder)).splitlines()
    assert lines[0] == f"# {folder}"
    assert "A model of builder adain-tiny." in lines
    assert "- trained: by hand" in lines
    (folder / "README.md").mkdir()
    with pytest.raises(InputError, match=r"README\.md: cannot be read"):
        card(str(folder))


def test_a_model_is_a_name_or_a_folder(two_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model("adain-mini") == two_models / "adain-mini"
    assert resolve_model(two_models / "no-model") == two_models / "no-model"
    monkeypatch.chdir(two_models)
    assert resolve_model("no-model") == Path("no-model")
    assert resolve_model("./adain-mini") == Path("adain-mini")
    with pytest.raises(InputError, match="did you mean 'adain-mini'"):
        resolve_model("adain-mimi")
    with pytest.raises(InputError, match="away/model: no such model folder"):
        resolve_model("away/model")


def test_parameters_are_counted_without_reading_them(two_models: Path) -> None:
    model = load_model(two_models / "adain-mini")
    expected = sum(value.numel() for value in model.state_dict().values())
    assert parameter_count(two_models / "adain-mini") == expected
    (two_models / "adain-mini" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="is no safetensors file"):
        parameter_count(two_models / "adain-mini")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pth.tar"])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
def test_weights_are_read_from_torch_files(tmp_path: Path, suffix: str, wrapper: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save({wrapper: STATE, "epoch": 3} if wrapper else STATE, path)
    read = read_weights(path, sha256(path))
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[key], STATE[key]) for key in STATE)


def test_weights_are_read_from_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path)
    read = read_weights(path, sha256(path).upper())
    assert all(torch.equal(read[key], STATE[key]) for key in STATE)


def test_a_wrong_hash_is_refused_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"whatever")
    with pytest.raises(InputError, match="damaged or changed, sha256 is"):
        read_weights(path, "0" * 64)


def _write(path: Path, content: object) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": Custom()}, "pickled objects are refused"),
        (nn.Linear(2, 2), "pickled objects are refused"),
        (pickle.dumps({"weight": [1.0]}, protocol=2), "pickled objects are refused"),
        (b"", "pickled objects are refused"),
        (b"PK\x03\x04 half of an archive", "pickled objects are refused"),
        ([STATE["bias"]], "holds no state dict but list"),
        ({}, "holds no state dict but dict"),
        ({"weight": 3}, "entry 'weight' is int, not a named tensor"),
        ({5: STATE["bias"]}, "entry 5 is Tensor, not a named tensor"),
    ],
    ids=["object", "module", "pickle", "empty", "archive", "list", "nothing", "number", "unnamed"],
)
def test_what_holds_no_plain_tensors_is_refused(
    tmp_path: Path, content: object, message: str
) -> None:
    path = tmp_path / "weights.pth"
    _write(path, content)
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"weights{suffix}"
        torch.save(STATE, path) if suffix == ".pt" else save_file(STATE, path)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(InputError, match="is no"):
            read_weights(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such weight file"):
        read_weights(tmp_path / "weights.pt")
