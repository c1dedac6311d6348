"""The watch: what stops a training, what does not, and what it counts over a resume."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from normapps.gan.watch import LIVED, NARROW, PATIENCE, SILENT, Watch, WatchError, spread


def values(spread: float = 0.5, d_loss: float = 1.0, **more: float) -> dict[str, float]:
    return {"spread": spread, "d_loss": d_loss, **more}


def test_spread_is_the_mean_over_pixels_of_the_deviation_over_pictures() -> None:
    x = torch.rand(7, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    wanted = np.std(x.numpy().astype(np.float64), axis=0).mean()
    assert float(spread(x)) == pytest.approx(wanted, rel=1e-6)
    assert float(spread(x.bfloat16())) == pytest.approx(wanted, rel=1e-2)
    assert float(spread(torch.ones(4, 1, 2, 2))) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_stops_at_once_and_is_named(value: float) -> None:
    with pytest.raises(WatchError, match=r"step 7: g_loss is not finite; .*--lr-g"):
        Watch(0.5).look(7, values(g_loss=value))


def test_a_collapse_stops_after_its_patience_and_not_before() -> None:
    watch = Watch(0.5)
    watch.look(0, values(0.5 * LIVED))
    for step in range(PATIENCE - 1):
        watch.look(1 + step, values(0.49 * NARROW))
        assert watch.is_uneasy
    with pytest.raises(WatchError, match=r"collapsed, .*under 5% of the data's for 200 steps"):
        watch.look(PATIENCE, values(0.49 * NARROW))


def test_a_step_with_spread_begins_the_count_anew() -> None:
    watch = Watch(0.5)
    watch.look(0, values())
    for step in range(3 * PATIENCE):
        watch.look(step, values(0.5 if step % PATIENCE == PATIENCE - 1 else 0.0))
    watch.look(0, values(0.51 * NARROW))
    assert not watch.is_uneasy


def test_a_grey_start_is_no_collapse_nor_are_data_of_one_picture() -> None:
    for watch in (Watch(0.5), Watch(0.0)):
        for step in range(2 * PATIENCE):
            watch.look(step, values(0.0))


def test_a_silent_discriminator_stops_where_its_loss_has_a_least_value() -> None:
    watch = Watch(0.5)
    for step in range(PATIENCE - 1):
        watch.look(step, values(d_loss=SILENT / 2))
    with pytest.raises(WatchError, match=r"discriminator's loss was under 0\.001 for 200 steps"):
        watch.look(PATIENCE, values(d_loss=SILENT / 2))
    for step in range(2 * PATIENCE):
        Watch(0.5, has_zero=False).look(step, values(d_loss=-100.0))


def test_counts_go_on_after_a_resume() -> None:
    watch = Watch(0.5)
    watch.look(0, values())
    for step in range(PATIENCE - 1):
        watch.look(step, values(0.0, d_loss=0.0))
    resumed = Watch(0.5)
    resumed.restore(watch.state())
    assert resumed == watch
    with pytest.raises(WatchError, match="collapsed"):
        resumed.look(PATIENCE, values(0.0))
