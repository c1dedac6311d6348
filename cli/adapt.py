"""`normapps adapt`: adapt a pretrained model to a new domain by its normalization layers."""

from __future__ import annotations

import typer

from . import adapt_evaluate, adapt_populations, adapt_run, adapt_train, adapt_universal

app = typer.Typer(no_args_is_help=True, help="Adapt a model to a new domain by its norm layers.")
app.command("run")(adapt_run.run)
app.command("undo")(adapt_run.undo)
app.command("mix")(adapt_populations.mix)
app.command("merge")(adapt_populations.merge)
app.command("train")(adapt_train.train)
app.command("universal")(adapt_universal.universal)
app.command("evaluate")(adapt_evaluate.evaluate)
