"""Translating many files: kept, failed and refused ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from normapps.data.images import read_image
from normapps.data.picture import Picture, with_pixels
from normapps.errors import InputError, UsageError
from normapps.gan.translation.job import Translated, TranslateJob
from normapps.gan.translation.options import TranslateRunOptions


class Negative:
    """A translator that turns pictures into their negatives, and counts them."""

    fingerprint = "0" * 64
    trained_at = 0

    def __init__(self) -> None:
        self.count = 0

    def file(self, source: Path | BinaryIO, options: TranslateRunOptions) -> Picture:
        self.count += 1
        picture = read_image(source, max_pixels=options.max_pixels)
        if picture.size == (13, 13):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return with_pixels(picture, 255 - picture.pixels)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    place = tmp_path / "photos"
    (place / "more").mkdir(parents=True)
    for name in ("a.png", "b.png", "more/c.png"):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(place / name)
    return place


def go(
    output: Path, *pictures: Path, translator: Negative | None = None, **chosen: object
) -> list[Translated]:
    options = TranslateRunOptions(model="m", output=str(output), **chosen)  # type: ignore[arg-type]
    return list(TranslateJob(options, [str(each) for each in pictures], translator or Negative()))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_folder_keeps_its_tree(photos: Path, tmp_path: Path) -> None:
    results = go(tmp_path / "out", photos)
    assert [(each.status, each.width, each.height) for each in results] == [("done", 12, 9)] * 3
    for name in ("a.png", "b.png", "more/c.png"):
        assert np.array_equal(pixels(tmp_path / "out" / name), 255 - pixels(photos / name))


def test_a_job_run_again_keeps_what_is_there(photos: Path, tmp_path: Path) -> None:
    first, second = Negative(), Negative()
    go(tmp_path / "out", photos, translator=first)
    (tmp_path / "out" / "b.png").unlink()
    results = go(tmp_path / "out", photos, translator=second)
    assert [each.status for each in results] == ["kept", "done", "kept"]
    assert (first.count, second.count) == (3, 1)
    again = go(tmp_path / "out", photos, size=20)
    assert {each.status for each in again} == {"failed"}
    assert "other options; --overwrite" in again[0].error
    assert {each.status for each in go(tmp_path / "out", photos, size=20, overwrite=True)} == {
        "done"
    }
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert {json.loads(line)["recipe"]["size"] for line in lines} == {20}


def test_one_bad_file_stops_nothing(photos: Path, tmp_path: Path) -> None:
    (photos / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("RGB", (13, 13)).save(photos / "b.png")
    results = go(tmp_path / "out", photos)
    assert [each.status for each in results] == ["failed", "failed", "done"]
    assert results[0].error.startswith(f"{photos / 'a.png'}: ")
    assert results[1].error == f"{photos / 'b.png'}: out of memory; a smaller --size needs less"
    assert not (tmp_path / "out" / "a.png").exists()


def test_pictures_much_larger_than_in_training_are_noted_once(photos: Path, tmp_path: Path) -> None:
    translator = Negative()
    translator.trained_at = 3  # 12 is four times as much: not yet
    assert [each.notes for each in go(tmp_path / "3", photos, translator=translator)] == [()] * 3
    translator.trained_at = 2
    notes = [each.notes for each in go(tmp_path / "2", photos, translator=translator)]
    assert notes[1:] == [(), ()]
    assert notes[0] == ("trained at 2 px: a smaller --size is nearer to that (said once)",)


def test_a_folder_that_may_not_be_written_to_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda place, _: Path(place) != tmp_path / "out")
    with pytest.raises(InputError, match=rf"^{tmp_path}/out: may not be written to; change its"):
        go(tmp_path / "out" / "x.png", photos / "a.png")


def test_what_nobody_expects_is_raised(photos: Path, tmp_path: Path) -> None:
    class Broken(Negative):
        def file(self, source: Path | BinaryIO, options: TranslateRunOptions) -> Picture:
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        go(tmp_path / "out", photos, translator=Broken())


def test_a_file_is_not_replaced_unless_asked(photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "one.png"
    target.write_text("mine")
    (result,) = go(target, photos / "a.png")
    assert result.error == f"{target}: exists already; --overwrite replaces it"
    assert target.read_text() == "mine"
    (result,) = go(target, photos / "a.png", overwrite=True)
    assert result.status == "done"


def test_outputs_that_do_not_fit_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is itself a picture to be read"):
        go(photos, photos, overwrite=True)
    with pytest.raises(UsageError, match=r"cannot write \.xyz"):
        go(tmp_path / "a.xyz", photos / "a.png")
    with pytest.raises(UsageError, match="one file cannot hold 3 results"):
        go(tmp_path / "a.png", photos)
    with pytest.raises(InputError, match="no pictures there"):
        go(tmp_path / "out", tmp_path / "none*.png")


def test_results_in_the_folder_are_no_pictures_to_translate(photos: Path) -> None:
    go(photos / "out", photos)
    results = go(photos / "out", photos)
    assert [each.status for each in results] == ["kept"] * 3
