"""Clips in: the frames of a video file in order, upright, as 8-bit sRGB, one at a time.

Decoding is PyAV's (FFmpeg), the optional extra `video`. A clip is never held: whoever goes through
`FrameReader` has one frame, the decoder a few.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import InputError

_MICROSECOND = Fraction(1, 1_000_000)
_HDR = (16, 18)
"""Transfer curves of HDR video: PQ and HLG (ITU-T H.273)."""


@dataclass(frozen=True)
class Clip:
    """What a file says of its first video stream.

    Attributes:
        width, height: of the frames as they are shown, upright, in pixels.
        aspect: width of a pixel over its height, upright.
        rate: frames a second, on average.
        time_base: seconds a unit of `Frame.pts`.
        origin: time at which picture and sound begin, seconds; `Frame.time` counts from there.
        duration: seconds from `origin` to the end, 0 where the file does not say.
        notes: what the user should know, a phrase each.
    """

    width: int
    height: int
    aspect: Fraction
    rate: Fraction
    time_base: Fraction
    origin: Fraction
    duration: Fraction
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame.

    Attributes:
        pixels: (H, W, 3) uint8 sRGB, upright.
        pts: its time stamp in units of `Clip.time_base`, as the file has it.
        time: seconds since `Clip.origin`.
    """

    pixels: np.ndarray
    pts: int
    time: Fraction


def pyav() -> ModuleType:
    """Import PyAV.

    Raises:
        InputError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise InputError("clips need PyAV; pip install 'normapps[video]'") from error
    module: ModuleType = av
    return module


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a file for reading and yield PyAV's container.

    Raises:
        InputError: PyAV or the file is missing, or it is no video file.
    """
    av = pyav()
    try:
        container = av.open(os.fspath(path), metadata_errors="replace")
    except av.error.InvalidDataError as error:
        raise InputError(f"{path}: damaged or not a video file") from error
    except (OSError, av.error.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason})") from error
    with container:
        yield container


def probe(path: str | os.PathLike[str]) -> Clip:
    """Read what a clip is, and its first frame.

    Raises:
        InputError: PyAV or the file is missing, it is damaged, or holds no pictures.
    """
    with opened(path) as container:
        stream = _video(container, path)
        first = next(_decoded(container, stream, []), None)
        if first is None:
            raise InputError(f"{path}: none of its frames can be decoded")
        width, height = first.width, first.height
        aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        if first.rotation % 180:
            width, height, aspect = height, width, 1 / aspect
        return Clip(
            width=width,
            height=height,
            aspect=aspect,
            rate=Fraction(stream.average_rate or stream.guessed_rate or 25),
            time_base=Fraction(stream.time_base),
            origin=_origin(container, stream),
            duration=(container.duration or 0) * _MICROSECOND,
            notes=_notes(container, first),
        )


class FrameReader:
    """The frames of a clip in order of time; go through it once.

    A frame that cannot be decoded is left out and counted, and so is one whose time stamp does
    not come after the last one's. Frames whose size changes within the file are scaled to the
    size of the first.

    Args:
        path: of the file.
        start: seconds since `Clip.origin`; frames before are left out.
        end: the first time, in seconds, that is left out; None for the whole.
        after: only frames with a greater time stamp (`Frame.pts`): to go on where one stopped.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        start: Fraction = Fraction(0),
        end: Fraction | None = None,
        after: int | None = None,
    ) -> None:
        self._path, self._start, self._end, self._after = path, start, end, after
        self._damaged: list[int] = []

    @property
    def damaged(self) -> int:
        """Packets that could not be decoded, so far."""
        return sum(self._after is None or pts > self._after for pts in self._damaged)

    def __iter__(self) -> Generator[Frame, None, None]:
        with opened(self._path) as container:
            stream = _video(container, self._path)
            origin, base = _origin(container, stream), Fraction(stream.time_base)
            first = int((self._start + origin) / base) if self._start > 0 else None
            wanted = first if self._after is None else self._after
            size: tuple[int, int] | None = None
            for raw in _from(container, stream, wanted, self._damaged):
                size = size or (raw.width, raw.height)
                time = raw.pts * base - origin
                if self._end is not None and time >= self._end:
                    return
                if time >= self._start and (self._after is None or raw.pts > self._after):
                    yield Frame(_pixels(raw, size), raw.pts, time)


def _video(container: Any, path: str | os.PathLike[str]) -> Any:
    streams = [each for each in container.streams.video if not _is_cover(each)]
    if not streams:
        raise InputError(f"{path}: holds no video; name a clip")
    streams[0].thread_type = "AUTO"
    return streams[0]


def _is_cover(stream: Any) -> bool:
    """Whether a stream is the picture on the cover of a song."""
    return bool(getattr(stream, "disposition", 0) & 0x400)


def _origin(container: Any, stream: Any) -> Fraction:
    if container.start_time is not None:
        return Fraction(container.start_time) * _MICROSECOND
    return (stream.start_time or 0) * Fraction(stream.time_base)


def _notes(container: Any, first: Any) -> tuple[str, ...]:
    notes = []
    if container.streams.subtitles:
        notes.append("subtitles left out")
    if getattr(first, "color_trc", 0) in _HDR:
        notes.append("HDR read as SDR, without tone mapping")
    if first.interlaced_frame:
        notes.append("interlaced: deinterlace it first")
    return tuple(notes)


def _from(container: Any, stream: Any, pts: int | None, damaged: list[int]) -> Iterator[Any]:
    """Decode from the last key frame before a time stamp, or from the beginning."""
    frames = _decoded(container, stream, damaged)
    if pts is None:
        return frames
    container.seek(pts, stream=stream)
    first = next(frames, None)
    if first is not None and first.pts <= pts:
        return _chained(first, frames)
    # a file without an index, or one whose index lies: everything again, from the beginning
    damaged.clear()
    container.seek(-(2**62), backward=True, stream=stream)
    return _decoded(container, stream, damaged)


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _decoded(container: Any, stream: Any, damaged: list[int]) -> Iterator[Any]:
    """Decode whatever can be; every frame has a time stamp greater than the last one's."""
    errors = pyav().error.FFmpegError
    last: int | None = None
    for packet in _packets(container, stream, errors, damaged):
        try:
            frames = packet.decode()
        except errors:
            damaged.append(packet.pts or 0)
            continue
        for frame in frames:
            if frame.pts is None:
                frame.pts = 0 if last is None else last + _step(stream)
            if last is None or frame.pts > last:
                last = frame.pts
                yield frame


def _packets(container: Any, stream: Any, errors: Any, damaged: list[int]) -> Iterator[Any]:
    """The packets of a stream up to the end, or to where the file is cut off."""
    try:
        yield from container.demux(stream)
    except errors:
        damaged.append(0)


def _step(stream: Any) -> int:
    rate = Fraction(stream.average_rate or 25)
    return max(1, round(1 / (rate * Fraction(stream.time_base))))


def _pixels(frame: Any, size: tuple[int, int]) -> np.ndarray:
    """Convert to upright sRGB; what names no matrix has the one that players take for its size."""
    from av.video.reformatter import Interpolation

    matrix = None
    if frame.colorspace == 2 and not frame.format.is_rgb:
        matrix = "ITU709" if max(size) >= 1280 or min(size) >= 720 else "ITU601"
    quality = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    rgb = frame.reformat(
        *size, "rgb24", src_colorspace=matrix, dst_color_range="JPEG", interpolation=quality
    )
    pixels = rgb.to_ndarray()
    # FFmpeg's angle is counterclockwise, as rot90's
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
