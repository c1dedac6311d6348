"""Atomic files: the old one or the new one, never half of one, and nothing left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from normapps.errors import InputError
from normapps.files import (
    atomic_path,
    check_folder,
    check_parent,
    check_writable,
    sha256,
    write_text,
)

root_writes_everywhere = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _write_too_late(target: Path) -> None:
    with atomic_path(target, overwrite=False) as temporary:
        temporary.write_text("ours")
        target.write_text("theirs")


def test_a_file_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "made" / "for it" / "picture.png"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".png"
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, b"old"])
def test_an_exception_leaves_everything_as_it_was(
    tmp_path: Path, error: type[BaseException], old: bytes | None
) -> None:
    target = tmp_path / "x.txt"
    if old is not None:
        target.write_bytes(old)

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half of the ne")
            raise error

    with pytest.raises(error):
        fail()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_writer_may_remove_the_temporary_file_and_fail(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x") as temporary:
        temporary.unlink()
    assert not list(tmp_path.iterdir())


def test_overwriting_is_the_default_and_can_be_refused(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    write_text(target, "one")
    write_text(target, "two")
    with pytest.raises(InputError, match=r"x\.txt: exists already; --overwrite replaces it"):
        write_text(target, "three", overwrite=False)
    assert target.read_text() == "two"
    assert list(tmp_path.iterdir()) == [target]


def test_without_overwriting_a_new_file_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "x.txt", "one", overwrite=False)
    assert (tmp_path / "x.txt").read_text() == "one"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_comes_to_exist_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    with pytest.raises(InputError, match="exists already"):
        _write_too_late(target)
    assert target.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_of_many_writers_that_must_not_overwrite_one_wins(tmp_path: Path) -> None:
    target, start, won = tmp_path / "x.txt", threading.Barrier(8), []

    def write(number: int) -> None:
        try:
            with atomic_path(target, overwrite=False) as temporary:
                temporary.write_text(str(number))
                start.wait(timeout=10)  # all of them saw no file
        except InputError:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert target.read_text() == str(won[0])
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("exists", [False, True])
def test_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    target = tmp_path / "x.txt"
    if exists:
        with pytest.raises(InputError, match="exists already"):
            _write_too_late(target)
    else:
        write_text(target, "ours", overwrite=False)
    assert target.read_text() == ("theirs" if exists else "ours")
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path, overwrite: bool) -> None:
    target = tmp_path / "x.txt"
    write_text(target, "x", overwrite=overwrite)
    assert _mode(target) == 0o640
    with atomic_path(tmp_path / "y", overwrite=overwrite) as temporary:
        temporary.unlink()
        temporary.write_text("y")
        temporary.chmod(0o600)  # as safetensors does
    assert _mode(tmp_path / "y") == 0o640


@pytest.mark.usefixtures("umask")
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    target.chmod(0o604)
    write_text(target, "new")
    assert _mode(target) == 0o604
    assert target.read_text() == "new"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link, target = tmp_path / "link.txt", tmp_path / "far" / "file.txt"
    link.symlink_to(target)
    write_text(link, "one")  # it dangles
    write_text(link, "two")
    assert link.is_symlink()
    assert target.read_text() == "two"
    assert list(target.parent.iterdir()) == [target]


def test_the_longest_name_there_can_be(tmp_path: Path) -> None:
    for name in ("a" * 251 + ".txt", "ö" * 125 + ".txt"):
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


def test_what_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, not a file to write"):
        write_text(tmp_path, "x")
    with pytest.raises(InputError, match="/dev/null: is a device or pipe; give a file"):
        write_text("/dev/null", "x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file: cannot be made \((File exists|Not a directory)"):
        write_text(tmp_path / "file" / "x.txt", "x")
    with pytest.raises(InputError, match=r"cannot be written \(File name too long\)"):
        write_text(tmp_path / ("x." + "y" * 250), "x")
    assert (tmp_path / "file").read_text() == "x"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_the_nearest_folder_says_whether_something_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_parent(tmp_path / "a" / "b" / "c")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"b: cannot be made, .*file is a file; name another"):
        check_parent(tmp_path / "file" / "b")
    check_folder(tmp_path)
    check_folder(tmp_path / "new")
    with pytest.raises(InputError, match="file: is a file, not a folder to write to"):
        check_folder(tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    with pytest.raises(InputError, match=rf"b: cannot be made, {tmp_path} is not writable"):
        check_parent(tmp_path / "a" / "b")
    with pytest.raises(InputError, match=rf"new: cannot be made, {tmp_path} is not writable"):
        check_folder(tmp_path / "new")
    with pytest.raises(InputError, match=rf"^{tmp_path}: may not be written to; change its perm"):
        check_folder(tmp_path)


@root_writes_everywhere
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match=r"cannot be (written|made) \(Permission denied\)"):
            write_text(tmp_path / "x.txt", "x")
    finally:
        tmp_path.chmod(0o700)


def test_a_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(InputError, match=r"x\.txt: cannot be written \(Read-only file system\)"):
        write_text(tmp_path / "x.txt", "x")


def test_text_is_utf8_with_its_own_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "x.txt", "Gemälde\r\nβ\n")
    assert (tmp_path / "x.txt").read_bytes() == "Gemälde\r\nβ\n".encode()


def test_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(data)
    assert sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()
    with pytest.raises(FileNotFoundError):
        sha256(tmp_path / "missing")


def test_a_path_is_checked_before_long_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "file.txt")
    assert (tmp_path / "new").is_dir()
    (tmp_path / "there").write_text("precious")
    with pytest.raises(InputError, match="--overwrite"):
        check_writable(tmp_path / "there")
    check_writable(tmp_path / "there", overwrite=True)
    assert (tmp_path / "there").read_text() == "precious"
