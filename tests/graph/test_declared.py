"""What a network says of its own widths is observed, and corrected where it was true before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normapps.graph.declared import Declared, declared_sizes
from normapps.models.small import SmallCnn


class Telling(nn.Module):
    """Declares its widths as timm's networks do."""

    def __init__(self, width: int = 6, declared: int | None = None) -> None:
        super().__init__()
        self.num_features = declared or width
        self.head_hidden_size = width
        self.num_classes = 3
        self.feature_info: Any = [{"num_chs": width, "module": "stem"}, {"module": "nowhere"}]
        self.stem = nn.Conv2d(3, width, 1)
        self.head = nn.Sequential(nn.Dropout(0.0), nn.Linear(width, 3))

    def get_classifier(self) -> nn.Module:
        return self.head[1]

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x).mean((2, 3)))


def observed(model: nn.Module) -> dict[str, int]:
    with Declared(model) as declared:
        model(torch.randn(1, 3, 8, 8))
    return declared.sizes


def narrow(model: Telling, width: int) -> Telling:
    """The same declarations over fewer channels."""
    model.stem, model.head[1] = nn.Conv2d(3, width, 1), nn.Linear(width, 3)
    return model


def test_features_stages_and_the_classifiers_input_are_observed_and_nothing_stays() -> None:
    model = Telling(6)
    assert observed(model) == {"stage stem": 6, "features": 6, "head": 6}
    assert "forward_features" not in vars(model)
    assert not model.stem._forward_hooks
    assert not model.head[1]._forward_pre_hooks


def test_declarations_follow_the_channels() -> None:
    before, slim = observed(Telling(6)), narrow(Telling(6), 4)
    assert declared_sizes(slim, before, observed(slim)) == {
        "": {
            "num_features": 4,
            "head_hidden_size": 4,
            "feature_info": [{"num_chs": 4, "module": "stem"}, {"module": "nowhere"}],
        }
    }
    assert slim.feature_info[0]["num_chs"] == 6  # said, not yet changed


def test_what_was_not_true_before_or_has_not_changed_is_left_alone() -> None:
    before, slim = observed(Telling(6, declared=9)), narrow(Telling(6, declared=9), 4)
    assert "num_features" not in declared_sizes(slim, before, observed(slim))[""]
    assert declared_sizes(Telling(6), before, before) == {}


def test_networks_that_declare_nothing_are_fine() -> None:
    assert observed(nn.Conv2d(3, 4, 1)) == {}
    assert declared_sizes(nn.Conv2d(3, 4, 1), {}, {}) == {}
    stages = observed(SmallCnn(width=4))
    assert stages == {"stage features.0": 4, "stage features.3": 8, "stage features.6": 16}
