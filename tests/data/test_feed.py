"""Pictures for several passes: the same batches from memory and decoded anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.data.feed import Feed
from normapps.data.pictures import Pictures
from normapps.models.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((8, 8), (8, 8))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for i in range(7):
        file = tmp_path / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), 30 * i, np.uint8)).save(file)
    (tmp_path / "a" / "bad.png").write_bytes(b"no picture")
    return tmp_path


def _values(feed: Feed, **part: int) -> list[tuple[list[int], list[int]]]:
    found = []
    for images, labels in feed.part(**part):
        mean, std = PREPROCESSING.mean[0], PREPROCESSING.std[0]
        pixels = ((images[:, 0, 0, 0].double() * std + mean) * 255).round().int().tolist()
        assert labels is not None
        found.append((pixels, labels.tolist()))
    return found


@pytest.mark.parametrize("max_bytes", [0, 10**9], ids=["decoded", "remembered"])
def test_every_pass_gives_the_same(place: Path, max_bytes: int) -> None:
    pictures = Pictures(place, PREPROCESSING)
    feed = Feed(pictures, 3, torch.device("cpu"), max_bytes=max_bytes)
    assert feed.remembered == (8 if max_bytes else 0)
    first = _values(feed)
    assert _values(feed) == first
    assert feed.decoding > 0
    assert len(feed) == 7
    assert ["bad.png" in line for line in feed.failed] == [True]
    seen = sorted(pair for pixels, labels in first for pair in zip(pixels, labels, strict=True))
    assert seen == [(30 * i, i % 2) for i in range(7)]
    halves = [_values(feed, number=number, of=2) for number in (1, 2)]
    assert sorted(halves[0] + halves[1]) == sorted(first)


def test_dtype_and_progress(place: Path) -> None:
    told: list[tuple[int, int]] = []
    feed = Feed(
        Pictures(place, PREPROCESSING),
        4,
        torch.device("cpu"),
        torch.bfloat16,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(i, 8) for i in range(1, 9)]
    assert next(iter(feed.part()))[0].dtype == torch.bfloat16
