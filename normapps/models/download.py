"""Downloading a file that the user names the address of."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError

_SCHEMES = ("https", "file")
_CHUNK = 1 << 20
_TIMEOUT = 60
"""Seconds without an answer."""

Progress = Callable[[str, int, int], object]
"""Called with the URL, the bytes read of it, and its length or 0."""


def file_name(url: str) -> str:
    """Return the name of the file that a URL ends with."""
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    return name or "weights.pth"


def download(url: str, path: Path, progress: Progress | None = None) -> None:
    """Write what a URL holds to a file.

    Args:
        url: `https://` or `file://`.
        path: of the file to write.
        progress: called after each megabyte.

    Raises:
        InputError: another kind of address, or one that cannot be read to its end.
    """
    if urllib.parse.urlsplit(url).scheme not in _SCHEMES:
        raise InputError(f"{url}: must begin with https:// or file://")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, path.open("wb") as out:
            _copy(answer, out, url, progress)
    except urllib.error.HTTPError as error:
        raise InputError(f"{url}: cannot be read (HTTP {error.code})") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{url}: cannot be read ({reason})") from error


def _copy(answer: Any, out: BinaryIO, url: str, progress: Progress | None) -> None:
    done, total = 0, int(answer.headers.get("Content-Length") or 0)
    while chunk := answer.read(_CHUNK):
        out.write(chunk)
        done += len(chunk)
        if progress is not None:
            progress(url, done, total)
    if total and done != total:
        raise OSError(f"{done} of {total} bytes came")
