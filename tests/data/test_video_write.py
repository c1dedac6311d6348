from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from normapps.data import video_write
from normapps.data.clips import CLIP_SUFFIXES, CLIP_WRITE_SUFFIXES
from normapps.data.video import probe
from normapps.data.video_write import CODECS, Encoding, choose_codec, join, segment_file
from normapps.errors import InputError, UsageError
from normapps.style.stylize_options import CLIP_CODECS

sys.path.append(str(Path(__file__).resolve().parent))
from moving_pictures import pan, read_clip, sound_packets, write_clip

BASE = Fraction(1, 12800)


@pytest.fixture
def frames(coffee) -> list[np.ndarray]:
    return pan(coffee, 24, 128, 96)


def _encoding(codec: str = "h264", **values) -> Encoding:
    sizes = {"width": 128, "height": 96, "rate": Fraction(25), "time_base": BASE}
    return Encoding(**{"codec": codec, "quality": 92} | sizes | values)


def _segments(folder: Path, frames, encoding, each: int = 10, stamps=None) -> list[Path]:
    paths = []
    for start in range(0, len(frames), each):
        paths.append(folder / f"{start}.nut")
        with segment_file(paths[-1], encoding) as segment:
            for number in range(start, min(start + each, len(frames))):
                segment.add(frames[number], stamps[number] if stamps else number * 512)
    return paths


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Of the luma: half the chroma's resolution is lost on purpose."""
    error = np.square((one.astype(float) - other.astype(float)) @ (0.2126, 0.7152, 0.0722)).mean()
    return 10 * np.log10(255**2 / error)


@pytest.mark.parametrize(
    ("codec", "suffix"), [("h264", ".mp4"), ("h264", ".mkv"), ("hevc", ".mov"), ("vp9", ".webm")]
)
def test_segments_become_one_clip(tmp_path, frames, codec, suffix) -> None:
    target = tmp_path / f"o{suffix}"
    stamps = [512 * i + 37 * (i % 3) for i in range(24)]  # a variable rate
    segments = _segments(tmp_path, frames, _encoding(codec), stamps=stamps)
    assert join(segments, target, sound=None) == ()
    read, times = read_clip(target)
    tolerance = BASE / 2 if suffix in (".mp4", ".mov") else Fraction(1, 1000)
    for time, stamp in zip(times, stamps, strict=True):
        assert abs(time - stamp * BASE) <= tolerance
    assert min(_psnr(one, other) for one, other in zip(read, frames, strict=True)) > 38
    assert abs(probe(target).rate - 25) < 1


def test_every_segment_begins_with_a_key_frame(tmp_path, frames) -> None:
    segments = _segments(tmp_path, frames, _encoding())
    join(segments, tmp_path / "o.mp4", sound=None)
    with av.open(str(tmp_path / "o.mp4")) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert [i for i, is_key in enumerate(keys) if is_key] == [0, 10, 20]


def test_colours_are_said_to_be_what_they_are(tmp_path) -> None:
    flat = [np.full((96, 128, 3), (200, 60, 120), np.uint8)] * 3
    join(_segments(tmp_path, flat, _encoding()), tmp_path / "o.mp4", sound=None)
    with av.open(str(tmp_path / "o.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (1, 1)
    luma = 16 + 219 * (0.2126 * 200 + 0.7152 * 60 + 0.0722 * 120) / 255  # BT.709
    plane = np.frombuffer(frame.planes[0], np.uint8)[:128]
    assert np.abs(plane - luma).max() <= 1.5


def test_more_quality_is_nearer(tmp_path, frames) -> None:
    errors, sizes = [], []
    for quality in (10, 60, 92):
        path = tmp_path / f"{quality}.mp4"
        join(_segments(tmp_path, frames, _encoding(quality=quality)), path, sound=None)
        errors.append(-_psnr(read_clip(path)[0][12], frames[12]))
        sizes.append(path.stat().st_size)
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)


def test_a_last_row_and_column_too_many_are_cut_off(tmp_path, frames) -> None:
    odd = [frame[:95, :127] for frame in frames[:3]]
    encoding = _encoding(width=126, height=94)
    join(_segments(tmp_path, odd, encoding), tmp_path / "o.mp4", sound=None)
    read, _ = read_clip(tmp_path / "o.mp4")
    assert _psnr(read[0], odd[0][:94, :126]) > 6 + _psnr(read[0], odd[0][1:, 1:])


def test_pixels_keep_their_shape(tmp_path, frames) -> None:
    segments = _segments(tmp_path, frames[:3], _encoding(aspect=Fraction(4, 3)))
    for name in ("o.mp4", "o.mkv"):
        join(segments, tmp_path / name, sound=None)
        assert probe(tmp_path / name).aspect == Fraction(4, 3)


def test_sound_is_copied_as_it_is(tmp_path, frames) -> None:
    source = write_clip(tmp_path / "s.mp4", frames, sound="aac")
    segments = _segments(tmp_path, frames, _encoding())
    assert join(segments, tmp_path / "o.mp4", sound=source) == ()
    assert sound_packets(tmp_path / "o.mp4") == sound_packets(source)
    assert [_first_sample(path) for path in (source, tmp_path / "o.mp4")] == [0, 0]


def _first_sample(path: Path) -> Fraction:
    with av.open(str(path)) as container:
        frame = next(container.decode(audio=0))
        return frame.pts * Fraction(frame.time_base)


def _wave(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])


def test_sound_that_does_not_fit_is_encoded_again(tmp_path, frames) -> None:
    source = write_clip(tmp_path / "s.mp4", frames, sound="aac")
    segments = _segments(tmp_path, frames, _encoding("vp9"))
    notes = join(segments, tmp_path / "o.webm", sound=source)
    assert notes == ("sound encoded again, it was aac",)
    wave = _wave(tmp_path / "o.webm").astype(float)
    assert 0.15 < np.sqrt(np.square(wave).mean()) < 0.25  # a tone of amplitude 0.3
    peak = np.abs(np.fft.rfft(wave)).argmax() * 48000 / len(wave)
    assert abs(peak - 440) < 3


def test_sound_of_a_part_begins_with_the_part(tmp_path, frames) -> None:
    source = write_clip(tmp_path / "s.mp4", frames, sound="aac")
    segments = _segments(tmp_path, frames[10:20], _encoding())
    target = tmp_path / "o.mp4"
    join(segments, target, sound=source, start=Fraction("0.4"), end=Fraction("0.8"))
    packets = sound_packets(source)
    got = sound_packets(target)
    first = packets.index(got[0])
    assert got == packets[first : first + len(got)]
    assert abs(first - 1 - 0.4 * 44100 / 1024) < 1.5  # one packet more primes the decoder
    assert abs(len(got) - 0.4 * 44100 / 1024) < 1.5


def test_codecs_fit_their_containers() -> None:
    assert choose_codec("a.MP4") == "h264"
    assert choose_codec("a.webm") == "vp9"
    assert choose_codec("a.mkv", "hevc") == "hevc"
    with pytest.raises(UsageError, match=r"--codec h264: \.webm takes vp9; or name an \.mkv"):
        choose_codec("a.webm", "h264")
    with pytest.raises(UsageError, match=r"-o a\.png: name a clip \(\.mp4 "):
        choose_codec("a.png")
    assert ("auto", *CODECS) == CLIP_CODECS
    assert set(CLIP_WRITE_SUFFIXES) < set(CLIP_SUFFIXES)


def test_a_failed_segment_leaves_nothing(tmp_path, frames) -> None:
    path = tmp_path / "0.nut"
    with pytest.raises(InputError), segment_file(path, _encoding()) as segment:
        segment.add(frames[0], _refused())
    assert list(tmp_path.iterdir()) == []


def _refused() -> int:
    raise InputError("no")


def test_an_encoder_that_is_missing_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(video_write._ENCODERS, "hevc", "libnothing")
    with (
        pytest.raises(InputError, match="--codec hevc: this PyAV has no libnothing; use h264"),
        segment_file(tmp_path / "0.nut", _encoding("hevc")),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
