"""Converted models as folders: they open again as what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from normapps import load_model
from normapps.analysis.conversion import convert_model
from normapps.analysis.options import ConvertOptions
from normapps.errors import InputError
from normapps.models.load import open_model
from normapps.norm.layers.base import NormLayer

MODEL = "test_efficientnet"


def test_a_converted_model_opens_again(tmp_path: Path) -> None:
    out = tmp_path / "converted"
    report = convert_model(MODEL, out, ConvertOptions(to="group", set=("num_groups=4",)))
    assert report.conversion.converted == len(report.conversion.report) > 0
    assert report.change > 0.01
    model = load_model(out)
    layers = [layer for layer in model.modules() if isinstance(layer, NormLayer)]
    assert len(layers) == report.conversion.converted
    assert {layer.num_groups for layer in layers} <= {1, 2, 3, 4}
    x = torch.randn(1, 3, 160, 160)
    assert torch.isfinite(model(x)).all()


def test_to_our_batch_norm_and_back_changes_nothing(tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    report = convert_model(MODEL, there, ConvertOptions(to="batch"))
    assert report.change == 0
    assert convert_model(str(there), back, ConvertOptions(to="torch")).change == 0
    original, found = open_model(MODEL), open_model(back)
    assert list(found.model.state_dict()) == list(original.model.state_dict())
    assert [type(m) for m in found.model.modules()] == [type(m) for m in original.model.modules()]
    x = torch.randn(1, 3, 160, 160)
    assert torch.equal(found.model(x), original.model(x))
    assert found.preprocessing == original.preprocessing
    assert [list(step) for step in found.history][-2:] == [["converted"], ["converted"]]


def test_only_some_layers(tmp_path: Path) -> None:
    options = ConvertOptions(to="instance", include=("blocks.0*",))
    report = convert_model(MODEL, tmp_path / "out", options)
    assert {row.name.split(".")[0] for row in report.conversion.report} == {"blocks"}
    kept = [type(m).__name__ for m in load_model(tmp_path / "out").modules()]
    assert "BatchNormAct2d" in kept
    assert "InstanceNorm" in kept


def test_layers_that_want_a_condition_have_no_change_to_tell(tmp_path: Path) -> None:
    options = ConvertOptions(to="conditional", set=("num_classes=3",))
    assert convert_model(MODEL, tmp_path / "out", options).change is None
    state = load_model(tmp_path / "out").state_dict()
    assert any(value.shape[:1] == (3,) for value in state.values())


def test_what_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="unknown norm 'iternom'; did you mean 'iternorm'"):
        convert_model(MODEL, out, ConvertOptions(to="iternom"))
    with pytest.raises(InputError, match="group_syze"):
        convert_model(MODEL, out, ConvertOptions(to="zca", set=("group_syze=4",)))
    assert not out.exists()
    out.mkdir()
    (out / "file").touch()
    with pytest.raises(InputError, match="exists already"):
        convert_model(MODEL, out, ConvertOptions(to="batch"))


@pytest.mark.parametrize(
    "options",
    [{"to": "conditional", "set": ("num_classes=3",)}, {"to": "domain", "set": ("num_domains=2",)}],
)
def test_a_conditional_model_comes_back(tmp_path: Path, options: dict[str, Any]) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    assert "condition" in convert_model(MODEL, there, ConvertOptions(**options)).unknown
    report = convert_model(str(there), back, ConvertOptions(to="batch", match=options["to"]))
    assert report.conversion.converted > 0
    x = torch.randn(1, 3, 160, 160)
    assert torch.allclose(load_model(back)(x), open_model(MODEL).model(x), atol=1e-5)


def test_a_model_that_takes_more_than_a_picture_has_its_own_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no norm layer"):
        convert_model("adain-tiny", tmp_path / "out", ConvertOptions(to="batch"))


@pytest.mark.parametrize(
    ("to", "value", "message"),
    [
        ("iternorm", "eps=nan", "eps='nan' must be float"),
        ("batch", "momentum=abc", "momentum='abc' must be float or None"),
        ("batch", "device=cuda", "device follows the layer"),
        ("group", "num_groups=abc", "num_groups='abc' must be int"),
    ],
)
def test_values_of_set_are_checked(tmp_path: Path, to: str, value: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert_model(MODEL, tmp_path / "out", ConvertOptions(to=to, set=(value,)))


def test_outputs_that_are_no_numbers_are_said(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = open_model("test_resnet").model.state_dict()
    state["fc.weight"][:] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    options = ConvertOptions(to="batch", checkpoint=tmp_path / "nan.safetensors")
    report = convert_model("test_resnet", tmp_path / "out", options)
    assert report.change is None
    assert "not finite" in report.unknown
