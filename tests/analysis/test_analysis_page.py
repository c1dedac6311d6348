"""docs/analysis.md: its examples run in order and print what stands below them."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from normapps.analysis.analyze_options import ANALYSES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "analysis.md"
FENCE = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_examples_print_what_the_page_says() -> None:
    names: dict[str, Any] = {}
    blocks = FENCE.findall(PAGE.read_text(encoding="utf-8"))
    for (kind, code), (after, wanted) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        printed = io.StringIO()
        if kind == "python":
            with contextlib.redirect_stdout(printed):
                exec(compile(code, str(PAGE), "exec"), names)
            assert printed.getvalue() == (wanted if after == "text" else ""), code
    assert sum(kind == "text" for kind, _ in blocks) >= 2


def test_the_page_tells_of_every_analysis_and_shows_only_what_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in ANALYSES)
    figures = re.findall(r"\]\((images/[^)]+)\)", text)
    assert figures
    assert all((PAGE.parent / figure).is_file() for figure in figures)
