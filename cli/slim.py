"""`normapps slim`: make a network smaller by the scales of its batch norms."""

from __future__ import annotations

import typer

from . import slim_prune, slim_train

app = typer.Typer(no_args_is_help=True, help="Make a model smaller by its batch norms' scales.")
app.command("inspect")(slim_prune.inspect)
app.command("prune")(slim_prune.prune)
app.command("train")(slim_train.train)
app.command("finetune")(slim_train.finetune)
app.command("scratch")(slim_train.scratch)
