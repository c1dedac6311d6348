"""Whether the labels of pictures are a model's classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.data.labels import class_numbers, fitting_labels
from normapps.data.pictures import Pictures
from normapps.data.pool import Pool
from normapps.errors import InputError
from normapps.models.preprocessing import Preprocessing
from normapps.training.classes import match_classes


def _picture(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file)
    return file


def _pictures(place: Path) -> Pictures:
    return Pictures(place, Preprocessing(size=(4, 4), resize=(4, 4)))


def _same(found: tuple[torch.Tensor | None, str], wanted: torch.Tensor) -> bool:
    labels, why = found
    return labels is not None and torch.equal(labels, wanted) and not why


def test_class_folders_fit_a_model_of_as_many_outputs(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        _picture(tmp_path / name / "0.png")
    found, labels = _pictures(tmp_path), torch.tensor([0, 1])
    assert _same(fitting_labels(found, labels, 2), labels)
    assert fitting_labels(found, labels, 10) == (None, "data has 2 classes, the model 10 outputs")


def test_numbers_of_a_list_fit_a_model_that_has_them(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png 7\n")
    found, labels = _pictures(tmp_path / "list.txt"), torch.tensor([7])
    assert _same(fitting_labels(found, labels, 1000), labels)
    assert fitting_labels(found, labels, 7)[0] is None


def test_pictures_without_labels_say_so(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    labels, why = fitting_labels(_pictures(tmp_path), None, 10)
    assert labels is None
    assert "has no labels, which class folders or a list would give" in why


def _folders(place: Path, *names: str) -> Pictures:
    for name in names:
        _picture(place / name / "0.png")
    return _pictures(place)


def test_folders_of_numbers_stand_in_the_order_of_their_values(tmp_path: Path) -> None:
    """As training numbers them; by the alphabet 10 would be the first."""
    found = _folders(tmp_path, "10", "2", "9")
    assert found.classes == ("2", "9", "10")
    assert found.labels == (2, 0, 1)  # in the order of the files
    assert _same(fitting_labels(found, torch.tensor(found.labels), 3), torch.tensor([2, 0, 1]))
    pool = Pool.read(found)
    assert match_classes([("all", pool)], []).classes == found.classes


def test_a_list_of_as_many_numbers_as_outputs_is_numbered_as_training_does(tmp_path: Path) -> None:
    lines = []
    for name in ("10", "2", "9"):
        _picture(tmp_path / f"{name}.png")
        lines.append(f"{name}.png {name}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    found = _pictures(tmp_path / "list.txt")
    assert found.labels is not None
    labels = torch.tensor(found.labels)
    assert _same(fitting_labels(found, labels, 3), torch.tensor([2, 0, 1]))
    assert _same(fitting_labels(found, labels, 11), torch.tensor([10, 2, 9]))
    assert fitting_labels(found, labels, 5) == (None, "data has 3 classes, the model 5 outputs")


def test_a_model_that_knows_its_classes_is_judged_by_their_names(tmp_path: Path) -> None:
    found = _folders(tmp_path, "cat", "dog")
    labels = torch.tensor([0, 1])
    known = ("dog", "bird", "cat")
    assert _same(fitting_labels(found, labels, 3, known), torch.tensor([2, 0]))
    assert _same(fitting_labels(found, labels, 2, ("dog", "cat")), torch.tensor([1, 0]))
    assert fitting_labels(found, labels, 2, ("cat", "cow")) == (
        None,
        "data has the class 'dog', which is none of those that the model learned",
    )
    # names that are not those of this classifier tell nothing
    assert _same(fitting_labels(found, labels, 2, known), labels)
    numbers = _folders(tmp_path / "numbers", "007", "10")
    assert _same(fitting_labels(numbers, labels, 2, ("10", "7")), torch.tensor([1, 0]))


def test_classes_that_the_others_have_not_are_refused(tmp_path: Path) -> None:
    found = _folders(tmp_path, "cat", "dog")
    assert class_numbers(found, ("dog", "cat", "cow")).tolist() == [1, 0]
    with pytest.raises(InputError, match=r"there has no class 'dog'; give both the same"):
        class_numbers(found, ("cat", "cow"), "there")
