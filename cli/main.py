"""The command `normapps`: which commands there are, and what their errors become."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
import warnings
from collections import UserDict
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from normapps import NormappsError, UsageError, __version__
from normapps.allocator import keep_freed_memory

from .values import plain, read_plainly

COMMANDS = {
    "stylize": "stylize:stylize",
    "stylize-dataset": "stylize_dataset:stylize_dataset",
    "doctor": "doctor:doctor",
    "style": "style:app",
    "norm": "norm:app",
    "adapt": "adapt:app",
    "slim": "slim:app",
    "gan": "gan:app",
    "translate": "translate:app",
    "quantize": "quantize:quantize",
    "compress": "compress:compress",
    "export": "export:export",
    "models": "models:app",
}
"""Name → `module:command` of this package, in the order of `--help`; see `_LazyGroup`."""


class _Lazy(UserDict[str, Any]):
    """Commands by name, each imported when it is asked for: half of what a short command takes."""

    def __getitem__(self, name: str) -> Any:
        value = self.data[name]
        if isinstance(value, str):
            value = self.data[name] = _imported(name, value)
        return value


class _LazyGroup(TyperGroup):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _Lazy(COMMANDS)

    def get_params(self, ctx: Any) -> list[Any]:
        return [plain(param) for param in super().get_params(ctx)]


def _imported(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    found = getattr(import_module(f".{module}", __package__), attribute)
    parent = typer.Typer(rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        parent.add_typer(found, name=name)
    else:
        parent.command(name)(found)
    command = typer.main.get_group(parent).commands[name]
    read_plainly(command)
    return command


app = typer.Typer(
    name="normapps",
    cls=_LazyGroup,
    help="Applications of normalization layers: stylize, adapt, slim, quantize, generate.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would double the time of --help
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 failed (one line `error: …` on stderr; with `NORMAPPS_DEBUG=1` also
    where), 2 wrong usage, 130 interrupted.
    """
    keep_freed_memory()
    # what torch has made is then not searched for cycles when Python ends, which takes long
    atexit.register(gc.freeze)
    python_format = warnings.formatwarning
    warnings.formatwarning = _warning_line
    try:
        app()
    except NormappsError as error:
        _report(error)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    finally:
        warnings.formatwarning = python_format
        _flush()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"normapps {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None: ...


def _report(error: NormappsError) -> None:
    if os.environ.get("NORMAPPS_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    print("error:", " ".join(str(error).split()), file=sys.stderr)


def _warning_line(message: Warning | str, *_place: Any, **_more: Any) -> str:
    """What is warned of as a user needs it: not where in the code."""
    return f"warning: {' '.join(str(message).split())}\n"


def _flush() -> None:
    """Write what is left now, so that a reader who has gone causes no message at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
