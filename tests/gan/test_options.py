"""Options of `gan train`: defaults by recipe, contradictions, what a resumed run may change."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from normapps.errors import InputError, UsageError
from normapps.gan.configs import CONFIGS, config
from normapps.gan.options import FREE, TrainOptions
from normapps.models.sngan import DISCRIMINATORS, GENERATORS, PAPER_WIDTHS


def test_the_recipe_is_the_papers() -> None:
    """Miyato et al. 2018, table 3 and appendix B.4: setting E and the 32-pixel networks."""
    chosen = TrainOptions().resolved()
    assert (chosen.lr_g, chosen.lr_d, chosen.n_dis) == (2e-4, 2e-4, 5)
    assert (chosen.batch_size, chosen.gen_batch_size) == (64, 128)
    assert (chosen.steps, chosen.width, chosen.d_width) == (50_000, 256, 128)
    assert (chosen.loss, chosen.d_norm, chosen.sigma, chosen.flip) == (
        "hinge", "sn", "reshape", False,
    )  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_has_networks_of_its_size_and_widths(name: str) -> None:
    chosen = config(name)
    assert chosen.size in GENERATORS
    assert chosen.size in DISCRIMINATORS
    assert (chosen.width, chosen.d_width) == PAPER_WIDTHS[chosen.size]
    assert name.endswith(f"-{chosen.size}")
    divisors = [max(table[chosen.size][1]) for table in (GENERATORS, DISCRIMINATORS)]
    assert [chosen.divisor, chosen.d_divisor] == divisors


def test_what_is_given_stays_and_the_rest_follows() -> None:
    chosen = TrainOptions(config="sngan-64", cond=True, batch_size=10, width=32, steps=7).resolved()
    assert (chosen.size, chosen.width, chosen.d_width, chosen.steps) == (64, 32, 1024, 7)
    assert (chosen.gen_batch_size, chosen.g_norm) == (20, "cbn")
    assert chosen.resolved() == chosen
    assert TrainOptions(gen_batch_size=6, g_norm="wc").resolved().gen_batch_size == 6
    assert TrainOptions().resolved().g_norm == "bn"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"g_norm": "cbn"}, "--g-norm cbn: .*add --cond"),
        ({"config": "sngan-64", "width": 20}, "--width 20: must be a multiple of 16 with --config"),
        ({"config": "sngan-48", "d_width": 8}, "--d-width 8: must be a multiple of 16"),
        ({"channels": 2}, "--channels 2: choose 0, 1 or 3"),
        ({"loss": "wasserstein", "d_norm": "none"}, "add --gp 10"),
        ({"sigma": "conv", "d_norm": "gn"}, "--sigma conv: belongs to --d-norm sn, not gn"),
        ({"augment": "colour"}, "colour"),
    ],
)
def test_contradictions_are_refused_in_a_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises((UsageError, InputError), match=said) as caught:
        TrainOptions(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"config": "sngan-33"}, "--config 'sngan-33': .*did you mean 'sngan-32'"),
        ({"loss": "hing"}, "did you mean 'hinge'"),
        ({"batch_size": 1}, "--batch-size 1: must be at least 2"),
        ({"ema": 1.5}, "--ema 1.5"),
        ({"device": "tpu"}, "--device 'tpu'"),
    ],
)
def test_values_out_of_range_name_their_flag(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TrainOptions(**given)


def test_an_unknown_config_names_the_nearest() -> None:
    with pytest.raises(InputError, match=re.escape("did you mean 'sngan-128'?")):
        config("sngan-127")


def test_a_resumed_run_shares_all_that_changes_its_steps() -> None:
    names = {each.name for each in fields(TrainOptions)}
    assert set(FREE) <= names
    assert set(TrainOptions().fixed) == names - set(FREE)
    assert {"steps", "lr_g", "seed", "precision", "ema", "batch_size"} <= set(TrainOptions().fixed)


def test_options_load_no_torch() -> None:
    code = "import sys, normapps.gan.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
