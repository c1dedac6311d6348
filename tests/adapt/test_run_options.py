"""Options of `adapt run`: what goes together."""

from __future__ import annotations

import subprocess
import sys

import pytest

from normapps.adapt.run_options import STATISTICS, STREAMS, AdaptOptions
from normapps.errors import InputError


@pytest.mark.parametrize("method", [*STATISTICS, *STREAMS])
def test_every_method_has_defaults(method: str) -> None:
    assert AdaptOptions(method=method).method == method


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"method": "cotta", "prior": 4.0},
            "--prior: is an option of --method prior, tent, eata or sar, cotta has none",
        ),
        (
            {"method": "tent", "weight": 0.5},
            "--weight: is an option of --method adabn, prior, ema or cumulative, tent",
        ),
        ({"method": "ema", "mode": "fixed"}, "--mode: is an option of --method adabn or prior"),
        ({"method": "adabn", "momentum": 0.1}, "--momentum: is an option of --method ema"),
        ({"method": "bn"}, "--method 'bn': choose one of adabn"),
        ({"weight": 1.5}, "--weight 1.5: must be between 0"),
    ],
)
def test_an_option_that_a_method_lacks_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdaptOptions(**values)  # type: ignore[arg-type]


def test_one_picture_a_batch_has_no_statistics_of_its_own() -> None:
    for values in ({"method": "adabn"}, {"method": "prior", "mode": "one-pass"}):
        with pytest.raises(InputError, match=r"--batch-size 1: .* --mode fixed, or --method prior"):
            AdaptOptions(batch_size=1, **values)  # type: ignore[arg-type]
    AdaptOptions(method="adabn", mode="fixed", batch_size=1)
    assert AdaptOptions(method="prior", batch_size=1).mode_for(1) == "fixed"
    assert AdaptOptions(method="prior").mode_for(2) == "one-pass"


def test_options_load_no_torch() -> None:
    code = "import sys, normapps.adapt.run_options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
