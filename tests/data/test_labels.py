"""Whether the labels of pictures are a model's classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from normapps.data.labels import fitting_labels
from normapps.data.pictures import Pictures
from normapps.models.preprocessing import Preprocessing


def _picture(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file)
    return file


def _pictures(place: Path) -> Pictures:
    return Pictures(place, Preprocessing(size=(4, 4), resize=(4, 4)))


def test_class_folders_fit_a_model_of_as_many_outputs(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        _picture(tmp_path / name / "0.png")
    found, labels = _pictures(tmp_path), torch.tensor([0, 1])
    assert fitting_labels(found, labels, 2) == (labels, "")
    assert fitting_labels(found, labels, 10) == (None, "data has 2 classes, the model 10 outputs")


def test_numbers_of_a_list_fit_a_model_that_has_them(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png 7\n")
    found, labels = _pictures(tmp_path / "list.txt"), torch.tensor([7])
    assert fitting_labels(found, labels, 1000) == (labels, "")
    assert fitting_labels(found, labels, 7)[0] is None


def test_pictures_without_labels_say_so(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    labels, why = fitting_labels(_pictures(tmp_path), None, 10)
    assert labels is None
    assert "has no labels, which class folders or a list would give" in why
