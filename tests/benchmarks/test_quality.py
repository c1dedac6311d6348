"""The quality benchmark: its second judge, its tables and bars."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest

from normapps.style.evaluation import Report, Row
from normapps.style.quality import Scores

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are scripts, not a package: import them as they import each other."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def report(ssim: float, style: float, gram: float = 0.25, lattice: float = 0.02) -> Report:
    spread = (-0.001, 0.0, 0.001)
    rows = [
        Row(
            str(i), "s", Scores(ssim + x, 0.5, style + x, gram, lattice), 0.1,
            {"rel_style_16x": style},
        )
        for i, x in enumerate(spread)
    ]  # fmt: skip
    return Report(tuple(rows), 512, 0)


def test_bars_and_differences_are_of_the_figures() -> None:
    from quality import section

    reports = {
        "normapps": report(0.58, 0.041),
        "normapps wct": report(0.47, 0.049, lattice=0.05),
        "normapps ot": report(0.46, 0.0495),
        "MicroAST": report(0.60, 0.050, 0.31),
    }
    options = argparse.Namespace(hold_out=20, size=512, device="cpu")
    text = section(reports, (7, 5), options)
    assert text.startswith("## Quality of stylization\n\n3 pairs of 7 photos")
    for line in (
        "- normapps: rel_style ≤ 0.04: 0.0410, missed",
        "- normapps: rel_gram ≤ 0.3: 0.2500, reached",
        "- normapps: ssim ≥ 0.57: 0.5800, reached",
        "- normapps: lattice ≤ 0.03: 0.0200, reached",
        "- normapps wct: lattice ≤ 0.03: 0.0500, missed",
        "- normapps wct: rel_style ≤ 0.0492: 0.0490, reached",
        "- normapps wct: ssim ≥ 0.464: 0.4700, reached",
        "- normapps ot: rel_style ≤ 0.0492: 0.0495, missed",
        "- normapps ot: ssim ≥ 0.464: 0.4600, missed",
    ):
        assert line in text.splitlines()
    differences = next(x for x in text.splitlines() if x.startswith("| MicroAST | -0.0090"))
    assert differences == (
        "| MicroAST | -0.0090 ± 0.0000 **better** | -0.0600 ± 0.0000 **better** | "
        "-0.0200 ± 0.0000 **worse** | -0.0090 ± 0.0000 **better** |"
    )


def test_a_difference_within_its_interval_is_neither() -> None:
    from quality import _verdict

    from normapps.measure.interval import estimate

    assert _verdict(estimate([-1.0, 1.5, 0.0]), 1).endswith("± 3.1258")


@pytest.mark.shared
def test_the_second_judge_sees_five_layers_of_narrow_vggs(
    shared_dir: Path, rocket: np.ndarray
) -> None:
    from second_judge import load_second_judge

    judge = load_second_judge(shared_dir / "weights" / "wct16x")
    features = judge(rocket[:64, :96])
    assert [x.shape[2:] for x in features] == [(4, 6), (8, 12), (16, 24), (32, 48), (64, 96)]
    assert [x.shape[1] for x in features] == [128, 128, 64, 32, 24]
    assert all(x.min() >= 0 and x.std() > 0 for x in features)
