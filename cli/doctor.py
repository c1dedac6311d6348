"""`normapps doctor`: look at the installation."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from normapps.doctor import Check


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check the installation and say what mends it.

    Looks at versions, devices, extras and shipped weights. Exits with 1 if something is off.
    """
    from normapps.doctor import examine

    checks = examine()
    if as_json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        _show(checks)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _show(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    for check in checks:
        mark = Text("ok", "green") if check.ok else Text("off", "bold red")
        if check.ok and check.remedy:
            mark = Text("–", "yellow")
        detail = Text(check.detail)
        if check.remedy:
            detail.append(f"\n→ {check.remedy}", "yellow")
        table.add_row(mark, Text(check.name), detail)
    console = Console()
    console.print(table)
    off = sum(not check.ok for check in checks)
    console.print(f"{off} of {len(checks)} checks off" if off else "all is well")
