"""Finding the classifier of networks of all sorts."""

from __future__ import annotations

import pytest
from torch import nn

import normapps.models  # noqa: F401  guards torchvision
from normapps.errors import InputError
from normapps.models.builders import timm_model, torchvision_model
from normapps.models.classifier import classifier_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "fc"),
        ("mobilenetv3_small_050", "classifier"),
        ("regnetx_002", "head.fc"),
    ],
)
def test_of_timm(name: str, expected: str) -> None:
    assert classifier_name(timm_model(name)) == expected


@pytest.mark.parametrize(("name", "expected"), [("resnet18", "fc"), ("vgg11_bn", "classifier.6")])
def test_of_torchvision(name: str, expected: str) -> None:
    assert classifier_name(torchvision_model(name)) == expected


def test_the_last_linear_layer_of_any_other() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 3)))
    assert classifier_name(model) == "2.0"


def test_none_and_several_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="no linear layer") as error:
        classifier_name(nn.Sequential(nn.Conv2d(3, 4, 1)))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="2 classifiers"):
        classifier_name(timm_model("levit_128s"))
