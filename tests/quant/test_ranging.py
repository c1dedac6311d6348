"""Which source gives the ranges: distilled images, pictures that calibrate, or statistics."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onnx_networks import residual

from normapps.errors import InputError
from normapps.models.preprocessing import Preprocessing
from normapps.models.small import SmallCnn
from normapps.norm.moments import Moments
from normapps.norm.partition import BATCH
from normapps.quant.options import QuantizeOptions
from normapps.quant.ranging import distilled_images, find_ranges

FREE = QuantizeOptions(data_free=True)
PICTURES = Preprocessing(size=(12, 12), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return residual(tmp_path_factory.mktemp("onnx") / "net.onnx")


def _prepared(statistics: dict[str, Moments]) -> Any:
    return SimpleNamespace(statistics=statistics, inputs=torch.zeros(1, 3, 12, 12))


def _seen(*values: float) -> Any:
    batches = [torch.full((1, 3, 12, 12), value) for value in values]
    return SimpleNamespace(calibrating=len(values), calibration=lambda: iter(batches))


def test_images_come_before_pictures_and_these_before_statistics(path: Path) -> None:
    images = np.full((3, 3, 12, 12), 7.0, np.float32)
    images[2] = -1
    few = QuantizeOptions(data_free=True, distill=3, batch_size=2)
    found = find_ranges(path, _prepared({}), PICTURES, few, None, images)
    assert found["x"] == pytest.approx((-1, 7))
    shown = QuantizeOptions(data="here")
    found = find_ranges(path, _prepared({}), PICTURES, shown, _seen(-2.0, 5.0), None)
    assert found["x"] == pytest.approx((-2, 5))


def test_statistics_give_mean_and_six_deviations(path: Path) -> None:
    mean, var = torch.zeros(1, 8, dtype=torch.float64), torch.full((1, 8), 0.25).double()
    moments = Moments(torch.zeros(1), mean, var, partition=BATCH)
    prepared = _prepared({"stem": moments})
    found = find_ranges(path, prepared, PICTURES, FREE, None, None)
    assert found["x"] == pytest.approx((-1, 1))
    judged = SimpleNamespace(calibrating=0)
    assert find_ranges(path, prepared, PICTURES, FREE, judged, None) == found  # type: ignore[arg-type]
    ends = {round(high, 6) for _, high in found.values()}
    assert 3.0 in ends  # 0 + 6·√0.25, of the stem


def test_nothing_that_tells_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match=r"--data-free: no batch norm was folded .* give --data"):
        find_ranges(path, _prepared({}), PICTURES, FREE, None, None)


def test_distilled_images_are_of_the_networks_size_and_all_steps_are_told() -> None:
    model = SmallCnn(channels=1, size=8, width=4).eval()
    told: list[tuple[str, int]] = []
    options = QuantizeOptions(data_free=True, distill=2)
    cpu = torch.device("cpu")
    found = distilled_images(
        model, torch.zeros(1, 1, 8, 8), options, cpu, lambda *each: told.append(each)
    )
    assert (found.shape, found.dtype) == ((2, 1, 8, 8), np.float32)
    assert told
    assert set(told) == {("distilling", len(told))}
