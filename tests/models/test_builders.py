"""Networks that other packages and the user's own modules define."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import normapps.models  # noqa: F401  (guard)
from normapps.errors import InputError
from normapps.models import builders
from normapps.models.folder import build

MODULE = """
import torch
from torch import nn
import {helper}

def make(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))

def classifier(num_classes):
    return nn.Linear(2, num_classes)

def anything(**options):
    return nn.Linear(2, options["num_classes"])

def needs(width, depth, *rest, eps=1e-5): ...
def wrong(): return {{"weights": 1}}
def fails(): raise KeyError("lost\\nkey")
instance = nn.Linear(1, 1)
number = 5

class Holder:
    class Inner(nn.Linear):
        def __init__(self): super().__init__(2, 3)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder, with a helper beside it."""
    name = f"users_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(helper=f"{name}_helper"))
    (tmp_path / f"{name}_helper.py").write_text("")
    (tmp_path / f"{name}_broken.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / f"{name}_syntax.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    return name


def test_a_factory_is_found_in_the_current_folder(module: str) -> None:
    before = list(sys.path)
    model = builders.factory_model(f"{module}:make")
    assert isinstance(model, nn.Sequential)
    assert sys.path == before
    assert isinstance(builders.factory_model(f"{module}:Holder.Inner"), nn.Linear)


def test_a_factory_is_given_the_classes_if_it_takes_them(module: str) -> None:
    for name in ("classifier", "anything"):
        model = builders.factory_model(f"{module}:{name}", num_classes=7)
        assert isinstance(model, nn.Linear)
        assert model.out_features == 7
    with pytest.raises(InputError, match="make: takes no num_classes; leave it out"):
        builders.factory_model(f"{module}:make", num_classes=7)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("{m}:needs", "needs width, depth; name a function without required arguments"),
        ("{m}:classifier", "needs num_classes; name a function without"),
        ("{m}:wrong", r"wrong: returns dict, not a torch\.nn\.Module"),
        ("{m}:fails", r"fails: fails \(KeyError: 'lost\\nkey'\)"),
        ("{m}:instance", r"is Linear; name a function that returns a torch\.nn\.Module"),
        ("{m}:number", "is int; name a function"),
        ("{m}:mak", "unknown factory 'mak'; did you mean 'make'"),
        ("{m}_nothing:f", "no module '{m}_nothing', neither installed nor in the current folder"),
        ("torch.nowhere.at.all:f", "no module 'torch.nowhere', neither"),
        ("{m}_broken:f", "module '{m}_broken' needs 'a_module_that_is_not_there'"),
        ("{m}_syntax:f", r"cannot be imported \(SyntaxError"),
    ],
)
def test_a_factory_that_cannot_be_used_is_one_clear_line(
    module: str, factory: str, message: str
) -> None:
    with pytest.raises(InputError, match=message.format(m=module)) as caught:
        builders.factory_model(factory.format(m=module))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(factory.format(m=module))


def test_timm_and_torchvision_take_classes_and_more() -> None:
    model = builders.timm_model("test_resnet", 5, {"in_chans": 1})
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 5)
    model = builders.torchvision_model("squeezenet1_1", 5, {"dropout": 0.1})
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert builders.timm_model("test_resnet", 0)(torch.zeros(1, 3, 64, 64)).ndim == 2


def test_no_backbone_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("asked for weights")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refused)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refused)
    model = build("torchvision", {"name": "lraspp_mobilenet_v3_large"})
    assert isinstance(model, nn.Module)


@pytest.mark.parametrize(
    ("builder", "arguments", "message"),
    [
        ("timm", {"name": "test_resnett"}, "unknown timm model 'test_resnett'; did you mean"),
        ("timm", {"name": "hf-hub:some/where"}, "unknown timm model 'hf-hub:some/where'"),
        ("timm", {"name": "local-dir:here"}, "unknown timm model 'local-dir:here'"),
        ("timm", {"name": "test_resnet.nope"}, "refuses its arguments .*nope"),
        ("timm", {"name": "test_resnet", "pretrained": 1, "kwargs": {"x": 1}}, "refuses"),
        ("timm", {"name": "test_resnet", "kwargs": {"pretrained": True}}, "multiple values"),
        ("timm", {"name": "test_resnet", "kwargs": {"checkpoint_path": "x"}}, "multiple values"),
        ("torchvision", {"name": "resnet17"}, "unknown torchvision model 'resnet17'; did you"),
        ("torchvision", {"name": "resnet18", "kwargs": {"weights": "DEFAULT"}}, "multiple values"),
        ("torchvision", {"name": "resnet18", "kwargs": {"wide": 2}}, "refuses its arguments"),
        ("factory", {}, "refuses its arguments .*factory"),
    ],
)
def test_arguments_of_a_manifest_that_cannot_be_are_refused(
    builder: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(builder, arguments)
    assert "\n" not in str(caught.value)


def test_a_seed_gives_the_weights_and_leaves_the_state_of_torch() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, same, other = (
        build("timm", {"name": "test_resnet"}, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])


def test_every_name_of_the_libraries_is_known() -> None:
    names = builders.library_names()
    assert len(names) == len(set(names)) > 1000
    assert {"resnet18", "googlenet", "fcn_resnet50"} <= set(names)
    assert builders.has_timm("resnet18.a1_in1k")
    assert builders.has_torchvision("googlenet")
    assert not builders.has_timm("googlenet")


BASE = {"builder": "timm", "arguments": {"name": "test_resnet"}}


def test_a_converted_network_is_built_again_in_the_steps_taken() -> None:
    from normapps.norm.convert.converter import convert_norm_

    model = build("timm", {"name": "test_resnet"}, seed=1)
    first = convert_norm_(model, "group", include="layer1", num_groups=4)
    second = convert_norm_(model, "instance")
    steps = [
        {
            "to": to,
            "options": options,
            "layers": [row.name for row in done.report if row.before != row.after],
        }
        for to, options, done in (
            ("group", {"num_groups": 4}, first),
            ("instance", {}, second),
        )
    ]
    again = build("converted", json.loads(json.dumps({"base": BASE, "steps": steps})))
    kinds = [[type(module) for module in each.modules()] for each in (model, again)]
    assert kinds[0] == kinds[1]
    assert kinds[0] != [type(m) for m in build("timm", {"name": "test_resnet"}).modules()]
    again.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.eval()(x), again.eval()(x))


def test_a_step_takes_the_layers_that_it_lists_and_no_others() -> None:
    def built(**step: object) -> set[str]:
        whole = build("converted", {"base": BASE, "steps": [{"to": "instance", **step}]})
        return {name for name, m in whole.named_modules() if "Instance" in type(m).__name__}

    everything = built()
    one = min(everything)
    assert len(everything) > 3
    assert built(layers=[one]) == {one}
    assert built(layers=[]) == set()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"to": "bacth"}], "unknown norm 'bacth'; did you mean 'batch'"),
        ([{"to": "instance", "layers": ["nowhere"]}], "unknown norm layer 'nowhere'"),
        ([{"to": "instance", "options": {"group_sise": 3}}], "group_sise"),
        ([{}], "refuses its arguments"),
    ],
)
def test_steps_that_do_not_fit_are_refused(steps: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build("converted", {"base": BASE, "steps": steps})
    assert "\n" not in str(caught.value)
