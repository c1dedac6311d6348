from __future__ import annotations

from pathlib import Path

import pytest

from normapps.errors import InputError, UsageError
from normapps.style.contents import sort_contents
from normapps.style.stylize_options import StylizeOptions


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/c.mp4", "clips/b.MOV", "both/d.png", "both/d.webm"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()


def _options(output: str = "out", **values) -> StylizeOptions:
    return StylizeOptions(style=("preset:ink",), output=output, **values)


@pytest.mark.parametrize(
    ("contents", "pictures", "clips"),
    [
        (["photos/a.jpg"], ["photos/a.jpg"], []),
        (["photos"], ["photos"], []),  # a folder of photos stays one
        (["clips"], [], ["clips"]),
        (["none.mp4"], [], ["none.mp4"]),
        (["none"], ["none"], []),
        (["-"], ["-"], []),
        (["clips/*"], [], ["clips/*"]),
        (["both/*"], ["both/*"], ["both/*"]),
        (["clips/b.MOV", "photos/a.jpg"], ["photos/a.jpg"], ["clips/b.MOV"]),
    ],
)
def test_contents_are_told_apart(contents, pictures, clips) -> None:
    assert sort_contents(_options(), contents) == (pictures, clips)


def test_both_need_a_folder() -> None:
    with pytest.raises(UsageError, match=r"-o o\.mp4: pictures and clips together need a folder"):
        sort_contents(_options("o.mp4"), ["photos/a.jpg", "clips/b.MOV"])


@pytest.mark.parametrize(
    "values", [{"fps": 5.0}, {"start": "1"}, {"end": "2"}, {"smooth": 0.0}, {"codec": "vp9"}]
)
def test_options_of_clips_need_a_clip(values) -> None:
    (name,) = values
    with pytest.raises(UsageError, match=f"--{name}: is for clips, and no clip is given"):
        sort_contents(_options(**values), ["photos"])
    assert sort_contents(_options(**values), ["clips"]) == ([], ["clips"])


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [
        (None, None, (0, None)),
        ("2.5", "1:00", (2.5, 60)),
        ("0:01:02.25", "1:00:00", (62.25, 3600)),
    ],
)
def test_clocks_are_read(start, end, span) -> None:
    assert _options(start=start, end=end).span == span


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"start": "soon"}, "--start 'soon': must be seconds or H:M:S"),
        ({"end": "-1"}, "--end '-1': must be seconds or H:M:S"),
        ({"start": "3", "end": "2"}, "--end 2: must come after --start 3"),
        ({"end": "0"}, "--end 0: must come after --start 0"),
        ({"fps": 0.0}, "--fps 0.0: must be between"),
        ({"smooth": -1.0}, "--smooth -1.0: must be between"),
        ({"codec": "divx"}, "--codec 'divx': choose one of auto, h264, hevc, vp9"),
    ],
)
def test_values_that_cannot_be_are_refused(values, reason) -> None:
    with pytest.raises(InputError) as error:
        _options(**values)
    assert str(error.value).startswith(reason)
