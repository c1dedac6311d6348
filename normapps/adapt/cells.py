"""The cells of an evaluation on disk: what is finished is not computed again.

`cells.jsonl` in the folder: the protocol in the first line, then a line for each run.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_text
from .runs import Cell, Run

NAME = "cells.jsonl"


class Cells:
    """Finished runs, in memory and, with a folder, in its `cells.jsonl`.

    Args:
        folder: made if need be; None keeps nothing.
        protocol: JSON values of all that cells depend on beside their run; a file with another one
            is refused.
        overwrite: begin anew where the file has another protocol or cannot be read.

    Raises:
        InputError: a file of another protocol, or that cannot be read or written.
    """

    def __init__(
        self, folder: Path | None, protocol: Mapping[str, Any], overwrite: bool = False
    ) -> None:
        self._path = None if folder is None else folder / NAME
        self._found: dict[Run, tuple[Cell, ...]] = {}
        if self._path is None:
            return
        head = json.dumps({"protocol": protocol}, sort_keys=True)
        lines = _lines(self._path)
        if lines and lines[0] != head and not overwrite:
            raise InputError(f"{self._path}: {_difference(lines[0], protocol)}")
        if not lines or lines[0] != head:
            write_text(self._path, head + "\n")
            return
        try:
            for number, line in enumerate(lines[1:], 2):
                self._read(line, number)
        except InputError:
            if not overwrite:
                raise
            self._found.clear()
        # without a line that an interruption left half written
        write_text(self._path, "\n".join([head, *map(_line, self._found.values())]) + "\n")

    def get(self, run: Run) -> tuple[Cell, ...] | None:
        """Return the cells of a run, None if it is not finished."""
        return self._found.get(run)

    def add(self, cells: Sequence[Cell]) -> None:
        """Keep the cells of one run."""
        self._found[cells[0].run] = tuple(cells)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(cells) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def _read(self, line: str, number: int) -> None:
        try:
            values = json.loads(line)
            run = Run(**values["run"] | {"domains": tuple(values["run"]["domains"])})
            cells = tuple(
                Cell(run, **each | {"predictions": tuple(each["predictions"])})
                for each in values["cells"]
            )
        except (ValueError, TypeError, KeyError, IndexError) as error:
            if line.endswith("}"):
                raise InputError(
                    f"{self._path}: line {number} is no cell ({error}); --overwrite begins anew"
                ) from error
            return
        self._found[run] = cells


def _line(cells: Sequence[Cell]) -> str:
    values = [dataclasses.asdict(cell) for cell in cells]
    for each in values:
        del each["run"]
    return json.dumps({"run": dataclasses.asdict(cells[0].run), "cells": values})


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _difference(head: str, protocol: Mapping[str, Any]) -> str:
    remedy = "take another -o, or --overwrite to begin anew"
    try:
        before = json.loads(head)["protocol"]
        names = [name for name in protocol if before.get(name) != protocol[name]]
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"holds no cells of an evaluation; {remedy}"
    return f"holds an evaluation that differs in its {', '.join(names) or 'format'}; {remedy}"
