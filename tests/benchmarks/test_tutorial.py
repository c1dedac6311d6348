"""The tutorial's benchmark: what its parts share, and that its page shows what was written."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
IMAGES = ROOT / "docs" / "images" / "tutorial"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are scripts, not a package: import them as they import each other."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def test_every_part_stands_on_the_page_with_its_plot() -> None:
    from tutorial import PARTS

    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    results = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\(images/tutorial/(\w+)\.png\)", page)
    assert sorted(shown) == sorted(PARTS) == sorted(each.stem for each in IMAGES.glob("*.png"))
    for name, part in PARTS.items():
        assert f"## {part.title}\n" in page
        assert f"<!-- tutorial-{name}: begin -->" in results
        assert (IMAGES / f"{name}.png").stat().st_size < 60_000


def test_the_proximal_step_solves_the_layers_own_problem() -> None:
    """Against the minimum of the augmented least squares problem, by the normal equations."""
    from tutorial_proximal import STRENGTH, Implicit

    torch.manual_seed(0)
    layer = nn.Linear(5, 3, bias=False).double()
    x, target = torch.randn(40, 5).double(), torch.randint(3, (40,))
    start = layer.weight.detach().clone()
    implicit = Implicit([layer])
    z = layer(x)
    z.retain_grad()
    (40 * F.cross_entropy(z, target)).backward()  # each sample's own gradient at z
    assert z.grad is not None
    assert layer.weight.grad is not None
    mean = float(x.square().mean())
    wanted = z.detach() - z.grad
    rows = torch.cat([x / math.sqrt(40), math.sqrt(mean / STRENGTH) * torch.eye(5)])
    made = torch.cat([wanted / math.sqrt(40), math.sqrt(mean / STRENGTH) * start.T])
    best = torch.linalg.lstsq(rows, made).solution.T
    layer.weight.grad.div_(40)  # of the mean loss, as in training
    implicit.apply_()
    moved = -layer.weight.grad / (mean + mean / STRENGTH)
    torch.testing.assert_close(moved, best - start, rtol=1e-5, atol=1e-7)


def test_seeds_become_intervals_and_lines_with_bands() -> None:
    from tutorial_common import curves, final, summarized

    found = summarized([{"a/1": 10.0, "a/10": 2.0}, {"a/1": 1000.0, "a/10": 2.0}])
    plot = curves(found, ["a"], [1, 10], ("x", "y"), log="xy")
    assert plot.series["a"] == pytest.approx([100.0, 2.0])
    low, high = plot.spread["a"]
    half = 12.706 * math.sqrt(2) / math.sqrt(2)  # Student's t of one degree of freedom
    assert math.log10(high[0]) == pytest.approx(2 + half, rel=1e-4)
    assert low[1] == pytest.approx(high[1]) == pytest.approx(2.0)
    assert curves(found, ["a"], [1, 10], ("x", "y")).series["a"] == [505.0, 2.0]
    assert final([1.0, math.nan]) == final([9.0]) == math.log(10)


def test_a_claim_that_does_not_hold_is_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import tutorial
    from tutorial_common import Claim, Found, Part, Report

    from normapps.measure.plots import Lines

    def report(found: Found) -> Report:
        value = found["a"].mean
        plot = Lines([1, 2], {"a": [value, value]})
        return Report("Set.", plot, "a", [Claim(f"It is {value:.0f}.", value < 2)], "| a |")

    parts = {name: Part(name, lambda seed: {}, report) for name in ("one", "two")}
    monkeypatch.setattr(tutorial, "PARTS", parts)
    monkeypatch.setattr(tutorial, "DOCS", tmp_path)
    monkeypatch.setattr(tutorial, "IMAGES", tmp_path)
    state = tmp_path / "state.json"
    state.write_text('{"one/0": {"a": 1, "seconds": 1}, "two/0": {"a": 2, "seconds": 1}}')
    words = ["tutorial.py", "--seeds", "1", "--state", str(state)]
    monkeypatch.setattr(sys, "argv", words)
    written: list[str] = []
    monkeypatch.setattr("results.write_section", lambda name, *_: written.append(name))
    with pytest.raises(SystemExit, match="not borne out, and not written:\ntwo: It is 2"):
        tutorial.main()
    assert written == ["tutorial-one", "tutorial-one"]
    assert (tmp_path / "one.png").exists()
    assert not (tmp_path / "two.png").exists()
