"""Options: ranges and choices that name the flag, and JSON that reads back as it was written."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normapps.errors import InputError
from normapps.options import flag, from_json, option, to_json, validate


@dataclasses.dataclass(frozen=True)
class Paint:
    """A field of every kind."""

    out: Path | None = option(None, "where to write", short="-o")
    folder: Path = option(Path("runs"), "of the run")
    alpha: float = option(1.0, "strength", low=0, high=1)
    steps: int = option(10, "how many", low=1)
    speed: float = option(1.0, "at most light's", high=3e8)
    style_size: int | None = option(None, "long side", low=16)
    mode: str = option("none", "colours", choices=("none", "luma"))
    styles: tuple[str, ...] = option((), "paintings")
    masks: tuple[Path, ...] = option((), "regions")
    weights: tuple[float, ...] = option((0.5, 0.5), "of the styles", low=0)
    looks: tuple[str, ...] = option((), "several modes", choices=("soft", "hard"))
    overwrite: bool = option(False, "replace files")

    def __post_init__(self) -> None:
        validate(self)


def test_the_metadata_is_what_the_command_line_needs() -> None:
    field = {each.name: each for each in dataclasses.fields(Paint)}["out"]
    assert field.metadata["help"] == "where to write"
    assert field.metadata["short"] == "-o"
    assert field.default is None
    assert flag("style_size") == "--style-size"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 1.5}, "--alpha 1.5: must be between 0 and 1"),
        ({"alpha": -0.1}, "--alpha -0.1: must be between 0 and 1"),
        ({"alpha": math.nan}, "--alpha nan: must be between 0 and 1"),
        ({"alpha": math.inf}, "--alpha inf: must be between 0 and 1"),
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"speed": 4e8}, "--speed 400000000.0: must be at most 300000000.0"),
        ({"style_size": 8}, "--style-size 8: must be at least 16"),
        ({"steps": "many"}, "--steps 'many': must be a number"),
        ({"mode": "luna"}, "--mode 'luna': choose one of none, luma; did you mean 'luma'?"),
        ({"mode": "x"}, "--mode 'x': choose one of none, luma"),
        ({"weights": (0.5, -1.0)}, "--weights -1.0: must be at least 0"),
        (
            {"looks": ("soft", "sofd")},
            "--looks 'sofd': choose one of soft, hard; did you mean 'soft'?",
        ),
    ],
)
def test_what_is_refused_names_the_flag_and_the_remedy(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        Paint(**values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "values",
    [{"alpha": 0}, {"alpha": 1}, {"steps": 1}, {"style_size": None}, {"looks": ("soft", "hard")}],
)
def test_the_ends_of_a_range_and_none_are_allowed(values: dict[str, Any]) -> None:
    assert dataclasses.asdict(Paint(**values)).items() >= values.items()


_paths = st.text("abc/ ö.", min_size=1).map(Path)


@given(
    st.builds(
        Paint,
        out=st.none() | _paths,
        folder=_paths,
        alpha=st.floats(0, 1),
        steps=st.integers(1),
        style_size=st.none() | st.integers(16),
        mode=st.sampled_from(["none", "luma"]),
        styles=st.lists(st.text()).map(tuple),
        masks=st.lists(_paths).map(tuple),
        weights=st.lists(st.floats(0, allow_infinity=False)).map(tuple),
        overwrite=st.booleans(),
    )
)
def test_options_read_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, options: Paint
) -> None:
    path = tmp_path_factory.getbasetemp() / "options.json"
    path.write_text(to_json(options), encoding="utf-8")
    again = from_json(Paint, path)
    assert again == options
    assert [type(each) for each in dataclasses.astuple(again)] == [
        type(each) for each in dataclasses.astuple(options)
    ]


def test_what_a_file_lacks_has_its_default(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"steps": 3}')
    assert from_json(Paint, tmp_path / "x.json") == Paint(steps=3)


def test_the_json_is_plain_and_ends_its_line() -> None:
    text = to_json(Paint(out=Path("a/b.png"), styles=("x",)))
    assert text.endswith("}\n")
    values = json.loads(text)
    assert values["out"] == "a/b.png"
    assert values["styles"] == ["x"]
    assert list(values) == [each.name for each in dataclasses.fields(Paint)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as options"),
        ("[1]", r"cannot be read as options \(no JSON object\)"),
        ('{"stebs": 3}', r"does not fit Paint \(unknown option 'stebs'; did you mean 'steps'\?\)"),
        ('{"steps": 0}', r"does not fit Paint \(--steps 0: must be at least 1\)"),
        ('{"steps": "many"}', r"does not fit Paint \(--steps 'many': must be a number\)"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"bad\.json: {message}") as caught:
        from_json(Paint, path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read as options"):
            from_json(Paint, path)
