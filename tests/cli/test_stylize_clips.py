from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from normapps.cli.main import main
from normapps.models.adain_tiny import AdainTiny
from normapps.models.folder import save_model
from normapps.style import video

sys.path.append(str(Path(__file__).resolve().parent.parent / "data"))
from moving_pictures import pan, read_clip, sound_packets, write_clip


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    torch.manual_seed(0)
    arguments = {"width": 8, "deep": 8, "hidden": 4}
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, AdainTiny(**arguments), builder="adain-tiny", arguments=arguments)
    return str(folder)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, model, coffee, flower):
    """Run `normapps stylize …` beside a clip of 12 frames, a photo and a painting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(video, "SEGMENT", 4)
    write_clip(Path("clip.mp4"), pan(coffee, 12), sound="aac")
    Image.fromarray(coffee[::8, ::8]).save("photo.png")
    Image.fromarray(flower[::8, ::8]).save("wave.png")

    def _run(*arguments: str) -> tuple[int, str, str]:
        command = ["normapps", "stylize", "--model", model, "--device", "cpu", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as left:
            main()
        return (left.value.code or 0, *capsys.readouterr())

    return _run


def test_a_clip_is_stylized_with_its_sound(run) -> None:
    code, out, err = run("clip.mp4", "--style", "wave.png", "-o", "out.mp4")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split()[:4] == ["clip.mp4", "wave.png", "out.mp4", "64×48"]
    frames, times = read_clip(Path("out.mp4"))
    assert [round(time * 25) for time in times] == list(range(12))
    assert frames[0].shape == (48, 64, 3)
    assert sound_packets(Path("out.mp4")) == sound_packets(Path("clip.mp4"))
    assert sorted(path.name for path in Path().iterdir()) == [
        *("clip.mp4", "out.mp4", "photo.png", "wave.png")
    ]


def test_flags_of_clips_reach_the_clip(run) -> None:
    flags = ("--fps", "10", "--start", "0.1", "--end", "0:00.4", "--smooth", "0", "--codec", "hevc")
    code, out, _ = run("clip.mp4", "--style", "wave.png", "-o", "o.mkv", "--json", *flags)
    assert code == 0
    assert json.loads(out)["status"] == "done"
    assert [round(time * 10) for time in read_clip(Path("o.mkv"))[1]] == [0, 1, 2]


def test_pictures_and_clips_go_to_one_folder(run) -> None:
    code, out, _ = run("clip.mp4", "photo.png", "--style", "wave.png", "-o", "out/")
    assert code == 0
    assert "2 done" in out
    assert {path.name for path in Path("out").iterdir()} == {
        *("clip.mp4", "photo.png", "manifest.jsonl")
    }
    code, out, _ = run("clip.mp4", "photo.png", "--style", "wave.png", "-o", "out/")
    assert "2 kept" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("clip.mp4", "photo.png", "-o", "o.mp4"), "-o o.mp4: pictures and clips together need"),
        (("photo.png", "-o", "o.png", "--fps", "5"), "--fps: is for clips, and no clip is given"),
        (("clip.mp4", "-o", "o.gif"), "-o o.gif: name a clip"),
        (("clip.mp4", "-o", "o.mp4", "--end", "later"), "--end 'later': must be seconds or"),
    ],
)
def test_misuse_is_one_line(run, arguments, reason) -> None:
    code, out, err = run("--style", "wave.png", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {reason}")
    assert err.count("\n") == 1


def test_an_interrupt_tells_how_to_go_on(run, monkeypatch) -> None:
    paint, calls = video.ClipJob._paint_frame, []

    def _stopping(self, *arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return paint(self, *arguments)

    monkeypatch.setattr(video.ClipJob, "_paint_frame", _stopping)
    code, _, err = run("clip.mp4", "--style", "wave.png", "-o", "out.mp4")
    assert code == 130
    assert err == "interrupted: 0 finished and kept; the same command goes on with the clip\n"
    assert not Path("out.mp4").exists()
    code, out, _ = run("clip.mp4", "--style", "wave.png", "-o", "out.mp4")
    assert code == 0
    assert "went on after frame 4" in out
    assert len(calls) == 6 + 8


def test_a_clip_that_cannot_be_read_is_named(run) -> None:
    Path("bad.mp4").write_bytes(b"nothing")
    code, _, err = run("bad.mp4", "--style", "wave.png", "-o", "out.mp4")
    assert code == 1
    assert err == "error: bad.mp4: damaged or not a video file\n"
