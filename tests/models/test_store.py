from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from normapps.errors import InputError
from normapps.files import sha256
from normapps.models import shipped, store
from normapps.models.adain_tiny import AdainTiny
from normapps.models.folder import load_model, read_manifest, save_model
from normapps.models.shipped import card, resolve_model
from normapps.models.store import (
    add_model,
    list_stored,
    pull_model,
    remove_model,
    store_root,
    stored_folder,
)
from normapps.models.vgg_cascade import VggCascade


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NORMAPPS_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def weights(tmp_path: Path) -> list[Path]:
    """Encoder and decoder of relu1_1, as others write them."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3))
    decoder = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(4, 3, 3))
    files = [tmp_path / "vgg.pth", tmp_path / "decoder.pth"]
    for file, network in zip(files, (encoder, decoder), strict=True):
        torch.save(network.state_dict(), file)
    return files


def shipped_like(folder: Path) -> Path:
    arguments = {"width": 8, "deep": 8, "hidden": 4}
    return save_model(folder, AdainTiny(**arguments), builder="adain-tiny", arguments=arguments)


def test_weight_files_become_a_model_that_is_found_by_name(root: Path, weights: list[Path]) -> None:
    assert list_stored() == ()
    folder = add_model("mine", weights, method="ot")
    assert folder == root / "mine" == stored_folder("mine") == resolve_model("mine")
    assert list_stored() == ("mine",)
    network = load_model(folder)
    assert isinstance(network, VggCascade)
    assert network.method == "ot"
    (step,) = read_manifest(folder).history
    assert step["files"] == [{"name": file.name, "sha256": sha256(file)} for file in weights]
    assert step["urls"] == []
    assert sha256(weights[0]) in card("mine")
    assert "relu1_1" in card("mine")


def test_a_name_is_used_once_unless_overwritten(weights: list[Path]) -> None:
    add_model("mine", weights)
    with pytest.raises(InputError, match="mine: exists already; --overwrite replaces it"):
        add_model("mine", weights)
    add_model("mine", weights, method="cholesky", overwrite=True)
    assert read_manifest(stored_folder("mine")).arguments["method"] == "cholesky"


def test_a_model_folder_is_copied_and_checked(tmp_path: Path) -> None:
    folder = shipped_like(tmp_path / "trained")
    (folder / "README.md").write_text("# Trained\n")
    copied = add_model("mine", [folder], sha256=[sha256(folder / "model.json")])
    assert isinstance(load_model(copied), AdainTiny)
    assert card("mine") == "# Trained\n"
    with pytest.raises(InputError, match=r"model\.json: damaged or changed"):
        add_model("other", [folder], sha256=["0" * 64])
    with pytest.raises(InputError, match="is a whole model; add it alone and without a method"):
        add_model("other", [folder], method="wct")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"model\.safetensors: damaged or changed"):
        add_model("other", [folder])
    with pytest.raises(InputError, match="is the model 'mine' already"):
        add_model("mine", [copied], overwrite=True)
    assert list_stored() == ("mine",)


def test_hashes_are_compared_in_order(weights: list[Path]) -> None:
    hashes = [sha256(file) for file in weights]
    with pytest.raises(InputError, match=r"vgg\.pth: damaged or changed"):
        add_model("mine", weights, sha256=hashes[::-1])
    with pytest.raises(InputError, match="--sha256: 1 for 2 files; give one for each, in order"):
        add_model("mine", weights, sha256=hashes[:1])
    with pytest.raises(InputError, match="--sha256 'abc': must be 64 hexadecimal digits"):
        add_model("mine", weights, sha256=["abc", "abc"])
    assert list_stored() == ()
    add_model("mine", weights, sha256=[hashes[0].upper(), hashes[1]])


@pytest.mark.parametrize("name", ["", "Mine", "a/b", "../up", ".hidden", "ä"])
def test_names_that_cannot_be_are_refused(name: str, weights: list[Path]) -> None:
    with pytest.raises(InputError, match="use small letters, digits"):
        add_model(name, weights)


def test_shipped_names_are_taken(weights: list[Path]) -> None:
    with pytest.raises(InputError, match="'adain-tiny': is that of a shipped model"):
        add_model("adain-tiny", weights)


def test_a_pulled_model_can_be_pulled_again(weights: list[Path]) -> None:
    urls = [file.as_uri() for file in weights]
    seen: list[tuple[str, int, int]] = []
    folder = pull_model("mine", urls, progress=lambda *each: seen.append(each))
    size = weights[0].stat().st_size
    assert seen[0] == (urls[0], size, size)
    assert read_manifest(folder).history[0]["urls"] == urls
    (folder / "model.safetensors").write_bytes(b"lost")
    assert isinstance(load_model(pull_model("mine")), VggCascade)
    weights[1].write_bytes(weights[0].read_bytes())
    with pytest.raises(InputError, match=r"decoder\.pth: damaged or changed"):
        pull_model("mine")  # no longer the files that it was made of
    assert isinstance(load_model(folder), VggCascade)


def test_what_cannot_be_pulled_is_said(weights: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no address is known; name its files by --from URL"):
        pull_model("mine")
    add_model("mine", weights)
    with pytest.raises(InputError, match="was not pulled; name its files by --from URL"):
        pull_model("mine")
    with pytest.raises(InputError, match=r"ftp://x/y: must begin with https:// or file://"):
        pull_model("other", ["ftp://x/y"])
    missing = (tmp_path / "missing.pth").as_uri()
    with pytest.raises(InputError, match=r"missing\.pth: cannot be read"):
        pull_model("other", [missing])
    with pytest.raises(InputError, match="--sha256: 1 for 2 files"):
        pull_model("other", [missing, missing], sha256=["0" * 64])
    with pytest.raises(InputError, match="mine: exists already"):
        pull_model("mine", [file.as_uri() for file in weights])
    assert list_stored() == ("mine",)


def test_a_file_that_ends_too_early_is_not_kept(
    weights: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normapps.models import download

    class Short:
        headers = {"Content-Length": "100"}  # noqa: RUF012

        def __init__(self) -> None:
            self.chunks = [b"half", b""]

        def __enter__(self) -> Short:
            return self

        def __exit__(self, *_: object) -> None: ...

        def read(self, _: int) -> bytes:
            return self.chunks.pop(0)

    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *_, **__: Short())
    with pytest.raises(InputError, match=r"cannot be read .4 of 100 bytes came"):
        pull_model("mine", ["https://example.org/vgg.pth"])
    assert list_stored() == ()


def test_removed_means_gone(weights: list[Path]) -> None:
    add_model("mine", weights)
    assert remove_model("mine") == store_root() / "mine"
    assert list_stored() == ()
    with pytest.raises(InputError, match="unknown model 'mine'"):
        remove_model("mine")


def test_shipped_models_go_first_and_the_nearest_of_all_names_is_suggested(
    root: Path, weights: list[Path]
) -> None:
    add_model("painter", weights)
    shipped_like(root / "adain-tiny")  # put there by hand
    assert resolve_model("adain-tiny") == shipped.shipped_folder("adain-tiny")
    with pytest.raises(InputError, match="unknown model 'paintre'; did you mean 'painter'"):
        resolve_model("paintre")
    with pytest.raises(InputError, match=r"'wct16' is not here yet; .* normapps models add wct16"):
        resolve_model("wct16")


def test_where_models_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NORMAPPS_MODELS")
    monkeypatch.setattr(store.sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert store_root() == tmp_path / "data" / "normapps" / "models"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store_root() == tmp_path / ".local" / "share" / "normapps" / "models"
    monkeypatch.setattr(store.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert store_root() == tmp_path / "local" / "normapps" / "models"
