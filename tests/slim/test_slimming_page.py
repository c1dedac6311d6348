"""docs/slimming.md: its examples run in order and print what stands below them."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import normapps.models  # noqa: F401  before timm, which the page imports

PAGE = Path(__file__).resolve().parents[2] / "docs" / "slimming.md"
FENCE = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the page's examples define, after each has printed what it says."""
    found: dict[str, Any] = {}
    blocks = FENCE.findall(PAGE.read_text(encoding="utf-8"))
    for (kind, code), (after, wanted) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        printed = io.StringIO()
        if kind == "python":
            with contextlib.redirect_stdout(printed):
                exec(compile(code, str(PAGE), "exec"), found)
            assert printed.getvalue() == (wanted if after == "text" else ""), code
    assert sum(kind == "text" for kind, _ in blocks) >= 8
    return found


def test_the_examples_print_what_the_page_says(names: dict[str, Any]) -> None:
    assert isinstance(names["model"], nn.Module)


def test_the_page_loads_a_pruned_network_without_us(names: dict[str, Any], tmp_path: Path) -> None:
    import timm

    from normapps.graph import trace_channels
    from normapps.graph.surgery import slim_model
    from normapps.models.folder import save_model

    generator = torch.Generator().manual_seed(0)
    arguments = {"name": "resnet18", "num_classes": 5, "kwargs": {"in_chans": 1}}
    torch.manual_seed(0)
    whole = timm.create_model("resnet18", num_classes=5, in_chans=1).eval()
    x = torch.randn(2, 1, 64, 64, generator=generator)
    graph = trace_channels(whole, x[:1])
    keep = graph.free() == 0
    keep |= torch.rand(graph.count, generator=generator).numpy() > 0.3
    slim, edits = slim_model(whole, graph, keep)
    base = {"builder": "timm", "arguments": arguments}
    slimmed = {"base": base, **edits.arguments()}
    save_model(tmp_path / "m", slim, builder="slimmed", arguments=slimmed)
    opened = names["load_pruned"](tmp_path / "m")
    assert sum(p.numel() for p in opened.parameters()) < 0.8 * graph.parameters()
    with torch.no_grad():
        assert torch.equal(opened(x), slim(x))
