"""Trying layers: on pictures that calibrate only, and what stays float."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onnx_networks import pictures, residual

from normapps.errors import InputError
from normapps.quant import mixing
from normapps.quant.calibration import measure_ranges
from normapps.quant.mixed import Choice
from normapps.quant.mixing import Shown, mix
from normapps.quant.options import QuantizeOptions
from normapps.quant.ranging import Ranges

MIXED = QuantizeOptions(data="here", mixed=True, max_drop=0.0)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ranges]:
    path = residual(tmp_path_factory.mktemp("onnx") / "net.onnx")
    return path, measure_ranges(path, [pictures(8)])


def _seen(count: int, *, labels: bool) -> Any:
    found = [
        (torch.full((3, 1), float(i)), torch.full((3,), i) if labels else None)
        for i in range(count)
    ]
    return SimpleNamespace(calibrating=3 * count, calibration_with_labels=lambda: iter(found))


def test_distilled_images_come_before_pictures() -> None:
    shown = Shown.of(_seen(2, labels=True), np.ones((4, 1), np.float32))
    assert shown is not None
    assert shown.labels is None
    assert [each.shape for each in shown.images] == [(4, 1)]
    shown = Shown.of(_seen(2, labels=True), None)
    assert shown is not None
    assert shown.labels is not None
    assert shown.labels.tolist() == [0, 0, 0, 1, 1, 1]
    unlabelled = Shown.of(_seen(2, labels=False), None)
    assert unlabelled is not None
    assert unlabelled.labels is None
    assert Shown.of(None, None) is None
    assert Shown.of(SimpleNamespace(calibrating=0), None) is None  # type: ignore[arg-type]


def test_an_order_is_found_by_the_first_32() -> None:
    shown = Shown((np.zeros((20, 1)), np.ones((20, 1)), np.ones((20, 1))))
    assert [len(each) for each in shown.few()] == [20, 12]
    assert [len(each) for each in Shown((np.zeros((40, 1)),)).few()] == [32]


def test_nothing_is_tried_without_pictures_or_wish(network: tuple[Path, Ranges]) -> None:
    assert mix(*network, None, MIXED, None).order == ()
    silent = QuantizeOptions(data="here", sensitivity=False)
    found = mix(*network, Shown((pictures(4),)), silent, None)
    assert (found.order, found.choice) == ((), None)


def test_every_layer_is_told_and_the_choice_apart(network: tuple[Path, Ranges]) -> None:
    told: list[tuple[str, int]] = []
    found = mix(*network, Shown((pictures(6),)), MIXED, lambda *each: told.append(each))
    assert len(found.order) == 4
    assert [each.error for each in found.order] == sorted(
        (each.error for each in found.order), reverse=True
    )
    assert told[:4] == [("trying layers", 4)] * 4
    assert {name for name, _ in told[4:]} == {"choosing layers"}
    assert found.choice is not None
    assert found.kept_float == found.choice.exclude
    without = mix(*network, Shown((pictures(6),)), QuantizeOptions(data="here"), None)
    assert without.choice is None
    assert without.kept_float == ()


def test_a_mixture_of_floats_alone_is_refused(
    network: tuple[Path, Ranges], monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(path: Any, ranges: Any, batches: Any, order: Any, **how: Any) -> Choice:
        return Choice(tuple(each.node.name for each in order), 0.0, ((0, 1.0),))

    monkeypatch.setattr(mixing, "choose_float", choose)
    with pytest.raises(InputError, match="--mixed: with a single layer in int8 more than --max-d"):
        mix(*network, Shown((pictures(2),)), MIXED, None)
