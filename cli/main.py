"""The command `normapps`: which commands there are, and what their errors become."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from normapps import NormappsError, UsageError, __version__
from normapps.engine.allocator import keep_freed_memory

from . import adapt, doctor, models, norm, slim, style, stylize

app = typer.Typer(
    name="normapps",
    help="Applications of normalization layers: stylize, adapt, slim, quantize, generate.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would double the time of --help
    pretty_exceptions_enable=False,
)
app.command()(stylize.stylize)
app.command()(doctor.doctor)
app.add_typer(style.app, name="style")
app.add_typer(norm.app, name="norm")
app.add_typer(adapt.app, name="adapt")
app.add_typer(slim.app, name="slim")
app.add_typer(models.app, name="models")


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 failed (one line `error: …` on stderr; with `NORMAPPS_DEBUG=1` also
    where), 2 wrong usage, 130 interrupted.
    """
    keep_freed_memory()
    try:
        app()
    except NormappsError as error:
        _report(error)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    finally:
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


def _flush() -> None:
    """Write what is left now, so that a reader who has gone causes no message at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
