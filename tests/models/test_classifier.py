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


def test_a_convolution_that_timm_tells() -> None:
    assert classifier_name(timm_model("dla34")) == "fc"


def test_what_was_made_without_classes_has_none() -> None:
    """A linear layer inside of it is none either."""
    with pytest.raises(InputError, match="has no classifier: it was made with 0 classes"):
        classifier_name(timm_model("vit_tiny_patch16_224", num_classes=0))


class _ConvHead(nn.Module):
    """A convolution as classifier, as timm's `use_conv`, after blocks that have linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.head = nn.Conv2d(4, 3, 1)

    def get_classifier(self) -> nn.Module:
        return self.head


def test_a_linear_layer_elsewhere_is_not_taken_for_a_convolution_that_is_told() -> None:
    assert classifier_name(_ConvHead()) == "head"
