"""What `**carried` stands for: the options of the layer above, shown, taken and refused."""

from __future__ import annotations

import inspect
from typing import Any, Unpack

import pytest
import torch
from torch import Tensor, nn

from normapps.norm.layers.base import AffineNorm, Recovery
from normapps.norm.layers.conditional import ConditionalNorm
from normapps.norm.registry import NORMS, create_norm, norm_class, norm_options

NEEDED = {"num_classes": 3, "latent_features": 3, "condition_channels": 3, "num_domains": 3}
PLACE = {"device": None, "dtype": None}
AFFINE = {"eps": 1e-5, "affine": True, "bias": True, **PLACE}
TRACKED = {**AFFINE, "momentum": 0.1, "sync": False, "process_group": None}
WHITENING = {**TRACKED, "eps": 1e-3, "track_running_stats": True}
MODULATED = {**TRACKED, "base": "batch"}
EMPTY = inspect.Parameter.empty
SHARED = {**TRACKED, "num_domains": EMPTY, "unseen": "mean"}
OPTIONS: dict[str, dict[str, Any]] = {
    "rms": {**AFFINE, "eps": 1e-6, "bias": False},
    "group": {**AFFINE, "num_groups": 32},
    "adalin": {**AFFINE, "latent_features": EMPTY},
    "ibn": {**TRACKED, "ratio": 0.5},
    "ghost": {**TRACKED, "track_running_stats": True, "num_splits": 2},
    "zca": {**WHITENING, "group_size": 16},
    "iternorm": {**WHITENING, "eps": 1e-5, "group_size": 64, "iterations": 5},
    "coloring": {**WHITENING, "group_size": None},
    "autodial": {**SHARED, "alpha": 1.0},
    "transnorm": SHARED,
    "domain_whitening": {**SHARED, "eps": 1e-3, "group_size": 4},
    "spatial": {
        **MODULATED,
        **{"condition_channels": EMPTY, "hidden_channels": 128, "kernel_size": 3},
    },
}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_options_that_are_handed_on_are_listed_with_their_defaults(name: str) -> None:
    assert norm_options(name) == OPTIONS[name]


@pytest.mark.parametrize("name", sorted(NORMS))
def test_every_option_that_is_listed_is_taken(name: str) -> None:
    given = {key: NEEDED.get(key, value) for key, value in norm_options(name).items()}
    given |= {"dtype": torch.float64, "layout": "2d", "act": nn.ReLU, "drop": nn.Dropout}
    layer = norm_class(name).for_layout("2d")(8, **given)
    assert {each.dtype for each in layer.parameters()} <= {torch.float64}
    floating = [each for each in layer.buffers() if each.is_floating_point()]
    assert {each.dtype for each in floating} <= {torch.float64}
    assert (layer.layout, type(layer.act), type(layer.drop)) == ("2d", nn.ReLU, nn.Dropout)


@pytest.mark.parametrize("name", sorted(NORMS))
def test_an_option_of_no_layer_is_refused(name: str) -> None:
    needed = {key: NEEDED[key] for key, value in norm_options(name).items() if value is EMPTY}
    with pytest.raises(TypeError, match="epsilon"):
        norm_class(name)(8, **needed, epsilon=1e-3)


def test_the_scale_of_a_class_is_no_option() -> None:
    with pytest.raises(TypeError, match="affine"):
        ConditionalNorm(4, 3, affine=False)  # type: ignore[call-arg]
    assert "affine" not in norm_options("conditional") | norm_options("conditional_coloring")


def test_spatial_norm_takes_any_layout_as_2d() -> None:
    layouts: list[dict[str, Any]] = [{}, {"layout": "any"}, {"layout": "2d"}, {"layout": "1d"}]
    found = [norm_class("spatial")(4, 2, **each).layout for each in layouts]
    assert found == ["2d", "2d", "2d", "1d"]
    assert create_norm("spatial", 4, condition_channels=2).layout == "2d"


def test_a_parameter_that_only_has_the_name_stays() -> None:
    class Own(AffineNorm):
        def __init__(self, carried: int, **more: Unpack[Recovery]) -> None:
            super().__init__(carried, **more)

        def normalize(self, x: Tensor) -> Tensor:
            return x

    assert list(inspect.signature(Own).parameters) == ["carried", "more"]
