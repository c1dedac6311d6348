"""Options of `adapt evaluate`: names, lists, what contradicts itself; no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from normapps.adapt.evaluate_options import BASELINES, METHOD_NAMES, EvaluateOptions
from normapps.data.corruptions import CORRUPTIONS
from normapps.errors import InputError


def test_the_methods_are_those_of_the_registry() -> None:
    from normapps.adapt.methods import list_methods

    assert (*list_methods(), *BASELINES) == METHOD_NAMES


def test_lists_are_read_with_commas_and_repeated_once_each() -> None:
    options = EvaluateOptions(
        methods=("tent, adabn", "adabn"),
        corrupt=("fog:1,fog:2", "fog:1"),
        stream=("mixed,shift",),
    )
    assert options.method_names() == ("source", "tent", "adabn")
    assert options.domains() == ("clean", "fog:1", "fog:2")
    assert options.streams() == ("mixed", "shift")
    assert EvaluateOptions(corrupt=("fog:1",), clean=False).domains() == ("fog:1",)


def test_all_is_all_that_can_be_run() -> None:
    without = EvaluateOptions(methods=("all",)).method_names()
    assert without == tuple(name for name in METHOD_NAMES if name not in BASELINES)
    assert EvaluateOptions(methods=("all",), references="x").method_names() == METHOD_NAMES
    found = EvaluateOptions(corrupt=("all:3",), clean=False).domains()
    assert found == tuple(f"{name}:3" for name in CORRUPTIONS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": ("tnet",)}, r"unknown method 'tnet'; did you mean 'tent'\?"),
        ({"methods": ("fda",)}, "--methods fda: give --references"),
        ({"corrupt": ("fog",)}, "'fog': give a severity from 1 to 5, such as fog:3"),
        ({"corrupt": ("fgo:3",)}, r"unknown corruption 'fgo'; did you mean 'fog'\?"),
        ({"stream": ("mixd",)}, r"unknown stream 'mixd'; did you mean 'mixed'\?"),
        ({"stream": ()}, "--stream: choose of shift, continual, mixed, sorted"),
        ({"clean": False}, "--no-clean: nothing is left to evaluate; give --corrupt"),
        ({"batch_size": (8, 0)}, "--batch-size 0: must be at least 1"),
        ({"batch_size": ()}, "--batch-size: give at least one"),
        ({"seeds": 0}, "--seeds 0: must be at least 1"),
    ],
)
def test_what_cannot_be_evaluated_is_one_clear_line(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        EvaluateOptions(**values)  # type: ignore[arg-type]


def test_options_load_no_torch() -> None:
    code = "import sys, normapps.adapt.evaluate_options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
