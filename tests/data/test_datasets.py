"""Data sets of a name: where they are looked for, and what is said where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from normapps.data import datasets
from normapps.data.datasets import class_names, find_dataset
from normapps.errors import InputError

NAME = "fashion-mnist"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set of this machine is seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(datasets.VARIABLE, raising=False)
    monkeypatch.setattr(datasets, "SYSTEM", str(tmp_path / "system"))


def test_places_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, first, second = (tmp_path / name for name in ("given", "first", "second"))
    monkeypatch.setenv(datasets.VARIABLE, os.pathsep.join(["", str(first), str(second)]))
    for place in (tmp_path / "system", second, first, given):
        (place / NAME).mkdir(parents=True)
        assert find_dataset(NAME, [given]) == place / NAME
    (tmp_path / NAME).mkdir()
    assert find_dataset(NAME, [given]) == Path(NAME)


def test_any_other_word_is_a_path() -> None:
    assert find_dataset("some/folder") == Path("some/folder")


def test_a_missing_one_names_the_package_and_the_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"given or .*system; install .* dataset-fashion-mnist"):
        find_dataset(NAME, [tmp_path / "given"])


def test_classes_have_names_where_they_are_known(tmp_path: Path) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "train-images-idx3-ubyte").touch()
    assert class_names(folder, 10)[9] == "ankle-boot"
    assert class_names(folder / "train-images-idx3-ubyte", 10)[0] == "t-shirt"
    assert class_names(folder, 3) == class_names(tmp_path, 3) == ("0", "1", "2")
