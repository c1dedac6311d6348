"""Real pictures for a GAN: whatever holds them, whatever they look like; and their batches."""

from __future__ import annotations

import itertools
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.data.pool import Pool
from normapps.engine.distributed import World
from normapps.errors import InputError
from normapps.gan.data import Draws, read_pool


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_idx(path: Path, values: np.ndarray) -> None:
    start = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(start + values.tobytes())


def quiet(line: str) -> None:
    """Nobody listens."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three 8×8 RGB pictures."""
    for kind, i in itertools.product("ab", range(3)):
        seed = i + 3 * (kind == "b")
        save(tmp_path / "set" / kind / f"{i}.png", Image.fromarray(noise(8, 8, 3, seed=seed)))
    return tmp_path / "set"


WHOLE = np.stack([noise(8, 8, 3, seed=seed) for seed in range(6)]).transpose(0, 3, 1, 2)


def test_folders_zips_and_lists_hold_the_same(folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.make_archive(str(tmp_path / "some"), "zip", folder))
    lines = [f"set/{kind}/{i}.png {kind}\n" for kind in "ab" for i in range(3)]
    (tmp_path / "some.txt").write_text("".join(lines))
    for data in (folder, place, tmp_path / "some.txt"):
        pool = read_pool(str(data), size=8, conditional=True, say=quiet)
        assert (pool.images.numpy() == WHOLE).all()
        assert pool.labels is not None
        assert pool.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert pool.classes == ("a", "b")
        assert pool.notes == ()


def test_classes_come_only_where_they_are_wanted(folder: Path) -> None:
    pool = read_pool(str(folder), size=8, say=quiet)
    assert (pool.labels, pool.classes) == (None, ())


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("above", ["", "wrapped/"])
def test_a_part_of_a_set_that_has_parts(tmp_path: Path, as_zip: bool, above: str) -> None:
    for part, count in (("train", 4), ("Test", 2)):
        for kind, i in itertools.product("ab", range(count)):
            image = Image.new("RGB", (4, 4), (100 + count, 0, 0))
            save(tmp_path / "set" / above / part / kind / f"{i}.png", image)
    place = tmp_path / "set"
    if as_zip:
        place = Path(shutil.make_archive(str(place), "zip", place))
    for split, count in (("train", 4), ("test", 2)):
        pool = read_pool(str(place), size=4, split=split, conditional=True, say=quiet)
        assert len(pool) == 2 * count
        assert pool.images[:, 0].unique().tolist() == [100 + count]
        assert pool.classes == ("a", "b")
        assert pool.notes[0].lower() == f"of its folder {above}{split}"


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    for kind in ("car", "train"):
        save(tmp_path / kind / "0.png", Image.new("RGB", (4, 4)))
    pool = read_pool(str(tmp_path), size=4, conditional=True, say=quiet)
    assert pool.classes == ("car", "train")


def test_a_part_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="set: has no folder 'test'; name the pictures of that"):
        read_pool(str(folder), size=8, split="test", say=quiet)
    with pytest.raises(InputError, match="--split rest: must be one of train, test"):
        read_pool(str(folder), size=8, split="rest", say=quiet)


MODES: dict[str, Image.Image] = {
    "grey.png": Image.new("L", (8, 8), 120),
    "binary.png": Image.new("1", (8, 8), 1),
    "deep.png": Image.fromarray(np.full((8, 8), 120 * 257, np.uint16)),
    "colour.jpg": Image.new("RGB", (8, 8), (200, 10, 10)),
    "print.jpg": Image.new("CMYK", (8, 8), (0, 0, 0, 0)),
    "palette.png": Image.new("RGB", (8, 8), (0, 200, 0)).convert("P"),
    "clear.png": Image.new("RGBA", (8, 8), (0, 0, 200, 0)),
    "half.png": Image.new("LA", (8, 8), (0, 128)),
    "wide.png": Image.new("RGB", (40, 9), (1, 2, 3)),
    "tall.webp": Image.new("RGB", (5, 70), (250, 250, 250)),
    "pixel.gif": Image.new("L", (1, 1), 77),
}


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_sizes_and_modes_are_mixed(tmp_path: Path, channels: int) -> None:
    for name, image in MODES.items():
        save(tmp_path / name, image)
    said: list[str] = []
    pool = read_pool(str(tmp_path), size=8, channels=channels, say=said.append)
    assert pool.images.shape == (len(MODES), channels or 3, 8, 8)
    found = dict(zip(sorted(MODES), pool.images.float().mean((2, 3)).tolist(), strict=True))
    if channels != 1:
        wanted = {"grey.png": (120,) * 3, "deep.png": (120,) * 3, "clear.png": (255,) * 3,
                  "half.png": (127,) * 3, "palette.png": (0, 200, 0), "wide.png": (1, 2, 3),
                  "pixel.gif": (77,) * 3, "colour.jpg": (200, 10, 10), "binary.png": (255,) * 3,
                  "print.jpg": (255,) * 3}  # fmt: skip
        for name, colour in wanted.items():
            assert found[name] == pytest.approx(colour, abs=3 if "palette" not in name else 6), name
    assert len(said) == 1
    for part in (
        "11 pictures of 8×8", "resampled to 8×8 from 4 sizes", "2 that are not square",
        "2 smaller than 8 px are enlarged", "2 with transparency lie over white",
    ):  # fmt: skip
        assert part in said[0]
    assert all(note in said[0] for note in pool.notes)


def test_grey_pictures_make_one_channel_unless_asked_otherwise(tmp_path: Path) -> None:
    greys = noise(3, 8, 8)
    for i, grey in enumerate(greys):
        image = Image.fromarray(grey)
        save(tmp_path / f"{i}.png", image if i else image.convert("RGB"))
    pool = read_pool(str(tmp_path), size=8, say=quiet)
    assert (pool.images.numpy()[:, 0] == greys).all()
    assert pool.images.shape[1] == 1
    assert "every picture is grey: 1 channel" in pool.notes
    assert read_pool(str(tmp_path), size=8, channels=3, say=quiet).images.shape[1] == 3


def test_exif_turns_a_picture_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "turned.png", exif=exif)
    save(tmp_path / "other.png", Image.new("RGB", (8, 8)))
    pool = read_pool(str(tmp_path), size=8, say=quiet)
    assert (pool.images[1].numpy() == noise(8, 8, 3)[::-1, ::-1].transpose(2, 0, 1)).all()


def test_damaged_pictures_are_left_out_a_line_each(folder: Path) -> None:
    whole = (folder / "a" / "1.png").read_bytes()
    (folder / "a" / "1.png").write_bytes(whole[:70])
    (folder / "b" / "0.png").write_bytes(b"")
    said: list[str] = []
    pool = read_pool(str(folder), size=8, conditional=True, say=said.append)
    assert (pool.images.numpy() == WHOLE[[0, 2, 4, 5]]).all()
    assert pool.labels is not None
    assert pool.labels.tolist() == [0, 0, 1, 1]
    assert [line.split(": ")[:2] for line in said[:-1]] == [
        ["left out", str(folder / "a" / "1.png")],
        ["left out", str(folder / "b" / "0.png")],
    ]


def test_many_damaged_pictures_are_counted(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}.png").write_bytes(b"none")
    for i in range(2):
        save(tmp_path / f"good{i}.png", Image.new("RGB", (4, 4)))
    said: list[str] = []
    pool = read_pool(str(tmp_path), size=4, say=said.append)
    assert len(pool.failed) == 30
    assert len(said) == 22
    assert said[20] == "left out: 10 more"


def test_too_little_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "one.png", Image.new("RGB", (8, 8)))
    with pytest.raises(InputError, match="holds 1 readable picture; there must be at least 2"):
        read_pool(str(tmp_path), size=8, say=quiet)
    (tmp_path / "two.png").write_bytes(b"none")
    with pytest.raises(InputError, match="holds 1 readable picture"):
        read_pool(str(tmp_path), size=8, say=quiet)
    (tmp_path / "one.png").write_bytes(b"none")
    with pytest.raises(InputError, match="not one of 2 pictures can be read"):
        read_pool(str(tmp_path), size=8, say=quiet)


def test_places_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_pool(str(tmp_path / "nowhere"), size=8, say=quiet)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_pool(str(tmp_path / "nowhere"), size=8, split="test", say=quiet)
    with pytest.raises(InputError, match="holds no picture"):
        read_pool(str(tmp_path), size=8, say=quiet)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(InputError, match=r"empty\.zip: holds no picture"):
        read_pool(str(tmp_path / "empty.zip"), size=8, say=quiet)


def test_classes_that_are_missing_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--cond and `gan classifier` need a folder"):
        read_pool(str(folder / "a"), size=8, conditional=True, say=quiet)
    for i in range(3):
        (folder / "b" / f"{i}.png").write_bytes(b"none")
    with pytest.raises(InputError, match="the class 'b' has no readable picture"):
        read_pool(str(folder), size=8, conditional=True, say=quiet)
    np.savez(tmp_path / "some.npz", images=noise(4, 8, 8), labels=np.zeros(4, np.int64))
    with pytest.raises(InputError, match="has one class; --cond needs two"):
        read_pool(str(tmp_path / "some.npz"), size=8, conditional=True, say=quiet)


def test_too_much_memory_is_refused_before_decoding(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", images=noise(6, 8, 8, 3))
    needed = 6 * 3 * 8 * 8
    for data in (folder, tmp_path / "some.npz"):
        assert len(read_pool(str(data), size=8, max_bytes=needed, say=quiet)) == 6
        with pytest.raises(InputError, match=r"6 pictures of 8×8 need .*--limit 5"):
            read_pool(str(data), size=8, max_bytes=needed - 1, say=quiet)


def test_a_picture_of_too_many_pixels_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    save(folder / "a" / "0.png", Image.new("RGB", (20, 20)))
    pool = read_pool(str(folder), size=8, say=quiet)
    assert len(pool) == 5
    assert "400 pixels are more than the limit" in pool.failed[0]


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_limit_spreads_over_the_classes(folder: Path, tmp_path: Path, kind: str) -> None:
    data = folder
    if kind == "npz":
        data = tmp_path / "some.npz"
        np.savez(data, images=WHOLE.transpose(0, 2, 3, 1), labels=np.repeat([0, 1], 3))
    pool = read_pool(str(data), size=8, limit=2, conditional=True, say=quiet)
    assert (pool.images.numpy() == WHOLE[[1, 4]]).all()
    assert pool.labels is not None
    assert pool.labels.tolist() == [0, 1]


def test_a_data_set_of_a_name_gets_its_border_and_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "fashion-mnist"
    place.mkdir()
    images = noise(20, 28, 28)
    write_idx(place / "train-images-idx3-ubyte", images)
    write_idx(place / "train-labels-idx1-ubyte", (np.arange(20) % 10).astype(np.uint8))
    monkeypatch.setenv("NORMAPPS_DATASETS", str(tmp_path))
    pool = read_pool("fashion-mnist", size=32, conditional=True, say=quiet)
    assert (pool.images[:, 0, 2:30, 2:30].numpy() == images).all()
    assert pool.notes == ("28 px pictures get a black border of 2 px",)
    assert pool.classes[9] == "ankle-boot"
    monkeypatch.delenv("NORMAPPS_DATASETS")
    again = read_pool("fashion-mnist", size=28, datasets=[str(tmp_path)], say=quiet)
    assert (again.images[:, 0].numpy() == images).all()


def some_pool(count: int = 7, channels: int = 3, labelled: bool = True) -> Pool:
    images = torch.from_numpy(noise(count, channels, 8, 8))
    images[:, 0, 0, 0] = torch.arange(count)  # tells which picture it is
    labels = torch.arange(count) % 3 if labelled else None
    return Pool(images, labels, ("a", "b", "c") if labelled else ())


def bytes_of(batch: torch.Tensor) -> torch.Tensor:
    return ((batch + 1) * 128).floor().to(torch.uint8)


def test_batches_are_pictures_with_noise_below_a_step() -> None:
    pool = some_pool(50)
    draws = Draws(pool, 50, seed=3)
    images, labels = draws.batch(0)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1
    rest = (images.double() + 1) * 128
    found = bytes_of(images)
    rows = found[:, 0, 0, 0].long()
    assert sorted(rows.tolist()) == list(range(50))
    assert torch.equal(found, pool.images[rows])
    assert labels is not None
    assert pool.labels is not None
    assert torch.equal(labels, pool.labels[rows])
    fraction = (rest - found.double()).flatten().sort().values
    uniform = torch.linspace(0, 1, len(fraction), dtype=torch.float64)
    assert (fraction - uniform).abs().max() < 1.63 / len(fraction) ** 0.5  # Kolmogorov, 1 %


def test_a_batch_depends_on_its_number_only() -> None:
    first, second = (Draws(some_pool(), 4, seed=5, flip=True) for _ in range(2))
    wanted = [first.batch(i) for i in range(6)]
    for i in (5, 0, 3, 3, 1):
        images, labels = second.batch(i)
        assert torch.equal(images, wanted[i][0])
        assert torch.equal(labels, wanted[i][1])  # type: ignore[arg-type]
    other = Draws(some_pool(), 4, seed=6, flip=True).batch(0)[0]
    assert not torch.equal(other, wanted[0][0])
    assert not torch.equal(wanted[0][0], wanted[1][0])


def test_global_randomness_is_neither_used_nor_changed() -> None:
    draws = Draws(some_pool(), 4, seed=5, flip=True)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draws.batch(2)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draws.batch(2)[0], first)


def test_every_picture_comes_equally_often_over_all_processes() -> None:
    pool = some_pool(7, labelled=False)
    worlds = [World(rank, 2, rank) for rank in range(2)]
    draws = [Draws(pool, 3, 0, here) for here in worlds]
    rows = []
    for i in range(7):
        for each in draws:
            images, labels = each.batch(i)
            assert labels is None
            rows.extend(bytes_of(images)[:, 0, 0, 0].tolist())
    for turn in range(6):
        assert sorted(rows[7 * turn : 7 * turn + 7]) == list(range(7))


def test_processes_and_batches_draw_different_noise() -> None:
    pool = Pool(torch.zeros(8, 1, 4, 4, dtype=torch.uint8))
    first, second = (Draws(pool, 4, 0).batch(i)[0] for i in range(2))
    assert not torch.equal(first, second)
    one, two = (Draws(pool, 4, 0, World(rank, 2, rank)).batch(0)[0] for rank in range(2))
    assert not torch.equal(one, two)


def test_half_the_pictures_are_mirrored_and_the_rest_stays() -> None:
    pool = some_pool(400, channels=1, labelled=False)
    pool.images[:] = torch.arange(8, dtype=torch.uint8) * 10
    plain, mirrored = (bytes_of(Draws(pool, 400, 0, flip=flip).batch(0)[0]) for flip in (0, 1))
    assert torch.equal(plain, pool.images)
    turned = mirrored[:, 0, 0, 0] == 70
    assert torch.equal(mirrored[turned], pool.images[turned].flip(3))
    assert torch.equal(mirrored[~turned], pool.images[~turned])
    assert 160 < int(turned.sum()) < 240


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_lie_channels_last_where_there_are_several(channels: int) -> None:
    images, _ = Draws(some_pool(channels=channels), 4, 0).batch(0)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.is_contiguous() == (channels == 1)


def test_the_pool_is_not_changed() -> None:
    pool = some_pool()
    before = pool.images.clone()
    Draws(pool, 7, 0, flip=True).batch(0)
    assert torch.equal(pool.images, before)
