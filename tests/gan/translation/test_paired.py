"""Pairs read from folders and archives, what is left out, and the batches."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import shapes, write_pairs

from normapps.engine.distributed import World
from normapps.errors import InputError
from normapps.gan.translation.paired import (
    PairDraws,
    PairPool,
    nearest_square,
    read_pairs,
    square,
    to_network,
)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    return write_pairs(tmp_path, 6, 16)


def _read(places: tuple[Path, Path], size: int = 16, limit: int | None = None) -> PairPool:
    return read_pairs(str(places[0]), str(places[1]), size=size, limit=limit)


def test_pairs_are_read_as_they_stand(places: tuple[Path, Path]) -> None:
    pool = _read(places)
    maps, pictures = shapes(6, 16)
    np.testing.assert_array_equal(pool.maps.numpy(), maps)
    np.testing.assert_array_equal(pool.pictures.permute(0, 2, 3, 1).numpy(), pictures)
    assert pool.legend.values == (0, 1, 2)
    assert (pool.names[0], pool.failed, pool.cropped) == ("000", (), 0)


def test_a_zip_is_read_as_its_folder(places: tuple[Path, Path], tmp_path: Path) -> None:
    packed = tuple(Path(shutil.make_archive(str(place), "zip", place)) for place in places)
    assert zipfile.is_zipfile(packed[0])
    assert _read((packed[0], packed[1])).identity() == _read(places).identity()


def test_colours_and_ids_give_the_same_classes(places: tuple[Path, Path]) -> None:
    before = _read(places)
    colours = np.array([(0, 0, 9), (0, 9, 0), (9, 0, 0)], np.uint8)  # ascending as numbers
    for path in places[0].iterdir():
        Image.fromarray(colours[np.asarray(Image.open(path))]).save(path)
    after = _read(places)
    assert (before.legend.kind, after.legend.kind) == ("ids", "colours")
    assert torch.equal(before.maps, after.maps)


def test_what_cannot_be_used_is_left_out_with_a_line(places: tuple[Path, Path]) -> None:
    maps, pictures = places
    Image.new("L", (8, 8)).save(maps / "001.png")
    (pictures / "002.png").write_bytes(b"nothing")
    (pictures / "003.png").unlink()
    Image.new("RGB", (16, 16)).save(maps / "004.png")
    pool = _read(places)
    assert pool.names == ("000", "005")
    said = "\n".join(pool.failed)
    assert len(pool.failed) == 4
    assert "003.png: there is no picture called '003'" in said
    assert f"{maps}/001.png: is 8×8 and its picture 16×16" in said
    assert f"{pictures}/002.png" in said
    assert f"{maps}/004.png: is a map of colours, and {maps}/000.png one of ids" in said


def test_too_few_pairs_are_refused_with_the_first_reason(places: tuple[Path, Path]) -> None:
    for path in list(places[1].iterdir())[1:]:
        path.unlink()
    with pytest.raises(
        InputError, match=r"1 usable pairs .* training needs 2; the first: .*no pic"
    ):
        _read(places)


def test_maps_of_one_class_are_refused_by_their_place(places: tuple[Path, Path]) -> None:
    for path in places[0].iterdir():
        Image.new("L", (16, 16), 5).save(path)
    with pytest.raises(InputError, match=rf"^{places[0]}: 1 class in all; there must be at least"):
        _read(places)


def test_a_picture_beyond_the_limit_names_no_flag_that_is_not_there(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 40)).save(places[1] / "001.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (line,) = _read(places).failed
    assert line.startswith(f"{places[1]}/001.png: 1600 pixels are more than the limit of 1000; ")
    assert line.endswith("; make it smaller first")


def test_a_limit_and_a_lack_of_memory(places: tuple[Path, Path]) -> None:
    assert _read(places, limit=3).names == ("000", "001", "002")
    with pytest.raises(InputError, match=r"6 pairs of 16×16 need .* GB.*--limit 2 or a smaller"):
        read_pairs(str(places[0]), str(places[1]), size=16, max_bytes=4 * 256 * 2)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_map_and_picture_are_cut_at_the_same_place(tmp_path: Path, shape: tuple[int, int]) -> None:
    ids = np.zeros(shape, np.uint8)
    ids[shape[0] // 2 :, shape[1] // 2 :] = 1
    for place, pixels in ((tmp_path / "m", ids), (tmp_path / "p", ids * 255)):
        place.mkdir()
        for name in "ab":
            Image.fromarray(pixels).save(place / f"{name}.png")
    pool = _read((tmp_path / "m", tmp_path / "p"), size=min(shape) // 2)
    np.testing.assert_array_equal(pool.pictures[:, 0].numpy() > 127, pool.maps.numpy() == 1)
    assert 0 < int(pool.maps.sum()) < pool.maps.numel()
    assert pool.cropped == (2 if shape[0] != shape[1] else 0)


def test_the_nearest_position_of_each_centre_is_taken() -> None:
    places = np.arange(36, dtype=np.uint8).reshape(6, 6)
    np.testing.assert_array_equal(nearest_square(places, 2), [[7, 10], [25, 28]])
    np.testing.assert_array_equal(nearest_square(places[:, :2], 4)[0], [12, 12, 13, 13])
    flat = np.full((4, 6, 3), 77, np.uint8)
    np.testing.assert_array_equal(square(flat, 3), np.full((3, 3, 3), 77))


def test_every_so_manieth_pair_is_kept_out(places: tuple[Path, Path]) -> None:
    train, held = _read(places).split(3)
    assert train.names == ("000", "001", "003", "004")
    assert held.names == ("002", "005")
    assert _read(places).split(0)[0].names == tuple(f"00{i}" for i in range(6))


def test_the_identity_is_of_the_content_and_not_of_the_place(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    before = _read(places).identity()
    moved = tmp_path / "elsewhere"
    shutil.move(places[0], moved)
    assert _read((moved, places[1])).identity() == before
    assert _read((moved, places[1]), limit=5).identity() != before


def test_batches_depend_on_seed_step_and_rank_alone(places: tuple[Path, Path]) -> None:
    pool, cpu = _read(places), torch.device("cpu")

    def batch(step: int, rank: int = 0, seed: int = 0) -> torch.Tensor:
        return PairDraws(pool, 2, seed, World(rank, 2), cpu, 0.5).batch(step)[1]

    assert torch.equal(batch(5), batch(5))
    for other in (batch(6), batch(5, rank=1), batch(5, seed=1)):
        assert not torch.equal(batch(5), other)


def test_map_and_picture_are_mirrored_together(places: tuple[Path, Path]) -> None:
    pool = _read(places)
    plain = PairDraws(pool, 6, 0, World(), torch.device("cpu"))
    mirrored = PairDraws(pool, 6, 0, World(), torch.device("cpu"), 1.0)
    for given, turned in zip(plain.batch(0), mirrored.batch(0), strict=True):
        assert torch.equal(given.flip(-1), turned)
    mixed = PairDraws(pool, 6, 0, World(), torch.device("cpu"), 0.5)
    for step in range(4):
        maps, pictures = mixed.batch(step)
        for label_map, picture in zip(maps, pictures, strict=True):
            rows = [i for i in range(6) if torch.equal(to_network(pool.pictures[i]), picture)]
            turned = [
                i for i in range(6) if torch.equal(to_network(pool.pictures[i]).flip(-1), picture)
            ]
            expected = pool.maps[rows[0]] if rows else pool.maps[turned[0]].flip(-1)
            assert torch.equal(label_map, expected.long())


def test_pictures_fill_the_range_of_the_network() -> None:
    values = to_network(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist()
    assert values == pytest.approx([-1, -0.6, 1])
