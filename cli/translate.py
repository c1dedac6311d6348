"""`normapps translate`: turn pictures of one domain into those of another."""

from __future__ import annotations

import typer

from .translate_evaluate import evaluate
from .translate_run import run
from .translate_train import train

app = typer.Typer(no_args_is_help=True, help="Turn pictures, or label maps, into other pictures.")


@app.callback()
def _group() -> None: ...


app.command()(train)
app.command()(run)
app.command()(evaluate)
