"""The picture of onnxruntime is torch's, within one level of 255."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from normapps.data.images import Picture
from normapps.errors import InputError, NormappsError
from normapps.models import adain_tiny
from normapps.style.onnx import stylizer as module
from normapps.style.onnx.styles import blend, load_style
from normapps.style.onnx.stylizer import OnnxStylizer
from normapps.style.styles import blend as blend_torch
from normapps.style.stylizer import Stylizer


def _apart(one: Picture, other: Picture) -> int:
    return int(np.abs(one.pixels.astype(int) - other.pixels).max())


@pytest.mark.parametrize("size", [(96, 128), (61, 83), (9, 3), (1, 1)])
def test_any_size_is_painted_as_torch_paints_it(
    onnx: OnnxStylizer,
    torch_stylizer: Stylizer,
    astronaut: np.ndarray,
    coffee: np.ndarray,
    size: tuple[int, int],
) -> None:
    photo, painting = Picture(astronaut[: size[0], : size[1]]), Picture(coffee)
    style, other = (each.style(painting, size=77) for each in (onnx, torch_stylizer))
    found, want = onnx(photo, style), torch_stylizer(photo, other)
    assert found.pixels.shape == (*size, 3)
    assert _apart(found, want) <= 1
    if min(size) > 16:
        assert np.abs(found.pixels.astype(int) - photo.pixels).mean() > 10


@pytest.mark.parametrize("mode", ["none", "luma", "transport"])
def test_strength_size_colour_and_alpha_are_torchs(
    onnx: OnnxStylizer,
    torch_stylizer: Stylizer,
    astronaut: np.ndarray,
    coffee: np.ndarray,
    mode: str,
) -> None:
    opacity = np.arange(96 * 80, dtype=np.uint8).reshape(96, 80)
    photo = Picture(astronaut[100:196, 200:280], alpha=opacity)
    options = {"alpha": 0.4, "size": 70, "preserve_color": mode}
    found, want = (
        each(photo, each.style(Picture(coffee), size=64), **options)
        for each in (onnx, torch_stylizer)
    )
    assert _apart(found, want) <= (1 if mode == "none" else 2)  # rounded twice where recoloured
    assert found.alpha is not None
    np.testing.assert_array_equal(found.alpha, want.alpha)
    same = onnx(photo, onnx.style(Picture(coffee), size=64), alpha=0)
    np.testing.assert_array_equal(same.pixels, photo.pixels)


@pytest.mark.parametrize("side", [32, 64])
def test_tiles_equal_the_whole(
    folder: Path, onnx: OnnxStylizer, astronaut: np.ndarray, coffee: np.ndarray, side: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    photo, style = Picture(astronaut[:235, :301]), onnx.style(Picture(coffee), size=64)
    tiled = OnnxStylizer(folder, onnx.fingerprint, side)
    whole = onnx(photo, style, alpha=0.7)
    assert _apart(whole, tiled(photo, style, alpha=0.7)) <= 1
    monkeypatch.setattr(module, "_KEPT", 0)  # features computed twice
    assert _apart(whole, tiled(photo, style, alpha=0.7)) <= 1


def test_the_networks_constants_are_the_networks() -> None:
    assert module.STRIDE == adain_tiny.STRIDE
    assert module.STRIDES == adain_tiny.STRIDES
    assert module.MARGIN == adain_tiny.RECEPTIVE_FIELD


def test_style_files_and_blends_are_torchs(
    tmp_path: Path, onnx: OnnxStylizer, torch_stylizer: Stylizer, photos: dict[str, np.ndarray]
) -> None:
    measured = [torch_stylizer.style(Picture(photos[n]), size=64) for n in ("coffee", "rocket")]
    paths = [tmp_path / "a.style", tmp_path / "b.style"]
    for style, path in zip(measured, paths, strict=True):
        style.save(path)
    loaded = [load_style(path) for path in paths]
    ways = [*loaded, replace(loaded[0], colors=loaded[1].colors)]
    assert len({style.digest() for style in ways}) == len(ways)
    assert loaded[0].digest() == load_style(paths[0]).digest()
    photo = Picture(photos["astronaut"][:64, :64])
    want = torch_stylizer(photo, blend_torch(measured, (0.25, 0.75)))
    assert _apart(onnx(photo, blend(loaded, (0.25, 0.75))), want) <= 1
    blends = blend(loaded, (0.25, 0.75)), blend_torch(measured, (0.25, 0.75))
    found, want = (
        each(photo, style, mode="color")
        for each, style in zip((onnx, torch_stylizer), blends, strict=True)
    )
    assert _apart(found, want) <= 1
    assert np.abs(found.pixels.astype(int) - photo.pixels).mean() > 5
    with pytest.raises(InputError, match="different models"):
        blend([loaded[0], replace(loaded[0], model="other")], (0.5, 0.5))


def test_a_damaged_style_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.style").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"x\.style: damaged or not a style file"):
        load_style(tmp_path / "x.style")


def test_what_does_not_fit_is_one_line(onnx: OnnxStylizer, coffee: np.ndarray) -> None:
    style = onnx.style(Picture(coffee), size=64)
    with pytest.raises(InputError, match="alpha 2: must be between 0 and 1"):
        onnx(Picture(coffee), style, alpha=2)
    with pytest.raises(InputError, match="encoded by other weights"):
        onnx(Picture(coffee), replace(style, model="0"))
    with pytest.raises(InputError, match="mode photo: numpy has paint and color"):
        onnx(Picture(coffee), style, mode="photo")


def test_a_folder_without_graphs_says_what_writes_them(tmp_path: Path, folder: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    values = json.loads((bare / "model.json").read_text())
    del values["sha256"]["decoder.onnx"]
    (bare / "model.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"has no decoder\.onnx; `normapps export"):
        OnnxStylizer.load(bare)


def test_a_cascade_has_no_graphs_to_write(tmp_path: Path, folder: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    values = json.loads((bare / "model.json").read_text())
    (bare / "model.json").write_text(json.dumps(values | {"builder": "vgg-cascade"}))
    with pytest.raises(InputError, match="runs on torch alone; leave --runtime out"):
        OnnxStylizer.load(bare)


def test_a_changed_graph_is_refused(tmp_path: Path, folder: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    with (changed / "encoder.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=r"encoder\.onnx: damaged or changed"):
        OnnxStylizer.load(changed)


def test_without_onnxruntime_there_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(NormappsError, match=r"install normapps\[deploy\]"):
        OnnxStylizer.load(folder)
