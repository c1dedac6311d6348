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


def test_a_shard_is_a_part_of_a_whole() -> None:
    assert StatsOptions().part == (1, 1)
    assert StatsOptions(shard="2/4").part == (2, 4)
    for shard in ("0/2", "3/2", "1/0"):
        with pytest.raises(InputError, match=f"--shard {shard}: must be from"):
            StatsOptions(shard=shard)
    with pytest.raises(InputError, match="--shard 'half'"):
        StatsOptions(shard="half")
    with pytest.raises(InputError, match="--mode fixed"):
        StatsOptions(shard="1/2", mode="layerwise")
