"""Pictures in ZIP and tar files: every way to pack them, and every way to be damaged."""

from __future__ import annotations

import io
import random
import struct
import tarfile
import threading
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from normapps.data.archive import archive_members, is_archive, unpack
from normapps.data.pictures import Pictures
from normapps.data.pool import Pool
from normapps.data.sources import PictureSource
from normapps.errors import InputError
from normapps.models.preprocessing import Preprocessing

SMALL = Preprocessing((4, 4), (4, 4))


def png(value: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(value).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def make_zip(
    path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, before: bytes = b""
) -> Path:
    path.write_bytes(before)
    with zipfile.ZipFile(path, "a", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def patched(path: Path, offset: int, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\nsome program that unpacks itself\n"])
def test_members_are_read_as_zipfile_reads_them(tmp_path: Path, method: int, before: bytes) -> None:
    files = {f"class {i % 2}/ü {i}.PNG": png(i) for i in (3, 1, 2)}
    place = make_zip(tmp_path / "some.zip", files, method, before)
    found = archive_members(place)
    assert [each.name for each in found] == sorted(files)
    assert [each.read() for each in found] == [files[each.name] for each in found]
    assert is_archive(place)


def test_a_zip_written_to_a_pipe_has_its_sizes_behind(tmp_path: Path) -> None:
    """Its local headers say 0; a data descriptor follows the bytes."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, offset: int, whence: int = 0) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f"{i}.png", png(i))
    data = pipe.getvalue()
    assert data[18:22] == bytes(4)
    (tmp_path / "some.zip").write_bytes(data)
    assert [each.read() for each in archive_members(tmp_path / "some.zip")] == [
        png(i) for i in range(3)
    ]


def test_what_is_no_picture_is_passed_over(tmp_path: Path) -> None:
    files = {
        "set/": b"",
        "set/a.png/": b"",
        "set/a/one.png": png(1),
        "set/a/._one.png": b"twin",
        "__MACOSX/set/a/._one.png": b"twin",
        "__MACOSX/set/a/icon.png": b"junk",
        "set/.DS_Store": b"junk",
        "readme.txt": b"text",
    }
    place = make_zip(tmp_path / "some.zip", files)
    assert [each.name for each in archive_members(place)] == ["set/a/one.png"]


def test_separators_of_windows_make_folders(tmp_path: Path) -> None:
    files = {f"set\\{kind}\\{i}.png": png(i) for kind in "ab" for i in range(2)}
    pictures = Pictures(make_zip(tmp_path / "some.zip", files), SMALL)
    assert pictures.classes == ("a", "b")


def test_a_zip_is_known_by_its_content_too(tmp_path: Path) -> None:
    place = make_zip(tmp_path / "download", {"x.png": png(1)})
    assert len(PictureSource([str(place)])) == 1
    assert is_archive(place)
    (tmp_path / "other").write_bytes(b"")
    assert not is_archive(tmp_path / "other")
    assert not is_archive(tmp_path)


@pytest.mark.parametrize("name", ["empty.zip", "empty"])
def test_a_zip_without_pictures_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}: holds no picture"):
        PictureSource([str(make_zip(tmp_path / name, {}))])
    with pytest.raises(InputError, match=rf"{name}: holds no picture"):
        PictureSource([str(make_zip(tmp_path / name, {"a/readme.txt": b"text"}))])


@pytest.mark.parametrize("kept", [0, 3, 500, -10])
def test_a_truncated_zip_is_one_line(tmp_path: Path, kept: int) -> None:
    place = make_zip(tmp_path / "some.zip", {f"{i}.png": png(i) for i in range(3)})
    place.write_bytes(place.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"some\.zip: cannot be read as a ZIP.*another copy") as e:
        PictureSource([str(place)])
    assert "\n" not in str(e.value)


TAR = {f"{i}.png": png(i) for i in range(3)}
STRIDE = 512 + -(-len(png(1)) // 512) * 512  # of a member: its header, its bytes filled up


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(2 * STRIDE + 512 + 100, id="in the last one's bytes"),
        pytest.param(2 * STRIDE + 512, id="behind the last header"),
        pytest.param(2 * STRIDE + 100, id="in the last header"),
        pytest.param(2 * STRIDE, id="between two members"),
        pytest.param(STRIDE + 700, id="in the second one's bytes"),
        pytest.param(3 * STRIDE, id="before the end mark"),
    ],
)
def test_a_truncated_tar_is_one_line(tmp_path: Path, kept: int) -> None:
    place = make_tar(tmp_path / "some.tar", TAR)
    place.write_bytes(place.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"some\.tar: is truncated or dam.*another copy") as error:
        PictureSource([str(place)])
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"some\.tar: is truncated or damaged"):
        unpack(place, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["x.png", f"{'long/' * 60}ü.png"])
def test_a_whole_tar_is_read(tmp_path: Path, format: int, name: str) -> None:
    if format == tarfile.USTAR_FORMAT:
        name = name[-90:]
    place = make_tar(tmp_path / "some.tar", {**TAR, name: png(7)}, format)
    assert [each.name for each in archive_members(place)] == sorted([*TAR, name])
    last = max(archive_members(place), key=lambda each: each.offset)
    end = last.offset - 512 + STRIDE
    place.write_bytes(place.read_bytes()[: end + 512])  # one block of zeros instead of many
    assert {each.name: each.read() for each in archive_members(place)}[name] == png(7)


def test_a_tar_whose_header_is_damaged_is_not_taken_for_its_start(tmp_path: Path) -> None:
    place = make_tar(tmp_path / "some.tar", TAR)
    patched(place, STRIDE + 150, b"none")
    with pytest.raises(InputError, match=rf"some\.tar: .*no header at byte {STRIDE}\)"):
        archive_members(place)


def test_damage_in_a_tar_costs_the_picture_it_hits(tmp_path: Path) -> None:
    place = make_tar(tmp_path / "some.tar", TAR)
    patched(place, STRIDE + 512 + 20, bytes(600))
    pool = Pool.read(Pictures(place, SMALL))
    assert (len(pool), len(pool.failed)) == (2, 1)
    assert f"{place}/1.png" in pool.failed[0]


def test_a_compressed_tar_is_told_to_be_unpacked(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "some.tgz", "w:gz"):
        pass
    with pytest.raises(InputError, match=r"some\.tgz: not an uncompressed tar.*unpack it first"):
        archive_members(tmp_path / "some.tgz")


def test_an_encrypted_zip_names_the_remedy(tmp_path: Path) -> None:
    place = make_zip(tmp_path / "some.zip", {"a/x.png": png(1)})
    patched(place, place.read_bytes().index(b"PK\x01\x02") + 8, b"\x01\x00")
    with pytest.raises(InputError, match=r"some\.zip: a/x\.png is encrypted; unpack it"):
        PictureSource([str(place)])


def test_a_member_without_a_name_is_passed_over(tmp_path: Path) -> None:
    place = make_zip(tmp_path / "some.zip", {"0.png": png(0), "1.png": png(1)})
    patched(place, place.read_bytes().index(b"PK\x01\x02") + 46, b"\0")
    assert [each.name for each in archive_members(place)] == ["1.png"]


def test_a_size_beyond_the_file_is_told_without_taking_the_memory(tmp_path: Path) -> None:
    place = make_zip(tmp_path / "some.zip", {"x.png": png(1)}, zipfile.ZIP_STORED)
    central = place.read_bytes().index(b"PK\x01\x02")
    patched(place, central + 20, struct.pack("<II", 2**32 - 2, 2**32 - 2))
    (member,) = archive_members(place)
    tracemalloc.start()
    with pytest.raises(InputError, match="is truncated or damaged"):
        member.read()
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_damage_costs_the_picture_it_hits(tmp_path: Path) -> None:
    """One file each: bytes changed, no header, packed by another method; the fourth is whole."""
    names = ("0bytes", "1header", "2method", "3whole")
    place = make_zip(tmp_path / "some.zip", {f"{n}.png": png(i) for i, n in enumerate(names)})
    with zipfile.ZipFile(place) as archive:
        offsets = [info.header_offset for info in archive.infolist()]
    patched(place, offsets[0] + 30 + len("0bytes.png") + 40, bytes(20))
    patched(place, offsets[1], b"none")
    central = place.read_bytes().index(b"2method.png", offsets[3]) - 46
    patched(place, central + 10, struct.pack("<H", 9))
    source = PictureSource([str(place)])
    reasons = (r"0bytes\.png: is truncated or damaged", r"1header\.png: .*no header", "by method 9")
    for i, reason in enumerate(reasons):
        with pytest.raises(InputError, match=reason):
            source.load(i)
    assert source.load(3).shape == (24, 24, 3)
    pool = Pool.read(Pictures(place, SMALL))
    assert (len(pool), len(pool.failed)) == (1, 3)
    assert all(str(place) in line for line in pool.failed)


def test_a_wrong_size_is_told_without_unpacking_it_all(tmp_path: Path) -> None:
    """A bomb: a hundred megabytes of zeros that claim to be ten."""
    place = make_zip(tmp_path / "some.zip", {"x.png": bytes(100_000_000)})
    patched(place, place.read_bytes().index(b"PK\x01\x02") + 24, struct.pack("<I", 10))
    (member,) = archive_members(place)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"some\.zip/x\.png: is truncated or damaged \(checksum\)"):
        member.read()
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), count=st.integers(1, 12))
def test_damage_anywhere_is_an_input_error_or_nothing(
    tmp_path: Path, seed: int, count: int
) -> None:
    place = make_zip(tmp_path / "some.zip", TAR)
    data = bytearray(place.read_bytes())
    rng = random.Random(seed)
    for _ in range(count):
        data[rng.randrange(len(data))] = rng.randrange(256)
    place.write_bytes(data)
    try:
        members = archive_members(place)
    except InputError:
        return
    for member in members:
        with suppress(InputError):
            assert member.read() in [png(i) for i in range(3)]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(member=st.integers(0, 2), at=st.integers(0, 511), value=st.integers(0, 255))
def test_a_damaged_header_of_a_tar_loses_no_picture_unsaid(
    tmp_path: Path, member: int, at: int, value: int
) -> None:
    place = make_tar(tmp_path / "some.tar", TAR)
    patched(place, member * STRIDE + at, bytes([value]))
    with suppress(InputError):
        assert [each.read() for each in archive_members(place)] == list(TAR.values())


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    files = {f"{i:02}.png": png(i) for i in range(40)}
    source = PictureSource([str(make_zip(tmp_path / "some.zip", files))])
    wrong: list[int] = []

    def read() -> None:
        wrong.extend(i for i in range(40) if source.file(i).getvalue() != files[source.name(i)])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_unpacking_writes_what_is_read(tmp_path: Path, kind: str) -> None:
    files = {f"a/{i}.png": png(i) for i in range(3)}
    place = tmp_path / f"some.{kind}"
    if kind == "zip":
        make_zip(place, files)
    else:
        make_tar(place, files)
    unpack(place, tmp_path / "out")
    for name, data in files.items():
        assert (tmp_path / "out" / name).read_bytes() == data


def test_unpacking_never_leaves_the_folder(tmp_path: Path) -> None:
    place = make_zip(tmp_path / "some.zip", {"../outside.png": png(1)})
    with pytest.raises(InputError, match=r"\.\./outside\.png: would be written outside"):
        unpack(place, tmp_path / "out")
    assert not (tmp_path / "outside.png").exists()


def test_unpacking_leaves_damaged_pictures_out(tmp_path: Path) -> None:
    place = make_zip(tmp_path / "some.zip", {"0.png": png(0), "1.png": png(1)})
    patched(place, 0, b"none")
    unpack(place, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1.png"]
