"""Pictures in memory: what is read, what is left out, how much memory it may take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.data.pictures import Pictures
from normapps.data.pool import Pool
from normapps.errors import InputError
from normapps.models.preprocessing import Preprocessing

CHOSEN = Preprocessing((6, 8), (6, 8), mode="squash")
GREY = Preprocessing((6, 8), (6, 8), mode="squash", mean=(0.5,), std=(0.2,), channels=1)


@pytest.fixture
def folder(tmp_path: Path, photos: dict[str, np.ndarray]) -> Path:
    for kind, names in {"a": ("astronaut", "coffee"), "b": ("china", "flower", "rocket")}.items():
        (tmp_path / "set" / kind).mkdir(parents=True)
        for name in names:
            Image.fromarray(photos[name]).save(tmp_path / "set" / kind / f"{name}.png")
    return tmp_path / "set"


@pytest.mark.parametrize("workers", [None, 0, 2])
@pytest.mark.parametrize("chosen", [CHOSEN, GREY])
def test_a_pool_is_the_set(folder: Path, chosen: Preprocessing, workers: int | None) -> None:
    pictures = Pictures(folder, chosen)
    seen: list[tuple[int, int]] = []
    pool = Pool.read(
        pictures, workers=workers, progress=lambda done, count: seen.append((done, count))
    )
    assert len(pool) == 5
    assert pool.images.dtype == torch.uint8
    assert torch.equal(pool.images, torch.stack([pictures.cut(i) for i in range(5)]))
    assert pool.labels is not None
    assert pool.labels.tolist() == [0, 0, 1, 1, 1]
    assert (pool.classes, pool.failed) == (("a", "b"), ())
    assert seen == [(i, 5) for i in range(1, 6)]


def test_a_batch_is_a_copy_in_the_order_asked_for(folder: Path) -> None:
    pool = Pool.read(Pictures(folder, CHOSEN))
    before = pool.images.clone()
    for indices in ([4, 0, 4], torch.tensor([4, 0, 4]), np.array([4, 0, 4])):
        images, labels = pool.batch(indices)
        assert torch.equal(images, before[[4, 0, 4]])
        assert labels is not None
        assert labels.tolist() == [1, 0, 1]
        images.zero_()
        assert torch.equal(pool.images, before)


def test_damaged_pictures_are_left_out_and_named(folder: Path) -> None:
    (folder / "a" / "astronaut.png").write_bytes(b"")
    (folder / "b" / "flower.png").write_bytes(b"no picture")
    pictures = Pictures(folder, CHOSEN)
    pool = Pool.read(pictures)
    good = [1, 2, 4]  # sorted: a/astronaut a/coffee b/china b/flower b/rocket
    assert torch.equal(pool.images, torch.stack([pictures.cut(i) for i in good]))
    assert pool.labels is not None
    assert pool.labels.tolist() == [0, 1, 1]
    assert [Path(line.split(":")[0]).name for line in pool.failed] == [
        "astronaut.png",
        "flower.png",
    ]


def test_nothing_readable_is_one_clear_line(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"not one of 3 pictures can be read; the first: .*0\.jpg"):
        Pool.read(Pictures(tmp_path, CHOSEN))


def test_pictures_of_one_folder_have_no_labels(photo_files: dict[str, Path]) -> None:
    pool = Pool.read(Pictures(photo_files["coffee"].parent, CHOSEN, limit=2))
    assert pool.labels is None
    assert pool.batch([1])[1] is None


def test_too_much_memory_is_refused_before_reading(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Pictures(folder, CHOSEN)
    needed = 5 * 3 * 6 * 8
    assert len(Pool.read(pictures, max_bytes=needed)) == 5
    monkeypatch.setattr(pictures, "cut", lambda index: pytest.fail("a picture was decoded"))
    with pytest.raises(
        InputError, match=r"5 pictures of 6×8 need .* --limit 4 or a smaller --size"
    ):
        Pool.read(pictures, max_bytes=needed - 1)


def test_what_is_no_pool_is_refused() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"must be \(M, C, H, W\) uint8"):
        Pool(images.float())
    with pytest.raises(InputError, match=r"must be \(M, C, H, W\) uint8"):
        Pool(images[0])
    for labels in (torch.zeros(3, dtype=torch.int64), torch.zeros(2)):
        with pytest.raises(InputError, match=r"must be \(2,\) int64"):
            Pool(images, labels)


def test_a_pool_holds_transformed_pictures(folder: Path) -> None:
    def turn(image: np.ndarray, index: int) -> np.ndarray:
        return 255 - image if index % 2 else image

    plain = Pool.read(Pictures(folder, CHOSEN)).images
    found = Pool.read(Pictures(folder, CHOSEN, transform=turn)).images
    assert torch.equal(found[0::2], plain[0::2])
    assert torch.equal(found[1::2], 255 - plain[1::2])


def test_bytes_become_the_networks_input_as_one_by_one(folder: Path) -> None:
    pictures = Pictures(folder, CHOSEN)
    pool = Pool.read(pictures)
    wanted = torch.stack([pictures[i][0] for i in range(5)])
    assert torch.equal(CHOSEN.normalize(pool.batch(range(5))[0]), wanted)
