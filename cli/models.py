"""`normapps models`: the networks that come with the package, and the user's own by name."""

from __future__ import annotations

import dataclasses
import json
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normapps.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from normapps.models.download import Progress

app = typer.Typer(help="Shipped networks, and your own by name.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NewName = Annotated[str, typer.Argument(help="What to call it: small letters, digits, . _ -")]
Hashes = Annotated[
    list[str] | None, typer.Option("--sha256", help="What a file must have; one each, in order.")
]
Method = Annotated[
    str, typer.Option(help="Its default of stylize --method (empty: adain of one level, else wct).")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace one of that name.")]


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the shipped networks and your own."""
    from normapps.models.shipped import list_shipped
    from normapps.models.store import list_stored

    models = []
    for name in (*list_shipped(), *list_stored()):
        try:
            models.append(_describe(name))
        except InputError as error:  # the others are there all the same
            warnings.warn(str(error), stacklevel=1)
    if as_json:
        print(json.dumps(models, indent=2))
    else:
        _show_table(models)


@app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="A name that `models list` prints, or a folder.")],
    as_json: AsJson = False,
) -> None:
    """Show the card of a network.

    What it is, its data, recipe, measured quality and limits.
    """
    from normapps.models.shipped import card

    text = card(name)
    if as_json:
        print(json.dumps(_describe(name) | {"card": text}, indent=2))
    else:
        _show_card(_describe(name), text)


@app.command("add")
def add(
    name: NewName,
    files: Annotated[
        list[str],
        typer.Argument(help="A model folder; or a classic stylizer's weight files, or a folder."),
    ],
    sha256: Hashes = None,
    method: Method = "",
    overwrite: Overwrite = False,
) -> None:
    """Keep a model under a name, for every command that takes --model.

    Others' weight files of AdaIN (vgg_normalised.pth, decoder.pth) and of the multi-level WCT
    (encoders and decoders of relu1_1 to relu5_1) are converted; no code in them is run.
    """
    from normapps.models.store import add_model

    print(add_model(name, files, sha256=sha256 or (), method=method, overwrite=overwrite))


@app.command("pull")
def pull(
    name: NewName,
    source: Annotated[
        list[str] | None,
        typer.Option("--from", help="https:// or file:// address; one a file. Once pulled: again."),
    ] = None,
    sha256: Hashes = None,
    method: Method = "",
    overwrite: Overwrite = False,
) -> None:
    """Download weight files and keep them as a model, as `add` does."""
    from normapps.models.store import pull_model

    with _downloading() as progress:
        folder = pull_model(
            name,
            source or (),
            sha256=sha256 or (),
            method=method,
            overwrite=overwrite,
            progress=progress,
        )
    print(folder)


@app.command("remove")
def remove(name: Annotated[str, typer.Argument(help="One of your own models.")]) -> None:
    """Delete one of your own models."""
    from normapps.models.store import remove_model

    print(remove_model(name))


@contextmanager
def _downloading() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    # disabled, for it would leave an empty line where nobody sees it move
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        tasks: dict[str, Any] = {}

        def show(url: str, done: int, total: int) -> None:
            if url not in tasks:
                tasks[url] = bar.add_task(url.rsplit("/", 1)[-1], total=total or None)
            bar.update(tasks[url], completed=done)

        yield show


def _describe(name: str) -> dict[str, Any]:
    from normapps.models.folder import read_manifest
    from normapps.models.shipped import list_shipped, parameter_count, resolve_model

    folder = resolve_model(name)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    facts = {"name": name, "parameters": parameter_count(folder), "bytes": size}
    facts["shipped"] = name in list_shipped()
    return facts | dataclasses.asdict(read_manifest(folder)) | {"folder": str(folder)}


def _show_table(models: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "architecture", "parameters", "size", "from", "sha256")
    for model in models:
        digest = model["sha256"]["model.safetensors"]
        size = f"{model['bytes'] / 1e6:.1f} MB"
        origin = "package" if model["shipped"] else "you"
        parameters = f"{model['parameters']:,}"
        row = (model["name"], model["builder"], parameters, size, origin, digest[:12])
        table.add_row(*row)
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
