"""What was typed becomes the values that typer would make, and pydantic stays out of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from normapps.cli.values import read_plainly

seen: list[dict[str, Any]] = []


def _command() -> Any:
    app = typer.Typer(rich_markup_mode=None)

    @app.callback()
    def root() -> None: ...

    @app.command()
    def paint(
        pictures: list[Path],
        count: int = 3,
        size: int | None = None,
        alpha: float = 1.0,
        name: str = "x",
        out: Path | None = None,
        style: list[str] | None = None,
        step: tuple[int, int] | None = None,
        seed: Annotated[list[int], typer.Option()] = [4],  # noqa: B006
        quiet: bool = False,
        varnish: bool | None = None,
        bounded: Annotated[int, typer.Option(max=9)] = 1,
        parsed: Annotated[str, typer.Option(parser=lambda text: f"<{text}>")] = "p",
    ) -> None:
        seen.append(dict(locals()))

    return typer.main.get_command(app)


def _values(arguments: str, is_plain: bool) -> dict[str, Any]:
    command = _command()
    if is_plain:
        read_plainly(command)
    command(["paint", *arguments.split()], standalone_mode=False)
    return seen.pop()


@pytest.mark.parametrize(
    "arguments",
    [
        "a.png",
        "a.png b/c.png --count 5 --size 64 --alpha 0.25 --name y --out o --quiet --varnish",
        "a.png --style one --style two --seed 1 --seed -2 --step 3 4 --no-varnish --no-quiet",
        "a.png --alpha 1e-3 --count +7 --size 5.0 --bounded 9 --parsed q",
        "a.png --alpha nan --name= --out=",
    ],
)
def test_values_are_those_that_typer_makes(arguments: str) -> None:
    found, want = (_values(arguments, is_plain) for is_plain in (True, False))
    assert repr(found) == repr(want)
    assert {key: type(value) for key, value in found.items()} == {
        key: type(value) for key, value in want.items()
    }


@pytest.mark.parametrize("arguments", ["--count many", "--alpha x", "--seed 1.5", "--bounded 10"])
def test_a_value_that_is_none_is_refused_in_typers_words(arguments: str) -> None:
    lines = []
    for is_plain in (True, False):
        with pytest.raises(typer.BadParameter) as refused:
            _values(f"a.png {arguments}", is_plain)
        lines.append(refused.value.format_message())
    assert lines[0] == lines[1]
    assert arguments.split(maxsplit=1)[0] in lines[0]


def test_what_is_missing_is_missed() -> None:
    with pytest.raises(Exception, match=r"(?i)pictures"):
        _values("", is_plain=True)


def test_flags_that_are_understood_import_no_pydantic() -> None:
    code = (
        "import sys; sys.argv = ['normapps', 'models', 'show', 'adain-tiny', '--json']\n"
        "from normapps.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'pydantic', 'rich', 'torch'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
