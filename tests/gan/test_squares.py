"""Picture files as squares: what the file of decoded pictures keeps, and when it counts."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.data.pictures import Pictures
from normapps.gan.data import read_pool


def read(folder: Path, cache: Path | None, size: int = 8, channels: int = 0) -> torch.Tensor:
    def quiet(line: str) -> None:
        """Nobody listens."""

    pool = read_pool(
        str(folder), size=size, channels=channels, conditional=True, cache=cache, say=quiet
    )
    assert pool.classes == ("a", "b")
    assert len(pool.failed) == 1
    assert pool.notes[0].startswith("resampled")
    assert pool.labels is not None
    return torch.cat([pool.images.flatten(), pool.labels])


@pytest.fixture
def folder(tmp_path: Path, photos: dict[str, np.ndarray]) -> Path:
    for i, name in enumerate(("china", "coffee", "rocket", "flower")):
        path = tmp_path / "set" / "ab"[i % 2] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos[name][:64, :50]).save(path)
    (tmp_path / "set" / "a" / "broken.png").write_bytes(b"none")
    return tmp_path / "set"


def test_pictures_are_decoded_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "run" / "pictures.safetensors"
    first = read(folder, cache)
    assert torch.equal(read(folder, None), first)
    monkeypatch.setattr(Pictures, "picture", lambda *_: pytest.fail("a picture was decoded"))
    assert torch.equal(read(folder, cache), first)


@pytest.mark.parametrize("change", ["size", "channels", "time", "name", "class", "fewer"])
def test_other_pictures_are_decoded_anew(folder: Path, tmp_path: Path, change: str) -> None:
    cache = tmp_path / "pictures.safetensors"
    read(folder, cache)
    before = cache.read_bytes()
    path = folder / "a" / "china.png"
    if change == "time":
        Image.new("RGB", (20, 20)).save(path)
        os.utime(path, (1, 1))
    elif change == "name":
        path.rename(folder / "a" / "later.png")
    elif change == "class":
        path.rename(folder / "b" / "china.png")
    elif change == "fewer":
        path.unlink()
    size, channels = 9 if change == "size" else 8, 1 if change == "channels" else 0
    found = read(folder, cache, size, channels)
    assert torch.equal(found, read(folder, None, size, channels))
    assert cache.read_bytes() != before


def test_other_labels_of_the_same_pictures_count(folder: Path, tmp_path: Path) -> None:
    names = [str(path) for path in sorted(folder.rglob("*.png"))]
    found = []
    for labels in ("aabab", "aabba"):
        lines = [f"{name} {label}\n" for name, label in zip(names, labels, strict=True)]
        (tmp_path / "list.txt").write_text("".join(lines))
        found.append(read(tmp_path / "list.txt", tmp_path / "pictures.safetensors"))
    assert not torch.equal(*found)
