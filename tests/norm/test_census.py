"""The converter on timm's and torchvision's families; all of them under `pytest -m census`.

The census itself is benchmarks/census.py, which also writes the table.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import normapps.models  # noqa: F401 -- the guard that timm needs beside torch without CUDA
from normapps.norm.convert.converter import convert_norm_
from normapps.norm.layers.batch import BatchNorm

timm = importlib.import_module("timm")
torchvision = importlib.import_module("torchvision")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

DOZEN = {
    "byobnet": "test_byobnet",  # a ConvNormAct a branch
    "efficientnet": "test_efficientnet",  # activations in the batch norms
    "dla": "dla46x_c",  # batch norms under indices
    "fastvit": "fastvit_t8",  # reparameterize
    "hgnet": "hgnetv2_b0",  # learnable affine blocks behind
    "inception_next": "inception_next_atto",  # a norm layer in a head without maps
    "levit": "levit_128s",  # fuse; 1d layers of flattened tokens
    "maxxvit": "test_coatnet",  # batch and layer norms
    "mobilevit": "mobilevit_xxs",
    "repghost": "repghostnet_050",  # switch_to_deploy
    "resnest": "resnest14d",  # layers behind a global pool
    "resnet": "test_resnet",
    "xcit": "xcit_nano_12_p8_224",  # a fixed size
}


@pytest.fixture
def census(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, which is a script and not part of a package."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("census")


def _check(row: Any) -> None:
    assert row.ours == row.layers > 0
    assert row.between == 0
    assert row.difference == 0
    assert row.keys_equal
    assert row.step == "ok"
    assert row.instance > 0


@pytest.mark.parametrize("family", DOZEN)
def test_a_dozen_that_cover_every_case(family: str, census: ModuleType) -> None:
    row = census.examined(family, DOZEN[family], census.timm_model)
    _check(row)
    assert bool(row.reparametrizes) == (family in ("fastvit", "levit", "repghost"))
    assert (row.fused_activation > 0) == (
        family in ("byobnet", "efficientnet", "maxxvit", "mobilevit", "repghost")
    )
    assert (row.instance < row.layers) == (family in ("levit", "resnest"))


def test_the_census_fails_where_an_activation_is_lost(census: ModuleType) -> None:
    """The naive converter that replaces what is a BatchNorm2d by another BatchNorm2d is caught."""
    model, x = census.timm_model("test_efficientnet")
    before = model(x)
    for parent in model.modules():
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                naive = nn.BatchNorm2d(layer.num_features, layer.eps).eval()
                naive.load_state_dict(layer.state_dict())
                setattr(parent, name, naive)
    assert (model(x) - before).abs().max() > 0.01 * before.abs().max()


def test_the_census_notices_statistics_and_a_bad_conversion(
    census: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = census.timm_model("test_resnet")
    assert all(float(layer.running_var.std()) > 0 for layer in census.batch_norms(model))
    forward = BatchNorm.normalize
    monkeypatch.setattr(BatchNorm, "normalize", lambda self, y: forward(self, y) * 1.0001)
    row = census.examine("resnet", "test_resnet", model, x)
    assert row.between > 0
    with pytest.raises(AssertionError):
        _check(row)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "levit_128s"])
def test_features_are_the_same(name: str) -> None:
    """timm's feature extraction refers to modules by index, by name or by hook."""
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=name != "levit_128s").eval()
    x = torch.randn(1, 3, 224 if "levit" in name else 64, 224 if "levit" in name else 64)
    with torch.no_grad():
        before = model(x)
        convert_norm_(model, "batch")
        after = model(x)
    pairs = zip(before, after, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_layer_norms_there_and_back(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    size = model.default_cfg["input_size"][-1]
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "norm" in key:
                value.add_(torch.rand_like(value))
        x = torch.randn(1, 3, size, size)
        out, keys = model(x), list(model.state_dict())
        assert convert_norm_(model, "position", match="layer").converted > 5
        torch.testing.assert_close(model(x), out)
        convert_norm_(model, "torch")
        assert list(model.state_dict()) == keys
        torch.testing.assert_close(model(x), out)


def test_a_detector_with_frozen_layers_there_and_back() -> None:
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None
    )
    frozen = torchvision.models.detection.backbone_utils.mobilenet_backbone(
        backbone_name="mobilenet_v3_small",
        weights=None,
        fpn=False,
        norm_layer=torchvision.ops.misc.FrozenBatchNorm2d,
    ).eval()
    assert convert_norm_(model, "batch").converted > 30
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        out, keys = frozen(x), list(frozen.state_dict())
        assert convert_norm_(frozen, "batch").converted == 34
        torch.testing.assert_close(frozen(x), out)
        assert list(frozen.state_dict()) == keys
        convert_norm_(frozen, "torch")
        assert torch.equal(frozen(x), out)
        assert list(frozen.state_dict()) == keys


@pytest.mark.census
@pytest.mark.parametrize(
    ("kind", "family"),
    [("timm", f) for f in sorted(timm.list_modules())] + [("torchvision", "all")],
)
def test_every_family(kind: str, family: str, census: ModuleType, capsys: Any) -> None:
    """Families without a 2d batch norm in any of their models are skipped."""
    if kind == "torchvision":
        rows = list(census.torchvision_rows())
    elif family in census.SMALLEST:
        rows = list(census.timm_rows([family]))
    else:
        assert not list(_with_batch_norm(family)), f"{family} belongs into SMALLEST"
        pytest.skip("no 2d batch norm")
    with capsys.disabled():
        print("", *(row.markdown() for row in rows), sep="\n")
    for row in rows:
        _check(row)


def _with_batch_norm(family: str) -> list[str]:
    found = []
    for name in timm.list_models(module=family):
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(name, pretrained=False)
        if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            found.append(name)
    return found
