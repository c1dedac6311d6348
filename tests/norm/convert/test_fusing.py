"""Blocks that fold their batch norms: as with torch's layers, or a clear refusal."""

from __future__ import annotations

import copy
import importlib
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normapps.models  # noqa: F401 -- the guard that timm needs beside torch without CUDA
from normapps.errors import InputError, NormappsError
from normapps.norm.convert.converter import convert_norm, convert_norm_

timm = importlib.import_module("timm")

MODELS = ["repvgg_a0", "levit_128s", "repghostnet_050", "shvit_s1", "efficientvit_m0"]
"""One for `reparameterize`, `fuse`, `switch_to_deploy`, a fuse of the network, and 113 layers."""


class Block(nn.Module):
    """Folds its batch norm, as RepVGG does, by reading what a batch norm has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y

    def fuse(self) -> nn.Module:
        return torch.nn.utils.fuse_conv_bn_eval(self.conv, self.bn)


class Tower(nn.Module):
    """A network whose own `fuse` skips what it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm(4))

    def fuse(self) -> str:
        return "fused"


def test_ours_is_folded_like_torchs() -> None:
    block = Block().eval()
    block.bn.running_mean.normal_()
    x = torch.randn(2, 3, 4, 4)
    folded = block.fuse()(x)
    convert_norm_(block, "batch")
    assert torch.equal(block.fuse()(x), folded)


@pytest.mark.parametrize("norm", ["instance", "group", "iternorm", "ibn", "domain"])
def test_other_layers_make_the_block_and_all_above_refuse(norm: str) -> None:
    tower = Tower()
    options: dict[str, Any] = {"num_domains": 2} if norm == "domain" else {}
    conversion = convert_norm_(tower, norm, include="blocks.1.bn", **options)
    kind = type(tower.blocks[1].bn).__name__
    with pytest.raises(NormappsError, match=rf"fuse\(\) folds .*'bn' is a {kind}, which cannot"):
        tower.blocks[1].fuse()
    with pytest.raises(NormappsError, match=r"'blocks.1.bn'"):
        tower.fuse()
    tower.blocks[0].eval().fuse()
    conversion.undo()
    assert tower.fuse() == "fused"
    tower.blocks[1].eval().fuse()
    assert "fuse" not in vars(tower)


def test_a_converted_copy_refuses_and_the_original_does_not() -> None:
    tower = Tower()
    with pytest.raises(InputError, match="cannot be folded"):
        convert_norm(tower, "group").fuse()
    assert tower.fuse() == "fused"


def test_a_refusal_survives_copies_and_leaves_the_keys() -> None:
    tower = Tower()
    keys = list(tower.state_dict())
    convert_norm_(tower, "group", include="blocks.1")
    assert [key for key in keys if "running" not in key and "num_b" not in key] == [
        key for key in tower.state_dict() if "blocks.0.bn.r" not in key and "num_b" not in key
    ]
    for other in (copy.deepcopy(tower), pickle.loads(pickle.dumps(tower))):
        with pytest.raises(InputError, match="cannot be folded"):
            other.fuse()


def test_converting_back_lifts_the_refusal_and_undo_puts_it_back() -> None:
    tower = Tower()
    convert_norm_(tower, "group")
    back = convert_norm_(tower, "batch")
    assert tower.fuse() == "fused"
    back.undo()
    with pytest.raises(InputError, match="cannot be folded"):
        tower.fuse()


def test_layers_that_never_were_folded_are_no_reason_to_refuse() -> None:
    tower = Tower()
    convert_norm_(tower, "rms", match="layer")
    assert tower.fuse() == "fused"


@pytest.mark.parametrize("name", MODELS)
def test_timms_blocks_fuse_to_the_same_network(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    size = model.default_cfg["input_size"][-1] if "evit" in name or "levit" in name else 32
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    reparametrize, x = timm.models.reparameterize_model, torch.randn(1, 3, size, size)
    with torch.no_grad():
        fused = reparametrize(model)
        expected = fused(x)
        convert_norm_(model, "batch")
        ours = reparametrize(model)
        assert list(ours.state_dict()) == list(fused.state_dict())
        assert torch.equal(ours(x), expected)
    conversion = convert_norm_(model, "group")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(NormappsError, match="cannot be folded"):
        reparametrize(model, inplace=True)
    assert list(model.state_dict()) == list(before)
    conversion.undo()
    with torch.no_grad():
        assert torch.equal(reparametrize(model)(x), expected)
