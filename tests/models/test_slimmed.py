"""Slimmed networks are kept as a base and edits, and come back to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normapps import load_model
from normapps.errors import InputError
from normapps.models.folder import build, save_model
from normapps.models.slimmed import Edits, apply_edits_, cut, set_attributes_

SMALL = {"builder": "small-cnn", "arguments": {"width": 8, "size": 8}}
FACTORY = {
    "builder": "factory",
    "arguments": {"factory": "normapps.models.small:small_cnn", "num_classes": 3},
}
CONVERTED = {"builder": "converted", "arguments": {"base": SMALL, "steps": [{"to": "batch"}]}}


def edits(width: int, inputs: int = 3) -> dict[str, Any]:
    """The first block has `width` channels, and the second reads as many."""
    first, second = "features.0.", "features.2.conv"
    names = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    shapes = {f"{first}{name}": [width] for name in names}
    shapes |= {f"{first}conv.weight": [width, inputs, 3, 3]}
    return {
        "shapes": shapes | {f"{second}.weight": [8, width, 3, 3]},
        "attributes": {
            f"{first}conv": {"out_channels": width},
            f"{first}norm": {"num_features": width},
            second: {"in_channels": width},
        },
    }


def wider(base: dict[str, Any], outputs: int) -> dict[str, Any]:
    found = edits(5)
    found["shapes"]["features.2.conv.weight"] = [outputs, 5, 3, 3]
    return {"base": base, **found}


@pytest.mark.parametrize(
    "arguments",
    [wider(SMALL, 8), wider(CONVERTED, 8), wider(FACTORY, 32)],
    ids=["small-cnn", "converted", "factory"],
)
def test_a_saved_network_comes_back_to_the_bit(arguments: dict[str, Any], tmp_path: Path) -> None:
    model = build("slimmed", arguments, seed=1).eval()
    for each in model.state_dict().values():
        if each.is_floating_point():
            each.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 16, 16)
    save_model(tmp_path / "slim", model, builder="slimmed", arguments=arguments)
    again = load_model(tmp_path / "slim")
    assert torch.equal(again(x), model(x))
    assert again.get_submodule("features.0.conv").out_channels == 5
    assert not list((tmp_path / "slim").glob("*.p*"))


def test_slimming_twice_nests(tmp_path: Path) -> None:
    once = {"builder": "slimmed", "arguments": {"base": SMALL, **edits(5)}}
    arguments = {"base": once, **edits(3)}
    model = build("slimmed", arguments, seed=0).eval()
    assert model.get_submodule("features.0.conv").weight.shape == (3, 3, 3, 3)
    save_model(tmp_path / "slim", model, builder="slimmed", arguments=arguments)
    code = (
        "import sys, torch; from normapps import load_model;"
        "print(load_model(sys.argv[1])(torch.ones(1, 3, 8, 8)).double().tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "slim"], capture_output=True, text=True, check=True
    )
    with torch.no_grad():
        assert json.loads(done.stdout) == model(torch.ones(1, 3, 8, 8)).double().tolist()


def test_fresh_weights_are_the_first_of_the_base() -> None:
    base = build("small-cnn", SMALL["arguments"], seed=3).state_dict()
    slim = build("slimmed", {"base": SMALL, **edits(5)}, seed=3).state_dict()
    for name, value in slim.items():
        assert torch.equal(value, base[name][tuple(slice(n) for n in value.shape)])


def test_a_bias_that_the_base_has_not_is_made() -> None:
    conv = nn.Conv2d(3, 4, 1, bias=False).double().requires_grad_(False)
    apply_edits_(conv, Edits(shapes={"bias": [2], "weight": [2, 3, 1, 1]}))
    assert conv.bias is not None
    assert conv.bias.tolist() == [0.0, 0.0]
    assert conv.bias.dtype == torch.float64
    assert list(conv.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (Edits(shapes={"nowhere.weight": [1]}), "no module 'nowhere' in Conv2d; was it made of an"),
        (Edits(shapes={"gamma": [1]}), "no tensor 'gamma' in Conv2d"),
        (Edits(shapes={"weight": [5, 3, 1, 1]}), r"'weight' is \(4, 3, 1, 1\), and not \(5, 3, 1"),
        (Edits(shapes={"weight": [4]}), r"'weight' is \(4, 3, 1, 1\), and not \(4,\)"),
        (Edits(indices={"weight": [[0]]}), "no buffer 'weight' of 1 dimensions"),
        (Edits({"": {"speed": 4}}), "module '' holds no size in 'speed'"),
        (Edits({"": {"forward": 4}}), "module '' holds no size in 'forward'"),
        (Edits({"": {"training": 1}}), "module '' holds no size in 'training'"),
        (Edits({"": {"groups": [1]}}), r"'\.groups' is 1; \[1\] is no such size"),
        (Edits({"": {"stride": 1}}), r"'\.stride' is \(1, 1\); 1 is no such size"),
    ],
)
def test_edits_that_do_not_fit_are_one_line(changes: Edits, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        apply_edits_(nn.Conv2d(3, 4, 1), changes)
    assert "\n" not in str(caught.value)


def test_a_list_takes_the_place_of_a_tuple_as_a_tuple() -> None:
    layer = nn.LayerNorm(8)
    set_attributes_(layer, "norm", {"normalized_shape": [5]})
    assert layer.normalized_shape == (5,)


def test_what_stays_of_a_tensor() -> None:
    weight = nn.Parameter(torch.arange(12.0).view(3, 4), requires_grad=False)
    kept = cut(weight, [torch.tensor([0, 2]), None])
    assert isinstance(kept, nn.Parameter)
    assert not kept.requires_grad
    assert kept.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert cut(torch.arange(3.0), [[1]]).tolist() == [1.0]


def test_only_what_differs_is_kept() -> None:
    assert Edits().arguments() == {}
    assert json.loads(json.dumps(Edits(shapes={"a": [1]}).arguments())) == {"shapes": {"a": [1]}}
