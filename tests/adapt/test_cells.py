"""Finished runs on disk: found again, refused where they are another protocol's."""

from __future__ import annotations

from pathlib import Path

import pytest

from normapps.adapt.cells import NAME, Cells
from normapps.adapt.runs import Cell, Run
from normapps.errors import InputError

PROTOCOL = {"model": "abc", "arithmetic": "cpu"}
RUN = Run("mixed", ("clean", "fog:3"), "tent", 8, 1)
CELLS = (Cell(RUN, "clean", (1, 2, 0), 0.25, 0.001, 123), Cell(RUN, "fog:3", note="needs 2"))


def test_what_was_added_is_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert Cells(folder, PROTOCOL).get(RUN) is None
    cells = Cells(folder, PROTOCOL)
    cells.add(CELLS)
    assert cells.get(RUN) == CELLS
    assert Cells(folder, PROTOCOL).get(RUN) == CELLS
    assert Cells(folder, dict(reversed(PROTOCOL.items()))).get(RUN) == CELLS


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    cells = Cells(None, PROTOCOL)
    cells.add(CELLS)
    assert cells.get(RUN) == CELLS
    assert not list(tmp_path.iterdir())


def test_a_half_written_line_is_done_again(tmp_path: Path) -> None:
    cells = Cells(tmp_path, PROTOCOL)
    cells.add(CELLS)
    other = Run("shift", ("clean",), "tent", 8, 1)
    cells.add([Cell(other, "clean", (1,))])
    text = (tmp_path / NAME).read_text()
    (tmp_path / NAME).write_text(text[:-20])
    cells = Cells(tmp_path, PROTOCOL)
    assert (cells.get(RUN), cells.get(other)) == (CELLS, None)
    cells.add([Cell(other, "clean", (1,))])
    again = Cells(tmp_path, PROTOCOL)
    assert again.get(other) == (Cell(other, "clean", (1,)),)


def test_another_protocol_is_refused_until_overwritten(tmp_path: Path) -> None:
    Cells(tmp_path, PROTOCOL).add(CELLS)
    other = PROTOCOL | {"model": "xyz"}
    with pytest.raises(InputError, match="differs in its model; take another -o"):
        Cells(tmp_path, other)
    assert Cells(tmp_path, PROTOCOL).get(RUN) == CELLS
    assert Cells(tmp_path, other, overwrite=True).get(RUN) is None
    assert Cells(tmp_path, other).get(RUN) is None


@pytest.mark.parametrize("text", ["no json\n", "[]\n", '{"protocol": 3}\n'])
def test_a_strange_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(InputError, match="holds no cells of an evaluation; take another"):
        Cells(tmp_path, PROTOCOL)
    assert (tmp_path / NAME).read_text() == text


def test_a_strange_line_is_refused(tmp_path: Path) -> None:
    Cells(tmp_path, PROTOCOL).add(CELLS)
    with (tmp_path / NAME).open("a") as file:
        file.write('{"run": {"stream": "shift"}, "cells": []}\n')
    with pytest.raises(InputError, match=r"line 3 is no cell .*; --overwrite begins anew"):
        Cells(tmp_path, PROTOCOL)
    assert Cells(tmp_path, PROTOCOL, overwrite=True).get(RUN) is None
