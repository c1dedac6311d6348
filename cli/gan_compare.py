"""`normapps gan compare`: the same GAN under several normalizations, scored alike."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from normapps.gan.compare_options import CompareOptions

from .parameters import with_options


@with_options(CompareOptions)
def compare(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs; kept if there.")],
    *,
    options: CompareOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report's JSON.")] = False,
) -> None:
    """Train a GAN under several normalizations, score all alike.

    Prints one table; the folder gets a run each, report.json and report.html with the curves. A
    run that diverged is a row that says so. Ctrl-C writes a checkpoint; the same command goes on,
    and with more --seeds or --d-norms adds to what is there.
    """
    from normapps.gan.compare_job import gan_compare
    from normapps.gan.compare_report import run_table, text_table, variant_table

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    found = gan_compare(out, options, say=say)
    if as_json:
        print((out / "report.json").read_text(encoding="utf-8"), end="")
        return
    print(text_table(run_table(found.outcomes)))
    if options.seeds > 1:
        print()
        print(text_table(variant_table(found.outcomes)))
    print(f"{found.report.verdict.verdict}: {found.report.verdict.reason}")
    print(out / "report.html")
