"""`normapps gan`: train a GAN, draw from it, judge it."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True, help="Train a GAN on your pictures, draw from it, and judge it."
)


@app.callback()
def _group() -> None: ...
