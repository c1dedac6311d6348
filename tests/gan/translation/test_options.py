"""Options of translation: what is refused, and what a resumed run may change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from normapps.errors import InputError, UsageError
from normapps.gan.translation.options import TranslateOptions, TranslateRunOptions, resumed
from normapps.gan.translation.paired_options import PairedOptions
from normapps.options import to_json

STARTED = TranslateOptions(source="a", target="b", steps=50, width=8, stop_after=10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "options.json").write_text(to_json(STARTED))
    return tmp_path


def test_a_resumed_run_has_its_own_options(folder: Path) -> None:
    assert resumed(folder, TranslateOptions(), []) == replace(STARTED, stop_after=0)


def test_what_may_change_does(folder: Path) -> None:
    given = TranslateOptions(device="cpu", save_every=7, stop_after=3)
    wanted = replace(STARTED, device="cpu", save_every=7, stop_after=3)
    assert resumed(folder, given, ["device", "save_every", "stop_after"]) == wanted


def test_to_go_on_and_to_begin_anew_contradict(folder: Path) -> None:
    with pytest.raises(UsageError, match="--resume --overwrite: contradict"):
        resumed(folder, TranslateOptions(overwrite=True), ["overwrite"])
    (folder / "options.json").write_text(to_json(replace(STARTED, overwrite=True)))
    assert not resumed(folder, TranslateOptions(), []).overwrite


def test_what_may_not_change_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--width 16: .* was started with 8; leave it out"):
        resumed(folder, TranslateOptions(width=16), ["width"])
    assert resumed(folder, TranslateOptions(width=8), ["width"]).width == 8


def test_a_default_that_was_typed_counts(folder: Path) -> None:
    assert resumed(folder, TranslateOptions(width=32), []).width == 8
    with pytest.raises(UsageError, match="--width 32"):
        resumed(folder, TranslateOptions(width=32), ["width"])


def test_a_run_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="holds a run of another kind; choose another -o"):
        resumed(folder, PairedOptions(), [])
    (folder / "options.json").write_text("{")
    with pytest.raises(InputError, match=r"options\.json"):
        resumed(folder, TranslateOptions(), [])


def test_pairs_must_be_left_to_train_on() -> None:
    with pytest.raises(InputError, match="--hold-out 1: keeps every pair"):
        PairedOptions(hold_out=1)


def test_there_must_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run to resume"):
        resumed(tmp_path, TranslateOptions(), [])


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"size": 30}, "--size 30: must be a multiple of 4"),
        ({"size": 8}, "--size 8: must be at least 16"),
        ({"loss": "hing"}, "did you mean 'hinge'"),
        ({"cycle_weight": -1.0}, "--cycle-weight -1"),
        ({"ema": 1.5}, "--ema 1.5"),
        ({"sigma": "svd"}, "--sigma 'svd'"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, float], line: str) -> None:
    with pytest.raises(InputError, match=line):
        TranslateOptions(**values)  # type: ignore[arg-type]


def test_a_job_needs_a_model_and_an_output() -> None:
    with pytest.raises(InputError, match="-m is missing"):
        TranslateRunOptions(output="out")
    with pytest.raises(InputError, match="-o is missing"):
        TranslateRunOptions(model="run")
