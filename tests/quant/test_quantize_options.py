from __future__ import annotations

from typing import Any

import pytest

from normapps.errors import InputError
from normapps.quant.options import QuantizeOptions


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "no --data: name pictures to calibrate with"),
        ({"data": "d", "distill": 8}, "--distill 8: is a way of --data-free"),
        ({"data_free": True, "ranges": "mse"}, "--ranges mse --data-free"),
        ({"data_free": True, "data": "d", "finetune": 5}, "--finetune --data-free: needs pictures"),
        ({"data_free": True, "bn_reestimate": True}, "--bn-reestimate --data-free"),
        ({"data_free": True, "data": "d", "mixed": True}, "--mixed --data-free: needs pictures"),
        ({"data_free": True, "limit": 5}, "--limit 5: there are no pictures"),
        ({"data": "d", "max_drop": 1.5}, "--max-drop 1.5: must be between 0 and 1"),
        ({"data": "d", "ranges": "ms"}, "--ranges 'ms'"),
        ({"data": "d", "backend": "tvm"}, "--backend 'tvm': choose one of onnxruntime"),
    ],
)
def test_what_would_do_nothing_is_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as error:
        QuantizeOptions(**values)
    assert line in str(error.value)


def test_one_scale_a_weight_asks_for_equalization() -> None:
    assert QuantizeOptions(data="d", per_channel=False).equalizes
    assert not QuantizeOptions(data="d").equalizes
    assert QuantizeOptions(data="d", equalize=True).equalizes
    assert not QuantizeOptions(data="d", per_channel=False, equalize=False).equalizes


def test_pictures_calibrate_unless_ranges_need_none() -> None:
    assert QuantizeOptions(data="d").calibrates
    assert not QuantizeOptions(data="d", data_free=True).calibrates
    assert not QuantizeOptions(data_free=True, distill=8, ranges="mse").calibrates
