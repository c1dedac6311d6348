"""Clips out: segments of encoded frames, and their joining with the sound of the original.

A segment is a file of its own that begins with a key frame, so that work which was interrupted
loses no more than one. Joining copies packets: nothing is encoded twice.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, UsageError
from ..files import atomic_path
from .clips import CLIP_WRITE_SUFFIXES
from .video import opened, pyav

SEGMENT_SUFFIX = ".nut"
"""Of the container of segments: it takes every codec and every time base."""

CODECS = ("h264", "hevc", "vp9")
"""Names of the codecs that can be written."""

_ENCODERS = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9"}
_FITTING = {
    ".mp4": CODECS,
    ".m4v": ("h264", "hevc"),
    ".mov": ("h264", "hevc"),
    ".mkv": CODECS,
    ".webm": ("vp9",),
}
_BT709, _LIMITED = 1, 1


@dataclass(frozen=True)
class Encoding:
    """How frames are encoded.

    Attributes:
        codec: one of `CODECS`.
        quality: 1 to 100; 92 looks like the original.
        width, height: of the frames, even numbers.
        rate: frames a second, for the encoder's planning.
        time_base: seconds a unit of the time stamps.
        aspect: width of a pixel over its height.
    """

    codec: str
    quality: int
    width: int
    height: int
    rate: Fraction
    time_base: Fraction
    aspect: Fraction = Fraction(1)


def choose_codec(path: str | os.PathLike[str], codec: str = "auto") -> str:
    """Return the codec for a file name: H.264, in WebM VP9, unless another is asked for.

    Raises:
        UsageError: no container that can be written, or one that does not take the codec.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FITTING:
        raise UsageError(f"-o {path}: name a clip ({' '.join(CLIP_WRITE_SUFFIXES)}), or a folder")
    fitting = _FITTING[suffix]
    if codec not in ("auto", *fitting):
        raise UsageError(f"--codec {codec}: {suffix} takes {' or '.join(fitting)}; or name an .mkv")
    return fitting[0] if codec == "auto" else codec


class Segment:
    """A segment that is being written; `segment_file` opens one."""

    def __init__(self, container: Any, encoding: Encoding) -> None:
        self._container, self._encoding = container, encoding
        self._stream = _video_stream(container, encoding)

    def add(self, pixels: np.ndarray, pts: int) -> None:
        """Encode a frame.

        Args:
            pixels: (H, W, 3) uint8 sRGB of the encoding's size; a last row or column too many is
                cut off.
            pts: its time stamp, greater than the last one's.
        """
        height, width = self._encoding.height, self._encoding.width
        frame = _encodable(pixels[:height, :width])
        frame.pts, frame.time_base = pts, self._encoding.time_base
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Encode what the encoder still holds."""
        self._container.mux(self._stream.encode())


@contextmanager
def segment_file(path: Path, encoding: Encoding) -> Iterator[Segment]:
    """Yield a segment to add frames to; the file is there when the block succeeds, or not at all.

    Raises:
        InputError: this PyAV has no such encoder, or the file cannot be written.
    """
    av = pyav()
    with atomic_path(path) as temporary:
        try:
            with av.open(str(temporary), "w", format=SEGMENT_SUFFIX[1:]) as container:
                segment = Segment(container, encoding)
                yield segment
                segment.finish()
        except av.error.FFmpegError as error:
            raise InputError(f"{path}: cannot be written ({error})") from error


def join(
    segments: Sequence[Path],
    target: Path,
    *,
    sound: str | os.PathLike[str] | None,
    start: Fraction = Fraction(0),
    end: Fraction | None = None,
    origin: Fraction = Fraction(0),
) -> tuple[str, ...]:
    """Write segments as one clip, with the sound of another file.

    Sound is copied as it is where the container takes its codec and is encoded again in the
    container's own where not.

    Args:
        segments: in order, of one encoding.
        target: the file to write; its suffix says the container. Not atomic.
        sound: the file with the sound; None or a file without sound makes a silent clip.
        start, end: seconds since `origin` between which the sound is taken.
        origin: see `Clip.origin`.

    Returns:
        What the user should know, a phrase each.

    Raises:
        InputError: a segment is damaged, or the file cannot be written.
    """
    av = pyav()
    flags = {"movflags": "+faststart"} if target.suffix.lower() in (".mp4", ".m4v", ".mov") else {}
    try:
        with ExitStack() as stack:
            out = stack.enter_context(av.open(str(target), "w", options=flags))
            first = stack.enter_context(opened(segments[0])).streams.video[0]
            picture = out.add_stream_from_template(first, opaque=True)
            if picture.codec_context.name in ("hevc", "libx265") and flags:
                picture.codec_context.codec_tag = "hvc1"  # without it Apple's players refuse
            tracks = [_segment_packets(segments, picture)]
            notes: tuple[str, ...] = ()
            if sound is not None:
                source = stack.enter_context(opened(sound))
                length = None if end is None else end - start
                heard, notes = _sound(source, out, _Span(origin + start, length, start > 0))
                tracks += heard
            for _, packet in heapq.merge(*tracks, key=lambda pair: pair[0]):
                out.mux(packet)
    except av.error.FFmpegError as error:
        raise InputError(f"{target}: cannot be written ({error})") from error
    return notes


Timed = tuple[Fraction, Any]
"""Time in seconds and packet."""


def _video_stream(container: Any, encoding: Encoding) -> Any:
    av = pyav()
    name = _ENCODERS[encoding.codec]
    try:
        stream = container.add_stream(name, rate=encoding.rate, options=_options(encoding))
    except av.codec.codec.UnknownCodecError as error:
        raise InputError(f"--codec {encoding.codec}: this PyAV has no {name}; use h264") from error
    stream.width, stream.height, stream.pix_fmt = encoding.width, encoding.height, "yuv420p"
    context = stream.codec_context
    context.time_base = stream.time_base = encoding.time_base
    context.flags |= av.codec.context.Flags.global_header
    context.sample_aspect_ratio = encoding.aspect
    context.color_range = _LIMITED
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    return stream


def _options(encoding: Encoding) -> dict[str, str]:
    """Constant quality, and frames in the order of time: segments then follow each other."""
    loss = 100 - encoding.quality
    if encoding.codec == "h264":
        return {
            "crf": str(round(15 + 0.36 * loss)),
            "preset": "medium",
            "bf": "0",
            "x264-params": "force-cfr=1",
        }
    if encoding.codec == "hevc":
        quiet = "log-level=none:bframes=0"
        return {"crf": str(round(17 + 0.34 * loss)), "preset": "medium", "x265-params": quiet}
    crf = str(round(20 + 0.42 * loss))
    return {"crf": crf, "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}


def _encodable(pixels: np.ndarray) -> Any:
    av = pyav()
    from av.video.reformatter import Interpolation

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
    return frame.reformat(
        format="yuv420p",
        dst_colorspace="ITU709",
        dst_color_range="MPEG",
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
    )


def _segment_packets(segments: Sequence[Path], stream: Any) -> Iterator[Timed]:
    for path in segments:
        with opened(path) as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.pts is None:  # the mark of the end
                    continue
                packet.dts = packet.pts
                time = packet.pts * packet.time_base
                packet.stream = stream
                yield time, packet


@dataclass(frozen=True)
class _Span:
    """Seconds of a file between which its sound is taken; what lies before a start that nobody
    asked for primes the decoder and stays.
    """

    start: Fraction
    length: Fraction | None
    is_cut: bool

    def holds(self, time: Fraction) -> bool:
        return time >= 0 or not self.is_cut

    def is_over(self, time: Fraction) -> bool:
        return self.length is not None and time >= self.length


def _sound(source: Any, out: Any, span: _Span) -> tuple[list[Iterator[Timed]], tuple[str, ...]]:
    streams = source.streams.audio
    if not streams:
        return [], ()
    notes = ["only the first of several sound tracks"] * (len(streams) > 1)
    try:
        copy = out.add_stream_from_template(streams[0], opaque=True)
        return [_copied(source, streams[0], copy, span)], tuple(notes)
    except ValueError:
        notes.append(f"sound encoded again, it was {streams[0].codec_context.name}")
    new = _sound_stream(out, streams[0])
    return [_encoded(source, streams[0], new, span)], tuple(notes)


def _sound_stream(out: Any, like: Any) -> Any:
    name = out.default_audio_codec
    rates = pyav().codec.Codec(name, "w").audio_rates
    rate = like.rate if not rates or like.rate in rates else max(rates)
    return out.add_stream(name, rate=rate, layout="stereo" if like.channels > 1 else "mono")


def _copied(source: Any, stream: Any, copy: Any, span: _Span) -> Iterator[Timed]:
    base = Fraction(stream.time_base)
    offset = round(span.start / base)
    for packet in _sound_packets(source, stream, span):
        if packet.pts is None or packet.dts is None:
            continue
        packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
        time = packet.pts * base
        if span.is_over(time):
            return
        if span.holds(time):
            packet.stream = copy
            yield time, packet


def _encoded(source: Any, stream: Any, new: Any, span: _Span) -> Iterator[Timed]:
    for packet in _sound_packets(source, stream, span):
        for frame in _sound_frames(packet):
            time = frame.pts * Fraction(frame.time_base) - span.start
            if span.is_over(time):
                break
            if span.holds(time):
                frame.pts = round(time / Fraction(frame.time_base))
                yield from _timed(new.encode(frame))
    yield from _timed(new.encode(None))


def _sound_packets(source: Any, stream: Any, span: _Span) -> Iterator[Any]:
    if span.is_cut:
        source.seek(int(span.start / Fraction(stream.time_base)), stream=stream)
    yield from source.demux(stream)


def _sound_frames(packet: Any) -> list[Any]:
    try:
        return [frame for frame in packet.decode() if frame.pts is not None]
    except pyav().error.FFmpegError:  # a gap in the sound
        return []


def _timed(packets: Sequence[Any]) -> Iterator[Timed]:
    for packet in packets:
        yield packet.pts * Fraction(packet.time_base), packet
