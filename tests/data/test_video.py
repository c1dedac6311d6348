from __future__ import annotations

import sys
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from normapps.data.video import Frame, FrameReader, probe
from normapps.errors import InputError

sys.path.append(str(Path(__file__).resolve().parent))
from moving_pictures import damage, pan, read_clip, turn, write_clip

LOSSLESS = {"codec": "ffv1", "pixels": "bgr0"}


@pytest.fixture
def frames(coffee) -> list[np.ndarray]:
    return pan(coffee, 30)


def _pixels(path, **options) -> list[np.ndarray]:
    return [frame.pixels for frame in FrameReader(path, **options)]


def test_frames_are_those_of_the_file_in_order(tmp_path, frames) -> None:
    path = write_clip(tmp_path / "a.mkv", frames, **LOSSLESS)
    read = list(FrameReader(path))
    assert all(np.array_equal(one.pixels, other) for one, other in zip(read, frames, strict=True))
    assert [round(frame.time * 25) for frame in read] == list(range(30))


def test_probe_tells_size_rate_and_length(tmp_path, frames) -> None:
    rate = Fraction(30000, 1001)
    clip = probe(write_clip(tmp_path / "a.mp4", frames, rate=rate, sound="aac"))
    assert (clip.width, clip.height, clip.aspect, clip.rate) == (64, 48, 1, rate)
    assert abs(clip.duration - 30 / rate) < Fraction(1, 20)
    assert clip.origin == 0
    assert clip.notes == ()


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_frames_are_upright(tmp_path, frames, quarters) -> None:
    path = write_clip(tmp_path / "a.mp4", frames[:2], aspect=Fraction(4, 3))
    plain = _pixels(path)
    turn(path, quarters)
    turned = _pixels(path)
    for one, other in zip(turned, plain, strict=True):
        assert np.array_equal(one, np.rot90(other, -quarters))  # rot90 turns the other way
    clip = probe(path)
    sideways = quarters % 2 == 1
    assert (clip.height, clip.width) == turned[0].shape[:2]
    assert clip.aspect == (Fraction(3, 4) if sideways else Fraction(4, 3))


MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


def _ycc(rgb: tuple[int, ...], matrix: int, full: bool) -> list[int]:
    """BT.601, .709 and .2020 by their definition."""
    red, green, blue = (value / 255 for value in rgb)
    of_red, of_blue = MATRICES[matrix]
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    chroma = ((blue - luma) / (2 - 2 * of_blue), (red - luma) / (2 - 2 * of_red))
    if full:
        return [round(255 * luma), *(round(128 + 255 * each) for each in chroma)]
    return [round(16 + 219 * luma), *(round(128 + 224 * each) for each in chroma)]


@pytest.mark.parametrize(
    ("matrix", "full", "named", "size"),
    [
        (1, False, True, (64, 64)),
        (6, False, True, (64, 64)),
        (5, True, True, (64, 64)),
        (1, True, True, (64, 64)),
        (9, False, True, (64, 64)),
        (6, False, False, (64, 64)),
        (1, False, False, (1280, 720)),
    ],
)
def test_colours_follow_matrix_and_range(tmp_path, matrix, full, named, size) -> None:
    rgb = (200, 60, 120)
    width, height = size
    planes = np.stack([np.full((height, width), value) for value in _ycc(rgb, matrix, full)])
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=25, width=width, height=height)
        video.pix_fmt = "yuv444p"
        if named:
            video.codec_context.colorspace = matrix
        video.codec_context.color_range = 2 if full else 1
        frame = av.VideoFrame.from_ndarray(planes.astype(np.uint8), "yuv444p")
        container.mux(video.encode(frame))
        container.mux(video.encode())
    (pixels,) = _pixels(path)
    assert np.abs(pixels.reshape(-1, 3).astype(int) - rgb).max() <= 2


def test_time_stamps_of_a_variable_rate_are_kept(tmp_path, frames) -> None:
    stamps = [0, 40, 50, 190, 191, 400]
    path = write_clip(tmp_path / "a.mp4", frames[:6], stamps=stamps, time_base=Fraction(1, 1000))
    assert [frame.time * 1000 for frame in FrameReader(path)] == stamps


@pytest.mark.parametrize("after", [0, 7, 11, 12, 28])
def test_going_on_after_a_frame_gives_the_same_frames(tmp_path, frames, after) -> None:
    path = write_clip(tmp_path / "a.mp4", frames, options={"g": "12", "bf": "3"})
    whole = list(FrameReader(path))
    rest = list(FrameReader(path, after=whole[after].pts))
    assert [frame.pts for frame in rest] == [frame.pts for frame in whole[after + 1 :]]
    for one, other in zip(rest, whole[after + 1 :], strict=True):
        assert np.array_equal(one.pixels, other.pixels)


def test_going_on_in_a_stream_without_an_index(tmp_path, frames) -> None:
    path = write_clip(tmp_path / "a.ts", frames, options={"g": "12", "bf": "0"})
    whole = list(FrameReader(path))
    rest = list(FrameReader(path, after=whole[17].pts))
    assert [frame.pts for frame in rest] == [frame.pts for frame in whole[18:]]
    assert whole[0].time >= 0


def test_start_and_end_are_times_of_the_clip(tmp_path, frames) -> None:
    path = write_clip(tmp_path / "a.mp4", frames, options={"g": "12"})
    part = list(FrameReader(path, start=Fraction("0.4"), end=Fraction("0.8")))
    assert [frame.time * 25 for frame in part] == list(range(10, 20))
    assert not _pixels(path, start=Fraction(9))


def test_a_damaged_frame_is_left_out_and_counted(tmp_path, frames) -> None:
    path = write_clip(tmp_path / "a.mp4", frames, options={"g": "10", "bf": "0"})
    whole = list(FrameReader(path))
    damage(path, 15)
    reader = FrameReader(path)
    left = {frame.pts: frame.pixels for frame in reader}
    assert reader.damaged == 1
    assert whole[15].pts not in left
    assert len(left) == 29
    for frame in (*whole[:15], *whole[20:]):  # those between lean on the damaged one
        assert np.array_equal(left[frame.pts], frame.pixels)
    assert len(_pixels(path, after=whole[16].pts)) == 13


def test_a_file_cut_off_gives_what_is_there(tmp_path, frames) -> None:
    path = write_clip(tmp_path / "a.mkv", frames, options={"g": "10"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    assert 5 < len(_pixels(path)) < 30


def test_frames_are_not_gathered(tmp_path, frames) -> None:
    path = write_clip(tmp_path / "a.mp4", frames)
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()
    most = 0
    for frame in FrameReader(path):
        alive.add(frame)
        most = max(most, len(alive))
    assert most <= 2


def test_odd_sizes_and_grey_are_read(tmp_path, chelsea) -> None:
    frames = pan(chelsea, 3, 35, 27)
    path = write_clip(tmp_path / "a.mkv", frames, codec="ffv1", pixels="gray")
    read = _pixels(path)
    assert read[0].shape == (27, 35, 3)
    assert np.ptp(read[0].astype(int), axis=2).max() == 0
    wanted, _ = read_clip(path)
    assert np.abs(read[0].astype(int) - wanted[0]).max() <= 1


def test_ten_bits_are_read(tmp_path, frames) -> None:
    path = write_clip(tmp_path / "a.mkv", frames[:2], codec="ffv1", pixels="yuv444p10le")
    assert np.abs(_pixels(path)[0].astype(int) - frames[0]).max() <= 3


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.mp4", None, "cannot be read (No such file or directory)"),
        ("text.mp4", b"not a video at all, just words. " * 20, "damaged or not a video file"),
        ("empty.mp4", b"", "damaged or not a video file"),
    ],
)
def test_what_is_no_clip_is_named(tmp_path, name, content, reason) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        probe(path)
    assert reason in str(error.value)
    assert str(path) in str(error.value)


def test_sound_alone_is_no_clip(tmp_path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=44100, layout="mono")
        part = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        part.sample_rate = 44100
        container.mux(audio.encode(part))
        container.mux(audio.encode())
    with pytest.raises(InputError, match=r"a\.mp4: holds no video; name a clip"):
        probe(path)


def test_without_pyav_the_command_that_installs_it_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'normapps\[video\]'"):
        probe(tmp_path / "a.mp4")
