"""Pictures inside tar and ZIP archives, read where they lie: nothing is unpacked to disk."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import InputError
from .images import SUFFIXES

_ZIP_START = (b"PK\x03\x04", b"PK\x05\x06")
_IS_ENCRYPTED = 0x1
_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field; 30 bytes
_DAMAGED = "is truncated or damaged"


@dataclass(frozen=True)
class Member:
    """Where a picture's bytes lie: a whole file, or a span of a tar; and a list's word for it."""

    path: Path
    name: str
    offset: int = 0
    size: int = -1
    label: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.name}" if self.size >= 0 else str(self.path)

    def read(self) -> bytes:
        """Return the bytes; InputError where the file cannot be read."""
        return self.span(self.offset, self.size)

    def span(self, offset: int, size: int) -> bytes:
        """Return some bytes of the file, fewer at its end; InputError as `read`."""
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                if size > 0:  # a damaged archive may promise more than there is memory for
                    size = min(size, os.fstat(file.fileno()).st_size)
                return file.read(size)
        except OSError as error:
            raise InputError(f"{self}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class ZipMember(Member):
    """A picture in a ZIP: `offset` is that of its header, `size` that of its bytes unpacked."""

    packed: int = 0
    method: int = zipfile.ZIP_STORED
    crc: int = 0

    def read(self) -> bytes:
        """Return the bytes unpacked; InputError where they are damaged, or cannot be unpacked.

        Without `zipfile`: it would read the archive's whole directory for every picture, or share
        one open file between threads and forked processes.
        """
        header = self.span(self.offset, _HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_ZIP_START[0]):
            raise InputError(f"{self}: {_DAMAGED} (no header); take another copy")
        _, name, extra = _HEADER.unpack(header)
        return self._unpacked(self.span(self.offset + _HEADER.size + name + extra, self.packed))

    def _unpacked(self, found: bytes) -> bytes:
        if self.method == zipfile.ZIP_DEFLATED:
            try:
                found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(found, self.size + 1)
            except zlib.error as error:
                raise InputError(f"{self}: {_DAMAGED} ({error}); take another copy") from error
        elif self.method != zipfile.ZIP_STORED:
            raise InputError(f"{self}: is packed by method {self.method}; pack it by deflate")
        if len(found) != self.size or zlib.crc32(found) != self.crc:
            raise InputError(f"{self}: {_DAMAGED} (checksum); take another copy")
        return found


def is_picture(path: Path | PurePosixPath) -> bool:
    """By its name; hidden files are not, such as the `._` twins that macOS leaves."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def is_archive(place: Path) -> bool:
    """Whether a file is a ZIP or an uncompressed tar."""
    return place.is_file() and (_is_zip(place) or tarfile.is_tarfile(place))


def archive_members(place: Path) -> list[Member]:
    """Return the pictures of an archive, sorted by name.

    Raises:
        InputError: the file is neither an uncompressed tar nor a ZIP, is damaged or encrypted.
    """
    members = _zip_members(place) if _is_zip(place) else _tar_members(place)
    return sorted(members, key=lambda member: member.name)


def unpack(place: Path, folder: Path) -> None:
    """Write an archive's pictures below a folder (a tar's other files, too).

    Those of a ZIP that are damaged are left out: whoever lists them is told which.

    Raises:
        InputError: it cannot be read or written, or a name leads out of the folder.
    """
    try:
        if _is_zip(place):
            _unpack_zip(place, folder)
        else:
            archive_members(place)  # raises where it is cut off, before half of it is written
            with tarfile.open(place, "r:") as tar:
                tar.extractall(folder, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{place}: cannot be unpacked into {folder} ({error})") from error


def _unpack_zip(place: Path, folder: Path) -> None:
    for member in archive_members(place):
        target = folder / member.name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{member}: would be written outside {folder}; repack the archive")
        try:
            found = member.read()
        except InputError:  # damaged, and said so when the pictures were looked through
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(found)


def _is_zip(place: Path) -> bool:
    if place.suffix.lower() == ".zip":
        return True
    try:
        with place.open("rb") as file:
            return file.read(4) in _ZIP_START
    except OSError:
        return False  # opening it as a tar tells the reason


def _zip_members(place: Path) -> list[Member]:
    try:
        with zipfile.ZipFile(place) as archive:
            infos = [info for info in archive.infolist() if _is_zipped_picture(info)]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"{place}: cannot be read as a ZIP, perhaps truncated ({error}); take another copy"
        ) from error
    for info in infos:
        if info.flag_bits & _IS_ENCRYPTED:
            raise InputError(f"{place}: {info.filename} is encrypted; unpack it with its password")
    return [
        ZipMember(
            place,
            _plain(info.filename),
            info.header_offset,
            info.file_size,
            packed=info.compress_size,
            method=info.compress_type,
            crc=info.CRC,
        )
        for info in infos
    ]


def _is_zipped_picture(info: zipfile.ZipInfo) -> bool:
    name = PurePosixPath(_plain(info.filename))
    # `is_dir` last: it takes no empty name
    return is_picture(name) and "__MACOSX" not in name.parts and not info.is_dir()


def _plain(name: str) -> str:
    """The format's own separator: some programs of Windows write theirs."""
    return name.replace("\\", "/")


def _tar_members(place: Path) -> list[Member]:
    try:
        tar = tarfile.open(place, "r:")  # noqa: SIM115 - closed below; its failing says it is no tar
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(
            f"{place}: not an uncompressed tar or a ZIP ({error}); unpack it first"
        ) from error
    try:
        with tar:
            infos = [m for m in tar if m.isfile() and is_picture(PurePosixPath(m.name))]
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(f"{place}: {_DAMAGED} ({error}); take another copy") from error
    _check_end(place, end)
    return [Member(place, m.name, m.offset_data, m.size) for m in infos]


def _check_end(place: Path, end: int) -> None:
    """See that a tar's members end in zeros: `tarfile` takes any header it cannot read for the end.

    A tar that is cut off between two members is known by nothing else.
    """
    block = Member(place, place.name).span(end, tarfile.BLOCKSIZE)
    if not block or block.strip(b"\0"):
        what = "no end mark" if not block else "no header"
        raise InputError(f"{place}: {_DAMAGED} ({what} at byte {end}); take another copy")
