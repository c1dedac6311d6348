"""Styles of a job under masks: what the stylizer is given, what the manifest remembers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from normapps.data.images import Picture, with_pixels
from normapps.errors import InputError, UsageError
from normapps.style.job import stylize_files
from normapps.style.masks import Mask
from normapps.style.onnx.styles import OnnxStyle
from normapps.style.stylize_options import StylizeOptions


class Recorder:
    """In place of a stylizer: remembers the styles that it is given."""

    fingerprint = "0" * 64
    folder: Path | None = None

    def __init__(self) -> None:
        self.given: list[Any] = []

    def style(self, image: Picture, *, size: int, name: str) -> OnnxStyle:
        colors = np.zeros(3)
        return OnnxStyle(name, self.fingerprint, (), colors)  # type: ignore[arg-type]

    def method_of(self, method: str) -> str:
        return "adain"

    def __call__(self, content: Picture, style: Any, **chosen: Any) -> Picture:
        self.given.append(style)
        return with_pixels(content, 255 - content.pixels)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with two paintings, a photo and two masks, as the working directory."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in ("wave", "ink", "photo"):
        Image.fromarray(random.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(f"{name}.png")
    half = np.zeros((16, 24), np.uint8)
    half[:, :12] = 255
    Image.fromarray(half).save("left.png")
    Image.fromarray(255 - half).save("right.png")


def _options(**values: Any) -> StylizeOptions:
    given = {"style": ("wave.png", "ink.png"), "mask": ("left.png",), "output": "out/"}
    return StylizeOptions(**(given | values))


def _paint(recorder: Recorder, **values: Any) -> Sequence[Any]:
    return list(stylize_files(_options(**values), ["photo.png"], stylizer=recorder))


def test_one_mask_gives_the_rest_to_the_last_style(recorder: Recorder) -> None:
    (result,) = _paint(recorder, mask_feather=3.0)
    assert (result.output, result.status) == ("out/photo.png", "done")
    assert result.style == "wave.png in left.png + ink.png elsewhere"
    ((first, second),) = recorder.given
    assert (first[0].name, second[0].name, second[1]) == ("wave", "ink", None)
    assert isinstance(first[1], Mask)
    assert (first[1].name, first[1].feather) == ("left.png", 3.0)
    assert first[1].values[0].tolist() == [255] * 12 + [0] * 12


def test_every_style_may_have_a_mask(recorder: Recorder) -> None:
    (result,) = _paint(recorder, mask=("left.png", "right.png"))
    assert result.style == "wave.png in left.png + ink.png in right.png"
    ((first, second),) = recorder.given
    assert first[1].values[0, 0] == second[1].values[0, 23] == 255
    (alone,) = _paint(recorder, style=("ink.png",), output="alone.png")
    assert (alone.status, alone.style) == ("done", "ink.png in left.png")


@pytest.mark.parametrize("values", [{"mask_feather": 2.0}, {"mask": ("right.png",)}, {"mask": ()}])
def test_a_result_under_other_masks_is_not_kept(recorder: Recorder, values: dict[str, Any]) -> None:
    assert [result.status for result in _paint(recorder)] == ["done"]
    assert [result.status for result in _paint(recorder)] == ["kept"]
    if values == {"mask": ()}:
        values = {**values, "style": ("wave.png",)}
    assert [result.status for result in _paint(recorder, **values)] == ["failed"]


def test_a_mask_drawn_anew_is_another(recorder: Recorder) -> None:
    _paint(recorder)
    line = Path("out/manifest.jsonl").read_text().splitlines()[-1]
    parts = json.loads(line)["recipe"]["styles"]
    assert [set(part) for part in parts] == [{"sha256", "weight", "mask", "feather"}] * 2
    assert (len(parts[0]["mask"]), parts[1]["mask"]) == (64, None)
    Image.open("right.png").save("left.png")
    assert [result.status for result in _paint(recorder)] == ["failed"]


def test_the_recipe_says_which_method_auto_was(recorder: Recorder) -> None:
    _paint(recorder)
    line = Path("out/manifest.jsonl").read_text().splitlines()[-1]
    assert json.loads(line)["recipe"]["method"] == "adain"
    assert [result.status for result in _paint(recorder, method="adain")] == ["kept"]
    recorder.method_of = lambda method: "wct"  # type: ignore[method-assign]
    assert [result.status for result in _paint(recorder)] == ["failed"]


@pytest.mark.parametrize(
    "values",
    [
        {"method": "wct"},
        {"photo": True},
        {"color_only": True},
        {"preserve_color": "luma"},
        {"alpha": 0.5},
        {"size": 12},
        {"style_size": 256},
        {"dtype": "bfloat16"},
        {"quality": 50},
        {"seed": 1},
    ],
)
def test_a_result_of_other_options_is_not_kept(recorder: Recorder, values: dict[str, Any]) -> None:
    recorder.method_of = lambda method: method  # type: ignore[method-assign]
    _paint(recorder, mask=(), style=("ink.png",))
    assert [r.status for r in _paint(recorder, mask=(), style=("ink.png",))] == ["kept"]
    assert [r.status for r in _paint(recorder, mask=(), style=("ink.png",), **values)] == ["failed"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask": ("a", "b", "c")}, "--mask: 3 masks for 2 styles; give one for each --style"),
        ({"style": ("a", "b", "c")}, "--mask: 1 masks for 3 styles"),
        ({"style_weights": "1,1"}, "--mask and --style-weights: styles have places or are blended"),
        ({"mask": (), "mask_feather": 3.0}, "--mask-feather: there is no --mask"),
        ({"mask_feather": -1.0}, "--mask-feather -1.0: must be between 0 and 10000"),
        ({"runtime": "onnx"}, "--mask left.png: --runtime onnx has none; use --runtime torch"),
        ({"tile": "63"}, "--tile '63': must be auto (large pictures only), or the side"),
        ({"tile": "none"}, "--tile 'none'"),
        ({"color_only": True, "method": "wct"}, "--color-only and --method wct: colours are moved"),
    ],
)
def test_options_refuse_what_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        _options(**values)
    assert message in str(caught.value)


def test_tiles_have_the_side_that_is_given() -> None:
    assert _options().tile_side is None
    assert _options(tile="64").tile_side == 64


def test_masks_that_are_not_there_or_would_be_lost_are_named(recorder: Recorder) -> None:
    with pytest.raises(InputError, match=r"--mask gone\.png: does not exist; check the path"):
        _paint(recorder, mask=("gone.png",))
    with pytest.raises(UsageError, match=r"-o left\.png: is a mask of this job; name another"):
        _paint(recorder, output="left.png", overwrite=True)
    Image.new("L", (24, 16)).save("left.png")
    with pytest.raises(InputError, match=r"left\.png: is black everywhere"):
        _paint(recorder)
