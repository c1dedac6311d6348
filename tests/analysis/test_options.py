"""Options of `norm convert` and `norm stats`."""

from __future__ import annotations

import pytest

from normapps.analysis.options import ConvertOptions, StatsOptions, layer_options
from normapps.errors import InputError


def test_values_of_set_are_read_as_what_they_are() -> None:
    texts = ("group-size=16", "eps=1e-3", "affine=False", "momentum=None", "base=instance")
    assert layer_options(texts) == {
        "group_size": 16,
        "eps": 1e-3,
        "affine": False,
        "momentum": None,
        "base": "instance",
    }


@pytest.mark.parametrize("text", ["group_size", "=3"])
def test_a_set_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="must be name=value"):
        ConvertOptions(to="zca", set=(text,))


def test_the_layer_must_be_named() -> None:
    with pytest.raises(InputError, match="--to"):
        ConvertOptions()


def test_ranges() -> None:
    with pytest.raises(InputError, match="--batch-size 0"):
        StatsOptions(batch_size=0)
    with pytest.raises(InputError, match="--mode 'two-pass'"):
        StatsOptions(mode="two-pass")
