"""Style files: round trip, blends, refusals; and the presets that ship."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from normapps.errors import InputError
from normapps.models.folder import read_manifest
from normapps.models.shipped import shipped_folder
from normapps.norm import Moments, adain, transfer
from normapps.style.styles import Style, blend, list_presets, load_style, preset_path


def _style(seed: int, model: str = "m") -> Style:
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(1, c, 5, 5, generator=generator) for c in (6, 4, 3))
    *levels, colors = (Moments.of(x, full=True) for x in values)
    return Style(f"s{seed}", model, tuple(levels), colors)


def _array(moments: Moments) -> np.ndarray:
    return torch.as_tensor(moments.cov)[0].double().numpy()


def _root_of(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def test_a_file_gives_the_style_back(tmp_path: Path) -> None:
    style = _style(0)
    style.save(tmp_path / "a.style")
    again = load_style(tmp_path / "a.style")
    assert (again.name, again.model) == ("s0", "m")
    for a, b in zip((*style.levels, style.colors), (*again.levels, again.colors), strict=True):
        assert torch.equal(a.mean, b.mean)
        assert torch.equal(a.var, b.var)
        assert torch.equal(a.count, b.count)
        assert a.cov is not None
        assert b.cov is not None
        assert torch.equal(a.cov.tril(), b.cov.tril())
        assert torch.equal(b.cov, b.cov.mT)


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


@pytest.mark.parametrize("method", ["wct", "cholesky"])
def test_a_blend_of_covariances_averages_stylized_features(method: str) -> None:
    a, b = _style(0), _style(1)
    content = torch.randn(1, 4, 30, 30, generator=torch.Generator().manual_seed(2)).double()
    mixed, *parts = (
        transfer(content, style.levels[1].to(torch.float64), method, eps=1e-6)
        for style in (blend([a, b], [3, 1], method=method), a, b)
    )
    assert torch.allclose(mixed, 0.75 * parts[0] + 0.25 * parts[1], atol=1e-4)


def test_a_blend_for_transport_is_the_barycentre() -> None:
    """Agueh & Carlier 2011, eq. 6.2: B = Σ wᵢ (B^½ Σᵢ B^½)^½."""
    styles, weights = [_style(i) for i in range(3)], (0.5, 0.3, 0.2)
    mixed = blend(styles, weights, method="ot")
    wanted = [style.levels[1] for style in styles]
    assert torch.allclose(
        mixed.levels[1].mean, sum(w * m.mean for w, m in zip(weights, wanted, strict=True))
    )
    for found, parts in zip(
        (mixed.levels[1], mixed.colors),
        (wanted, [style.colors for style in styles]),
        strict=True,
    ):
        root = _root_of(_array(found))
        inner = (w * _root_of(root @ _array(m) @ root) for w, m in zip(weights, parts, strict=True))
        assert np.allclose(sum(inner), _array(found), atol=1e-4)


def test_a_blend_with_all_the_weight_on_one_is_that_one() -> None:
    a, b = _style(0), _style(1)
    for method in ("adain", "wct", "ot", "cholesky"):
        mixed = blend([a, b], [0, 2], method=method)
        for found, want in zip((*mixed.levels, mixed.colors), (*b.levels, b.colors), strict=True):
            assert torch.allclose(found.mean, want.mean)
            assert torch.allclose(found.var, want.var, atol=1e-5)
            if found.cov is not None:
                assert torch.allclose(found.cov, torch.as_tensor(want.cov), atol=1e-5)


def test_blends_refuse_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="different models"):
        blend([_style(0), _style(1, "other")], [1, 1])
    with pytest.raises(InputError, match="1 weights for 2 parts"):
        blend([_style(0), _style(1)], [1])
    with pytest.raises(InputError, match="did you mean 'wct'"):
        blend([_style(0), _style(1)], [1, 1], method="wctt")


def test_every_preset_belongs_to_the_shipped_weights() -> None:
    names = list_presets()
    assert len(names) >= 12
    fingerprint = read_manifest(shipped_folder("adain-tiny")).sha256["model.safetensors"]
    for name in names:
        style = load_style(preset_path(name))
        assert (style.name, style.model) == (name, fingerprint)
        assert preset_path(name).stat().st_size <= 18_000


def test_a_file_of_other_tensors_is_damaged(tmp_path: Path) -> None:
    metadata = {
        "format": "normapps-style",
        "version": "2",
        "name": "x",
        "model": "m",
        "levels": "2",
    }
    save_file({"0.count": torch.ones(1)}, tmp_path / "x.style", metadata)
    with pytest.raises(InputError, match=r"x\.style: damaged"):
        load_style(tmp_path / "x.style")
    save_file({"0.count": torch.ones(1)}, tmp_path / "y.style", metadata | {"version": "1"})
    with pytest.raises(InputError, match=r"y\.style: not a style file of version 2"):
        load_style(tmp_path / "y.style")


def test_the_digest_tells_styles_and_models_apart() -> None:
    assert _style(0).digest() == _style(0).digest()
    assert len({s.digest() for s in (_style(0), _style(1), _style(0, "other"))}) == 3


def test_the_digest_tells_covariances_and_colors_apart() -> None:
    style, other = _style(0), _style(1)
    level = style.levels[0]
    turned = replace(level, cov=torch.as_tensor(level.cov).flip(1, 2))
    ways = (
        style,
        replace(style, levels=(turned, style.levels[1])),
        replace(style, levels=(level.diagonal(), style.levels[1])),
        replace(style, colors=other.colors),
        replace(style, colors=replace(style.colors, cov=other.colors.cov)),
    )
    assert len({each.digest() for each in ways}) == len(ways)


def test_a_blend_without_covariances_is_not_saved(tmp_path: Path) -> None:
    styles, path = [_style(0), _style(1)], tmp_path / "a.style"
    with pytest.raises(InputError, match=r"a\.style: a blend for adain has no covariances"):
        blend(styles, (1, 1)).save(path)
    assert not path.exists()
    blend(styles, (1, 1), method="ot").save(path)
    assert load_style(path).name == "s0+s1"


def test_presets_are_those_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "styles").mkdir()
    with pytest.raises(InputError, match="has no presets"):
        preset_path("ink", tmp_path)
    _style(0).save(tmp_path / "styles" / "mine.style")
    assert list_presets(tmp_path) == ["mine"]
    assert preset_path("mine", tmp_path).parent == tmp_path / "styles"
