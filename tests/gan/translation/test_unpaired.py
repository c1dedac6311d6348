"""Which squares a step sees: cut from the pictures, the same whenever it comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.data.pool import Pool
from normapps.engine.distributed import World
from normapps.errors import InputError
from normapps.gan.translation.options import TranslateOptions
from normapps.gan.translation.unpaired import (
    Squares,
    random_squares,
    read_domains,
    to_bytes,
    to_floats,
)

CPU = torch.device("cpu")


def numbered(count: int, side: int = 20) -> torch.Tensor:
    """Pictures in which every pixel tells where it is, and the last channel which picture."""
    down, along = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    pictures = torch.stack([down, along, torch.zeros_like(down)]).repeat(count, 1, 1, 1)
    pictures[:, 2] = torch.arange(count)[:, None, None]
    return pictures.to(torch.uint8)


def test_squares_are_cut_out_of_their_picture() -> None:
    pictures = numbered(64)
    cut = random_squares(pictures, 16, 0.5, torch.Generator().manual_seed(0))
    assert cut.shape == (64, 3, 16, 16)
    corners, mirrored = set(), 0
    for number, found in enumerate(cut):
        assert (found[2] == number).all()
        is_mirrored = bool(found[1, 0, 0] > found[1, 0, 1])
        square = found.flip(2) if is_mirrored else found
        top, left = int(square[0, 0, 0]), int(square[1, 0, 0])
        assert torch.equal(square, pictures[number, :, top : top + 16, left : left + 16])
        corners.add((top, left))
        mirrored += is_mirrored
    assert {top for top, _ in corners} == {left for _, left in corners} == {0, 1, 2, 3, 4}
    assert 16 < mirrored < 48


def test_without_mirroring_none_is() -> None:
    cut = random_squares(numbered(16), 16, 0.0, torch.Generator().manual_seed(0))
    assert (cut[:, 1, 0, 0] < cut[:, 1, 0, 1]).all()


def test_bytes_and_floats_are_each_others() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    floats = to_floats(values)
    assert floats[0] == -1
    assert floats[255] == 1
    assert torch.equal(to_bytes(floats), values)
    assert to_bytes(torch.tensor([-3.0, 1.7])).tolist() == [0, 255]


def test_a_step_has_its_own_batch_whenever_it_comes() -> None:
    options = TranslateOptions(size=16, batch_size=4)
    first, again = (Squares(Pool(numbered(10)), options, 0, World(), CPU).batch for _ in range(2))
    wanted = [first(step) for step in range(5)]
    assert torch.equal(again(3), wanted[3])
    assert torch.equal(again(1), wanted[1])
    assert not torch.equal(wanted[0], wanted[1])
    assert wanted[0].dtype == torch.float32
    seen = torch.cat(wanted)[:, 2, 0, 0]
    assert sorted(to_bytes(seen[:10]).tolist()) == list(range(10))  # a round sees every picture


def test_processes_see_other_pictures_and_domains_another_order() -> None:
    options = TranslateOptions(size=16, batch_size=4)
    pool = Pool(numbered(32))
    batches = [
        Squares(pool, options, 0, World(rank, 2), CPU).batch(0)[:, 2, 0, 0] for rank in (0, 1)
    ]
    assert len(set(torch.cat(batches).tolist())) == 8
    other = Squares(pool, options, 1, World(0, 2), CPU).batch(0)[:, 2, 0, 0]
    assert not torch.equal(other, batches[0])


def test_samples_are_the_centres_of_pictures_over_the_whole_domain() -> None:
    pool = Pool(numbered(11))
    fixed = to_bytes(Squares(pool, TranslateOptions(size=16), 0, World(), CPU).fixed(3))
    assert fixed[:, 2, 0, 0].tolist() == [0, 5, 10]
    assert torch.equal(fixed, pool.images[[0, 5, 10], :, 2:18, 2:18])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
        for number in range(4):
            pixels = rng.integers(0, 256, (24, 30, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path / "source", tmp_path / "target"


def test_domains_are_read_a_little_larger_than_the_squares(folders: tuple[Path, Path]) -> None:
    source, target = map(str, folders)
    Image.new("L", (40, 40), 7).save(folders[0] / "grey.png")
    said: list[str] = []
    domains = read_domains(TranslateOptions(source=source, target=target, size=16), said.append)
    assert domains.source.images.shape == (5, 3, 18, 18)
    assert domains.target.images.shape == (4, 3, 18, 18)
    assert said
    other = read_domains(TranslateOptions(source=target, target=source, size=16), said.append)
    assert domains.identity()["--source"] == other.identity()["--target"]
    assert domains.identity()["--source"] != other.identity()["--source"]


def test_a_damaged_file_is_left_out_and_said(folders: tuple[Path, Path]) -> None:
    (folders[0] / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    said: list[str] = []
    options = TranslateOptions(source=str(folders[0]), target=str(folders[1]), size=16)
    assert len(read_domains(options, said.append).source) == 4
    assert any("bad.png" in line for line in said)


def test_a_place_that_is_missing_is_named(folders: tuple[Path, Path]) -> None:
    options = TranslateOptions(source=str(folders[0]), target="nowhere", size=16)
    with pytest.raises(InputError, match="nowhere"):
        read_domains(options, lambda _: None)
