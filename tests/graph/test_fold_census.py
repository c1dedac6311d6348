"""Folding on timm's and torchvision's families; all of them under `pytest -m census`.

The census itself is benchmarks/fold_census.py, which also writes the table.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

import normapps.models  # noqa: F401 -- the guard that timm needs beside torch without CUDA
from normapps.graph import fold, fold_plan

timm = importlib.import_module("timm")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def census(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, which is a script and not part of a package."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("fold_census")


FEW = {
    "test_byobnet": (14, 0, 0),
    "test_efficientnet": (13, 0, 0),  # activations in the batch norms
    "test_coatnet": (5, 2, 0),
}

MORE = {
    "levit_128s": (50, 2, 0),  # norms of flattened tokens; before a linear layer
    "resnetv2_18": (8, 0, 9),  # in front of the activation that a convolution reads
    "lambda_resnet26t": (34, 0, 3),  # norms of parts of a split
    "mobilenetv3_small_050": (34, 0, 0),
}


@pytest.mark.census
@pytest.mark.parametrize("name", MORE)
def test_what_stays_is_what_must(name: str, census: ModuleType) -> None:
    row = census.examined("", name, census.census.timm_model)
    assert (row.after, row.before, len(row.left)) == MORE[name]


@pytest.mark.parametrize("name", FEW)
def test_a_few_that_cover_every_case(name: str, census: ModuleType) -> None:
    row = census.examined("", name, census.census.timm_model)
    assert (row.after, row.before, len(row.left)) == FEW[name]
    assert row.norms == sum(FEW[name])


def test_the_census_fails_where_an_activation_is_lost(
    census: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The naive fold, which puts an identity in the place of a `BatchNormAct2d`, is not proven."""
    monkeypatch.setattr(fold_plan, "_rest", lambda layer: nn.Identity().eval())
    monkeypatch.setattr(fold, "TRIALS", 1)
    row = census.examined("", "test_efficientnet", census.census.timm_model)
    assert (row.after, len(row.left)) == (0, row.norms)
    assert all("not proven within 1 trials; together: folded, the" in why for _, why in row.left)


@pytest.mark.census
def test_reparametrized_first_a_network_folds_whole(census: ModuleType) -> None:
    model, x = census.census.timm_model("repvgg_a0")
    row = census.examine("", "repvgg_a0", model, x)
    assert len(row.left) == 17
    assert all(".reparameterize() folds" in why for _, why in row.left)
    merged = timm.utils.reparameterize_model(model.float())
    assert census.census.batch_norms(merged) == []


@pytest.mark.census
@pytest.mark.parametrize(
    ("kind", "family"),
    [("timm", f) for f in sorted(timm.list_modules())] + [("torchvision", "all")],
)
def test_every_family(kind: str, family: str, census: ModuleType, capsys: Any) -> None:
    """Families without a 2d batch norm are skipped; norm's census says that there are no others."""
    if kind == "timm" and family not in census.census.SMALLEST:
        pytest.skip("no 2d batch norm")
    rows = census.timm_rows([family]) if kind == "timm" else census.torchvision_rows()
    for row in rows:
        with capsys.disabled():
            print("", *row.cells(), sep="  ")
        assert row.after + row.before > 0
        assert all(why for _, why in row.left)
