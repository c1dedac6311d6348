"""IDX files: what is read, and every way in which one can be damaged."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normapps.data.idx import find_idx, read_idx
from normapps.errors import InputError


def idx(values: np.ndarray) -> bytes:
    """The format as its authors' page has it, written by hand."""
    start = bytes([0, 0, 8, values.ndim])
    return start + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.booleans(), st.integers(0, 99))
def test_what_was_written_is_read(
    tmp_path: Path, shape: list[int], is_packed: bool, seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    data = idx(values)
    (tmp_path / "file").write_bytes(gzip.compress(data) if is_packed else data)
    found = read_idx(tmp_path / "file")
    assert found.dtype == np.uint8
    assert found.shape == values.shape
    assert (found == values).all()


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is no IDX file, it begins with nothing"),
    "magic": (lambda data: b"\x89PNG" + data[4:], "is no IDX file, it begins with 89 50 4e 47"),
    "dimensions": (lambda data: data[:3] + b"\x09" + data[4:], "is no IDX file"),
    "floats": (lambda data: data[:2] + b"\x0d" + data[3:], r"values of type 0x0d; only bytes"),
    "header": (lambda data: data[:10], "ends within its header"),
    "short": (lambda data: data[:-1], "promises 60 values and it has only 59"),
    "long": (lambda data: data + b"x", "promises 60 values and it has more"),
    "huge": (lambda data: data[:4] + b"\xff" * 12 + data[16:], "and it has only 60"),
}


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line(tmp_path: Path, damage: str, is_packed: bool) -> None:
    change, message = DAMAGES[damage]
    data = change(idx(np.arange(60, dtype=np.uint8).reshape(5, 4, 3)))
    (tmp_path / "some-file").write_bytes(gzip.compress(data) if is_packed else data)
    with pytest.raises(InputError, match=rf"some-file: .*{message}") as error:
        read_idx(tmp_path / "some-file")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [1, 5, 12, 40, -5])
def test_a_packed_file_cut_short_is_one_line(tmp_path: Path, kept: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 60, np.uint8)
    (tmp_path / "file.gz").write_bytes(gzip.compress(idx(noise))[:kept])
    with pytest.raises(InputError, match=r"file\.gz: (is truncated|is no IDX)"):
        read_idx(tmp_path / "file.gz")


def test_a_packed_file_with_bytes_changed_is_one_line(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(idx(np.random.default_rng(0).integers(0, 256, 600, np.uint8))))
    data[-6] ^= 1
    (tmp_path / "file.gz").write_bytes(data)
    with pytest.raises(InputError, match=r"file\.gz: is truncated or damaged \(CRC"):
        read_idx(tmp_path / "file.gz")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: cannot be read \(No such file"):
        read_idx(tmp_path / "nowhere")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("dot", ["-", "."])
def test_the_parts_of_a_folder_are_found(tmp_path: Path, end: str, dot: str) -> None:
    names = [f"{part}-{kind}{dot}idx{n}-ubyte{end}" for part in ("train", "t10k")
             for kind, n in (("images", 3), ("labels", 1))]  # fmt: skip
    touch(tmp_path, *names)
    assert find_idx(tmp_path, "train") == (tmp_path / names[0], tmp_path / names[1])
    assert find_idx(tmp_path, "test") == (tmp_path / names[2], tmp_path / names[3])
    assert find_idx(tmp_path / names[2], "train") == (tmp_path / names[2], tmp_path / names[3])


def test_labels_may_be_missing_or_packed_otherwise(tmp_path: Path) -> None:
    touch(tmp_path, "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz")
    assert find_idx(tmp_path, "train") == (tmp_path / "train-images-idx3-ubyte", None)
    touch(tmp_path, "train-labels-idx1-ubyte.gz")
    found = find_idx(tmp_path, "train")
    assert found is not None
    assert found[1] == tmp_path / "train-labels-idx1-ubyte.gz"


def test_a_place_without_such_files_is_none(tmp_path: Path) -> None:
    touch(tmp_path, "train.png", "images.txt")
    assert find_idx(tmp_path, "train") is None
    assert find_idx(tmp_path / "train.png", "train") is None
    assert find_idx(tmp_path / "nowhere", "train") is None


def test_a_part_that_is_missing_or_there_twice_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "emnist-letters-train-images-idx3-ubyte.gz")
    found = find_idx(tmp_path, "train")
    assert found is not None
    with pytest.raises(InputError, match=r"no images of the part 'test', only emnist-letters-tra"):
        find_idx(tmp_path, "test")
    touch(tmp_path, "emnist-digits-train-images-idx3-ubyte.gz")
    with pytest.raises(InputError, match=r"emnist-digits.* and emnist-letters.* name one of them"):
        find_idx(tmp_path, "train")
