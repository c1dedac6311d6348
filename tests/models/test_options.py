"""Options of what a picture goes through."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from normapps.errors import InputError
from normapps.models.load import OpenedModel
from normapps.models.options import PictureOptions, preprocessing_of
from normapps.models.preprocessing import Preprocessing


def _opened(preprocessing: Preprocessing) -> OpenedModel:
    return OpenedModel(nn.Identity(), preprocessing, {}, False, "a network", "its own weights")


OWN = Preprocessing((224, 224), (256, 256), origin="timm")


def test_without_options_it_is_the_models_own() -> None:
    assert preprocessing_of(_opened(OWN), PictureOptions()) is OWN


def test_a_new_size_scales_in_proportion() -> None:
    found = preprocessing_of(_opened(OWN), PictureOptions(size=112))
    assert (found.size, found.resize) == ((112, 112), (128, 128))
    assert found.origin == "timm, --size"
    # a folder that was made with the flag says so already
    again = preprocessing_of(_opened(found), PictureOptions(size=64))
    assert again.origin == "timm, --size"
    assert again.size == (64, 64)


def test_numbers_count_for_all_channels_or_one_each() -> None:
    options = PictureOptions(mean="0.5", std="0.1, 0.2,0.3")
    found = preprocessing_of(_opened(OWN), options)
    assert found.mean == (0.5, 0.5, 0.5)
    assert found.std == (0.1, 0.2, 0.3)
    assert found.origin == "timm, --mean --std"
    assert Preprocessing.from_json(found.to_json()) == found


def test_no_resize_cuts_the_centre_of_the_picture_as_it_is(chelsea: np.ndarray) -> None:
    found = preprocessing_of(_opened(OWN), PictureOptions(size=64, resize=False))
    height, width = chelsea.shape[:2]
    top, left = round((height - 64) / 2), round((width - 64) / 2)
    wanted = chelsea[top : top + 64, left : left + 64]
    assert torch.equal(found.cut(chelsea), torch.from_numpy(wanted).permute(2, 0, 1))
    assert "as it is" in found.describe()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": "grey"}, "--mean 'grey': must be numbers"),
        ({"mean": ""}, "--mean '': must be numbers"),
        ({"mean": "nan"}, "--mean 'nan'"),
        ({"std": "0.5,0"}, "--std '0.5,0': must be greater than 0"),
        ({"size": 0}, "--size 0"),
    ],
)
def test_what_are_no_values_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PictureOptions(**values)  # type: ignore[arg-type]


def test_numbers_must_fit_the_channels() -> None:
    grey = dataclasses.replace(OWN, mean=(0.5,), std=(0.5,), channels=1)
    with pytest.raises(InputError, match="--mean: 3 numbers for 1 channels; give one, or 1"):
        preprocessing_of(_opened(grey), PictureOptions(mean="0,0,0"))


def test_options_load_no_torch() -> None:
    code = "import sys, normapps.models.options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
