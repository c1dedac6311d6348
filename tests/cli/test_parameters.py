"""Options classes become flags: names, defaults, choices, help, and one validated value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner, Result

from normapps.cli.parameters import with_options
from normapps.errors import InputError, UsageError
from normapps.options import option, validate


@dataclass(frozen=True)
class PaintOptions:
    """One field of every kind."""

    out: Path | None = option(None, "where to write", short="-o")
    alpha: float = option(1.0, "strength", low=0, high=1)
    steps: int = option(10, "how many", low=1)
    style_size: int | None = option(None, "long side", also="--side")
    mode: str = option("none", "how", choices=("none", "luma"))
    tint: str | None = option(None, "colour", choices=("warm", "cold"))
    styles: tuple[str, ...] = option((), "paintings; repeatable")
    weights: tuple[float, ...] = option((0.5, 0.25), "of the styles")
    overwrite: bool = option(False, "replace files")
    name: str = option("x", "of the result")
    per_stroke: bool = option(True, "a colour a stroke", no="--per-picture")
    varnish: bool | None = option(None, "a last layer (where there is none)")

    def __post_init__(self) -> None:
        validate(self)
        if self.name == "bad":
            raise InputError("--name bad: must be good")


@dataclass(frozen=True)
class NeedsOptions:
    """A field without a default."""

    width: int


app = typer.Typer(rich_markup_mode=None)
seen: list[Any] = []


@app.command()
@with_options(PaintOptions)
def paint(
    picture: Annotated[list[Path], typer.Argument(help="What to paint.")],
    options: PaintOptions,
    quiet: Annotated[bool, typer.Option("--quiet")] = False,
) -> None:
    """Paint a picture."""
    seen.append((picture, options, quiet))


@app.command()
@with_options(NeedsOptions)
def needs(options: NeedsOptions) -> None:
    """Need a width."""
    seen.append(options)


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_without_flags_the_options_have_their_defaults() -> None:
    assert _run("paint", "a.png").exit_code == 0
    assert seen == [([Path("a.png")], PaintOptions(), False)]


def test_every_flag_reaches_its_field() -> None:
    text = (
        "paint a.png b.png --quiet -o out --alpha 0.5 --steps 3 --style-size 256 --mode luma "
        "--tint cold --styles x --styles y --weights 0.7 --overwrite --name good"
    )
    assert _run(*text.split()).exit_code == 0
    expected = PaintOptions(
        Path("out"), 0.5, 3, 256, "luma", "cold", ("x", "y"), (0.7,), True, "good"
    )
    assert seen == [([Path("a.png"), Path("b.png")], expected, True)]


def test_the_name_that_others_use_is_taken_too() -> None:
    assert _run("paint", "a", "--side", "64").exit_code == 0
    assert seen[0][1].style_size == 64
    assert "--style-size, --side <int>" in " ".join(_run("paint", "--help").output.split())


def test_a_bool_can_be_denied() -> None:
    assert _run("paint", "a", "--overwrite", "--no-overwrite").exit_code == 0
    assert not seen[0][1].overwrite


def test_the_other_choice_has_a_name_of_its_own() -> None:
    assert _run("paint", "a", "--per-picture").exit_code == 0
    assert not seen[0][1].per_stroke
    assert _run("paint", "a", "--no-per-stroke").exit_code == 2


@pytest.mark.parametrize(
    ("flags", "value"), [((), None), (("--varnish",), True), (("--no-varnish",), False)]
)
def test_a_bool_may_be_left_open(flags: tuple[str, ...], value: bool | None) -> None:
    assert _run("paint", "a", *flags).exit_code == 0
    assert seen[0][1].varnish is value


def test_help_shows_names_defaults_choices_and_ranges() -> None:
    shown = " ".join(_run("paint", "--help").output.split())
    for text in (
        "-o, --out",
        "--style-size",
        "--overwrite / --no-overwrite",
        "--per-stroke / --per-picture",
        "[default: per-stroke]",
        "--varnish / --no-varnish",
        "none|luma",
        "warm|cold",
        "strength (0 to 1) [default: 1.0]",
        "how many [default: 10]",
        "--styles <str>",
        "paintings; repeatable",
        "[default: 0.5, 0.25]",
        "Paint a picture.",
    ):
        assert text in shown, shown
    assert "default: no-overwrite" not in shown
    assert "options" not in shown.replace("[OPTIONS]", "").replace("Options:", "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--alpha", "2"), "--alpha 2.0: must be between 0 and 1"),
        (("--steps", "0"), "--steps 0: must be at least 1"),
        (("--name", "bad"), "--name bad: must be good"),
        (("--mode", "lume"), "--mode 'lume': choose one of none, luma; did you mean 'luma'?"),
    ],
)
def test_what_the_class_refuses_is_a_usage_error(flags: tuple[str, ...], message: str) -> None:
    error = _run("paint", "a", *flags).exception
    assert isinstance(error, UsageError)
    assert str(error) == message
    assert not seen


@pytest.mark.parametrize("flags", [("--steps", "many"), ("--stepz", "1")])
def test_what_the_parser_refuses_exits_with_2(flags: tuple[str, ...]) -> None:
    assert _run("paint", "a", *flags).exit_code == 2
    assert not seen


def test_an_error_of_the_command_itself_stays_what_it_is() -> None:
    failing = typer.Typer()

    @failing.command()
    @with_options(PaintOptions)
    def fail(options: PaintOptions) -> None:
        raise InputError("a.png: truncated")

    assert type(CliRunner().invoke(failing, []).exception) is InputError


def test_a_field_without_default_must_be_given() -> None:
    assert _run("needs").exit_code == 2
    assert _run("needs", "--width", "3").exit_code == 0
    assert seen == [NeedsOptions(3)]
