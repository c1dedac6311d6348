from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normapps.data.sources import PictureSource
from normapps.errors import InputError


def picture(value: int, height: int = 20, width: int = 30) -> np.ndarray:
    """Flat in all channels, so that a picture can be told by its value."""
    return np.full((height, width, 3), value, np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures of value 10·i in two levels, and two files that are no pictures."""
    place = tmp_path / "folder"
    for i in range(10):
        file = place / f"group{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(picture(10 * i)))
    (place / "notes.txt").write_text("no picture")
    (place / "folder.png").mkdir()
    return place


def values(source: PictureSource) -> list[int]:
    return [int(source.load(i)[0, 0, 0]) for i in range(len(source))]


def test_a_folder_is_searched_deep_and_sorted(folder: Path) -> None:
    source = PictureSource([str(folder)])
    assert len(source) == 10
    assert source.name(0) == str(Path("group0") / "0.png")
    assert values(source) == [0, 20, 40, 60, 80, 10, 30, 50, 70, 90]
    assert source.load(3).shape == (20, 30, 3)
    assert source.load(3).dtype == np.uint8


def test_a_tar_gives_what_its_members_hold_sorted_by_name(tmp_path: Path) -> None:
    files = {f"b/{i}.PNG": png(picture(i)) for i in (3, 1, 2)}
    tar = make_tar(
        tmp_path / "some.tar", {**files, "b/readme.md": b"text", "a/9.jpg": files["b/3.PNG"]}
    )
    source = PictureSource([str(tar)])
    assert [source.name(i) for i in range(4)] == ["a/9.jpg", "b/1.PNG", "b/2.PNG", "b/3.PNG"]
    assert values(source) == [3, 1, 2, 3]


def test_places_follow_each_other_in_the_order_given(folder: Path, tmp_path: Path) -> None:
    tar = str(make_tar(tmp_path / "some.tar", {"x.png": png(picture(200))}))
    assert values(PictureSource([tar, str(folder)]))[0] == 200
    assert values(PictureSource([str(folder), tar]))[-1] == 200


@pytest.mark.parametrize("every", [1, 3, 4, 10])
def test_held_out_pictures_and_the_rest_are_a_partition(folder: Path, every: int) -> None:
    whole = values(PictureSource([str(folder)]))
    held = values(PictureSource([str(folder)], every, held=True))
    assert held == whole[every - 1 :: every]
    if every > 1:
        rest = values(PictureSource([str(folder)], every))
        assert sorted(held + rest) == sorted(whole)
        assert not set(held) & set(rest)


def test_nothing_left_is_an_error(folder: Path) -> None:
    with pytest.raises(InputError, match="no picture is left with 1 of 1 held out"):
        PictureSource([str(folder)], 1)
    with pytest.raises(InputError, match="no picture is left with 1 of 11 held out"):
        PictureSource([str(folder)], 11, held=True)


def test_a_place_that_cannot_be_used_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder, archive, list or picture"):
        PictureSource([str(folder), str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no picture \(.*\.jpg"):
        PictureSource([str(tmp_path / "empty")])
    packed = make_tar(tmp_path / "some.tar.gz", {"x.png": png(picture(1))}, "w:gz")
    with pytest.raises(InputError, match=r"some\.tar\.gz: not an uncompressed tar .*; unpack it"):
        PictureSource([str(packed)])


def test_a_damaged_picture_is_named_with_its_place(tmp_path: Path) -> None:
    whole = png(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8))
    tar = make_tar(tmp_path / "some.tar", {"good.png": whole, "broken.png": whole[:3000]})
    source = PictureSource([str(tar)])
    assert source.load(1).shape == (60, 60, 3)
    with pytest.raises(InputError, match=r"some\.tar/broken\.png: is truncated"):
        source.load(0)


def test_a_crop_is_a_square_scaled_within_the_spread(tmp_path: Path) -> None:
    """On a ramp from left to right a crop's range of values tells its width, its mean the place."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    source = PictureSource([str(tmp_path)])
    rng = np.random.default_rng(0)
    crops = [source.crop(0, rng, 50, 2.0) for _ in range(200)]
    assert {(crop.shape, crop.dtype) for crop in crops} == {((50, 50, 3), np.dtype(np.uint8))}
    spans = np.array([int(crop.max()) - int(crop.min()) for crop in crops])
    assert 47 <= spans.min() < 55
    assert 92 < spans.max() <= 99
    mirrored = np.mean([crop[0, 0, 0] > crop[0, -1, 0] for crop in crops])
    assert 0.4 < mirrored < 0.6
    assert min(crop.min() for crop in crops) < 5
    assert max(crop.max() for crop in crops) > 194


def test_a_crop_depends_on_the_generator_only(folder: Path, astronaut: np.ndarray) -> None:
    Image.fromarray(astronaut).save(folder / "astronaut.png")
    source = PictureSource([str(folder)])
    cuts = [source.crop(0, np.random.default_rng(seed), 32, 1.6) for seed in (5, 5, 6)]
    assert source.name(0) == "astronaut.png"
    assert (cuts[0] == cuts[1]).all()
    assert (cuts[0] != cuts[2]).any()


def test_every_place_holds_out_its_own_pictures(tmp_path: Path) -> None:
    """Whichever places are named together, a picture is held out or it is not."""
    for name, count in (("a", 5), ("b", 7)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{name}{i}.png")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    names = []
    for places in ([a, b], [b]):
        source = PictureSource(places, 3, held=True)
        names.append({source.name(i) for i in range(len(source))})
    assert names == [{"a2.png", "b2.png", "b5.png"}, {"b2.png", "b5.png"}]


def test_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    for name in ("one.png", "._one.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert len(PictureSource([str(tmp_path)])) == 1


def test_zips_hold_pictures_as_folders_and_tars_do(folder: Path, tmp_path: Path) -> None:
    wanted = PictureSource([str(folder)])
    packed = tmp_path / "some.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(len(wanted)):
            archive.writestr(wanted.name(i), wanted.file(i).getvalue())
    found = PictureSource([str(packed)])
    assert [found.name(i) for i in range(10)] == [wanted.name(i) for i in range(10)]
    assert values(found) == values(wanted)
    assert len({found.where(i) for i in range(10)}) == 10


def test_pictures_keep_their_alpha(tmp_path: Path) -> None:
    pixels = np.zeros((4, 5, 4), np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    picture = PictureSource([str(tmp_path)]).picture(0)
    assert picture.alpha is not None
    assert picture.alpha.tolist() == pixels[..., 3].tolist()


def test_a_picture_beyond_the_limit_is_refused_without_an_option_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"600 pixels .* limit of 100; make it smaller first$"):
        PictureSource([str(tmp_path)]).load(0)
