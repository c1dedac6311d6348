"""Clips for tests, written by PyAV alone."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def pan(photo: np.ndarray, frames: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """A camera that moves to the right over a photo: (height, width, 3) uint8 a frame."""
    whole = np.asarray(Image.fromarray(photo).resize((width + 2 * frames, height)))
    return [np.ascontiguousarray(whole[:, 2 * i : 2 * i + width]) for i in range(frames)]


def tone(seconds: float, rate: int = 44100) -> np.ndarray:
    """A tone of 440 Hz, (samples,) float32."""
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype("float32")


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    rate: Fraction = Fraction(25),
    stamps: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    sound: str = "",
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Write a clip: frames at equal times, or at `stamps` in units of `time_base`."""
    base = time_base or 1 / rate
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate, options=options or {})
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = pixels
        video.codec_context.time_base = base
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        audio = container.add_stream(sound, rate=44100, layout="mono") if sound else None
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = stamps[number] if stamps else number, base
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio:
            _write_tone(container, audio, len(frames) / rate)
    return path


def _write_tone(container: av.container.OutputContainer, audio: av.AudioStream, over: Fraction):
    samples = tone(float(over))
    for start in range(0, len(samples), 1024):
        part = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], "fltp", "mono")
        part.sample_rate, part.pts = 44100, start
        container.mux(audio.encode(part))
    container.mux(audio.encode())


def turn(path: Path, quarters: int) -> None:
    """Mark an MP4's picture as to be shown turned clockwise by quarters (ISO 14496-12, tkhd)."""
    cos, sin = {0: (1, 0), 1: (0, 1), 2: (-1, 0), 3: (0, -1)}[quarters % 4]
    matrix = [value << 16 for value in (cos, sin, 0, -sin, cos, 0, 0, 0)]
    data = bytearray(path.read_bytes())
    start = data.find(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", *matrix, 1 << 30)
    path.write_bytes(data)


def damage(path: Path, number: int) -> None:
    """Put noise in place of one packet of the picture."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        start, size = packets[number].pos, packets[number].size
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    data[start : start + size] = noise.tobytes()
    path.write_bytes(data)


def read_clip(path: Path) -> tuple[list[np.ndarray], list[Fraction]]:
    """Frames as FFmpeg converts them, and their times in seconds."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        times = [frame.pts * Fraction(frame.time_base) for frame in frames]
        return [frame.to_ndarray(format="rgb24") for frame in frames], times


def sound_packets(path: Path) -> list[bytes]:
    """The packets of the sound as they stand in the file."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]
