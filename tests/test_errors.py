"""Errors of this package: what they are, and what an unknown name is told."""

from __future__ import annotations

import pytest

from normapps.errors import InputError, NormappsError, UsageError, unknown


def test_everything_of_ours_is_caught_by_one_class() -> None:
    assert issubclass(InputError, NormappsError)
    assert issubclass(UsageError, NormappsError)
    assert issubclass(InputError, ValueError)  # what a caller of a library expects
    assert not issubclass(UsageError, InputError)


@pytest.mark.parametrize(
    ("name", "near"), [("bacth", "batch"), ("Batch", "batch"), ("instanse", "instance")]
)
def test_an_unknown_name_is_told_the_nearest(name: str, near: str) -> None:
    error = unknown("norm", name, ["layer", "instance", "batch"])
    assert isinstance(error, InputError)
    assert str(error) == f"unknown norm '{name}'; did you mean '{near}'?"


def test_a_name_near_to_nothing_is_told_all_in_order() -> None:
    error = unknown("norm", "xyz", {"layer", "instance", "batch"})
    assert str(error) == "unknown norm 'xyz'; known: batch, instance, layer"


def test_a_long_list_is_cut_and_stays_one_line() -> None:
    names = [f"model{i:04d}" for i in range(1300)]
    text = str(unknown("model", "xyz", iter(names)))
    assert text.endswith("model0010, model0011, … (1300 in all)")
    assert "model0012" not in text
    assert "\n" not in text
    assert str(unknown("model", "xyz", names[:12])).endswith("model0011")
