"""Style files: round trip, blends, refusals; and the presets that ship."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from normapps.errors import InputError
from normapps.models.folder import read_manifest
from normapps.models.shipped import shipped_folder
from normapps.norm import Moments, adain
from normapps.style.styles import Style, blend, list_presets, load_style, preset_path


def _style(seed: int, model: str = "m") -> Style:
    generator = torch.Generator().manual_seed(seed)
    levels = (torch.randn(1, c, 5, 5, generator=generator) for c in (6, 4))
    return Style(f"s{seed}", model, tuple(Moments.of(x) for x in levels))


def test_a_file_gives_the_style_back(tmp_path: Path) -> None:
    style = _style(0)
    style.save(tmp_path / "a.style")
    again = load_style(tmp_path / "a.style")
    assert (again.name, again.model) == ("s0", "m")
    for a, b in zip(style.levels, again.levels, strict=True):
        assert torch.equal(a.mean, b.mean)
        assert torch.equal(a.var, b.var)
        assert torch.equal(a.count, b.count)


def test_an_existing_file_stays_without_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "a.style"
    _style(0).save(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="--overwrite"):
        _style(1).save(path)
    assert path.read_bytes() == before
    _style(1).save(path, overwrite=True)
    assert load_style(path).name == "s1"


def test_damaged_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.style: no such style file"):
        load_style(tmp_path / "none.style")
    (tmp_path / "bad.style").write_bytes(b"\x00" * 40)
    with pytest.raises(InputError, match=r"bad\.style: damaged"):
        load_style(tmp_path / "bad.style")
    save_file({"x": torch.ones(2)}, tmp_path / "other.style")
    with pytest.raises(InputError, match=r"other\.style: not a style file"):
        load_style(tmp_path / "other.style")


def test_a_blend_averages_stylized_features() -> None:
    a, b = _style(0), _style(1)
    content = torch.randn(1, 6, 7, 7)
    mixed = adain(content, blend([a, b], [3, 1]).levels[0], eps=0)
    want = 0.75 * adain(content, a.levels[0], eps=0) + 0.25 * adain(content, b.levels[0], eps=0)
    assert torch.allclose(mixed, want, atol=1e-5)
    assert blend([a, b], [3, 1]).name == "s0+s1"


def test_blends_refuse_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="different models"):
        blend([_style(0), _style(1, "other")], [1, 1])
    with pytest.raises(InputError, match="1 weights for 2 parts"):
        blend([_style(0), _style(1)], [1])


def test_every_preset_belongs_to_the_shipped_weights() -> None:
    names = list_presets()
    assert len(names) >= 12
    fingerprint = read_manifest(shipped_folder("adain-tiny")).sha256["model.safetensors"]
    for name in names:
        style = load_style(preset_path(name))
        assert (style.name, style.model) == (name, fingerprint)
        assert preset_path(name).stat().st_size <= 16_000


def test_a_file_of_other_tensors_is_damaged(tmp_path: Path) -> None:
    metadata = {"format": "normapps-style", "version": "1", "name": "x", "model": "m"}
    save_file({"0.count": torch.ones(1)}, tmp_path / "x.style", metadata)
    with pytest.raises(InputError, match=r"x\.style: damaged"):
        load_style(tmp_path / "x.style")


def test_the_digest_tells_styles_and_models_apart() -> None:
    assert _style(0).digest() == _style(0).digest()
    assert len({s.digest() for s in (_style(0), _style(1), _style(0, "other"))}) == 3


def test_presets_are_those_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "styles").mkdir()
    with pytest.raises(InputError, match="has no presets"):
        preset_path("ink", tmp_path)
    _style(0).save(tmp_path / "styles" / "mine.style")
    assert list_presets(tmp_path) == ["mine"]
    assert preset_path("mine", tmp_path).parent == tmp_path / "styles"
