from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.data import video_write
from normapps.data.picture import Picture
from normapps.data.video import probe
from normapps.data.video_write import Encoding, join, segment_file
from normapps.errors import InputError, UsageError
from normapps.models.adain_tiny import AdainTiny
from normapps.style import video
from normapps.style.stylize_options import StylizeOptions
from normapps.style.stylizer import Stylizer
from normapps.style.video import stylize_clips

sys.path.append(str(Path(__file__).resolve().parent.parent / "data"))
from moving_pictures import damage, pan, read_clip, sound_packets, turn, write_clip

LOSSLESS = {"codec": "ffv1", "pixels": "bgr0"}


@pytest.fixture(scope="module")
def stylizer() -> Stylizer:
    """A random network that is small and paints with contrast."""
    torch.manual_seed(0)
    network = AdainTiny(width=8, deep=8, hidden=4)
    weight = network.image.weight.data
    weight.sub_(weight.mean((1, 2, 3), keepdim=True)).mul_(3)  # about a middle grey
    return Stylizer(network, "0" * 64)


@pytest.fixture
def here(tmp_path, monkeypatch, coffee, flower) -> Path:
    """A folder with `pan.mkv` (12 frames, exact, 25 a second) and two paintings.

    H.264 is written without loss here: with loss, libx264 now and then takes another decision for
    the same frames (2 of some 10 000 encodings on a busy machine, on one thread too).
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(video, "SEGMENT", 4)
    monkeypatch.setattr(video_write, "_options", _lossless)
    write_clip(tmp_path / "pan.mkv", pan(coffee, 12), **LOSSLESS)
    Image.fromarray(flower[::8, ::8]).save("wave.png")
    Image.fromarray(255 - flower[::8, ::8]).save("ink.png")
    return tmp_path


def _lossless(encoding: Encoding) -> dict[str, str]:
    return {"crf": "0", "bf": "0", "x264-params": "force-cfr=1"}


def _options(**values) -> StylizeOptions:
    return StylizeOptions(**{"style": ("wave.png",), "output": "o.mkv", "quality": 100} | values)


def _job(stylizer, contents=("pan.mkv",), watch=None, **values) -> list:
    return list(stylize_clips(_options(**values), contents, stylizer=stylizer, watch=watch))


def _frames(path: str = "o.mkv") -> np.ndarray:
    return np.stack(read_clip(Path(path))[0]).astype(int)


def _encoded(frames: list[np.ndarray]) -> np.ndarray:
    """What clips keep of frames of 25 a second: half of the colours' resolution."""
    encoding = Encoding("h264", 100, 64, 48, Fraction(25), probe("pan.mkv").time_base)
    paths = [Path(f"wanted{i}.nut") for i in range(0, len(frames), video.SEGMENT)]
    for i, path in enumerate(paths):
        with segment_file(path, encoding) as segment:
            for n in range(video.SEGMENT * i, min(len(frames), video.SEGMENT * (i + 1))):
                segment.add(frames[n], n * 40)
    join(paths, Path("wanted.mkv"), sound=None)
    return _frames("wanted.mkv")


def _stopping(at: int):
    """A watch that interrupts at a frame."""
    seen = []

    def _watch(name: str, total: int) -> None:
        seen.append(total)
        if len(seen) == at:
            raise KeyboardInterrupt

    return _watch


def _parts() -> list[str]:
    return sorted(path.name for path in Path(".o.mkv.parts").glob("*.nut"))


# What is painted


def test_frame_by_frame_each_is_what_the_stylizer_paints(here, stylizer, coffee) -> None:
    (result,) = _job(stylizer, smooth=0)
    assert (result.status, result.width, result.height) == ("done", 64, 48)
    style = stylizer.style(Image.open("wave.png"))
    wanted = [stylizer(Picture(frame), style).pixels for frame in pan(coffee, 12)]
    assert np.std(wanted) > 20  # it paints something
    assert np.array_equal(_frames(), _encoded(wanted))


def test_smoothing_takes_flicker_away(here, stylizer, coffee) -> None:
    """A bright bar that comes and goes at the edge must not change the rest of the picture."""
    still = pan(coffee // 2, 1, 96, 64)[0]
    frames = [still.copy() for _ in range(12)]
    for frame in frames[1::2]:
        frame[:, -4:] += 40
    write_clip(here / "flash.mkv", frames, **LOSSLESS)
    changes = {}
    for smooth in (0.0, 2.0):
        (result,) = _job(stylizer, ["flash.mkv"], smooth=smooth, overwrite=True)
        assert result.notes == ()  # no change of scene
        left = _frames()[:, :, :16]  # further away than the network sees… but for its moments
        changes[smooth] = np.abs(np.diff(left[4:], axis=0)).mean()
    assert changes[2.0] < changes[0.0] / 3


def test_a_new_scene_is_not_painted_with_the_old_ones_moments(here, stylizer, coffee) -> None:
    scene = [255 - frame // 8 for frame in pan(coffee, 8)]
    write_clip(here / "cut.mkv", [*pan(coffee, 8), *scene], **LOSSLESS)
    write_clip(here / "alone.mkv", scene, **LOSSLESS)
    (result,) = _job(stylizer, ["cut.mkv"], smooth=5)
    assert result.notes == ("1 change of scene",)
    _job(stylizer, ["alone.mkv"], smooth=5, output="a.mkv")
    assert np.abs(_frames()[8:] - _frames("a.mkv")).mean() < 0.1


def test_strength_size_and_colours_are_those_of_pictures(here, stylizer, coffee) -> None:
    _job(stylizer, alpha=0.0, output="same.mkv")
    assert np.array_equal(_frames("same.mkv"), _encoded(pan(coffee, 12)))
    (result,) = _job(stylizer, size=33, preserve_color="luma")
    assert (result.width, result.height) == (32, 24)
    assert _frames().shape == (12, 24, 32, 3)


# Resuming


@pytest.mark.parametrize("at", [1, 5, 12])
def test_an_interrupted_clip_goes_on_with_the_same_frames(here, stylizer, at) -> None:
    _job(stylizer, output="whole.mkv", smooth=0.3)
    with pytest.raises(KeyboardInterrupt):
        _job(stylizer, watch=_stopping(at), smooth=0.3)
    assert not Path("o.mkv").exists()
    kept = (at - 1) // 4
    assert _parts() == [f"{number:06d}.nut" for number in range(kept)]
    painted = []
    (result,) = _job(stylizer, watch=lambda *_: painted.append(_), smooth=0.3)
    assert len(painted) == 12 - 4 * kept
    assert painted[0][1] == 12 - 4 * kept  # what is left to do, for the time left
    assert result.notes == ((f"went on after frame {4 * kept}",) if kept else ())
    assert np.array_equal(_frames(), _frames("whole.mkv"))
    assert not Path(".o.mkv.parts").exists()


def test_going_on_keeps_a_fixed_rate(here, stylizer) -> None:
    _job(stylizer, output="whole.mkv", fps=60)
    with pytest.raises(KeyboardInterrupt):
        _job(stylizer, watch=_stopping(6), fps=60)
    _job(stylizer, fps=60)
    assert read_clip(Path("o.mkv"))[1] == read_clip(Path("whole.mkv"))[1]
    assert np.array_equal(_frames(), _frames("whole.mkv"))


def test_an_interrupt_at_the_joining_paints_nothing_again(here, stylizer, monkeypatch) -> None:
    def _interrupted(*_, **__) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(video, "join", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        _job(stylizer)
    monkeypatch.setattr(video, "join", join)
    assert len(_parts()) == 3
    painted = []
    _job(stylizer, watch=lambda *_: painted.append(_))
    assert painted == []
    assert len(_frames()) == 12


@pytest.mark.parametrize("change", [{"smooth": 0.1}, {"style": ("ink.png",)}])
def test_other_options_begin_anew(here, stylizer, change) -> None:
    with pytest.raises(KeyboardInterrupt):
        _job(stylizer, watch=_stopping(9))
    (result,) = _job(stylizer, **change)
    assert result.notes == ()
    _job(stylizer, output="whole.mkv", **change)
    assert np.array_equal(_frames(), _frames("whole.mkv"))


def test_another_clip_of_the_name_begins_anew(here, stylizer, coffee) -> None:
    with pytest.raises(KeyboardInterrupt):
        _job(stylizer, watch=_stopping(9))
    write_clip(here / "pan.mkv", pan(coffee, 5), **LOSSLESS)
    (result,) = _job(stylizer)
    assert result.notes == ()
    assert len(_frames()) == 5


def test_a_damaged_mark_names_the_folder_to_remove(here, stylizer) -> None:
    with pytest.raises(KeyboardInterrupt):
        _job(stylizer, watch=_stopping(9))
    Path(".o.mkv.parts/000001.safetensors").write_bytes(b"junk")
    (result,) = _job(stylizer)
    assert result.status == "failed"
    assert result.error.endswith("damaged; remove .o.mkv.parts to begin anew")


# Time, rotation, damage


def test_a_variable_rate_is_kept(here, stylizer, coffee) -> None:
    stamps = [0, 10, 30, 31, 90, 200]
    base = Fraction(1, 1000)
    write_clip(here / "v.mkv", pan(coffee, 6), stamps=stamps, time_base=base, **LOSSLESS)
    _job(stylizer, ["v.mkv"])
    assert [round(time * 1000) for time in read_clip(Path("o.mkv"))[1]] == stamps


@pytest.mark.parametrize(("fps", "frames"), [(10, 5), (50, 24)])
def test_a_rate_is_given(here, stylizer, fps, frames) -> None:
    _job(stylizer, fps=fps)
    times = read_clip(Path("o.mkv"))[1]
    assert [round(time * fps) for time in times] == list(range(frames))


def test_a_part_is_taken_with_its_sound(here, stylizer, coffee) -> None:
    write_clip(here / "s.mp4", pan(coffee, 30), sound="aac", options={"g": "10"})
    _job(stylizer, ["s.mp4"], start="0.32", end="0:00.8", output="o.mp4", smooth=0)
    assert len(_frames("o.mp4")) == 12
    sound = sound_packets(here / "s.mp4")
    first = sound.index(sound_packets(here / "o.mp4")[0])
    assert abs(first * 1024 / 44100 - 0.32) < 0.05
    _job(stylizer, ["s.mp4"], output="all.mp4", smooth=0)
    assert sound_packets(here / "all.mp4") == sound
    assert np.array_equal(_frames("o.mp4"), _frames("all.mp4")[8:20])


def test_a_part_without_frames_is_told(here, stylizer) -> None:
    (result,) = _job(stylizer, start="9")
    assert result.error == "pan.mkv: no frames between --start and --end"


def test_a_turned_clip_is_upright(here, stylizer, coffee) -> None:
    write_clip(here / "r.mp4", pan(coffee, 3, 64, 33 * 2))
    turn(here / "r.mp4", 1)
    (result,) = _job(stylizer, ["r.mp4"], alpha=0.0, output="o.mp4")
    assert (result.width, result.height) == (66, 64)
    wanted = np.rot90(read_clip(here / "r.mp4")[0][0], -1).astype(int)
    assert np.abs(_frames("o.mp4")[0] - wanted).mean() < 5


def test_odd_sizes_lose_a_line(here, stylizer, coffee) -> None:
    write_clip(here / "odd.mkv", pan(coffee, 2, 65, 49), **LOSSLESS)
    (result,) = _job(stylizer, ["odd.mkv"])
    assert _frames().shape[1:] == (48, 64, 3)
    assert "cut to an even size" in result.notes


def test_a_damaged_frame_does_not_end_the_job(here, stylizer, coffee) -> None:
    write_clip(here / "d.mp4", pan(coffee, 30), options={"g": "10", "bf": "0"})
    damage(here / "d.mp4", 15)
    (result,) = _job(stylizer, ["d.mp4"])
    assert result.status == "done"
    assert result.notes == ("1 damaged frame left out",)
    assert len(_frames()) == 29


def test_what_is_no_clip_fails_alone(here, stylizer) -> None:
    Path("bad.mp4").write_bytes(b"nothing")
    results = _job(stylizer, ["bad.mp4", "pan.mkv"], output="out")
    assert [result.status for result in results] == ["failed", "done"]
    assert results[0].error == "bad.mp4: damaged or not a video file"


def test_frames_are_not_gathered(here, stylizer, coffee, monkeypatch) -> None:
    asked: list[int] = []
    given: list[int] = []

    def _read(self) -> Iterator[object]:
        for frame in whole(self):
            asked.append(frame.pts)
            assert len(asked) - len(given) <= 2
            yield frame

    whole = video.FrameReader.__iter__
    monkeypatch.setattr(video.FrameReader, "__iter__", _read)
    _job(stylizer, watch=lambda *_: given.append(1), fps=50)
    assert len(asked) == 12


# Places


def test_what_exists_stays(here, stylizer) -> None:
    Path("o.mkv").write_bytes(b"mine")
    (result,) = _job(stylizer)
    assert result.error == "o.mkv: exists already; --overwrite replaces it"
    assert Path("o.mkv").read_bytes() == b"mine"
    assert _job(stylizer, overwrite=True)[0].status == "done"
    assert len(_frames()) == 12


def test_a_folder_job_keeps_what_it_finished(here, stylizer, coffee) -> None:
    Path("clips/trip").mkdir(parents=True)
    write_clip(here / "clips/trip/a.mp4", pan(coffee, 3))
    write_clip(here / "clips/b.avi", pan(coffee, 2), codec="mpeg4")
    styles = ("wave.png", "ink.png")
    results = _job(stylizer, ["clips"], output="out", style=styles)
    assert {result.output for result in results} == {
        *("out/trip/a--wave.mp4", "out/trip/a--ink.mp4", "out/b--wave.mp4", "out/b--ink.mp4")
    }
    again = _job(stylizer, ["clips"], output="out", style=styles)
    assert {result.status for result in again} == {"kept"}
    assert [result.width for result in again] == [64] * 4
    changed = _job(stylizer, ["clips"], output="out", style=styles, smooth=0.1)
    assert all("with other options; --overwrite" in result.error for result in changed)
    lines = Path("out/manifest.jsonl").read_text().splitlines()
    assert {json.loads(line)["status"] for line in lines} == {"done"}


def test_weights_make_one_blend(here, stylizer) -> None:
    (result,) = _job(stylizer, style=("wave.png", "ink.png"), style_weights="1,1")
    assert result.style == "0.5 wave.png + 0.5 ink.png"


@pytest.mark.parametrize(
    ("contents", "values", "reason"),
    [
        (["pan.mkv"], {"output": "o.png"}, r"-o o\.png: name a clip"),
        (["pan.mkv"], {"output": "-"}, r"-o -: a clip cannot go to standard output"),
        (["pan.mkv"], {"output": "pan.mkv"}, r"-o pan\.mkv: is the clip itself"),
        (["pan.mkv"], {"output": "wave.png/"}, r"wave\.png"),
        (["pan.mkv", "b.mp4"], {"output": "o.mp4"}, r"one file cannot hold 2 results; name a fold"),
        (["pan.mkv"], {"codec": "h264", "output": "o.webm"}, r"--codec h264: \.webm takes vp9"),
        (["pan.mkv"], {"runtime": "onnx"}, "--runtime onnx: paints pictures only"),
        (["pan.mkv"], {"style": ("none.jpg",)}, "none.jpg: no such style file"),
    ],
)
def test_what_does_not_fit_is_refused(here, stylizer, contents, values, reason) -> None:
    with pytest.raises((UsageError, InputError), match=reason):
        _job(stylizer, contents, **values)
    assert not list(here.glob(".*.parts"))
