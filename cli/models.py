"""`normapps models`: the networks that come with the package."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer

app = typer.Typer(help="The networks that come with the package.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the shipped networks."""
    from normapps.models.shipped import list_shipped

    models = [_describe(name) for name in list_shipped()]
    if as_json:
        print(json.dumps(models, indent=2))
    else:
        _show_table(models)


@app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="A name that `models list` prints.")],
    as_json: AsJson = False,
) -> None:
    """Show the card of a shipped network.

    What it is, its data, recipe, measured quality and limits.
    """
    from normapps.models.shipped import card

    text = card(name)
    if as_json:
        print(json.dumps(_describe(name) | {"card": text}, indent=2))
    else:
        _show_card(_describe(name), text)


def _describe(name: str) -> dict[str, Any]:
    from normapps.models.folder import read_manifest
    from normapps.models.shipped import parameter_count, shipped_folder

    folder = shipped_folder(name)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    facts = {"name": name, "parameters": parameter_count(folder), "bytes": size}
    return facts | dataclasses.asdict(read_manifest(folder)) | {"folder": str(folder)}


def _show_table(models: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "architecture", "parameters", "size", "sha256")
    for model in models:
        digest = model["sha256"]["model.safetensors"]
        size = f"{model['bytes'] / 1e6:.1f} MB"
        table.add_row(
            model["name"], model["builder"], f"{model['parameters']:,}", size, digest[:12]
        )
    Console().print(table)


def _show_card(model: dict[str, Any], text: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.print(Markdown(text))
    console.print()
    for file, digest in model["sha256"].items():
        console.print(f"{file}  sha256 {digest}", highlight=False, soft_wrap=True)
    console.print(model["folder"], highlight=False, soft_wrap=True)
