"""Pictures of arrays: which files are read, and how their size and colours are brought to one."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normapps.data.arrays import fitted, read_arrays
from normapps.errors import InputError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_idx(path: Path, values: np.ndarray) -> None:
    start = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(start + values.tobytes()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 7), ("t10k", 4)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", noise(count, 6, 6, seed=count))
        labels = (np.arange(count) % 3).astype(np.uint8)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels)
    return tmp_path


@pytest.mark.parametrize(("split", "count"), [("train", 7), ("test", 4)])
def test_idx_folders_have_parts(folder: Path, split: str, count: int) -> None:
    found = read_arrays(folder, split)
    assert found is not None
    assert (found.images == noise(count, 6, 6, seed=count)[..., None]).all()
    assert found.labels is not None
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [i % 3 for i in range(count)]
    assert found.classes == ("0", "1", "2")


def test_labels_of_another_number_are_refused(folder: Path) -> None:
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(6, np.uint8))
    with pytest.raises(InputError, match=r"7 pictures and labels \(6,\) uint8; one whole number"):
        read_arrays(folder, "train")


def test_npz_files_have_parts_too(tmp_path: Path) -> None:
    place = tmp_path / "some.npz"
    train, test = noise(5, 4, 4, 3), noise(3, 4, 4, 3, seed=1)
    np.savez(place, x_train=train, y_train=np.arange(5)[:, None], x_test=test, y_test=np.arange(3))
    for split, wanted in (("train", train), ("test", test)):
        found = read_arrays(place, split)
        assert found is not None
        assert found.labels is not None
        assert (found.images == wanted).all()
        assert found.labels.tolist() == list(range(len(wanted)))


def test_npz_files_may_be_one_whole(tmp_path: Path) -> None:
    place = tmp_path / "some.npz"
    np.savez(place, noise(5, 3, 4, 6))
    found = read_arrays(place, "train")
    assert found is not None
    assert found.labels is None
    assert (found.images == noise(5, 3, 4, 6).transpose(0, 2, 3, 1)).all()


def test_whole_numbers_of_any_type_are_bytes(tmp_path: Path) -> None:
    place = tmp_path / "some.npz"
    np.savez(place, images=noise(5, 4, 4).astype(np.int64))
    found = read_arrays(place, "train")
    assert found is not None
    assert found.images.dtype == np.uint8
    assert (found.images[..., 0] == noise(5, 4, 4)).all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": noise(2, 4, 4) / 255}, "pictures are float64; whole numbers of 0…255"),
        ({"images": noise(2, 4, 4).astype(np.int16) + 200}, "pictures are int16; whole numbers"),
        ({"images": noise(2, 4, 4, 2)}, r"pictures are \(2, 4, 4, 2\); \(N, H, W\)"),
        ({"images": noise(4, 4)}, r"pictures are \(4, 4\)"),
        ({"images": noise(0, 4, 4)}, r"pictures are \(0, 4, 4\)"),
        ({"weights": noise(2)}, "has no array 'x_train' or 'images', but weights"),
        ({"x_test": noise(2, 4, 4)}, "has no array 'x_train'"),
        ({"images": noise(2, 4, 4), "labels": np.array([0, -1])}, "the class -1; .* from 0"),
        ({"images": noise(2, 4, 4), "labels": np.eye(2)}, r"labels \(2, 2\) float64"),
        ({"images": np.array([None, "x"])}, "cannot be read as an .npz"),
    ],
)
def test_what_is_no_picture_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "some.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"some\.npz: .*{message}"):
        read_arrays(tmp_path / "some.npz", "train")


def test_a_damaged_npz_is_one_line(tmp_path: Path) -> None:
    place = tmp_path / "some.npz"
    np.savez_compressed(place, images=noise(20, 8, 8))
    whole = place.read_bytes()
    changed = bytearray(whole)
    changed[300:340] = bytes(40)
    for data in (b"", b"no zip", whole[:500], bytes(changed)):
        place.write_bytes(data)
        with pytest.raises(InputError, match=r"some\.npz: cannot be read as an \.npz") as error:
            read_arrays(place, "train")
        assert "\n" not in str(error.value)


def test_one_array_under_that_name_is_told(tmp_path: Path) -> None:
    with (tmp_path / "some.npz").open("wb") as file:
        np.save(file, noise(2, 4, 4))
    with pytest.raises(InputError, match=r"is one array, not an \.npz of several"):
        read_arrays(tmp_path / "some.npz", "train")


def test_other_places_are_none(tmp_path: Path) -> None:
    assert read_arrays(tmp_path, "train") is None
    assert read_arrays(tmp_path / "nowhere.npz", "train") is None


@pytest.mark.parametrize(("side", "size", "before"), [(28, 32, 2), (28, 28, 0), (8, 9, 0)])
def test_small_gaps_are_filled_by_a_border(side: int, size: int, before: int) -> None:
    images = noise(3, side, side, 1)
    found, note = fitted(images, size, 1)
    assert found.shape == (3, 1, size, size)
    middle = found[:, 0, before : before + side, before : before + side]
    assert (middle == images[..., 0]).all()
    assert int(found.sum()) == int(images.sum())
    assert (note != "") == (side != size)
    assert "border" in note or side == size


def test_grey_becomes_rgb_and_back() -> None:
    grey, colour = noise(3, 8, 8, 1), noise(3, 8, 8, 3)
    assert (fitted(grey, 8, 3)[0] == grey.transpose(0, 3, 1, 2).repeat(3, axis=1)).all()
    found, note = fitted(colour, 8, 1)
    luma = colour.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(found[:, 0] - luma).max() <= 0.51
    assert note == ""


@pytest.mark.parametrize("size", [5, 13, 20])
def test_other_sizes_are_resampled_about_the_centre(size: int) -> None:
    images = noise(2, 8, 12, 3)
    found, note = fitted(images, size, 3)
    assert note == "8×12 pictures are resampled"
    for image, square in zip(images, found, strict=True):
        whole = Image.fromarray(image).resize((int(size * 12 / 8), size), Image.Resampling.LANCZOS)
        left = round((whole.width - size) / 2)
        wanted = np.asarray(whole.crop((left, 0, left + size, size)))
        assert (square.transpose(1, 2, 0) == wanted).all()
