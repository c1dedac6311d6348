"""The benchmark of the layers: no layer is left out, and what it compares with is right."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are scripts, not a package: import them as they import each other."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def test_every_layer_can_be_measured() -> None:
    from norms import BATCH, INSTANCE, PASSES, cases, measure

    from normapps.norm.registry import list_norms

    options = argparse.Namespace(
        device="cpu", memory_format="channels_last", rounds=1, clock="wall", shapes=()
    )
    found = cases("*")
    assert {case.name for case in found} == set(list_norms())
    shape = (8, 64, 4, 4)  # samples enough for groups of 64
    for case in found:
        ratios = measure(case, shape, options)
        assert {key[3] for key in ratios if key[1] == BATCH} == set(PASSES)
        assert ((case.row, INSTANCE, shape, "forward") in ratios) == (case.row == "adaptive")
        assert min(ratios.values()) > 0


def test_the_plain_iternorm_whitens_as_ours() -> None:
    from norms import PlainIterNorm

    from normapps.norm.registry import create_norm

    x = torch.randn(8, 8, 6, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1
    ours, plain = create_norm("iternorm", 8, group_size=4), PlainIterNorm(8, 4)
    torch.testing.assert_close(plain(x), ours(x), rtol=1e-4, atol=1e-4)
    plain.mean, plain.matrix = torch.ones(2, 4, 1), 3 * torch.eye(4).repeat(2, 1, 1)
    torch.testing.assert_close(plain.eval()(x), 3 * (x - 1))


def test_a_bar_counts_the_slowest_training_pass_alone() -> None:
    from norms import BARS, PASSES, verdicts

    bar, shapes = BARS[0], ((1, 2, 3, 4), (5, 6, 7, 8))
    ratios = {(bar.row, bar.peer, shape, kind): 0.5 for shape in shapes for kind in PASSES}
    ratios[bar.row, bar.peer, shapes[0], "inference"] = 99.0
    assert [row[1:] for row in verdicts(ratios, shapes)] == [["0.50", "yes"]]
    ratios[bar.row, bar.peer, shapes[1], "forward + backward"] = 1.6
    assert [row[1:] for row in verdicts(ratios, shapes)] == [["1.60", "no"]]
