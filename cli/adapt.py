"""`normapps adapt`: adapt a pretrained model to a new domain by its normalization layers."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True, help="Adapt a model to a new domain by its norm layers, and judge it."
)
