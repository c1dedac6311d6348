"""Model folders: what is written is read back, and every fault is one clear line."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import normapps
from normapps.errors import InputError
from normapps.files import sha256
from normapps.models import folder
from normapps.models.folder import load_model, read_manifest, save_model


class Tiny(nn.Module):
    """A network with parameters, a buffer, and one tensor under two names."""

    running_mean: Tensor

    def __init__(self, channels: int = 3, act: str = "relu") -> None:
        super().__init__()
        if act != "relu":
            raise ValueError(f"unknown act {act!r}\nrelu is known")
        self.conv = nn.Conv2d(channels, channels, 1)
        self.again = self.conv
        self.register_buffer("running_mean", torch.randn(channels))


@pytest.fixture(autouse=True)
def tiny_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(folder.BUILDERS, "tiny", f"{__name__}:Tiny")


def _saved(path: Path, **arguments: Any) -> Path:
    return save_model(path / "model", Tiny(**arguments), builder="tiny", arguments=arguments)


def _edit(path: Path, **changes: Any) -> None:
    file = path / "model.json"
    values = json.loads(file.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in values.items() if value is not ...}
    file.write_text(json.dumps(kept), encoding="utf-8")


def _fault(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_saved_model_is_loaded_in_eval_mode(tmp_path: Path) -> None:
    model = Tiny(5).train()
    path = save_model(tmp_path / "a" / "b", model, builder="tiny", arguments={"channels": 5})
    loaded = load_model(path)
    assert isinstance(loaded, Tiny)
    assert not loaded.training
    assert model.state_dict().keys() == loaded.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert loaded.conv.weight.requires_grad


def test_the_package_offers_load_model(tmp_path: Path) -> None:
    assert isinstance(normapps.load_model(_saved(tmp_path)), Tiny)


def test_loading_leaves_the_random_state(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    before = torch.get_rng_state()
    load_model(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_manifest_says_how_the_model_was_made(tmp_path: Path) -> None:
    path = save_model(
        tmp_path / "model",
        Tiny(2),
        builder="tiny",
        arguments={"channels": 2},
        preprocessing={"range": [0, 1]},
        history=[{"did": "train", "steps": 3}],
    )
    manifest = read_manifest(path)
    assert (manifest.builder, manifest.arguments) == ("tiny", {"channels": 2})
    assert manifest.preprocessing == {"range": [0, 1]}
    assert manifest.history == [{"did": "train", "steps": 3}]
    assert manifest.sha256 == {"model.safetensors": sha256(path / "model.safetensors")}
    written = json.loads((path / "model.json").read_text(encoding="utf-8"))
    assert (written["format"], written["version"]) == ("normapps-model", 1)


def test_the_same_model_is_the_same_bytes(tmp_path: Path) -> None:
    model = Tiny()
    one, two = (
        save_model(tmp_path / name, model, builder="tiny", arguments={}) for name in ("1", "2")
    )
    for file in ("model.safetensors", "model.json"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_everything_has_the_permissions_of_an_ordinary_file(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        path = _saved(tmp_path)
    finally:
        os.umask(umask)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (path, *path.iterdir())}
    assert modes == {"model": 0o755, "model.safetensors": 0o644, "model.json": 0o644}


def test_an_existing_folder_is_kept_unless_told(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    before = sha256(path / "model.safetensors")
    with pytest.raises(InputError, match="exists already; --overwrite"):
        _saved(tmp_path)
    assert sha256(path / "model.safetensors") == before


def test_overwriting_replaces_the_model_and_keeps_the_card(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    (path / "styles").mkdir()
    (path / "styles" / "ink.style").write_text("moments")
    save_model(path, Tiny(7), builder="tiny", arguments={"channels": 7}, overwrite=True)
    assert (path / "styles" / "ink.style").read_text() == "moments"
    assert isinstance(load_model(path), Tiny)
    assert read_manifest(path).arguments == {"channels": 7}
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert isinstance(load_model(_saved(tmp_path)), Tiny)


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is no model folder"):
        save_model(tmp_path / "model", Tiny(), builder="tiny", arguments={}, overwrite=True)
    assert (tmp_path / "model" / "letter.txt").read_text() == "dear"


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("dear")
    with pytest.raises(InputError, match="is a file, not a folder"):
        _saved(tmp_path)
    with pytest.raises(InputError, match=r"cannot be made, .*model is a file"):
        _saved(tmp_path / "model")


def test_an_unknown_builder_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown builder 'tinny'; did you mean 'tiny'"):
        save_model(tmp_path / "model", Tiny(), builder="tinny", arguments={})
    assert not any(tmp_path.iterdir())


def test_a_failure_while_writing_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _saved(tmp_path)
    rename = Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if Path(target) == path and not self.name.endswith(".old"):
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="no space left"):
        save_model(path, Tiny(9), builder="tiny", arguments={"channels": 9}, overwrite=True)
    assert read_manifest(path).arguments == {}
    assert isinstance(load_model(path), Tiny)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"version": 2}, "model.json: version 2 is newer than 1; upgrade normapps"),
    ({"version": "1"}, "model.json: version '1' is not a whole number"),
    ({"format": "other"}, 'is no model manifest ("format" is not "normapps-model")'),
    ({"builder": "tinny"}, "unknown builder 'tinny'; did you mean 'tiny'?, or upgrade normapps"),
    ({"builder": ...}, 'model.json: "builder" is missing'),
    ({"arguments": []}, 'model.json: "arguments" is missing or is no dict'),
    ({"history": {}}, 'model.json: "history" is missing or is no list'),
    ({"sha256": {}}, "model.json: lists no sha256 of model.safetensors"),
    ({"sha256": {"model.safetensors": 5}}, 'model.json: "sha256" holds something'),
    ({"sha256": {"model.safetensors": "0" * 64}}, "model.safetensors: damaged or changed"),
    ({"arguments": {"width": 3}}, "model.json: builder 'tiny' refuses its arguments"),
    ({"arguments": {"act": "x"}}, "refuses its arguments (unknown act 'x' relu is known)"),
    ({"arguments": {"channels": 4}}, "running_mean is (3,), not (4,) and 4 more"),
]


@pytest.mark.parametrize(("changes", "message"), FAULTS, ids=[text for _, text in FAULTS])
def test_a_wrong_manifest_is_one_clear_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = _saved(tmp_path)
    _edit(path, **changes)
    fault = _fault(path)
    assert message in fault
    assert str(path) in fault


def test_missing_parts_are_named(tmp_path: Path) -> None:
    assert _fault(tmp_path / "nothing") == f"{tmp_path / 'nothing'}: no such folder"
    assert "is no model folder, it has no model.json" in _fault(tmp_path)
    path = _saved(tmp_path)
    (path / "model.safetensors").unlink()
    assert "model.safetensors: cannot be read (No such file" in _fault(path)


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000, "[1]"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    path = _saved(tmp_path)
    (path / "model.json").write_bytes(text.encode("latin-1"))
    assert f"{path / 'model.json'}: is no" in _fault(path)


def _rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Replace the weights, with a true hash, so that only their content is wrong."""
    file = path / "model.safetensors"
    save_file(change(folder.read_safetensors(file)), file)
    _edit(path, sha256={"model.safetensors": sha256(file)})


def test_wrong_keys_are_named(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    _rewrite(path, lambda state: {k: v for k, v in state.items() if k != "running_mean"})
    assert "does not fit builder 'tiny': running_mean is missing; is" in _fault(path)
    _rewrite(path, lambda state: state | {"running_mean": torch.zeros(3), "z": torch.zeros(1)})
    assert "does not fit builder 'tiny': z is not wanted; is" in _fault(path)


def test_a_file_that_is_no_safetensors_is_refused_even_with_a_true_hash(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    (path / "model.safetensors").write_bytes(b"not tensors")
    _edit(path, sha256={"model.safetensors": sha256(path / "model.safetensors")})
    assert "model.safetensors: is no safetensors file" in _fault(path)


@given(data=st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_damage_goes_unseen(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = _saved(tmp_path_factory.mktemp("damaged"))
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), label="truncate"):
        file.write_bytes(content[:position])
    else:
        content[position] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
    assert "model.safetensors: damaged or changed" in _fault(path)
