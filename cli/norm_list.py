"""`normapps norm list` and `show`: the table of all methods."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from normapps.analysis.catalog import Entry

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Kind = Annotated[
    str | None, typer.Option("--kind", help="activation, weight, gradient or input; else all.")
]


def list_methods(
    pattern: Annotated[str, typer.Argument(help="Shell pattern of names.")] = "*",
    kind: Kind = None,
    as_json: AsJson = False,
) -> None:
    """List the methods: their place among all others, paper, cost and options."""
    from normapps.analysis.catalog import catalog, names
    from normapps.errors import unknown

    entries = catalog(pattern, kind)
    if not entries:
        raise unknown("norm" if kind is None else f"{kind} method", pattern, names(kind))
    if as_json:
        print(json.dumps([_facts(entry) for entry in entries], indent=2))
    else:
        _show_list(entries)


def show(
    name: Annotated[str, typer.Argument(help="A name that `norm list` prints.")],
    kind: Kind = None,
    as_json: AsJson = False,
) -> None:
    """Show one method: what it does, how it is used, its options, what it keeps."""
    from normapps.analysis.catalog import describe

    entry = describe(name, kind)
    if as_json:
        print(json.dumps(dataclasses.asdict(entry), indent=2))
    else:
        _show_entry(entry)


def _facts(entry: Entry) -> dict[str, object]:
    facts = dataclasses.asdict(entry)
    del facts["text"]
    return facts


_COMMON = ("affine", "bias", "device", "dtype", "process_group", "sync", "track_running_stats")
"""Options that the list leaves out, because they say nothing of the method."""

_TITLES = {
    "activation": "Activations",
    "weight": "Weights",
    "gradient": "Gradients",
    "input": "Inputs",
}


def _show_list(entries: list[Entry]) -> None:
    from rich.console import Console

    console = Console()
    header = "partition → operation → recovery [paper], cost, options, state"
    console.print(header, style="dim", markup=False)
    for kind, title in _TITLES.items():
        chosen = [entry for entry in entries if entry.kind == kind]
        if chosen:
            console.print(f"\n{title}", style="bold underline")
            _show_kind(console, chosen)


def _show_kind(console: Console, entries: list[Entry]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True, style="bold")
    for entry in entries:
        what = f"{entry.partition} → {entry.operation} → {entry.recovery}"
        chosen = [f"{key}={value}" for key, value in entry.options.items() if key not in _COMMON]
        text = Text(f"{what}  [{entry.paper}]\n{entry.cost}")
        text.append(f"\n{' '.join(chosen)}" if chosen else "", "dim")
        if entry.kind == "activation":
            text.append(f"\nkeeps {' '.join(entry.state) or 'nothing'}", "dim")
        table.add_row(entry.name, text)
    console.print(table)


def _show_entry(entry: Entry) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(entry.name, style="bold")
    console.print(Text(_reflowed(entry.text)))
    table = Table(box=None, show_header=False, padding=(0, 1))
    for title in ("kind", "partition", "operation", "recovery", "paper", "cost", "use"):
        table.add_row(title, Text(getattr(entry, title)))
    table.add_row("options", "\n".join(f"{key} = {value}" for key, value in entry.options.items()))
    if entry.kind == "activation":
        table.add_row("state", "\n".join(f"{key} {shape}" for key, shape in entry.state.items()))
    if entry.needs_condition:
        table.add_row("condition", "layer(x, condition), or ConditionedModel around the network")
    console.print()
    console.print(table)


def _reflowed(text: str) -> str:
    """A docstring with its plain paragraphs on one line each, for the terminal to wrap."""
    return re.sub(r"(?<=\S)\n(?=\S)", " ", text).replace("`", "")
